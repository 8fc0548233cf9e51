"""The loop that steps environments, against a plain Gymnasium loop."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import pytest

from collectors import registry
from collectors.headless import RenderingUnavailable
from collectors.policies import ScriptedPolicy, random_policy, scripted_policy
from collectors.rollout import FilmedEpisode, rollout
from collectors.task import Disturbance, Environment, Task
from episode_store.errors import EpisodeError

CARTPOLE = registry.get("CartPole-v1")


def balance(env: gymnasium.Env, seed: int) -> Any:
    return lambda observation, last_action: int(observation["observation"][2] + observation["observation"][3] > 0)


BALANCE = ScriptedPolicy("balance", balance)


def plain_loop(seed: int) -> tuple[list, list, list, bool, bool]:
    env = gymnasium.make("CartPole-v1")
    observation, _ = env.reset(seed=seed)
    observations, actions, rewards, terminated, truncated = [observation], [], [], False, False
    while not (terminated or truncated):
        action = int(observation[2] + observation[3] > 0)
        observation, reward, terminated, truncated, _ = env.step(action)
        observations.append(observation)
        actions.append(action)
        rewards.append(reward)
    return observations, actions, rewards, terminated, truncated


@pytest.mark.parametrize(
    ("task_id", "policy", "success"),
    [("metaworld/reach-v3", scripted_policy, True), ("metaworld/reach-v3", random_policy, False),
     ("CartPole-v1", random_policy, None)],
)  # fmt: skip
def test_an_episode_succeeded_if_the_environment_says_so(task_id: str, policy: Any, success: bool | None) -> None:
    task = registry.get(task_id)
    (episode,) = rollout(task, policy(task), seeds=[3])
    assert episode.metadata.success is success


@pytest.mark.parametrize("num_envs", [1, 3, 8])
def test_episodes_equal_a_plain_loop(num_envs: int) -> None:
    seeds = [11, 5, 7, 42, 3]
    episodes = list(rollout(CARTPOLE, BALANCE, seeds=seeds, num_envs=num_envs))
    assert sorted(episode.metadata.seed for episode in episodes) == sorted(seeds)
    for episode in episodes:
        observations, actions, rewards, terminated, truncated = plain_loop(episode.metadata.seed)
        np.testing.assert_array_equal(episode.observations["observation"], observations)
        np.testing.assert_array_equal(episode.actions["action"], actions)
        np.testing.assert_array_equal(episode.rewards, rewards)
        assert (episode.terminated, episode.truncated) == (terminated, truncated)
        assert len(episode.observations["observation"]) == episode.num_steps + 1
        assert episode.rewards.dtype == np.float64
        assert not episode.step_columns["exploratory"].any()
        assert seeds.index(episode.metadata.seed) == episode.metadata.collection_index
        episode.validate(CARTPOLE.spec())


def test_metadata_says_how_the_episode_was_made() -> None:
    episode = next(rollout(CARTPOLE, BALANCE, seeds=[1], indices=[17], experiment_id="x", agent_hash="h"))
    assert episode.metadata.agent_id == "balance"
    assert (episode.metadata.seed, episode.metadata.collection_index) == (1, 17)
    assert (episode.metadata.experiment_id, episode.metadata.agent_hash) == ("x", "h")
    assert episode.metadata.environment_config == {
        "id": "CartPole-v1",
        "kwargs": {},
        "wrappers": [],
        "versions": {
            "generalist-agent": importlib.metadata.version("generalist-agent"),
            "gymnasium": gymnasium.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def test_seeds_are_dealt_to_slots_beforehand() -> None:
    begun = []

    class Watching(ScriptedPolicy):
        def begin_episode(self, slot: int, env: gymnasium.Env, seed: int) -> None:
            begun.append((slot, seed))
            super().begin_episode(slot, env, seed)

    list(rollout(CARTPOLE, Watching("w", balance), seeds=[1, 2, 3, 4, 5], num_envs=2))
    assert [seed for slot, seed in begun if slot == 0] == [1, 3, 5]
    assert [seed for slot, seed in begun if slot == 1] == [2, 4]


def test_all_live_slots_act_together() -> None:
    sizes = []

    class Counting(ScriptedPolicy):
        def act(self, slots: Sequence[int], observations: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
            sizes.append(len(slots))
            return super().act(slots, observations)

    list(rollout(CARTPOLE, Counting("c", balance), seeds=range(6), num_envs=3))
    assert sizes[0] == 3
    assert sizes[-1] >= 1
    assert sizes == sorted(sizes, reverse=True)


def test_a_policy_that_asks_is_told_its_rewards() -> None:
    told: dict[int, list[float]] = {0: [], 1: []}

    class Asking(ScriptedPolicy):
        def rewarded(self, slot: int, reward: float) -> None:
            told[slot].append(reward)

    task = registry.get("Pendulum-v1")
    policy = Asking("asking", lambda env, seed: lambda observation, last_action: np.zeros(1, np.float32))
    episodes = {episode.metadata.seed: episode for episode in rollout(task, policy, seeds=[1, 2, 3], num_envs=2)}
    assert told[0] == [*episodes[1].rewards, *episodes[3].rewards]
    assert told[1] == episodes[2].rewards.tolist()


def test_given_environments_stay_open() -> None:
    env = CARTPOLE.environment()
    for _ in range(2):
        assert len(list(rollout(CARTPOLE, BALANCE, seeds=[1, 2], environments=[env]))) == 2
    env.reset()
    env.close()


def test_same_seed_same_bytes() -> None:
    def hashes(disturbance: Disturbance | None, seeds: Sequence[int]) -> list[str]:
        episodes = rollout(CARTPOLE, random_policy(CARTPOLE), seeds=seeds, num_envs=2, disturbance=disturbance)
        return sorted(episode.content_hash() for episode in episodes)

    always = Disturbance(episode_share=1.0, burst_probability=0.2)
    assert hashes(None, [1, 2, 3]) == hashes(None, [1, 2, 3])
    assert hashes(None, [1, 2, 3]) != hashes(None, [4, 5, 6])
    assert hashes(always, [1, 2, 3]) == hashes(always, [1, 2, 3])


def test_disturbed_steps_are_flagged_and_no_others() -> None:
    # The policy is a function of the observation, so every other action must be its choice.
    disturbance = Disturbance(episode_share=0.5, burst_probability=0.1, max_burst_steps=3)
    task = registry.get("MountainCar-v0")
    episodes = list(rollout(task, scripted_policy(task), seeds=range(60), disturbance=disturbance))
    flags = [episode.step_columns["exploratory"] for episode in episodes]
    disturbed = sum(bool(flag.any()) for flag in flags)
    assert 18 <= disturbed <= 42
    for episode, flag in zip(episodes, flags, strict=True):
        choices = np.where(episode.observations["observation"][:-1, 1] >= 0, 2, 0)
        np.testing.assert_array_equal(episode.actions["action"][~flag], choices[~flag])
    # A third of uniformly random actions is the same as the choice.
    assert any((episode.actions["action"][flag] == 1).any() for episode, flag in zip(episodes, flags, strict=True))


def test_burst_lengths() -> None:
    disturbance = Disturbance(episode_share=1.0, burst_probability=0.02, max_burst_steps=3)
    task = registry.get("MountainCar-v0")
    lengths = []
    for episode in rollout(task, scripted_policy(task), seeds=range(30), disturbance=disturbance):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], episode.step_columns["exploratory"], [0]]).astype(int)))
        lengths += (edges[1::2] - edges[::2]).tolist()
    # Two bursts may follow each other, rarely.
    assert sum(length <= 3 for length in lengths) >= 0.9 * len(lengths)
    assert {1, 2, 3} <= set(lengths)


def test_allowed_actions_of_a_disturbance() -> None:
    task = registry.get("Taxi-v4")
    disturbance = Disturbance(episode_share=1.0, burst_probability=0.5, actions=(0, 1))
    episodes = list(rollout(task, scripted_policy(task), seeds=range(10), disturbance=disturbance))
    for episode in episodes:
        flag = episode.step_columns["exploratory"]
        assert set(episode.actions["action"][flag].tolist()) <= {0, 1}
    assert any(episode.step_columns["exploratory"].any() for episode in episodes)


def test_noise_stays_near_the_choice_and_in_bounds() -> None:
    task = registry.get("Pendulum-v1")
    half_throttle = ScriptedPolicy("half", lambda env, seed: lambda observation, last: np.array([1.0], np.float32))
    disturbance = Disturbance(episode_share=1.0, burst_probability=0.3, noise=0.1)
    episode = next(rollout(task, half_throttle, seeds=[3], disturbance=disturbance))
    actions, flag = episode.actions["action"][:, 0], episode.step_columns["exploratory"]
    assert (actions[~flag] == 1.0).all()
    assert (np.abs(actions) <= 2.0).all()
    # Standard deviation 0.1 of half the range of 4.
    assert 0.1 < np.std(actions[flag]) < 0.3


def test_scripts_are_told_what_was_executed() -> None:
    seen = []

    def script(env: gymnasium.Env, seed: int) -> Any:
        def controller(observation: Mapping[str, Any], last_action: Any) -> int:
            seen.append(last_action)
            return 1

        return controller

    disturbance = Disturbance(episode_share=1.0, burst_probability=0.5)
    episode = next(rollout(CARTPOLE, ScriptedPolicy("s", script), seeds=[0], disturbance=disturbance))
    assert seen[0] is None
    np.testing.assert_array_equal(seen[1:], episode.actions["action"][:-1])


def test_frames() -> None:
    episode = next(rollout(registry.get("FrozenLake-v1"), BALANCE_LAKE, seeds=[0], frames=True))
    assert isinstance(episode, FilmedEpisode)
    assert episode.frames.shape == (episode.num_steps + 1, 256, 256, 3)
    assert episode.frames.dtype == np.uint8
    bare = next(rollout(registry.get("FrozenLake-v1"), BALANCE_LAKE, seeds=[0]))
    assert bare.content_hash() == episode.content_hash()


BALANCE_LAKE = ScriptedPolicy("right", lambda env, seed: lambda observation, last_action: 2)


class _Undrawable(gymnasium.Wrapper):
    def render(self) -> Any:
        raise RuntimeError("no EGL")


def test_rendering_that_is_impossible_is_said() -> None:
    task = Task(
        task_id="Undrawable-v0", family="test", make_env=Environment(env_id="CartPole-v1", wrappers=(_Undrawable,))
    )
    with pytest.raises(RenderingUnavailable, match=r"Undrawable-v0 cannot be drawn here \(RuntimeError: no EGL\)"):
        next(rollout(task, BALANCE, seeds=[0], frames=True))


def test_mujoco_without_a_driver_still_steps_and_says_that_it_cannot_draw() -> None:
    code = (
        "from collectors import headless, registry, rollout, policies; t = registry.get('Reacher-v5'); t.spec(); "
        "import os; os.environ['MUJOCO_GL'] = 'osmesa'; os.environ['PYOPENGL_PLATFORM'] = 'osmesa'; "
        "p = policies.scripted_policy(t); print(len(list(rollout.rollout(t, p, seeds=[1])))); "
        "from OpenGL import platform\n"
        "try: print(next(rollout.rollout(t, p, seeds=[1], frames=True)).frames.shape)\n"
        "except headless.RenderingUnavailable as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert lines[0] == "1", done.stderr
    # A machine that has OSMesa draws.
    assert "Reacher-v5 cannot be drawn here" in lines[1] or lines[1] == "(51, 240, 240, 3)"


def test_a_bad_action_is_named() -> None:
    wild = ScriptedPolicy("wild", lambda env, seed: lambda observation, last_action: 7)
    with pytest.raises(
        EpisodeError, match="episode of CartPole-v1 with seed 9: step 0: wild: action: expected a whole number"
    ):
        next(rollout(CARTPOLE, wild, seeds=[9]))


def test_tasks_carry_what_they_need() -> None:
    task = dataclasses.replace(CARTPOLE, task_id="other/CartPole-v1")
    assert task.spec().task_id == "other/CartPole-v1"
    assert CARTPOLE.spec().task_id == "CartPole-v1"
