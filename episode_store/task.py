"""What a task is to the data: its identity and the specs of its observations and actions."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from episode_store.errors import UserError
from episode_store.spec import ArraySpec

# `[namespace/]name-vN`. No dots (WebDataset keys and Beam shards split on them), no path tricks.
# No "--": it stands for '/' in file names.
_TASK_ID = re.compile(r"(?!.*--)(?:[A-Za-z0-9][A-Za-z0-9_-]{0,63}/)?[A-Za-z0-9][A-Za-z0-9_-]{0,99}-v[0-9]{1,4}")


def check_task_id(task_id: str) -> str:
    """Returns `task_id` when it follows the grammar `[namespace/]name-vN`.

    Raises:
      UserError: when it does not.
    """
    if not _TASK_ID.fullmatch(task_id):
        raise UserError(f"task id {task_id!r}: expected [namespace/]name-vN in letters, digits, '_' and single '-'")
    return task_id


def task_file_name(task_id: str) -> str:
    """A file-name part that is unique for a task id and holds no separator: '/' becomes '--'."""
    return check_task_id(task_id).replace("/", "--")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """The part of a task that travels with its data.

    Attributes:
      task_id: `[namespace/]name-vN`.
      observation_spec: field name -> spec. Nested spaces are flattened to '/'-joined keys.
      action_spec: field name -> spec; a bare action space has the one key "action".
      max_episode_steps: time limit in steps, or None.
      env_spec_json: how the environment is made (id, kwargs, wrappers) as JSON; "{}" for corpora. Never executed.
      tags: for example ("family:mujoco", "corpus").
      licence: of the data, as SPDX where there is one.
    """

    task_id: str
    observation_spec: Mapping[str, ArraySpec]
    action_spec: Mapping[str, ArraySpec]
    max_episode_steps: int | None = None
    env_spec_json: str = "{}"
    tags: tuple[str, ...] = ()
    licence: str = ""

    def __post_init__(self) -> None:
        check_task_id(self.task_id)
        # One canonical order everywhere: lexicographic by key (the paper's order inside a timestep).
        object.__setattr__(self, "observation_spec", dict(sorted(self.observation_spec.items())))
        object.__setattr__(self, "action_spec", dict(sorted(self.action_spec.items())))

    @property
    def is_corpus(self) -> bool:
        """Whether the episodes come from a data set (text, captions, ...) and not from an environment."""
        return "corpus" in self.tags

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "task_id": self.task_id,
            "observation_spec": {key: spec.to_json() for key, spec in self.observation_spec.items()},
            "action_spec": {key: spec.to_json() for key, spec in self.action_spec.items()},
            "max_episode_steps": self.max_episode_steps,
            "env_spec_json": self.env_spec_json,
            "tags": list(self.tags),
            "licence": self.licence,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TaskSpec:
        """The inverse of `to_json`."""
        return cls(
            task_id=data["task_id"],
            observation_spec={key: ArraySpec.from_json(spec) for key, spec in data["observation_spec"].items()},
            action_spec={key: ArraySpec.from_json(spec) for key, spec in data["action_spec"].items()},
            max_episode_steps=data["max_episode_steps"],
            env_spec_json=data["env_spec_json"],
            tags=tuple(data["tags"]),
            licence=data["licence"],
        )
