"""Checkpoints: a flipped bit is told, files follow the umask, and the newest one always stays."""

import dataclasses
import json
import os

import pytest
import torch

from episode_store.errors import UserError
from trainer import checkpoint
from trainer.cli import main
from trainer.model import Generalist
from trainer.optim import Optimizer
from trainer.shards import Dataset
from trainer.train import train


@pytest.fixture
def run(tmp_path, config):
    """A run's folder with settings and one checkpoint of its first weights."""
    model = Generalist(config.model)
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    checkpoint.save(tmp_path, checkpoint.snapshot(model, Optimizer(model, config.optimizer)), {"step": 1})
    return tmp_path


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("place", [0.0, 0.3, 0.7, 1.0])
def test_a_flipped_bit_in_the_weights_is_told(run, place):
    file = checkpoint.latest(run) / "model.safetensors"
    flip(file, place)
    with pytest.raises(UserError, match=r"model\.safetensors: damaged \(not the bytes.*; remove .*step-00000001 to us"):
        checkpoint.load_model(run, torch.device("cpu"))
    flip(file, place)
    checkpoint.load_model(run, torch.device("cpu"))


def test_a_flipped_bit_in_the_moments_is_told(shards, tmp_path, config):
    train(Dataset.open(shards), tmp_path, config)
    flip(checkpoint.latest(tmp_path) / "optimizer.safetensors", 0.6)
    with pytest.raises(UserError, match=r"optimizer\.safetensors: damaged"):
        train(Dataset.open(shards), tmp_path, config)


def test_the_command_line_refuses_damaged_weights(run, shards, capsys):
    flip(checkpoint.latest(run) / "model.safetensors", 0.5)
    assert main(["export", "--run", str(run), "--shards", str(shards), "--output", str(run / "export")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_checkpoint_older_than_checksums_is_read(run):
    file = checkpoint.latest(run) / "state.json"
    state = json.loads(file.read_text())
    assert sorted(state.pop("checksums")) == ["model.safetensors", "optimizer.safetensors"]
    file.write_text(json.dumps(state))
    checkpoint.load_model(run, torch.device("cpu"))


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_files_follow_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        folder = checkpoint.save(tmp_path, {"model": {"a": torch.ones(2)}}, {"step": 1})
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == {
        "model.safetensors": mode,
        "state.json": mode,
    }


@pytest.mark.parametrize("keep", [0, -1])
def test_fewer_than_one_checkpoint_is_refused(run, shards, config, keep):
    with pytest.raises(UserError, match=f"keep_checkpoints {keep}: expected 1 or more"):
        checkpoint.save(run, {}, {"step": 2}, keep=keep)
    assert [path.name for path in checkpoint.list_checkpoints(run)] == ["step-00000001"]
    with pytest.raises(UserError, match=f"keep_checkpoints {keep}"):
        train(Dataset.open(shards), run / "new", dataclasses.replace(config, keep_checkpoints=keep))
