"""Two processes and torchrun: the same losses as one process, a lost rank is told, another number of ranks goes on."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from episode_store.errors import UserError
from trainer import checkpoint
from trainer.shards import Dataset
from trainer.train import train

SCRIPT = """
import json, sys, torch
from pathlib import Path
from trainer.config import TrainConfig
from trainer.shards import Dataset
from trainer.train import train
torch.set_num_threads(1)
train(Dataset.open(sys.argv[1]), Path(sys.argv[2]), TrainConfig.from_json(json.loads(sys.argv[3])))
"""


@pytest.fixture
def start(shards, tmp_path):
    """Starts a run with several ranks."""
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)

    def start(run, config, ranks):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        return subprocess.Popen(
            [*command, str(script), str(shards), str(run), json.dumps(config.to_json())],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def losses(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return torch.tensor([row["loss"] for row in rows]), rows


def test_two_ranks_learn_what_one_learns(shards, tmp_path, config, start):
    config = dataclasses.replace(config, steps=50, batch_size=4, checkpoint_every_steps=25)
    process = start(tmp_path / "two", config, 2)
    train(Dataset.open(shards), tmp_path / "one", config)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    (one, rows_of_one), (two, rows_of_two) = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(two) == 50
    assert (one - two).abs().max() < 1e-5
    for first, second in zip(rows_of_one, rows_of_two, strict=True):
        assert second["task_losses"] == pytest.approx(first["task_losses"], abs=1e-4)
    states = [checkpoint.read_state(checkpoint.latest(tmp_path / run)) for run in ("one", "two")]
    assert states[0]["num_tokens"] == states[1]["num_tokens"]
    # Another number of ranks goes on with the same samples.
    shutil.rmtree(checkpoint.latest(tmp_path / "two"))
    train(Dataset.open(shards), tmp_path / "two", config)
    assert (losses(tmp_path / "two")[0] - one).abs().max() < 1e-5


@pytest.mark.slow
def test_a_lost_rank_ends_the_run_and_it_goes_on(tmp_path, config, start):
    config = dataclasses.replace(config, steps=1_000, checkpoint_every_steps=20, batch_size=2)
    process = start(tmp_path / "run", config, 2)
    deadline = time.monotonic() + 100
    while not checkpoint.list_checkpoints(tmp_path / "run"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    output, _ = process.communicate(timeout=100)
    assert process.returncode != 0
    reached = int(checkpoint.latest(tmp_path / "run").name.removeprefix("step-"))
    assert 20 <= reached < 1_000, output
    process = start(tmp_path / "run", config, 2)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    rows = losses(tmp_path / "run")[1]
    assert [row["step"] for row in rows] == list(range(1, 1_001))


def test_fewer_rows_than_ranks_are_told(shards, tmp_path, config, monkeypatch):
    from trainer.parallel import Ranks
    from trainer.train import _train

    ranks = Ranks(rank=0, size=3, device=torch.device("cpu"))
    with pytest.raises(UserError, match="batch_size 2: expected a row for each of the 3 ranks"):
        _train(Dataset.open(shards), tmp_path / "run", config, ranks)
