"""Says in words what each token of a sequence is; for people and for error hunting."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from episode_store.spec import ArraySpec, Modality
from tokenization import action_values, bins
from tokenization.episode_tokenizer import EpisodeTokenizer
from tokenization.token_sequence import TargetKind, TokenSequence, observation_positions
from tokenization.vocabulary import PATCH_PLACEHOLDER, SEPARATOR


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenDescription:
    """One token in words.

    Attributes:
      position: place in the sequence.
      timestep: place of its timestep in the sequence.
      token: vocabulary id, None for an image patch.
      meaning: for example "observation/state[2] ~ 0.0312" or "action = 2".
      local_position: place in the observation, -1 for an action.
      target: why it has a loss: "none", "action" or "observation_text".
    """

    position: int
    timestep: int
    token: int | None
    meaning: str
    local_position: int
    target: str

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return dataclasses.asdict(self)


def describe(sequence: TokenSequence, tokenizer: EpisodeTokenizer) -> list[TokenDescription]:
    """One description a token. `tokenizer` is of the sequence's task."""
    local_positions = observation_positions(sequence.tokens, sequence.timestep_offsets)
    result: list[TokenDescription] = []
    for timestep in range(sequence.num_steps):
        first, last = (int(offset) for offset in sequence.timestep_offsets[timestep : timestep + 2])
        meanings = _timestep_meanings(sequence.tokens[first:last].astype(np.int64), tokenizer)
        for position, meaning in zip(range(first, last), meanings, strict=True):
            token = int(sequence.tokens[position])
            result.append(
                TokenDescription(
                    position=position,
                    timestep=timestep,
                    token=None if token == PATCH_PLACEHOLDER else token,
                    meaning=meaning,
                    local_position=int(local_positions[position]),
                    target=TargetKind(int(sequence.targets[position])).name.lower(),
                )
            )
    return result


def _timestep_meanings(tokens: np.ndarray, tokenizer: EpisodeTokenizer) -> Iterator[str]:
    """The meaning of each token of one timestep; an action may be missing."""
    layout, task, text = tokenizer.layout, tokenizer.task, tokenizer.text
    separator = int(np.flatnonzero(tokens == SEPARATOR)[0])
    observation, action = tokens[:separator], tokens[separator + 1 :]
    num_text = separator - layout.num_patches - layout.num_observation_values
    # Text fields follow each other with nothing in between: which one a piece belongs to cannot be seen.
    text_keys = "|".join(layout.observation_text)
    for token in observation[:num_text]:
        assert text is not None
        yield f"observation/{text_keys} {text.piece(token)!r}"
    for key, (rows, columns) in layout.observation_images:
        for row in range(rows):
            for column in range(columns):
                yield f"observation/{key} patch row {row} column {column}"
    start = num_text + layout.num_patches
    for key in layout.observation_tensors:
        spec = task.observation_spec[key]
        yield from _tensor_meanings(f"observation/{key}", observation[start : start + spec.size], spec, action=False)
        start += spec.size
    yield "separator"
    if not len(action):
        return
    texts = list(layout.action_text)
    start = 0
    while texts:
        assert text is not None
        token = int(action[start])
        name = _action_name(texts[0])
        if token == text.end_id:
            yield f"{name} end of text"
            texts.pop(0)
        else:
            yield f"{name} {text.piece(token)!r}"
        start += 1
    for key in layout.action_tensors:
        spec = task.action_spec[key]
        yield from _tensor_meanings(_action_name(key), action[start : start + spec.size], spec, action=True)
        start += spec.size


def _tensor_meanings(name: str, ids: np.ndarray, spec: ArraySpec, *, action: bool) -> Iterator[str]:
    if spec.modality == Modality.DISCRETE or action:
        values = action_values.from_ids(ids, spec).reshape(-1)
    else:
        values = bins.companded_from_ids(ids)
    relation = "=" if spec.modality == Modality.DISCRETE else "~"
    for element, value in enumerate(values.tolist()):
        index = np.unravel_index(element, spec.shape) if spec.shape else ()
        place = f"[{', '.join(str(int(i)) for i in index)}]" if index else ""
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        yield f"{name}{place} {relation} {shown}"


def _action_name(key: str) -> str:
    return "action" if key == "action" else f"action/{key}"
