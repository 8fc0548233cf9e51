"""What an episode is: T actions between T + 1 observations, and how it was made.

Alignment, used everywhere: observation t comes before action t; reward t and observation t + 1 come after it. The
last observation has no action. `terminated` and `truncated` tell how the episode ended, as Gymnasium defines them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import xxhash

from episode_store.errors import EpisodeError
from episode_store.spec import STORED_DTYPES, FieldValues, all_finite, is_text
from episode_store.task import TaskSpec

# Step column: True where the recorded action was a deliberate disturbance and not the agent's choice. Such actions
# are never targets of imitation (tokenization/loss_mask.py).
EXPLORATORY = "exploratory"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodeMetadata:
    """Where an episode comes from.

    Attributes:
      agent_id: who acted, for example "ppo-CartPole-v1-seed0".
      seed: given to the environment's reset; None where there is none.
      collection_index: place in the order of collection of this agent on this task; the return filter needs it.
      experiment_id: the run that made the episode.
      environment_config: JSON-able facts: environment id, kwargs, wrappers, library versions.
      agent_hash: hash of the agent's weights or source; "" if unknown.
      split_group: episodes of one group are never divided between training and held-out data (an image, a speaker).
      attribution: licence and source of data that was not generated here.
      success: whether the environment said that the task was solved; None where it does not tell. It is never guessed
        from rewards or ends.
    """

    agent_id: str = ""
    seed: int | None = None
    collection_index: int = 0
    experiment_id: str = ""
    environment_config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    agent_hash: str = ""
    split_group: str = ""
    attribution: str = ""
    success: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object; without `success` where it is None, so ids from before it existed stay what they are."""
        result = {name: getattr(self, name) for name in _METADATA_NAMES}
        if self.success is None:
            del result["success"]
        result["environment_config"] = dict(self.environment_config)
        return result

    def encode(self) -> str:
        """The metadata as JSON text, always the same for the same facts.

        Raises:
          TypeError, ValueError: a value that JSON cannot hold.
        """
        return _ENCODER.encode(self.to_json())

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EpisodeMetadata:
        """The inverse of `to_json`; unknown keys are ignored."""
        return cls(**{key: value for key, value in data.items() if key in _METADATA_NAMES})


_ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))
_METADATA_NAMES = tuple(field.name for field in dataclasses.fields(EpisodeMetadata))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Episode:
    """One episode of T steps.

    Attributes:
      task_id: of the task it belongs to.
      observations: field -> [T + 1, ...] (a list of T + 1 strings for text, of T + 1 images where their size varies).
      actions: field -> [T, ...].
      rewards: float64 [T].
      terminated: the environment reached a terminal state after the last action.
      truncated: the episode was cut by a limit after the last action.
      step_columns: extra per-step facts, name -> [T], for example `EXPLORATORY`.
      metadata: where it comes from.
    """

    task_id: str
    observations: Mapping[str, FieldValues]
    actions: Mapping[str, FieldValues]
    rewards: np.ndarray
    terminated: bool
    truncated: bool
    step_columns: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    metadata: EpisodeMetadata = dataclasses.field(default_factory=EpisodeMetadata)

    @property
    def num_steps(self) -> int:
        """T, the number of actions."""
        return len(self.rewards)

    @property
    def episode_return(self) -> float:
        """The undiscounted sum of rewards."""
        return float(np.add.reduce(self.rewards, dtype=np.float64))

    def fields(self) -> Iterator[tuple[str, FieldValues]]:
        """Paths as a record's columns have them, "observations/<name>" and so on, and values; by group, then name."""
        for group in ("observations", "actions"):
            fields = getattr(self, group)
            for name in sorted(fields):
                yield f"{group}/{name}", fields[name]
        yield "rewards", self.rewards
        for name in sorted(self.step_columns):
            yield f"step_columns/{name}", self.step_columns[name]

    def content_hash(self) -> str:
        """32 hex digits of what happened, whoever recorded it: equal episodes have equal hashes.

        XXH3 is not cryptographic: chance does not bring two episodes together, but ill will can.
        """
        return self.hash_content()[0]

    def hash_content(self) -> tuple[str, dict[str, bytes]]:
        """The content hash, and of each field what went into it: path -> XXH3 with 128 bits of its values."""
        parts = [json.dumps([self.task_id, bool(self.terminated), bool(self.truncated)]).encode()]
        digests = {}
        for path, values in self.fields():
            kind = "list" if isinstance(values, list) else f"{values.dtype.str}{values.shape}"
            digests[path] = digest = _digest(values)
            parts += (f"{len(path)} {path} {kind}".encode(), digest)
        return xxhash.xxh3_128_hexdigest(b"".join(parts)), digests

    def episode_id(self, content_hash: str | None = None, metadata_json: str | None = None) -> str:
        """32 hex digits of content and provenance: the name of this episode in every store.

        Args:
          content_hash, metadata_json: `content_hash()` and `metadata.encode()`, where they are at hand.
        """
        text = (content_hash or self.content_hash()) + (metadata_json or self.metadata.encode())
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def validate(self, task: TaskSpec) -> None:
        """Checks the whole contract against the task.

        Raises:
          EpisodeError: for the first violation, naming task, field, step, what was expected and what was found.
        """
        where = f"episode of {self.task_id}"
        if self.task_id != task.task_id:
            raise EpisodeError(f"{where}: expected task {task.task_id}")
        if not isinstance(self.rewards, np.ndarray) or self.rewards.ndim != 1:
            raise EpisodeError(f"{where}: rewards: expected a one-dimensional array")
        if self.rewards.dtype != np.float64:
            raise EpisodeError(f"{where}: rewards: expected dtype float64, got {self.rewards.dtype}")
        num_steps = self.num_steps
        if num_steps < 1:
            raise EpisodeError(f"{where}: expected at least 1 step, got 0")
        if not all_finite(self.rewards):
            step = int(np.argmin(np.isfinite(self.rewards)))
            raise EpisodeError(f"{where}: rewards: step {step}: expected a finite number, got {self.rewards[step]}")
        for name, end in (("terminated", self.terminated), ("truncated", self.truncated)):
            if not isinstance(end, bool | np.bool_):
                raise EpisodeError(
                    f"{where}: {name}: expected one bool for the whole episode, got {type(end).__name__}; "
                    "divide what holds an end in the middle into episodes"
                )
        if not (self.terminated or self.truncated):
            raise EpisodeError(f"{where}: expected an end: neither terminated nor truncated is set")
        for name, fields, specs, length in (
            ("observations", self.observations, task.observation_spec, num_steps + 1),
            ("actions", self.actions, task.action_spec, num_steps),
        ):
            if fields.keys() != specs.keys():
                raise EpisodeError(f"{where}: {name}: expected fields {sorted(specs)}, got {sorted(fields)}")
            for key, spec in specs.items():
                spec.validate(fields[key], length=length, where=f"{where}: {name}/{key}")
        for key, values in self.step_columns.items():
            if not isinstance(values, np.ndarray) or values.dtype.str not in STORED_DTYPES:
                got = f"dtype {values.dtype}" if isinstance(values, np.ndarray) else type(values).__name__
                raise EpisodeError(f"{where}: step_columns/{key}: expected an array of bools or numbers, got {got}")
            if values.ndim < 1 or len(values) != num_steps:
                raise EpisodeError(
                    f"{where}: step_columns/{key}: expected {num_steps} values, got shape {values.shape}"
                )


def _digest(values: FieldValues) -> bytes:
    if isinstance(values, np.ndarray):
        return xxhash.xxh3_128_digest(np.ascontiguousarray(values).data)
    if is_text(values):
        return xxhash.xxh3_128_digest(json.dumps(values).encode())
    digest = xxhash.xxh3_128()
    for image in values:
        digest.update(f"{image.dtype.str}{image.shape}".encode())
        digest.update(np.ascontiguousarray(image).data)
    return digest.digest()
