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


def children(pid):
    """Processes that a process started."""
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


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


def test_two_ranks_with_a_part_of_each_tensor_learn_the_same(shards, tmp_path, config, start):
    adamw = dataclasses.replace(config.optimizer, matrix_optimizer="adamw")
    config = dataclasses.replace(config, steps=50, batch_size=4, checkpoint_every_steps=25, optimizer=adamw)
    train(Dataset.open(shards), tmp_path / "one", config)
    sharded = dataclasses.replace(config, sharding="fsdp", accumulation_steps=2)
    process = start(tmp_path / "two", sharded, 2)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    one, two = losses(tmp_path / "one")[0], losses(tmp_path / "two")[0]
    assert (one - two).abs().max() < 1e-5
    # The checkpoint is whole: one process goes on from it, and two go on from what one wrote.
    shutil.rmtree(checkpoint.latest(tmp_path / "two"))
    train(Dataset.open(shards), tmp_path / "two", sharded)
    assert (losses(tmp_path / "two")[0] - one).abs().max() < 1e-5
    shutil.rmtree(checkpoint.latest(tmp_path / "two"))
    process = start(tmp_path / "two", sharded, 2)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert (losses(tmp_path / "two")[0] - one).abs().max() < 1e-5


@pytest.mark.slow
def test_a_lost_rank_ends_the_run_and_it_goes_on(tmp_path, config, start):
    config = dataclasses.replace(config, steps=1_000, checkpoint_every_steps=20, batch_size=2)
    process = start(tmp_path / "run", config, 2)
    deadline = time.monotonic() + 100
    while not checkpoint.list_checkpoints(tmp_path / "run"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    output, _ = process.communicate(timeout=100)
    assert process.returncode != 0
    reached = int(checkpoint.latest(tmp_path / "run").name.removeprefix("step-"))
    assert 20 <= reached < 1_000, output
    process = start(tmp_path / "run", config, 2)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    rows = losses(tmp_path / "run")[1]
    assert [row["step"] for row in rows] == list(range(1, 1_001))


def train_command(shards, run, *more):
    settings = ["model.width=32", "model.num_blocks=1", "model.feed_forward_size=64", "batch_size=2", "device=cpu"]
    return [sys.executable, "-m", "trainer", "train", "--shards", str(shards), "--output", str(run), "--preset", "tiny",
            *more, "--json", "--set", *settings, "checkpoint_every_steps=10"]  # fmt: skip


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def test_the_command_line_starts_ranks(shards, tmp_path):
    command = train_command(shards, tmp_path / "run", "--steps", "4", "--ranks", "2")
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout)["ranks"] == 2
    done = subprocess.run(
        train_command(tmp_path, tmp_path / "other", "--ranks", "0"),
        env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, "trainer: error: --ranks 0: expected a number from 1 on, or auto\n")


@pytest.mark.slow
def test_a_killed_launcher_takes_its_ranks_along(shards, tmp_path):
    command = train_command(shards, tmp_path / "run", "--steps", "100000", "--ranks", "2")
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while not checkpoint.list_checkpoints(tmp_path / "run"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    ranks = children(process.pid)
    assert len(ranks) == 2
    process.kill()
    process.wait()
    while any(Path(f"/proc/{rank}").exists() for rank in ranks):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    # Two trainings in one folder would overwrite each other; the next one finds it free.
    reached = int(checkpoint.latest(tmp_path / "run").name.removeprefix("step-"))
    command = train_command(shards, tmp_path / "run", "--steps", "100000")
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while int(checkpoint.latest(tmp_path / "run").name.removeprefix("step-")) <= reached:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    second = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)
    process.kill()
    process.communicate()
    assert second.returncode == 2
    assert "another process trains there" in second.stderr


def test_fewer_rows_than_ranks_are_told(shards, tmp_path, config, monkeypatch):
    from trainer.parallel import Ranks
    from trainer.train import _train

    ranks = Ranks(rank=0, size=3, device=torch.device("cpu"))
    with pytest.raises(UserError, match="batch_size 2: expected a row or more for each of the 3 ranks"):
        _train(Dataset.open(shards), tmp_path / "run", config, ranks)
