"""Episodes recorded inside stable-baselines3's vectorised environment, against a plain loop."""

from __future__ import annotations

import itertools

import gymnasium
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv

from collectors import registry
from collectors.recording import RecordingEnv
from episode_store.episode import Episode, EpisodeMetadata

TASK = registry.get("CartPole-v1")


def test_vec_env_records_true_endings() -> None:
    recorded: list[Episode] = []
    indices, seeds = itertools.count(5), itertools.count(100)

    def make() -> gymnasium.Env:
        return RecordingEnv(
            TASK.environment(),
            spec=TASK.spec(),
            seeds=seeds,
            next_index=lambda: next(indices),
            metadata=EpisodeMetadata(agent_id="someone"),
            on_episode=recorded.append,
        )

    vec_env = DummyVecEnv([make] * 3)
    vec_env.reset()
    rng = np.random.default_rng(0)
    final_observations = []
    for _ in range(150):
        _, _, dones, infos = vec_env.step(rng.integers(2, size=3))
        final_observations += [infos[slot]["terminal_observation"] for slot in np.flatnonzero(dones)]
    assert len(recorded) == len(final_observations) > 10
    assert [episode.metadata.collection_index for episode in recorded] == list(range(5, 5 + len(recorded)))
    assert len({episode.metadata.seed for episode in recorded}) == len(recorded)
    for episode, final_observation in zip(recorded, final_observations, strict=True):
        episode.validate(TASK.spec())
        np.testing.assert_array_equal(episode.observations["observation"][-1], final_observation)
        _assert_repeats(episode)


def _assert_repeats(episode: Episode) -> None:
    """A plain loop with the same seed and actions gives the same episode, step by step."""
    env = gymnasium.make("CartPole-v1")
    observation, _ = env.reset(seed=episode.metadata.seed)
    np.testing.assert_array_equal(episode.observations["observation"][0], observation)
    for step, action in enumerate(episode.actions["action"]):
        observation, reward, terminated, truncated, _ = env.step(action)
        np.testing.assert_array_equal(episode.observations["observation"][step + 1], observation)
        assert reward == episode.rewards[step]
        last = step == episode.num_steps - 1
        assert (terminated, truncated) == ((episode.terminated, episode.truncated) if last else (False, False))


def test_a_reset_in_the_middle_drops_the_episode() -> None:
    recorded: list[Episode] = []
    env = RecordingEnv(
        TASK.environment(),
        spec=TASK.spec(),
        seeds=itertools.count(),
        next_index=lambda: 0,
        metadata=EpisodeMetadata(),
        on_episode=recorded.append,
    )
    env.reset()
    env.step(0)
    env.reset()
    while True:
        *_, terminated, truncated, _ = env.step(1)
        if terminated or truncated:
            break
    assert len(recorded) == 1
    assert (recorded[0].actions["action"] == 1).all()
    assert recorded[0].metadata.seed == 1


def test_continuous_actions_are_recorded_as_executed() -> None:
    task = registry.get("Pendulum-v1")
    recorded: list[Episode] = []
    env = RecordingEnv(
        task.environment(),
        spec=task.spec(),
        seeds=itertools.count(),
        next_index=lambda: 0,
        metadata=EpisodeMetadata(),
        on_episode=recorded.append,
    )
    env.reset()
    truncated = False
    while not truncated:
        *_, truncated, _ = env.step(np.array([0.25], np.float32))
    assert recorded[0].num_steps == 200
    assert (recorded[0].terminated, recorded[0].truncated) == (False, True)
    np.testing.assert_array_equal(recorded[0].actions["action"], np.full((200, 1), 0.25, np.float32))
