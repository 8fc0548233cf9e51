"""The families of environments: that they repeat, that their experts are experts, that data fits the specs."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from collectors import registry
from collectors.policies import random_policy, scripted_policy
from collectors.rollout import rollout
from collectors.task import ScriptedExpert
from collectors.tasks import _minigrid
from collectors.tasks.toy_text import optimal_actions
from episode_store.episode import Episode
from episode_store.spec import Modality

# One task of each kind of wrapper and expert, with what its expert must reach.
EXPERTS = {
    "MountainCar-v0": -130.0,
    "MountainCarContinuous-v0": 85.0,
    "Taxi-v4": 6.0,
    "CliffWalking-v1": -13.0,
    "LunarLander-v3": 150.0,
    "LunarLanderContinuous-v3": 200.0,
    "Reacher-v5": -6.0,
    "babyai/GoToObj-v0": 0.85,
    "babyai/GoToLocal-v0": 0.85,
    "babyai/GoToRedBallGrey-rgb-v0": 0.85,
    "minigrid/Empty-Random-5x5-rgb-v0": 0.94,
    "minigrid/LavaCrossingS9N1-v0": 0.9,
    "metaworld/reach-v3": 1.0,
    "metaworld/button-press-v3": 1.0,
    "metaworld/drawer-close-v3": 1.0,
}


def episodes(task_id: str, count: int, *, random: bool = False, disturbed: bool = False) -> list[Episode]:
    task = registry.get(task_id)
    policy = random_policy(task) if random else scripted_policy(task)
    disturbance = task.disturbance if disturbed else None
    return list(rollout(task, policy, seeds=range(100, 100 + count), disturbance=disturbance))


@pytest.mark.parametrize("task_id", EXPERTS)
def test_experts_are_experts_and_their_episodes_valid(task_id: str) -> None:
    played = episodes(task_id, 6)
    spec = registry.get(task_id).spec()
    for episode in played:
        episode.validate(spec)
    assert np.mean([episode.episode_return for episode in played]) >= EXPERTS[task_id]


@pytest.mark.parametrize(
    "task_id", ["Taxi-v4", "LunarLander-v3", "Reacher-v5", "babyai/GoToLocal-v0", "metaworld/reach-v3"]
)
def test_seeds_repeat_after_other_episodes(task_id: str) -> None:
    task = registry.get(task_id)
    seeds = [1, 2, 3, 1]
    first, *_, again = rollout(task, scripted_policy(task), seeds=seeds, disturbance=task.disturbance)
    for key, values in first.observations.items():
        np.testing.assert_array_equal(values, again.observations[key])
    assert first.content_hash() == again.content_hash()


def test_metaworld_goals_differ_with_the_seed_and_end_at_success() -> None:
    played = episodes("metaworld/reach-v3", 4)
    goals = {tuple(episode.observations["observation"][0, -3:]) for episode in played}
    assert len(goals) == 4
    for episode in played:
        assert episode.terminated
        assert not episode.truncated
        assert episode.rewards.tolist() == [0.0] * (episode.num_steps - 1) + [1.0]
        assert episode.observations["observation"].shape == (episode.num_steps + 1, 39)


def test_metaworld_is_truncated_at_500_steps() -> None:
    (episode,) = episodes("metaworld/reach-v3", 1, random=True)
    assert (episode.num_steps, episode.terminated, episode.truncated) == (500, False, True)


def test_metaworld_resets_in_one_environment_equal_those_in_another() -> None:
    task = registry.get("metaworld/drawer-close-v3")
    used, fresh = task.environment(), task.environment()
    used.reset(seed=5)
    for _ in range(20):
        used.step(np.ones(4, np.float32))
    left, _ = used.reset(seed=7)
    right, _ = fresh.reset(seed=7)
    np.testing.assert_array_equal(left, right)
    for _ in range(10):
        np.testing.assert_array_equal(used.step(np.ones(4, np.float32))[0], fresh.step(np.ones(4, np.float32))[0])


def test_cells_are_packed_without_loss() -> None:
    ids = np.arange(_minigrid.NUM_CELLS)
    np.testing.assert_array_equal(_minigrid.pack_cells(_minigrid.unpack_cells(ids)), ids)
    # A closed (1) blue (2) door (4); a red (0) ball (6); unseen.
    image = np.array([[[4, 2, 1], [6, 0, 0], [0, 0, 0]]], np.uint8)
    np.testing.assert_array_equal(_minigrid.pack_cells(image), [[79, 108, 0]])
    np.testing.assert_array_equal(_minigrid.unpack_cells(_minigrid.pack_cells(image)), image)


def test_packed_view_is_the_environments_own() -> None:
    task = registry.get("babyai/GoToLocal-v0")
    env = task.environment()
    observation, _ = env.reset(seed=3)
    plain, _ = gymnasium.make("BabyAI-GoToLocal-v0").reset(seed=3)
    np.testing.assert_array_equal(_minigrid.unpack_cells(observation["cells"]), plain["image"])
    assert observation["mission"] == plain["mission"]
    assert env.observation_space.contains(observation)
    spec = task.spec().observation_spec
    assert {key: field.modality for key, field in spec.items()} == {
        "cells": Modality.DISCRETE,
        "direction": Modality.DISCRETE,
        "mission": Modality.TEXT,
    }
    assert spec["cells"].size == 49


def test_pictures_are_images() -> None:
    empty = registry.get("minigrid/Empty-Random-5x5-rgb-v0").spec().observation_spec
    assert {key: (field.modality, field.shape) for key, field in empty.items()} == {
        "image": (Modality.IMAGE, (80, 80, 3))
    }
    ball = registry.get("babyai/GoToRedBallGrey-rgb-v0").spec().observation_spec
    assert ball["image"].shape == (64, 64, 3)
    assert ball["mission"].modality == Modality.TEXT


def test_babyai_bursts_only_turn_and_walk() -> None:
    played = episodes("babyai/GoToLocal-v0", 20, disturbed=True)
    flagged = np.concatenate([episode.actions["action"][episode.step_columns["exploratory"]] for episode in played])
    assert len(flagged)
    assert set(flagged.tolist()) <= {0, 1, 2}
    assert np.mean([episode.episode_return for episode in played]) > 0.85


def test_bot_that_fails_lets_the_time_run_out(capfd: pytest.CaptureFixture[str]) -> None:
    # Sampling is rejected now and then: nothing of it may reach the terminal.
    task = registry.get("babyai/KeyInBox-v0")
    (episode,) = rollout(task, scripted_policy(task), seeds=[1])
    assert episode.truncated
    assert episode.episode_return == 0.0
    assert capfd.readouterr().out == ""


def test_value_iteration_by_hand() -> None:
    # Two states; from 0: action 0 stays for 0, action 1 ends for 1. State 1: action 0 ends for 5, action 1 goes to 0.
    transitions = {
        0: {0: [(1.0, 0, 0.0, False)], 1: [(1.0, 0, 1.0, True)]},
        1: {0: [(0.5, 0, 5.0, True), (0.5, 1, 0.0, False)], 1: [(1.0, 0, 0.0, False)]},
    }
    assert optimal_actions(transitions).tolist() == [1, 0]


def test_static_lists_name_every_level_of_the_packages() -> None:
    import minigrid  # noqa: F401
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    ids = {task.task_id for task in registry.all_tasks()}
    assert {
        f"babyai/{name.removeprefix('BabyAI-')}" for name in gymnasium.registry if name.startswith("BabyAI-")
    } <= ids
    assert {f"metaworld/{name}" for name in ALL_V3_ENVIRONMENTS} <= ids
    assert len(ALL_V3_ENVIRONMENTS) == 50


def test_time_limits_are_those_of_the_environments() -> None:
    for task in registry.find(["classic_control", "toy_text", "box2d", "mujoco"]):
        env = task.environment()
        assert env.spec is not None
        assert env.spec.max_episode_steps == task.max_episode_steps, task.task_id
        env.close()


def test_every_scripted_family_has_an_expert() -> None:
    families = {task.family for task in registry.all_tasks() if isinstance(task.expert, ScriptedExpert)}
    assert families >= {"babyai", "box2d", "classic_control", "metaworld", "minigrid", "mujoco", "toy_text"}
