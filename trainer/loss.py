"""Cross-entropy at the positions that are targets, and only there.

A target is scored among the ids that can stand at its place: text among all ids, the actions of control tasks among the
discrete and the continuous ids. The policy samples under the same grammar (policy.py), so nothing else is needed at
action positions, and the softmax over 33,025 ids is paid for text alone.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor
from torch.nn import functional

from tokenization.vocabulary import CONTINUOUS_OFFSET, NUM_BINS, NUM_DISCRETE
from trainer.model import Generalist


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
        logits = model.text_logits(hidden_KD[text]).float()
        losses = losses.index_put((text,), functional.cross_entropy(logits, targets.ids[text], reduction="none"))
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


def weighted_mean(losses_K: Tensor, targets: Targets, total_weight: Tensor) -> Tensor:
    """What these targets add to the mean by weight of all targets of a step, whose weights sum to `total_weight`."""
    return (losses_K * targets.weights).sum() / total_weight


BITS_PER_NAT = 1.0 / math.log(2.0)
