"""Cross-entropy at the positions that are targets, and only there.

A target is scored among the ids that can stand at its place: text among all ids, the actions of control tasks among the
discrete and the continuous ids. The policy samples under the same grammar (policy.py), so nothing else is needed at
action positions, and the softmax over 33,025 ids is paid for text alone.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tokenization.vocabulary import CONTINUOUS_OFFSET, NUM_BINS, NUM_DISCRETE
from trainer.model import Generalist

_ROWS_AT_ONCE = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Targets:
    """What the model is asked to predict.

    Attributes (K targets):
      slots: int64 [K], place in [0, N) of the hidden state that predicts: the token before the target.
      ids: int64 [K], vocabulary ids.
      weights: float32 [K].
      is_text: bool [K]: scored among all ids.
      tasks: int64 [K], index of the task, for the metrics.
    """

    slots: Tensor
    ids: Tensor
    weights: Tensor
    is_text: Tensor
    tasks: Tensor


def soft_bin_labels(bins_K: Tensor, sigma_bins: float) -> Tensor:
    """Labels [K, 1024]: a Gaussian around each bin, so that a near miss costs less than a far one.

    The idea is the histogram loss of Imani and White (2018); sigma is in bins.
    """
    distance = torch.arange(NUM_BINS, device=bins_K.device)[None, :] - bins_K[:, None]
    return torch.softmax(-0.5 * (distance / sigma_bins) ** 2, dim=-1)


def target_losses(model: Generalist, hidden_ND: Tensor, targets: Targets, sigma_bins: float) -> Tensor:
    """Loss in nats of each target, unweighted [K], in the order of `targets`.

    With soft labels the entropy of the label is subtracted, so 0 stays the best value there is.
    """
    hidden_KD = hidden_ND[targets.slots]
    losses = torch.zeros(len(targets.ids), dtype=torch.float32, device=hidden_KD.device)
    (text,) = targets.is_text.nonzero(as_tuple=True)
    (control,) = (~targets.is_text).nonzero(as_tuple=True)
    if len(text):
        losses = losses.index_put((text,), _text_losses(model, hidden_KD[text], targets.ids[text]))
    if len(control):
        logits = model.control_logits(hidden_KD[control]).float()
        ids = targets.ids[control]
        is_bin = ids >= CONTINUOUS_OFFSET
        columns = torch.where(is_bin, ids - CONTINUOUS_OFFSET + NUM_DISCRETE, ids)
        if sigma_bins > 0 and bool(is_bin.any()):
            log_probabilities = functional.log_softmax(logits, dim=-1)
            control_losses = -log_probabilities.gather(1, columns[:, None])[:, 0]
            (soft,) = is_bin.nonzero(as_tuple=True)
            labels = soft_bin_labels(columns[soft] - NUM_DISCRETE, sigma_bins)
            entropy = -(labels * (labels + 1e-12).log()).sum(-1)
            soft_losses = -(labels * log_probabilities[soft, NUM_DISCRETE:]).sum(-1) - entropy
            control_losses = control_losses.index_put((soft,), soft_losses)
        else:
            control_losses = functional.cross_entropy(logits, columns, reduction="none")
        losses = losses.index_put((control,), control_losses)
    return losses


def _text_losses(model: Generalist, hidden_KD: Tensor, ids_K: Tensor) -> Tensor:
    if hidden_KD.is_cuda or not torch.is_grad_enabled():
        return functional.cross_entropy(model.text_logits(hidden_KD).float(), ids_K, reduction="none")
    is_cast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if is_cast else hidden_KD.dtype
    losses: Tensor = _LinearCrossEntropy.apply(hidden_KD.to(dtype), model.text_table().to(dtype), ids_K)
    return losses


class _LinearCrossEntropy(torch.autograd.Function):
    """Cross-entropy of hidden @ table.T, a few rows at a time, so that a CPU keeps their logits in its cache.

    The forward pass leaves the gradient of the logits behind: what comes from above scales its rows, and that can be
    done to the narrow factors of the products instead.
    """

    @staticmethod
    def forward(ctx: Any, hidden_KD: Tensor, table_VD: Tensor, ids_K: Tensor) -> Tensor:
        gradient_KV = hidden_KD.new_empty((len(ids_K), len(table_VD)))
        losses = torch.empty(len(ids_K), dtype=torch.float32)
        for start in range(0, len(ids_K), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            ids = ids_K[rows, None]
            logits = (hidden_KD[rows] @ table_VD.T).float()
            top, place = logits.max(1, keepdim=True)
            chosen = logits.gather(1, ids)
            probabilities = logits.softmax(1)
            losses[rows] = (top - probabilities.gather(1, place).log() - chosen)[:, 0]
            gradient_KV[rows] = probabilities.scatter_add_(1, ids, torch.full_like(chosen, -1.0))
        ctx.save_for_backward(hidden_KD, table_VD, gradient_KV)
        return losses

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden_KD, table_VD, gradient_KV = ctx.saved_tensors
        scale = above[0][:, None]
        hidden_gradient = (gradient_KV @ table_VD) * scale
        table_gradient = gradient_KV.T @ (hidden_KD * scale).to(gradient_KV.dtype)
        return hidden_gradient.to(hidden_KD.dtype), table_gradient, None


def weighted_mean(losses_K: Tensor, targets: Targets, total_weight: Tensor) -> Tensor:
    """What these targets add to the mean by weight of all targets of a step, whose weights sum to `total_weight`."""
    return (losses_K * targets.weights).sum() / total_weight


BITS_PER_NAT = 1.0 / math.log(2.0)
