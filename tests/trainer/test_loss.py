"""The loss by hand."""

import math

import pytest
import torch

from trainer.config import ModelConfig
from trainer.loss import Targets, soft_bin_labels, target_losses, weighted_mean
from trainer.model import Generalist


@pytest.fixture
def model():
    model = Generalist(ModelConfig(width=8, num_blocks=1, num_heads=1, key_size=8, feed_forward_size=16))
    with torch.no_grad():
        model.embedding.text.weight.zero_()
        model.embedding.bins.weight.zero_()
        model.embedding.text.weight[2, 0] = 1.0
        model.embedding.bins.weight[5, 1] = 2.0
    return model


def targets(ids, is_text, weights=None):
    count = len(ids)
    return Targets(
        slots=torch.arange(count),
        ids=torch.tensor(ids),
        weights=torch.tensor(weights or [1.0] * count),
        is_text=torch.tensor(is_text),
        tasks=torch.zeros(count, dtype=torch.int64),
    )


def test_actions_are_scored_among_control_ids_and_text_among_all(model):
    hidden = torch.zeros(3, 8)
    hidden[0, 0] = math.log(10.0)  # id 2 is ten times as likely as any other
    hidden[1, 0] = math.log(10.0)
    losses = target_losses(model, hidden, targets([2, 2, 7], [False, True, False]), 0.0)
    expected = [math.log(2047 + 10) - math.log(10), math.log(33_024 + 10) - math.log(10), math.log(2048)]
    torch.testing.assert_close(losses, torch.tensor(expected), atol=1e-4, rtol=0)


def test_continuous_ids_come_after_the_discrete_ones(model):
    hidden = torch.zeros(1, 8)
    hidden[0, 1] = 1.0
    loss = target_losses(model, hidden, targets([32_005], [False]), 0.0)
    torch.testing.assert_close(loss, torch.tensor([math.log(2047 + math.e**2) - 2.0]), atol=1e-4, rtol=0)


def test_soft_labels_are_a_gaussian_around_the_bin():
    labels = soft_bin_labels(torch.tensor([100, 0]), 2.0)
    assert labels.shape == (2, 1024)
    torch.testing.assert_close(labels.sum(-1), torch.ones(2))
    assert labels[0].argmax() == 100
    torch.testing.assert_close(labels[0, 102] / labels[0, 100], torch.tensor(math.exp(-0.5)))
    torch.testing.assert_close(labels[0, 98], labels[0, 102])


def test_soft_loss_is_zero_at_best_and_counts_near_misses_less(model):
    hidden = torch.zeros(1, 8)
    with torch.no_grad():
        model.embedding.bins.weight.zero_()
        model.embedding.text.weight[:1024, 0] = -1e4
        model.embedding.bins.weight[:1024, 0] = soft_bin_labels(torch.tensor([500]), 3.0)[0].log().clamp_min(-80)
    hidden[0, 0] = 1.0
    at, near, far = (
        float(target_losses(model, hidden, targets([32_000 + place], [False]), 3.0)) for place in (500, 502, 520)
    )
    assert abs(at) < 1e-3
    assert at < near < far


def test_weighted_mean():
    loss = weighted_mean(torch.tensor([1.0, 3.0]), targets([1, 2], [False, False], [3.0, 1.0]), torch.tensor(4.0))
    torch.testing.assert_close(loss, torch.tensor(1.5))


@pytest.mark.parametrize(("precision", "spread", "tolerance"), [("fp32", 200.0, 1e-5), ("bf16", 20.0, 2e-2)])
def test_losses_of_text_and_their_gradients_are_the_plain_ones(precision, spread, tolerance):
    """150 targets, some of them the likeliest and some hopeless, each with its own weight, against fp64."""
    model = Generalist(ModelConfig(width=16, num_blocks=1, num_heads=1, key_size=8, feed_forward_size=16))
    model.initialize(0)
    generator = torch.Generator().manual_seed(0)
    hidden = (spread * torch.randn(150, 16, generator=generator)).requires_grad_()
    weights = torch.rand(150, generator=generator)
    ids = torch.randint(0, 33_025, (150,), generator=generator)
    ids[:50] = model.text_logits(hidden.detach())[:50].argmax(1)
    asked = targets(ids.tolist(), [True] * 150)
    tables = (model.embedding.text.weight, model.embedding.bins.weight)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        losses = target_losses(model, hidden, asked, 0.0)
    assert losses.dtype == torch.float32
    found = torch.autograd.grad((losses * weights).sum(), (hidden, *tables))
    with torch.no_grad():
        plain = target_losses(model, hidden, asked, 0.0)
    leaves = [tensor.detach().double().requires_grad_() for tensor in (hidden, *tables)]
    exact = torch.nn.functional.cross_entropy(leaves[0] @ torch.cat(leaves[1:]).T, ids, reduction="none")
    expected = torch.autograd.grad((exact * weights.double()).sum(), leaves)
    assert exact.max() > 0.5 * spread  # a hopeless one
    for one in (losses, plain) if precision == "fp32" else (losses,):
        torch.testing.assert_close(one.double(), exact, atol=40 * tolerance, rtol=tolerance)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.double() - theirs).norm() < tolerance * theirs.norm()
