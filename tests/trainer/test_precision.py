"""fp16's loss scale, which works on a CPU too: a step is taken by all optimizers or by none, and is counted."""

import dataclasses
import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

from trainer import checkpoint
from trainer import train as train_module
from trainer.shards import Dataset
from trainer.train import NonFiniteLossError, train

TOO_LARGE = 2.0**22


@pytest.fixture
def scale(monkeypatch):
    """Trains with a loss scale that begins at a value and grows after every third good step.

    The numbers stay in fp32, and a gradient beyond the range of fp16 becomes infinite, as it would on a GPU.
    """

    def scale(value):
        real = train_module._accumulate

        def accumulate(learner, *others):
            result = real(learner, *others)
            for parameter in learner.parameters():
                parameter.grad[parameter.grad.abs() > torch.finfo(torch.float16).max] = math.inf
            return result

        make = lambda *_: torch.amp.GradScaler("cpu", init_scale=value, growth_interval=3)  # noqa: E731
        monkeypatch.setattr(train_module, "make_scaler", make)
        monkeypatch.setattr(train_module, "_accumulate", accumulate)

    return scale


@pytest.fixture
def spoil(monkeypatch):
    """Puts a value into the gradient of one parameter, in the steps given, numbered from 1."""

    def spoil(name, value, steps):
        real, calls = train_module._accumulate, []

        def accumulate(learner, *others):
            result = real(learner, *others)
            calls.append(1)
            if len(calls) in steps:
                dict(learner.model.named_parameters())[name].grad.view(-1)[0] = value
            return result

        monkeypatch.setattr(train_module, "_accumulate", accumulate)

    return spoil


def lines(run):
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run, step):
    return load_file(run / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


@pytest.mark.parametrize("matrices", ["adamw", "muon"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["embedding.bins.weight", "blocks.1.query_key_value.weight"])
def test_a_step_is_taken_by_all_optimizers_or_by_none(
    shards, tmp_path, config, scale, spoil, capsys, matrices, value, name
):
    scale(2.0**10)
    spoil(name, value, {2})
    optimizer = dataclasses.replace(config.optimizer, matrix_optimizer=matrices)
    config = dataclasses.replace(config, steps=3, checkpoint_every_steps=1, keep_checkpoints=3, optimizer=optimizer)
    summary = train(Dataset.open(shards), tmp_path, config)
    first, second, third = (weights(tmp_path, step) for step in (1, 2, 3))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.isfinite(third[name]).all() for name in third)
    assert any(not torch.equal(second[name], third[name]) for name in third)
    # It is counted, in the file, and told with its source.
    assert summary["skipped_steps"] == 1
    (event,) = [line for line in lines(tmp_path) if "skipped" in line]
    assert event["step"] == 2
    told = f"not finite; every target's loss is finite, in the gradient of {name}, loss scale 1024; the step is skipped"
    assert told in event["skipped"]
    assert f"trainer: step 2: {event['skipped']}\n" in capsys.readouterr().err


def test_skipped_steps_have_no_part_in_the_means(shards, tmp_path, config, scale, spoil):
    scale(2.0**10)
    spoil("embedding.bins.weight", math.inf, {2, 3, 4})
    train(Dataset.open(shards), tmp_path, dataclasses.replace(config, steps=6, log_every_steps=2))
    rows = [line for line in lines(tmp_path) if "loss" in line]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert rows[0]["loss"] > 5  # of the first step alone
    assert rows[1]["loss"] is None
    assert rows[1]["gradient_norm"] is None
    assert rows[2]["loss"] > 5


def test_the_scale_settles_and_the_run_goes_on(shards, tmp_path, config, scale):
    scale(TOO_LARGE)
    summary = train(Dataset.open(shards), tmp_path, dataclasses.replace(config, steps=20, non_finite="stop"))
    skipped = [line["step"] for line in lines(tmp_path) if "skipped" in line]
    assert skipped[0] == 1
    assert len(skipped) == summary["skipped_steps"] < 15
    assert checkpoint.read_state(checkpoint.latest(tmp_path))["scaler"]["scale"] < TOO_LARGE


def test_overflows_without_end_stop_the_run(shards, tmp_path, config, scale, spoil):
    scale(2.0**10)
    spoil("embedding.bins.weight", math.inf, range(3, 100))
    told = r"step 12: loss .*, gradient norm inf: not finite; every target's loss is finite, in the gradient of embed"
    with pytest.raises(NonFiniteLossError, match=told):
        train(Dataset.open(shards), tmp_path, dataclasses.replace(config, steps=40, non_finite="skip"))
    assert len([line for line in lines(tmp_path) if "skipped" in line]) == 10


@pytest.mark.parametrize("policy", ["skip", "stop"])
def test_a_loss_that_is_not_finite_is_no_matter_of_the_scale(shards, tmp_path, config, scale, monkeypatch, policy):
    scale(2.0**10)
    real, calls = train_module.target_losses, []

    def broken(*arguments):
        calls.append(1)
        return real(*arguments) * (math.nan if len(calls) == 2 else 1.0)

    monkeypatch.setattr(train_module, "target_losses", broken)
    config = dataclasses.replace(config, non_finite=policy)
    if policy == "stop":
        with pytest.raises(NonFiniteLossError, match="step 2: loss nan"):
            train(Dataset.open(shards), tmp_path, config)
    else:
        assert train(Dataset.open(shards), tmp_path, config)["skipped_steps"] == 1
        assert all(torch.isfinite(value).all() for value in weights(tmp_path, 6).values())


def test_a_resumed_run_keeps_its_scale(shards, tmp_path, config, scale):
    scale(TOO_LARGE)
    config = dataclasses.replace(config, steps=16, checkpoint_every_steps=8)
    whole = train(Dataset.open(shards), tmp_path / "whole", config)
    train(Dataset.open(shards), tmp_path / "cut", config)
    shutil.rmtree(checkpoint.latest(tmp_path / "cut"))
    assert train(Dataset.open(shards), tmp_path / "cut", config)["skipped_steps"] == whole["skipped_steps"] > 0
    expected, got = weights(tmp_path / "whole", 16), weights(tmp_path / "cut", 16)
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    told = [[line["step"] for line in lines(tmp_path / run) if "skipped" in line] for run in ("whole", "cut")]
    assert told[0] == told[1]


def test_a_held_out_loss_that_is_not_finite_stays_json(shards, tmp_path, config, monkeypatch):
    real = train_module.target_losses
    monkeypatch.setattr(
        train_module, "target_losses", lambda *all: real(*all) * (1.0 if torch.is_grad_enabled() else math.inf)
    )
    summary = train(Dataset.open(shards), tmp_path, dataclasses.replace(config, steps=2, validation_sequences=2))
    assert summary["validation_loss"] is None
    assert [line["validation_loss"] for line in lines(tmp_path) if "validation_loss" in line] == [None]
