"""Records every episode of an environment that somebody else steps, for example stable-baselines3."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium

from collectors import spaces
from collectors.rollout import EpisodeRecorder, reported_success, reset_quietly
from episode_store.episode import Episode, EpisodeMetadata
from episode_store.task import TaskSpec


class RecordingEnv(gymnasium.Wrapper):
    """Hands each finished episode to `on_episode`: actions as executed, and the true final observation.

    Put it nearest to the learner. It sees each step before any vectorised environment resets it, so the last
    observation is never the first one of the next episode. Episodes that are reset before their end are dropped.

    Args:
      env: to record.
      spec: of its task.
      seeds: one for each episode; they replace the seeds the learner gives, so that each episode can be repeated.
      next_index: gives the `collection_index` at the end of an episode; share one among parallel environments.
      metadata: of every episode; seed and collection_index are filled in.
      on_episode: called with each whole episode.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        *,
        spec: TaskSpec,
        seeds: Iterator[int],
        next_index: Callable[[], int],
        metadata: EpisodeMetadata,
        on_episode: Callable[[Episode], object],
    ) -> None:
        super().__init__(env)
        self._seeds = seeds
        self._next_index = next_index
        self._episode_metadata = metadata
        self._on_episode = on_episode
        self._flatten_observation = spaces.flattener(env.observation_space, "observation")
        self._flatten_action = spaces.flattener(env.action_space, "action")
        self._recorder = EpisodeRecorder(spec.task_id, spec)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Begins an episode with the next seed."""
        self._seed = next(self._seeds)
        observation, info = reset_quietly(self.env, self._seed, options)
        self._recorder.begin(self._flatten_observation(observation))
        return observation, info

    def step(self, action: Any) -> Any:
        """Steps and records."""
        fields = self._flatten_action(action)
        observation, reward, terminated, truncated, info = self.env.step(action)
        seen, success = self._flatten_observation(observation), reported_success(info)
        self._recorder.step(fields, seen, reward, terminated, truncated, success=success)
        if self._recorder.is_over:
            metadata = dataclasses.replace(self._episode_metadata, seed=self._seed, collection_index=self._next_index())
            self._on_episode(self._recorder.finish(metadata))
        return observation, reward, terminated, truncated, info
