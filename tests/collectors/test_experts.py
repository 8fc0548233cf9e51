"""Programs that are good at a task: their parts against literal answers, and a few of them at work."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from collectors import registry
from collectors.experts import sokoban
from collectors.experts.linear import lqr_gain
from collectors.experts.robotics import way_through
from collectors.policies import random_policy, scripted_policy
from collectors.rollout import rollout

# What a few episodes must reach on average. Fast ones first.
LEAST = {
    "sokoban/7x7-1-v0": 8.0,
    "sokoban/8x8-3-v0": 8.0,
    "minigrid/BlockedUnlockPickup-v0": 0.9,
    "minigrid/KeyCorridorS3R3-v0": 0.85,
    "minigrid/ObstructedMaze-1Dlhb-v0": 0.85,
    "minigrid/MemoryS7-v0": 0.95,
    "minigrid/PutNear-6x6-N2-v0": 0.6,
    "minigrid/GoToDoor-5x5-v0": 0.9,
}
# Their packages come with the extra catalogue.
WITH_CATALOGUE = {
    "FetchReach-v4": -5.0,
    "FetchPush-v4": -25.0,
    "FetchPickAndPlace-v4": -25.0,
    "PointMaze_UMaze-v3": 150.0,
    "InvertedDoublePendulum-v5": 9_300.0,
    "Swimmer-v5": 200.0,
    "dm_control/cartpole-swingup-v0": 650.0,
    "dm_control/cartpole-swingup-large-v0": 400.0,
    "dm_control/lqr-lqr_6_2-v0": 500.0,
    "dm_control/pendulum-swingup-v0": 500.0,
    "dm_control/point_mass-hard-v0": 700.0,
    "dm_control/reacher-hard-v0": 800.0,
    "robosuite/Lift-v1": 0.8,
    "robosuite/Stack-v1": 0.8,
}


def mean_return(task_id: str, num_episodes: int) -> float:
    task = registry.get(task_id)
    spec = task.spec()
    episodes = list(rollout(task, scripted_policy(task), seeds=range(200, 200 + num_episodes)))
    for episode in episodes:
        episode.validate(spec)
    return float(np.mean([episode.episode_return for episode in episodes]))


@pytest.mark.parametrize("task_id", LEAST)
def test_an_expert_at_work(task_id: str) -> None:
    assert mean_return(task_id, 4) >= LEAST[task_id]


@pytest.mark.catalogue
@pytest.mark.parametrize("task_id", WITH_CATALOGUE)
def test_an_expert_of_the_catalogue_at_work(task_id: str) -> None:
    assert mean_return(task_id, 5) >= WITH_CATALOGUE[task_id]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "nope"], "experts: error: unknown task 'nope'"),
        (
            ["--tasks", "Ant-v5", "--train-steps", "9"],
            "experts: error: --tasks Ant-v5: none of them has an expert that",
        ),
        (
            ["--tasks", "Taxi-v4", "--episodes", "-1"],
            "experts: error: argument --episodes: expected at least 1, got -1",
        ),
        (["--tasks", "Taxi-v4", "--output", __file__], "test_experts.py: is a file, expected a folder"),
    ],
)
def test_mistakes_of_make_experts_are_one_line(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = Path(__file__).parents[2] / "examples" / "experts.py"
    spec = importlib.util.spec_from_file_location("experts_example", path)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    monkeypatch.setattr(sys, "argv", ["experts.py", *words])
    try:
        code = example.main()
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    (line,) = (line for line in capfd.readouterr().err.splitlines() if "error:" in line)
    assert message in line


def test_the_gain_of_the_simplest_system() -> None:
    # x' = x + u, Q = R = 1: P is the golden ratio, K = P / (1 + P).
    one = np.eye(1)
    gain = lqr_gain((one, one), state_cost=one, action_cost=one)
    assert gain == pytest.approx(np.array([[0.6180339887]]))


def test_a_way_through_a_maze() -> None:
    cells = [
        [1, 1, 1, 1, 1],
        [1, 0, "c", 0, 1],
        [1, 1, 1, 0, 1],
        [1, 0, 0, 0, 1],
        [1, 1, 1, 1, 1],
    ]
    assert way_through(cells, (1, 1), (3, 1)) == [(1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)]
    cells[2][3] = 1
    assert way_through(cells, (1, 1), (3, 1)) == [(1, 1)]


def a_room(picture: str) -> tuple[np.ndarray, frozenset, frozenset, tuple[int, int]]:
    rows = picture.split()
    marks = {mark: [(r, c) for r, row in enumerate(rows) for c, at in enumerate(row) if at == mark] for mark in "#.$@"}
    walls = np.array([[at == "#" for at in row] for row in rows])
    return walls, frozenset(marks["."]), frozenset(marks["$"]), marks["@"][0]


def test_sokoban_pushes() -> None:
    # Up, right, down, left are 0, 1, 2, 3; the shortest solutions of rooms that can be read.
    assert sokoban.solution(*a_room("###### #@$-.# ######")) == [1, 1]
    assert sokoban.solution(*a_room("##### #-@-# #-$-# #-.-# #####")) == [2]
    assert sokoban.solution(*a_room("###### #--.-# #-$--# #@---# ######")) in ([0, 1, 2, 1, 0], [1, 0, 3, 0, 1])
    assert sokoban.solution(*a_room("##### #$-.# #@--# #####")) is None


def test_a_square_of_boxes_and_walls_is_stuck() -> None:
    walls, targets, boxes, _ = a_room("##### #$$-# #.-@# #####")
    assert sokoban._is_stuck(walls, boxes, targets, (1, 1))
    assert not sokoban._is_stuck(walls, boxes, boxes, (1, 1))


def test_random_actions_are_no_expert_in_a_corridor_of_keys() -> None:
    task = registry.get("minigrid/KeyCorridorS3R3-v0")
    returns = [episode.episode_return for episode in rollout(task, random_policy(task), seeds=range(4))]
    assert np.mean(returns) < 0.5
