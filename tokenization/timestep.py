"""The order of fields inside one timestep (Gato, section 2.2 and appendix B).

Observation: text, then image patches, then tensors; the separator; the action: text, then tensors. Keys stand in
lexicographic order inside each kind, arrays are flattened row-major.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from episode_store.errors import UserError
from episode_store.spec import ArraySpec, Modality
from episode_store.task import TaskSpec
from tokenization.image_patches import check_image_shape, patch_grid
from tokenization.vocabulary import CONTINUOUS_OFFSET, NUM_BINS, NUM_DISCRETE


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActionToken:
    """One token of a tensor action.

    Attributes:
      field: key in the task's action_spec.
      element: place in the field, flattened row-major.
      low: lowest valid id.
      high: one above the highest valid id.
    """

    field: str
    element: int
    low: int
    high: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimestepLayout:
    """The fields of a task in the order of their tokens.

    Attributes:
      observation_text: keys of text observations.
      observation_images: keys of image observations, each with its grid of patches (rows, columns).
      observation_tensors: keys of discrete and continuous observations.
      action_text: keys of text actions.
      action_tensors: keys of discrete and continuous actions.
      num_patches: image patches of one observation.
      num_observation_values: tensor tokens of one observation.
      action_tokens: the tensor tokens of one action.
    """

    observation_text: tuple[str, ...]
    observation_images: tuple[tuple[str, tuple[int, int]], ...]
    observation_tensors: tuple[str, ...]
    action_text: tuple[str, ...]
    action_tensors: tuple[str, ...]
    num_patches: int
    num_observation_values: int
    action_tokens: tuple[ActionToken, ...]

    @classmethod
    def of(cls, task: TaskSpec) -> TimestepLayout:
        """The layout of a task.

        Raises:
          UserError: when a field has no tokens: a discrete space of more than 1,024 values, an image of 2 channels.
        """
        observation, action = dict(sorted(task.observation_spec.items())), dict(sorted(task.action_spec.items()))
        for group, specs in (("observations", observation), ("actions", action)):
            for key, spec in specs.items():
                _check_field(spec, where=f"task {task.task_id}: {group}/{key}")
        images = {key: spec for key, spec in observation.items() if spec.modality == Modality.IMAGE}
        for key, spec in action.items():
            if spec.modality == Modality.IMAGE:
                raise UserError(f"task {task.task_id}: actions/{key}: expected text or numbers, got an image")
        grids = tuple((key, patch_grid(*spec.shape[:2])) for key, spec in images.items())
        tensors = _keys(observation, Modality.DISCRETE, Modality.CONTINUOUS)
        action_tensors = _keys(action, Modality.DISCRETE, Modality.CONTINUOUS)
        return cls(
            observation_text=_keys(observation, Modality.TEXT),
            observation_images=grids,
            observation_tensors=tensors,
            action_text=_keys(action, Modality.TEXT),
            action_tensors=action_tensors,
            num_patches=sum(rows * columns for _, (rows, columns) in grids),
            num_observation_values=sum(observation[key].size for key in tensors),
            action_tokens=tuple(token for key in action_tensors for token in _action_tokens(key, action[key])),
        )

    @property
    def num_fixed_tokens(self) -> int:
        """Tokens of one timestep that are not text, the separator included."""
        return self.num_patches + self.num_observation_values + 1 + len(self.action_tokens)

    @property
    def has_text(self) -> bool:
        """Whether timesteps vary in length."""
        return bool(self.observation_text or self.action_text)

    def to_json(self) -> dict[str, Any]:
        """A JSON object: the fields in the order of their tokens, with how many those are where that is fixed."""
        return {
            "observation_text": list(self.observation_text),
            "observation_images": [[key, list(grid)] for key, grid in self.observation_images],
            "observation_tensors": list(self.observation_tensors),
            "action_text": list(self.action_text),
            "action_tensors": list(self.action_tensors),
            "num_patches": self.num_patches,
            "num_observation_values": self.num_observation_values,
            "num_action_values": len(self.action_tokens),
        }


def _keys(specs: dict[str, ArraySpec], *modalities: Modality) -> tuple[str, ...]:
    return tuple(key for key, spec in specs.items() if spec.modality in modalities)


def _check_field(spec: ArraySpec, *, where: str) -> None:
    if spec.modality == Modality.IMAGE:
        check_image_shape(spec.shape, where=where)
    elif spec.modality == Modality.DISCRETE and max(spec.num_values, default=0) > NUM_DISCRETE:
        raise UserError(
            f"{where}: expected a discrete space of at most {NUM_DISCRETE} values, got {max(spec.num_values)}; "
            "split it into several fields, or declare it continuous"
        )


def _action_tokens(key: str, spec: ArraySpec) -> list[ActionToken]:
    if spec.modality == Modality.DISCRETE:
        return [ActionToken(field=key, element=i, low=0, high=n) for i, n in enumerate(spec.num_values)]
    low, high = CONTINUOUS_OFFSET, CONTINUOUS_OFFSET + NUM_BINS
    return [ActionToken(field=key, element=i, low=low, high=high) for i in range(spec.size)]
