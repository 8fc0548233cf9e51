"""Estimates against what was published and what tensors really take."""

import dataclasses
import json

import pytest
import torch

from episode_store.errors import UserError
from trainer import checkpoint, cli, presets
from trainer.batch import collate
from trainer.config import ModelConfig, SamplerConfig
from trainer.model import Generalist
from trainer.optim import Optimizer
from trainer.plan import HARDWARE, activation_bytes_per_token, hardware, make_plan
from trainer.sampler import Sampler
from trainer.shards import Dataset


def test_gato_costs_what_is_quoted_for_it():
    """524 billion tokens; four days on 256 chips at two dollars an hour are 49,152 dollars."""
    config = presets.get("1180m")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, positions="relative"))
    plan = make_plan(config, HARDWARE["tpu-v3"], count=256, utilisation=0.31)
    assert plan["tokens"] == 512 * 1024 * 1_000_000
    assert plan["flops"] == pytest.approx(6 * 1.18e9 * 524e9, rel=0.15)
    assert plan["hours"] == pytest.approx(4 * 24, rel=0.1)
    assert plan["dollars"] == pytest.approx(50_000, rel=0.1)


def test_weights_and_moments_take_sixteen_bytes_each():
    plan = make_plan(presets.get("79m"), HARDWARE["h100"])
    parts = plan["memory_gb"]
    assert parts["weights"] + parts["gradients"] + parts["optimizer"] == pytest.approx(16 * plan["parameters"] / 1e9)
    sharded = make_plan(dataclasses.replace(presets.get("79m"), sharding="fsdp"), HARDWARE["h100"], count=8)
    assert sharded["memory_gb"]["weights"] == pytest.approx(parts["weights"] / 8)


@pytest.mark.parametrize("matrix_optimizer", ["adamw", "muon"])
def test_a_checkpoint_is_as_large_as_planned(data, tmp_path, config, matrix_optimizer):
    """Muon keeps one moment of the blocks' matrices, AdamW two of everything else."""
    config = dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, matrix_optimizer=matrix_optimizer)
    )
    model = Generalist(config.model)
    optimizer = Optimizer(model, config.optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.set_learning_rate(1e-3)
    optimizer.step(torch.amp.GradScaler("cpu", enabled=False))
    folder = checkpoint.save(tmp_path, checkpoint.snapshot(model, optimizer), {"step": 1})
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    plan = make_plan(config, HARDWARE["h100"])
    assert plan["checkpoint_gb"] == pytest.approx(size / 1e9, rel=0.01)
    assert plan["memory_gb"]["optimizer"] + plan["memory_gb"]["weights"] == pytest.approx(plan["checkpoint_gb"])


def test_activations_made_twice_cost_a_forward_pass():
    config = presets.get("1180m")
    once = make_plan(config, HARDWARE["h100"])
    twice = make_plan(dataclasses.replace(config, checkpoint_activations=True), HARDWARE["h100"])
    # Of four passes instead of three the logits, which are not made again, are hardly anything.
    for name in ("flops", "hours", "dollars"):
        assert twice[name] / once[name] == pytest.approx(4 / 3, rel=0.02)
    assert twice["tokens_per_second"] / once["tokens_per_second"] == pytest.approx(3 / 4, rel=0.02)
    assert twice["memory_gb"]["activations"] < once["memory_gb"]["activations"] / 5


def test_the_data_set_is_in_the_memory_of_the_machine(shards, capsys):
    config = presets.get("tiny")
    plan = make_plan(config, HARDWARE["h100"])
    assert plan["data_set_gb"] == pytest.approx(15 * 5_000 * 8 * 256 / 1e9)  # each token of the run once
    assert "data set" not in plan["memory_gb"]
    processor = dataclasses.replace(HARDWARE["h100"], is_host=True)
    known = make_plan(config, processor, data_tokens=1_000_000)
    assert known["memory_gb"]["data set"] == pytest.approx(0.015)
    assert known["memory_gb"]["total"] == pytest.approx(plan["memory_gb"]["total"] + 0.015)
    words = ["plan", "--preset", "tiny", "--hardware", "h100", "--shards", str(shards)]
    assert cli.main([*words, "--json"]) == 0
    listed = Dataset.open(shards).info["shards"]
    tokens = sum(shard["num_tokens"] for shard in listed if shard["split"] == "train")
    assert json.loads(capsys.readouterr().out)["data_tokens"] == tokens
    assert cli.main(words) == 0
    assert f"of the machine's memory in each rank: {tokens:,} tokens\n" in capsys.readouterr().out
    assert cli.main(words[:-2]) == 0
    assert "10,240,000 tokens, if each is seen once" in capsys.readouterr().out


def test_a_negative_price_is_told(capsys):
    with pytest.raises(SystemExit):
        cli.main(["plan", "--hardware", "h100", "--price", "-5"])
    assert "expected a number of 0 or more, got '-5'" in capsys.readouterr().err


def test_activations_are_those_that_torch_keeps(data):
    """Bytes saved for the backward pass, counted tensor by tensor, of a third block beside two."""
    sampler = Sampler(data, SamplerConfig(context_tokens=256, long_segment_tokens=48), seed=0)
    batch = collate([sampler.sequence(number) for number in range(4)])
    saved = []
    for num_blocks in (2, 3):
        config = ModelConfig(width=128, num_blocks=num_blocks, num_heads=4, key_size=32, feed_forward_size=704)
        model = Generalist(config)
        model.initialize(0)
        weights = {parameter.data_ptr() for parameter in model.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor, kept=kept, weights=weights):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16),
        ):
            hidden = model(batch.inputs, batch.attention)
        del hidden
        saved.append(sum(kept.values()))
    expected = activation_bytes_per_token(config) * len(batch.inputs.tokens)
    assert saved[1] - saved[0] == pytest.approx(expected, rel=0.35)


def test_the_command_line(capsys):
    assert cli.main(["plan", "--preset", "364m", "--hardware", "h100", "--devices", "8", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["hardware"], plan["devices"], plan["fits"]) == ("H100", 8, False)
    assert cli.main(["plan", "--preset", "364m", "--hardware", "h100", "--devices", "8", "--set",
                     "accumulation_steps=8", "checkpoint_activations=true"]) == 0  # fmt: skip
    assert ": fits" in capsys.readouterr().out
    assert cli.main(["plan", "--hardware", "abacus"]) == 2
    assert "--hardware abacus: expected cpu or one of a100, h100" in capsys.readouterr().err
    assert cli.main(["plan", "--hardware", "h100", "--mfu", "2"]) == 2
    assert "--mfu 2.0: expected more than 0 and at most 1" in capsys.readouterr().err


def test_this_machine_is_measured():
    device = hardware("cpu")
    assert device.peak_flops > 1e9
    with pytest.raises(UserError, match="expected cpu or one of"):
        hardware("gpu")
