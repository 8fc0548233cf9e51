"""Muon against torch's own, and which parameter is trained how."""

import dataclasses

import pytest
import torch

from episode_store.errors import UserError
from trainer.config import ModelConfig, OptimizerConfig
from trainer.model import Generalist
from trainer.optim import Muon, Optimizer, orthogonalized
from trainer.precision import make_scaler

CPU = torch.device("cpu")


def test_muon_equals_torchs_own():
    torch.manual_seed(0)
    start = [torch.randn(24, 8), torch.randn(24, 8), torch.randn(8, 16)]
    ours = [torch.nn.Parameter(value.clone()) for value in start]
    theirs = [torch.nn.Parameter(value.clone()) for value in start]
    optimizers = [
        Muon([{"params": ours, "weight_decay": 0.1}], lr=0.02),
        torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    ]
    for step in range(5):
        for parameters, optimizer in zip((ours, theirs), optimizers, strict=True):
            torch.manual_seed(step)
            for parameter in parameters:
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=2e-2)  # bf16 inside


@pytest.mark.parametrize("shape", [(3, 16, 8), (2, 8, 16), (1, 8, 8)])
def test_orthogonalized_has_singular_values_near_one(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalized(torch.randn(shape)).float())
    assert values.min() > 0.5
    assert values.max() < 1.4


def test_groups():
    model = Generalist(ModelConfig(width=32, num_blocks=2, num_heads=2, key_size=16, feed_forward_size=64))
    config = OptimizerConfig(matrix_optimizer="muon", muon_learning_rate_share=1.5, bin_learning_rate_share=0.1)
    optimizer = Optimizer(model, config)
    optimizer.set_learning_rate(2.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {}
    for part in optimizer.parts:
        for group in part.param_groups:
            for parameter in group["params"]:
                rates[names.pop(id(parameter))] = group["lr"]
    assert not names  # each parameter in exactly one group
    assert rates["blocks.0.query_key_value.weight"] == 3.0
    assert rates["embedding.bins.weight"] == pytest.approx(0.2)
    assert rates["embedding.text.weight"] == rates["blocks.1.attention_norm.weight"] == 2.0
    with pytest.raises(UserError, match="expected muon or adamw"):
        Optimizer(model, dataclasses.replace(config, matrix_optimizer="sgd"))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_moments_travel(kind):
    config = OptimizerConfig(matrix_optimizer=kind)
    models = []
    for _ in range(2):
        model = Generalist(ModelConfig(width=32, num_blocks=1, num_heads=2, key_size=16, feed_forward_size=64))
        model.initialize(0)
        models.append((model, Optimizer(model, config)))

    def step(model, optimizer, seed):
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.set_learning_rate(1e-2)
        optimizer.step(make_scaler("fp32", CPU))

    step(*models[0], 0)
    (first, first_optimizer), (second, second_optimizer) = models
    second.load_state_dict(first.state_dict())
    by_name = {name: first_optimizer.slots()[parameter] for name, parameter in first.named_parameters()}
    second_optimizer.load_slots(
        {p: {k: v.clone() for k, v in by_name[name].items()} for name, p in second.named_parameters()}
    )
    step(first, first_optimizer, 1)
    step(second, second_optimizer, 1)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
