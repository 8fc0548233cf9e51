"""Acts recorded actions again: what `episode_store replay` compares episodes with.

The environment comes from this project's catalogue by the task's id. What an episode or a task file says of its
environment is compared with the catalogue, and never made, imported or called.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from collectors import registry, spaces
from collectors.rollout import reset_quietly
from collectors.task import Task
from episode_store.episode import EpisodeMetadata
from episode_store.errors import UserError
from episode_store.replay import CannotReplayError, Moment
from episode_store.spec import FieldValues
from episode_store.task import TaskSpec

if TYPE_CHECKING:
    import gymnasium

# What an episode's environment_config has beside `Environment.to_json`.
_MADE_OF = ("id", "kwargs", "wrappers")


class Simulator:
    """See `episode_store.replay.Simulator`. Environments are kept: the same task's episodes share one."""

    def __init__(self) -> None:
        self._environments: dict[str, gymnasium.Env] = {}

    def check(self, task: TaskSpec, metadata: EpisodeMetadata) -> list[str]:
        """Compares how the environment was made then with the catalogue; see `episode_store.replay.Simulator`."""
        ours = self._task(task.task_id)
        if metadata.seed is None:
            raise CannotReplayError("it has no seed: what its environment began with is not known")
        assert ours.make_env is not None
        try:
            spec = ours.spec()
        except UserError as error:
            raise CannotReplayError(str(error)) from None  # a package of the environment is missing
        if spec.to_json() != task.to_json():
            raise CannotReplayError(
                f"the store's task {task.task_id} is not the catalogue's: its spaces, or how its environment is made, "
                "differ"
            )
        then = {key: metadata.environment_config[key] for key in _MADE_OF if key in metadata.environment_config}
        now = ours.make_env.to_json()
        for key, value in then.items():
            if json.dumps(value, sort_keys=True) != json.dumps(now[key], sort_keys=True):
                raise CannotReplayError(f"its environment's {key} was {value!r}, in the catalogue it is {now[key]!r}")
        return _version_warnings(metadata.environment_config.get("versions"), ours.make_env.config()["versions"])

    def run(self, task: TaskSpec, seed: int, actions: Mapping[str, FieldValues], num_steps: int) -> Iterator[Moment]:
        """See `episode_store.replay.Simulator`."""
        env = self._environment(task.task_id)
        to_fields = spaces.flattener(env.observation_space, "observation")
        to_action = spaces.unflattener(env.action_space, "action")
        observation, _ = reset_quietly(env, seed)
        yield Moment(observation=to_fields(observation))
        for step in range(num_steps):
            action = to_action({key: values[step] for key, values in actions.items()})
            observation, reward, terminated, truncated, _ = env.step(action)
            yield Moment(
                observation=to_fields(observation),
                reward=float(reward),
                terminated=bool(terminated),
                truncated=bool(truncated),
            )
            if terminated or truncated:
                return

    def close(self) -> None:
        """Closes the environments."""
        for env in self._environments.values():
            env.close()
        self._environments.clear()

    def _task(self, task_id: str) -> Task:
        try:
            task = registry.get(task_id)
        except UserError as error:
            raise CannotReplayError(str(error)) from None
        if task.is_corpus:
            raise CannotReplayError(f"{task_id} is a corpus: nobody acted, so there is nothing to act again")
        return task

    def _environment(self, task_id: str) -> gymnasium.Env:
        env = self._environments.get(task_id)
        if env is None:
            env = self._environments[task_id] = self._task(task_id).environment()
        return env


def _version_warnings(then: object, now: Mapping[str, str]) -> list[str]:
    if not isinstance(then, Mapping):
        return ["the versions of its libraries were not recorded"]
    return [
        f"{package} was {then[package]}, here it is {now[package] or 'not installed'}"
        for package in sorted(set(then) & set(now))
        if then[package] != now[package]
    ]
