"""Scores: the test that makes an expert, resuming after kill -9, the tables of the documentation."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from collectors import cli, registry, scores
from collectors.experts import report
from collectors.scores import Score, bootstrap_gain_low
from episode_store.errors import UserError

ROOT = Path(__file__).parents[2]


def a_score(**changes: object) -> Score:
    facts = {"random_return": 0.0, "random_std": 0.0, "episodes": 50, "seed": 0, "versions": {}, "date": "2026-11-24"}
    return Score(**{**facts, **changes})  # type: ignore[arg-type]


def test_the_gain_without_spread_is_the_difference() -> None:
    assert bootstrap_gain_low(np.full(50, 7.0), np.full(50, -3.0)) == 10.0


def test_the_gain_is_that_of_a_normal_interval() -> None:
    rng = np.random.default_rng(3)
    expert, random = rng.normal(1.0, 1.0, 400), rng.normal(0.0, 2.0, 400)
    low = expert.mean() - random.mean() - 1.96 * np.sqrt(expert.var() / 400 + random.var() / 400)
    assert bootstrap_gain_low(expert, random) == pytest.approx(low, abs=0.02)


def test_chance_makes_no_expert() -> None:
    rng = np.random.default_rng(0)
    lows = [bootstrap_gain_low(*rng.normal(size=(2, 50))) for _ in range(40)]
    assert sum(low > 0 for low in lows) <= 4
    assert not a_score(expert_return=1.0, gain_low=0.0).is_expert
    assert not a_score(expert_return=1.0).is_expert
    assert a_score(expert_return=1.0, gain_low=0.1).is_expert


def test_scores_are_kept_task_by_task_and_not_measured_twice(tmp_path: Path) -> None:
    output = tmp_path / "scores.json"
    words = ["score", "--tasks", "Taxi-v4", "CliffWalking-v1", "--episodes", "10", "--output", str(output)]
    assert cli.main(words) == 0
    kept = json.loads(output.read_text())
    kept["Taxi-v4"]["date"] = "1999-01-01"
    output.write_text(json.dumps(kept))
    assert cli.main(words) == 0
    assert scores.load(output)["Taxi-v4"].date == "1999-01-01"
    assert cli.main([*words, "--again"]) == 0
    assert scores.load(output)["Taxi-v4"].date != "1999-01-01"
    kept["Taxi-v4"]["versions"] = {"gymnasium": "0.1"}
    output.write_text(json.dumps(kept))
    assert cli.main(words) == 0
    assert scores.load(output)["Taxi-v4"].versions != {"gymnasium": "0.1"}


def test_scoring_goes_on_after_kill(tmp_path: Path) -> None:
    output = tmp_path / "scores.json"
    words = ["score", "--tasks", "Taxi-v4", "minigrid/Empty-5x5-v0", "minigrid/Empty-16x16-v0", "--output", str(output)]
    process = subprocess.Popen([sys.executable, "-m", "collectors", *words], stdout=-3, stderr=-3, cwd=ROOT)
    deadline = time.monotonic() + 600
    while not output.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = scores.load(output)
    assert "Taxi-v4" in before
    assert "minigrid/Empty-16x16-v0" not in before
    before = {task_id: Score(**{**vars(score), "date": "1999-01-01"}) for task_id, score in before.items()}
    scores.save(output, before)
    assert cli.main([*words[:2], *list(before)[:1], "minigrid/Empty-5x5-v0", "--output", str(output)]) == 0
    after = scores.load(output)
    assert set(after) >= {"Taxi-v4", "minigrid/Empty-5x5-v0"}
    assert after[next(iter(before))].date == "1999-01-01"


def test_the_page_of_experts_is_what_the_data_say(tmp_path: Path) -> None:
    page = tmp_path / "experts.md"
    page.write_text((ROOT / "docs" / "experts.md").read_text())
    report.write(page, scores.known())
    assert page.read_text() == (ROOT / "docs" / "experts.md").read_text()
    page.write_text("nothing")
    with pytest.raises(UserError, match="expected the marks"):
        report.write(page, scores.known())


def test_what_is_counted() -> None:
    assert registry.get("Blackjack-v1").expert is not None
    known = {
        "Blackjack-v1": a_score(expert_return=0.0, gain_low=-0.1),
        "Taxi-v4": a_score(expert_return=8.0, gain_low=700.0),
        "Reacher-v5": a_score(random_return=-43.0, expert_return=-4.0, gain_low=38.0),
        "CartPole-v1": a_score(random_return=20.0),
    }
    assert list(report.counted(known)) == ["Reacher-v5", "Taxi-v4"]
    assert report.summary(known) == [["mujoco", 1, 1, 1], ["toy_text", 1, 2, 0], ["all", 2, 3, 1]]
