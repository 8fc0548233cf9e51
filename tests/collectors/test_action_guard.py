"""A policy that misbehaves is stopped, slowed and written down."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest

from collectors import registry
from collectors.action_guard import EVENTS, GUARD, OUT_OF_SPACE, ActionGuard, Gauge, Watch, count_events
from collectors.collection import CollectionJob, run
from collectors.policies import ScriptedPolicy, random_policy
from collectors.rollout import rollout
from collectors.task import Task
from episode_store.episode import EXPLORATORY, Episode
from episode_store.store import EpisodeStore

REACH = registry.get("metaworld/reach-v3")
assert REACH.guard is not None
WIDE = dataclasses.replace(REACH.guard, max_change=1.0)


def played(act: Callable[[int], Any], guard: ActionGuard = WIDE) -> Episode:
    """One episode in which step t does act(t); it is valid whatever happens."""
    task = dataclasses.replace(REACH, guard=guard)

    def script(env: Any, seed: int) -> Any:
        steps = iter(range(1000))
        return lambda observation, last_action: np.asarray(act(next(steps)), np.float32)

    (episode,) = rollout(task, ScriptedPolicy("wild", script), seeds=[1])
    episode.validate(task.spec())
    return episode


def still(step: int) -> list[float]:
    return [0.0, 0.0, 0.0, 0.0]


def test_a_choice_without_an_action_is_refused() -> None:
    watch = Watch(WIDE, gymnasium.spaces.Box(-1, 1, (4,), np.float32), "arm")
    for choice, what in (
        ({"move": still(0)}, "expected the field 'action', got ['move']"),
        ({"action": ["up", "up", "up", "up"]}, "expected numbers, got <U2"),
    ):
        assert watch.refuses(choice)
        assert watch.events[-1]["kind"] == OUT_OF_SPACE
        assert watch.events[-1]["what"] == what
    assert not watch.refuses({"action": still(0)})


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        ([np.nan, 0, 0, 0], "non-finite action"),
        ([0, np.inf, 0, 0], "non-finite action"),
        ([0, 0, 1.5, 0], "action out of its space"),
    ],
)
@pytest.mark.parametrize("step", [0, 3])
def test_a_bad_action_is_not_executed_and_ends_the_episode(
    bad: list[float], kind: str, step: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="collectors.action_guard"):
        episode = played(lambda t: bad if t == step else [0.5, 0, 0, 0])
    assert episode.num_steps == step + 1
    assert (episode.terminated, episode.truncated) == (False, True)
    # It held still instead, which nobody is to imitate.
    assert episode.actions["action"][step].tolist() == [0.0] * 4
    assert episode.step_columns[EXPLORATORY].tolist() == [False] * step + [True]
    (event,) = episode.metadata.environment_config[EVENTS]["first"]
    assert (event["step"], event["kind"]) == (step, kind)
    assert f"metaworld/reach-v3: stopped at step {step}: {kind}" in caplog.text


def test_jumps_are_slowed_and_counted() -> None:
    guard = dataclasses.replace(WIDE, max_change=0.25)
    episode = played(lambda t: [1.0 if t < 4 else -1.0, 0, 0, 0] if t < 8 else [np.nan] * 4, guard)
    # A quarter of the range of 2 in each step.
    assert episode.actions["action"][:8, 0].tolist() == [1.0, 1.0, 1.0, 1.0, 0.5, 0.0, -0.5, -1.0]
    assert not episode.step_columns[EXPLORATORY][:8].any()
    assert count_events([episode]) == {"rate limited": 3, "non-finite action": 1}


@pytest.mark.parametrize(
    ("limits", "kind"),
    [
        ({"high": (0.7, 1.2, 0.2)}, "position"),
        ({"max_speed": 0.05}, "speed"),
        ({"max_force": -1.0}, "force"),
    ],
)
def test_a_robot_out_of_its_bounds_is_stopped(limits: dict[str, Any], kind: str) -> None:
    episode = played(lambda t: [0.0, 0.0, 1.0, 0.0], dataclasses.replace(WIDE, **limits))
    assert episode.truncated
    assert episode.num_steps < 100
    assert episode.metadata.environment_config[EVENTS]["first"][-1]["kind"] == kind
    # What the robot did up to then was the policy's own choice.
    assert not episode.step_columns[EXPLORATORY].any()


def test_what_is_measured_is_the_hand() -> None:
    env = REACH.environment()
    env.reset(seed=1)
    gauge = Gauge(env.unwrapped.model, "endEffector")
    before, speed, _ = gauge.read(env.unwrapped.data)
    np.testing.assert_allclose(before, env.unwrapped.data.site("endEffector").xpos)
    for _ in range(10):
        env.step(np.array([0, 0, 1, 0], np.float32))
    after, speed, _ = gauge.read(env.unwrapped.data)
    assert after[2] > before[2] + 0.03
    assert 0.01 < speed < 2.0
    with pytest.raises(ValueError, match="no site 'nothing'"):
        Gauge(env.unwrapped.model, "nothing")


def test_guarded_tasks_say_so_in_their_episodes_and_quiet_ones_have_no_events() -> None:
    episode = next(iter(rollout(REACH, ScriptedPolicy("still", lambda env, seed: lambda o, a: still(0)), seeds=[1])))
    assert episode.metadata.environment_config[GUARD]["site"] == "endEffector"
    assert EVENTS not in episode.metadata.environment_config
    assert episode.num_steps == 500


def test_robot_arms_have_guards() -> None:
    guarded = {task.task_id for task in registry.all_tasks() if task.guard is not None}
    assert guarded == {task.task_id for task in registry.find(["robot-arm"])}
    arms: list[Task] = registry.find(["metaworld", "robosuite", "Fetch*", "FrankaKitchen*", "dm_control/lift_brick-v0"])
    assert guarded >= {task.task_id for task in arms}


@pytest.mark.catalogue
@pytest.mark.parametrize("task_id", ["FrankaKitchen-v1", "dm_control/lift_brick-v0", "dm_control/reach_site-v0"])
def test_random_actions_stay_within_the_bounds(task_id: str) -> None:
    task = registry.get(task_id)
    episodes = list(rollout(task, random_policy(task), seeds=range(3), environments=[task.environment()]))
    kinds = count_events(episodes)
    assert kinds["rate limited"] > 0
    assert set(kinds) == {"rate limited"}


def test_collection_tells_and_stores_what_the_guard_did(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = dataclasses.replace(REACH, guard=dataclasses.replace(WIDE, max_change=0.1))
    monkeypatch.setattr(registry, "get", lambda task_id: strict)
    job = CollectionJob(task_id=REACH.task_id, store=str(tmp_path), agent="random", episodes=1)
    result = run(job, lambda amount, doing: None)
    assert result.guard_events["rate limited"] > 100
    assert "guard: rate limited" in result.line()
    store = EpisodeStore.open(tmp_path)
    (episode,) = (store.read(episode_id) for episode_id in store.episode_ids)
    assert episode.num_steps > 20
    assert count_events([episode]) == result.guard_events
