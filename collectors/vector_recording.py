"""Records episodes of vectorised environments that somebody else steps, with their real last observations.

A vectorised environment resets its members by itself, each kind in its own way:
  Gymnasium, NEXT_STEP: the last observation comes as usual; the step after it resets, and its action is ignored.
  Gymnasium, SAME_STEP: the first observation of the next episode comes at once; the last one is in infos["final_obs"].
  Gymnasium, DISABLED: nothing is reset until `reset(options={"reset_mask": ...})`.
  stable-baselines3's VecEnv: as SAME_STEP; the last one is in infos[i]["terminal_observation"].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import iterate

from collectors import spaces
from collectors.rollout import SUCCESS_KEYS, EpisodeRecorder, reported_success
from episode_store.episode import Episode, EpisodeMetadata
from episode_store.errors import UserError
from episode_store.task import TaskSpec


class _Members:
    """A recorder for each member of a vectorised environment."""

    def __init__(
        self,
        num_envs: int,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        *,
        spec: TaskSpec,
        metadata: EpisodeMetadata,
        on_episode: Callable[[Episode], object],
        first_index: int,
    ) -> None:
        self._flatten_observation = spaces.flattener(observation_space, "observation")
        self._flatten_action = spaces.flattener(action_space, "action")
        self._recorders = [EpisodeRecorder(spec.task_id, spec) for _ in range(num_envs)]
        self._seeds: list[int | None] = [None] * num_envs
        self._metadata = metadata
        self._on_episode = on_episode
        self._next_index = first_index

    def begin(self, member: int, observation: Any, seed: int | None = None) -> None:
        self._recorders[member].begin(self._flatten_observation(observation))
        self._seeds[member] = seed

    def step(
        self, member: int, action: Any, observation: Any, reward: Any, terminated: bool, truncated: bool,
        success: bool | None,
    ) -> None:  # fmt: skip
        recorder = self._recorders[member]
        fields, seen = self._flatten_action(action), self._flatten_observation(observation)
        recorder.step(fields, seen, reward, terminated, truncated, success=success)
        if recorder.is_over:
            metadata = dataclasses.replace(self._metadata, seed=self._seeds[member], collection_index=self._next_index)
            self._next_index += 1
            self._on_episode(recorder.finish(metadata))


class RecordingVectorEnv(gymnasium.vector.VectorWrapper):
    """Hands each finished episode of a Gymnasium vector environment to `on_episode`; steps as the environment does.

    Args:
      env: to record, in any of the three autoreset modes.
      spec: of its task.
      metadata: of every episode; the seed where `reset` was given one, and collection_index, are filled in.
      on_episode: called with each whole episode, in the order in which they end.
      first_index: `collection_index` of the first.

    Raises:
      UserError: the environment does not say how it resets.
    """

    def __init__(
        self,
        env: gymnasium.vector.VectorEnv,
        *,
        spec: TaskSpec,
        metadata: EpisodeMetadata,
        on_episode: Callable[[Episode], object],
        first_index: int = 0,
    ) -> None:
        super().__init__(env)
        mode = env.metadata.get("autoreset_mode")
        if not isinstance(mode, AutoresetMode):
            raise UserError(f"{env}: expected an autoreset_mode in its metadata, got {mode!r}")
        self._mode = mode
        self._over = np.zeros(env.num_envs, bool)
        self._members = _Members(
            env.num_envs,
            env.single_observation_space,
            env.single_action_space,
            spec=spec,
            metadata=metadata,
            on_episode=on_episode,
            first_index=first_index,
        )

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> Any:
        """Begins episodes, those of `options["reset_mask"]` or all; running ones that are reset are dropped."""
        # A copy: the environment takes the mask out of the options.
        mask = np.array((options or {}).get("reset_mask", np.ones(self.num_envs, bool)))
        observations, infos = self.env.reset(seed=seed, options=options)
        seeds = [seed + member for member in range(self.num_envs)] if isinstance(seed, int) else seed
        for member, observation in enumerate(iterate(self.env.observation_space, observations)):
            if mask[member]:
                self._members.begin(member, observation, seeds[member] if seeds is not None else None)
        self._over &= ~mask
        return observations, infos

    def step(self, actions: Any) -> Any:
        """Steps and records."""
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        ended = terminations | truncations
        given_actions = iterate(self.env.action_space, actions)
        given = iterate(self.env.observation_space, observations)
        for member, (action, observation) in enumerate(zip(given_actions, given, strict=True)):
            if self._mode == AutoresetMode.NEXT_STEP and self._over[member]:
                self._members.begin(member, observation)
                continue
            at_once = self._mode == AutoresetMode.SAME_STEP and ended[member]
            last = _member_of(infos["final_obs"], member) if at_once else observation
            told = infos.get("final_info", {}) if at_once else infos
            said = {key: told[key][member] for key in SUCCESS_KEYS if key in told and told[f"_{key}"][member]}
            ends = bool(terminations[member]), bool(truncations[member])
            self._members.step(member, action, last, rewards[member], *ends, reported_success(said))
            if at_once:
                self._members.begin(member, observation)
        self._over = np.array(ended)
        return observations, rewards, terminations, truncations, infos


def _member_of(values: Any, member: int) -> Any:
    """One member of what Gymnasium gathers in `infos`: arrays, and for Dict spaces dicts of them with "_key" masks."""
    if isinstance(values, Mapping):
        return {key: _member_of(value, member) for key, value in values.items() if f"_{key}" in values}
    return values[member]


class RecordingVecEnv:
    """The same for a `VecEnv` of stable-baselines3, which it stands in for in loops that call `reset` and `step`."""

    def __init__(
        self,
        env: Any,
        *,
        spec: TaskSpec,
        metadata: EpisodeMetadata,
        on_episode: Callable[[Episode], object],
        first_index: int = 0,
    ) -> None:
        self._env = env
        self._members = _Members(
            env.num_envs,
            env.observation_space,
            env.action_space,
            spec=spec,
            metadata=metadata,
            on_episode=on_episode,
            first_index=first_index,
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def reset(self) -> Any:
        """Begins an episode in every member."""
        observations = self._env.reset()
        for member in range(self._env.num_envs):
            self._members.begin(member, _row(observations, member))
        return observations

    def step(self, actions: Any) -> Any:
        """Steps and records."""
        observations, rewards, dones, infos = self._env.step(actions)
        self._record(actions, observations, rewards, dones, infos)
        return observations, rewards, dones, infos

    def _record(self, actions: Any, observations: Any, rewards: Any, dones: Any, infos: Sequence[Mapping]) -> None:
        for member, info in enumerate(infos):
            after = _row(observations, member)
            last = info["terminal_observation"] if dones[member] else after
            cut = bool(dones[member] and info.get("TimeLimit.truncated", False))
            ends = bool(dones[member]) and not cut, cut
            self._members.step(member, actions[member], last, rewards[member], *ends, reported_success(info))
            if dones[member]:
                self._members.begin(member, after)


def _row(values: Any, member: int) -> Any:
    if isinstance(values, Mapping):
        return {key: value[member] for key, value in values.items()}
    return values[member]
