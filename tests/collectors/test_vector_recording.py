"""Vectorised environments in every way of resetting, step by step against a plain loop."""

from __future__ import annotations

import functools
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv

from collectors import spaces
from collectors.vector_recording import RecordingVecEnv, RecordingVectorEnv
from episode_store.episode import Episode, EpisodeMetadata
from episode_store.errors import UserError
from episode_store.task import TaskSpec

MEMBERS, STEPS = 3, 40
METADATA = EpisodeMetadata(agent_id="somebody")


class Count(gymnasium.Env):
    """Member `rank` ends every rank + 2 steps: in turn terminated and truncated. What it shows names its episode.
    The last member does not tell whether it succeeded."""

    def __init__(self, rank: int, nested: bool) -> None:
        self.rank, self.nested, self.episode = rank, nested, -1
        place = gymnasium.spaces.Box(0, 1000, (2,), np.float32)
        self.observation_space = (
            gymnasium.spaces.Dict(
                {"place": place, "deep": gymnasium.spaces.Dict({"clock": gymnasium.spaces.Discrete(99)})}
            )
            if nested
            else place
        )
        self.action_space = gymnasium.spaces.Discrete(7)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.episode, self.clock = self.episode + 1, 0
        return self._see(), {}

    def step(self, action: Any) -> Any:
        self.clock += 1
        over = self.clock == self.rank + 2
        odd = self.episode % 2 == 1
        told = {"success" if self.nested else "is_success": over and not odd} if self.rank < MEMBERS - 1 else {}
        return self._see(), float(action), over and not odd, over and odd, told

    def _see(self) -> Any:
        place = np.array([self.episode * 10 + self.clock, self.rank], np.float32)
        return {"place": place, "deep": {"clock": self.clock}} if self.nested else place


def plainly(actions: np.ndarray, nested: bool, *, skip: bool) -> list[list[Any]]:
    """Episodes of each member as (observations, actions, rewards, terminated, truncated); `skip`: an action at a reset
    is ignored."""
    episodes: list[list[Any]] = []
    for member in range(MEMBERS):
        env = Count(member, nested)
        flatten = spaces.flattener(env.observation_space, "observation")
        mine: list[Any] = []
        seen, done, rewards = [flatten(env.reset()[0])], [], []
        waiting = False
        for action in actions[:, member]:
            if waiting:
                waiting = False
                continue
            value, reward, terminated, truncated, _ = env.step(action)
            seen.append(flatten(value))
            done.append(int(action))
            rewards.append(reward)
            if terminated or truncated:
                mine.append((seen, done, rewards, terminated, truncated))
                seen, done, rewards = [flatten(env.reset()[0])], [], []
                waiting = skip
        episodes.append(mine)
    return episodes


def compare(recorded: list[Episode], expected: list[list[Any]]) -> None:
    assert sum(len(mine) for mine in expected) == len(recorded) > 15
    assert [episode.metadata.collection_index for episode in recorded] == list(range(len(recorded)))
    for member, mine in enumerate(expected):
        key = "observation" if "observation" in recorded[0].observations else "place"
        own = [episode for episode in recorded if episode.observations[key][0][1] == member]
        assert len(own) == len(mine) > 1
        for episode, (seen, done, rewards, terminated, truncated) in zip(own, mine, strict=True):
            for field, values in episode.observations.items():
                np.testing.assert_array_equal(values, np.stack([one[field] for one in seen]))
            assert episode.actions["action"].tolist() == done
            assert episode.rewards.tolist() == rewards
            assert (episode.terminated, episode.truncated) == (terminated, truncated)
            assert episode.metadata.success == (None if member == MEMBERS - 1 else terminated)


def spec_of(nested: bool) -> TaskSpec:
    env = Count(0, nested)
    return TaskSpec(
        task_id="Count-v0",
        observation_spec=spaces.observation_spec(env.observation_space),
        action_spec=spaces.action_spec(env.action_space),
    )


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_gymnasium_in_its_three_ways_of_resetting(mode: AutoresetMode, nested: bool) -> None:
    actions = np.random.default_rng(0).integers(0, 7, (STEPS, MEMBERS))
    recorded: list[Episode] = []
    makers = [functools.partial(Count, rank, nested) for rank in range(MEMBERS)]
    env = RecordingVectorEnv(
        SyncVectorEnv(makers, autoreset_mode=mode), spec=spec_of(nested), metadata=METADATA, on_episode=recorded.append
    )
    env.reset(seed=5)
    for row in actions:
        *_, terminations, truncations, _ = env.step(row)
        over = terminations | truncations
        if mode == AutoresetMode.DISABLED and over.any():
            env.reset(options={"reset_mask": over})
    compare(recorded, plainly(actions, nested, skip=mode == AutoresetMode.NEXT_STEP))
    first = {int(episode.metadata.seed) for episode in recorded if episode.metadata.seed is not None}
    assert first == {5, 6, 7}


def test_stable_baselines3() -> None:
    actions = np.random.default_rng(1).integers(0, 7, (STEPS, MEMBERS))
    recorded: list[Episode] = []
    inner = DummyVecEnv([functools.partial(Count, rank, False) for rank in range(MEMBERS)])
    env = RecordingVecEnv(inner, spec=spec_of(False), metadata=METADATA, on_episode=recorded.append)
    env.reset()
    assert env.num_envs == MEMBERS
    for row in actions:
        env.step(row)
    compare(recorded, plainly(actions, False, skip=False))


def test_an_environment_that_does_not_say_how_it_resets_is_refused() -> None:
    env = SyncVectorEnv([functools.partial(Count, 0, False)])
    env.metadata = {}
    with pytest.raises(UserError, match="expected an autoreset_mode in its metadata, got None"):
        RecordingVectorEnv(env, spec=spec_of(False), metadata=METADATA, on_episode=print)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_frame_stacks_are_recorded_as_they_were(mode: AutoresetMode) -> None:
    def make() -> gymnasium.Env:
        return gymnasium.wrappers.FrameStackObservation(Count(1, False), 3)

    plain = make()
    spec = TaskSpec(
        task_id="Count-v0",
        observation_spec=spaces.observation_spec(plain.observation_space),
        action_spec=spaces.action_spec(plain.action_space),
    )
    expected = [plain.reset()[0], *(plain.step(4)[0] for _ in range(3))]
    recorded: list[Episode] = []
    env = RecordingVectorEnv(
        SyncVectorEnv([make], autoreset_mode=mode), spec=spec, metadata=METADATA, on_episode=recorded.append
    )
    env.reset()
    for _ in range(3):
        env.step(np.array([4]))
    (episode,) = recorded
    np.testing.assert_array_equal(episode.observations["observation"], np.stack(expected))
    assert episode.observations["observation"].shape == (4, 3, 2)
