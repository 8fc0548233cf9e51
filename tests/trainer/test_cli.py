"""`trainer train --resume`: flags agree with the run, or are refused in one line; --steps extends it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from trainer import checkpoint
from trainer.cli import main

SMALL = ("model.width=32", "model.num_blocks=1", "model.feed_forward_size=64", "batch_size=2", "device=cpu",
         "precision=fp32", "checkpoint_every_steps=2", "log_every_steps=1")  # fmt: skip


@pytest.fixture
def run(shards, tmp_path):
    """Calls `trainer train` on one folder."""

    def run(*flags):
        return main(["train", "--shards", str(shards), "--output", str(tmp_path / "run"), *flags])

    run.path = tmp_path / "run"
    run.first = ("--preset", "tiny", "--steps", "4", "--set", *SMALL)
    return run


def test_flags_that_contradict_the_run_are_refused(run, capsys):
    assert run(*run.first) == 0
    before = sorted(run.path.rglob("*"))
    for flags, told in (
        (("--steps", "3"), "begun with steps=4, now 3; use the same settings to resume, or another --output"),
        (("--set", "batch_size=3"), "begun with batch_size=2, now 3; use the same"),
        (("--set", "steps=9"), "begun with steps=4, now 9; `--resume --steps 9` extends it"),
        (("--set", "optimizer.learning_rate=1"), "begun with optimizer.learning_rate=0.002, now 1.0; use the same"),
        (("--set", "foo"), "--set foo: expected NAME=VALUE"),
        (("--seed", "7"), "begun with seed=0, now 7; use the same"),
        (("--minutes", "1"), "begun with budget_seconds=None, now 60.0; use the same"),
        (("--preset", "nonsense"), "nonsense"),
        (("--preset", "tiny"), "begun with batch_size=2, now 8; use the same"),
    ):
        capsys.readouterr()
        assert run("--resume", *flags) == 2, flags
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("trainer: error: "), error
        assert told in error
    assert sorted(run.path.rglob("*")) == before
    # What agrees may be said again.
    assert run("--resume") == run("--resume", "--seed", "0", "--set", "batch_size=2") == 0
    assert run("--resume", *run.first) == 0


def test_more_steps_without_resume_are_refused_with_the_way(run, capsys):
    assert run(*run.first) == 0
    assert run("--preset", "tiny", "--steps", "8", "--set", *SMALL) == 2
    assert "begun with steps=4, now 8; `--resume --steps 8` extends it" in capsys.readouterr().err


def test_a_finished_run_is_extended(run, capsys):
    assert run(*run.first) == 0
    first = load_file(checkpoint.latest(run.path) / "model.safetensors")
    capsys.readouterr()
    assert run("--resume", "--steps", "8") == 0
    said = capsys.readouterr()
    assert "trainer: step 5: extended from 4 to 8 steps: the learning rate is that of the longer schedule" in said.err
    assert " 8 steps, " in said.out
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [row["step"] for row in rows if "extended" in row] == [5]
    rates = [row["learning_rate"] for row in rows if "loss" in row]
    assert rates[4] > rates[3]  # the rate goes up again, as was said
    last = load_file(checkpoint.latest(run.path) / "model.safetensors")
    assert any(not torch.equal(first[name], last[name]) for name in first)
    # Killed on the way, the longer run goes on by itself.
    shutil.rmtree(checkpoint.latest(run.path))
    assert run("--resume") == 0
    again = load_file(checkpoint.latest(run.path) / "model.safetensors")
    assert all(torch.equal(last[name], again[name]) for name in last)
    assert checkpoint.load_config(run.path).steps == 8


def test_a_run_killed_before_its_extension_was_saved_goes_on(run):
    assert run(*run.first) == 0
    settings = run.path / "config.json"
    settings.write_text(settings.read_text().replace('"steps": 4,', '"steps": 6,'))
    assert run("--resume") == 0
    assert checkpoint.latest(run.path).name == "step-00000006"


def test_a_run_with_a_budget_is_not_extended(run, capsys):
    assert run("--preset", "tiny", "--minutes", "0.01", "--steps", "2", "--set", *SMALL) == 0
    assert run("--resume", "--minutes", "0.01") == 0
    for flags in (("--steps", "9"), ("--minutes", "2")):
        assert run("--resume", *flags) == 2
        assert "a run with --minutes cannot be made longer; begin another one" in capsys.readouterr().err


def test_the_summary_names_what_was_left_out(run, shards, tmp_path, capsys):
    shutil.copytree(shards, tmp_path / "shards")
    next((tmp_path / "shards").glob("Discrete*train*.tar")).write_bytes(b"")
    arguments = ["train", "--shards", str(tmp_path / "shards"), "--output", str(tmp_path / "other"), *run.first]
    assert main([*arguments, "damaged_shards=skip"]) == 0
    assert capsys.readouterr().out.endswith(" on cpu, 1 damaged shards left out\n")
