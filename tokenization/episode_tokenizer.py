"""A whole episode to a `TokenSequence`, and an action's tokens back to an action."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from episode_store.episode import EXPLORATORY, Episode
from episode_store.errors import EpisodeError, UserError
from episode_store.spec import ArraySpec, FieldValues, Modality
from episode_store.task import TaskSpec
from tokenization import action_values, bins, image_patches, loss_mask, return_tokens
from tokenization.text import TextTokenizer
from tokenization.timestep import ActionToken, TimestepLayout
from tokenization.token_sequence import TokenSequence
from tokenization.vocabulary import PATCH_PLACEHOLDER, SEPARATOR, TOKEN_DTYPE


class EpisodeTokenizer:
    """Tokenizes the episodes of one task. Cheap to pickle.

    Attributes:
      task: whose episodes it takes.
      text: the text model, None for tasks without text.
      layout: the order of the fields.
    """

    def __init__(self, task: TaskSpec, text: TextTokenizer | None = None) -> None:
        """Raises UserError when a field of the task has no tokens, or it has text and there is no text model."""
        self.task = task
        self.text = text
        self.layout = TimestepLayout.of(task)
        if self.layout.has_text and text is None:
            keys = [*self.layout.observation_text, *self.layout.action_text]
            raise UserError(f"task {task.task_id}: fields {keys} are text: expected a text model, got none")
        intervals = [
            image_patches.patch_intervals(*task.observation_spec[key].shape[:2])
            for key, _ in self.layout.observation_images
        ]
        self._intervals = np.concatenate([*intervals, np.empty((0, 4), np.uint8)])

    @property
    def tokens_per_step(self) -> int | None:
        """Tokens of every timestep, separator included; None when text makes it vary."""
        return None if self.layout.has_text else self.layout.num_fixed_tokens

    @property
    def action_layout(self) -> Sequence[ActionToken] | None:
        """What each action token may be; None when the action has text (it ends with `text.end_id`)."""
        return None if self.layout.action_text else self.layout.action_tokens

    def encode(
        self, episode: Episode, *, episode_id: str | None = None, content_hash: str | None = None
    ) -> TokenSequence:
        """Tokenizes T timesteps. The last observation has no action and is left out.

        Args:
          episode: of this task.
          episode_id: saves hashing the episode when it is known, as from a store.
          content_hash: likewise.

        Raises:
          EpisodeError: NaN, Inf, a wrong shape or a value outside its discrete space: task, field, step and element.
        """
        where = f"episode of {episode.task_id}"
        if episode.task_id != self.task.task_id:
            raise EpisodeError(f"{where}: expected task {self.task.task_id}")
        num_steps = episode.num_steps
        observation, num_text, frames = self._observation_parts(episode.observations, num_steps, where)
        parts = [*observation, *self._action_parts(episode.actions, num_steps, where)]
        exploratory = episode.step_columns.get(EXPLORATORY)
        content_hash = content_hash or episode.content_hash()
        return self._sequence(
            parts,
            num_steps,
            num_text,
            frames,
            exploratory,
            episode_id=episode_id or episode.episode_id(content_hash),
            content_hash=content_hash,
            **({} if self.task.is_corpus else {"returns_to_go": return_tokens.returns_to_go(episode.rewards)}),
            episode_return=episode.episode_return,
            agent_id=episode.metadata.agent_id,
        )

    def encode_observation(self, observation: Mapping[str, Any]) -> TokenSequence:
        """The tokens of one observation, up to and with the separator: a sequence of one timestep without action.

        Raises:
          EpisodeError: as `encode`.
        """
        return self.encode_observations([observation])

    def encode_observations(self, observations: Sequence[Mapping[str, Any]]) -> TokenSequence:
        """As `encode_observation` for several environments at once: timestep i is observation i."""
        where = f"observation of {self.task.task_id}"
        fields: dict[str, FieldValues] = {}
        for key, spec in self.task.observation_spec.items():
            values = [_field(observation, key, f"{where}: observations") for observation in observations]
            fields[key] = values if spec.modality == Modality.TEXT else np.stack([np.asarray(v) for v in values])
        num_steps = len(observations)
        parts, num_text, frames = self._observation_parts(fields, num_steps, where)
        return self._sequence(parts, num_steps, num_text, frames, None, episode_id="", content_hash="")

    def decode_action(self, ids: np.ndarray | Sequence[int]) -> dict[str, np.ndarray | str]:
        """The action of one timestep from its tokens: field -> array of the spec's shape and dtype, or text.

        Continuous values are bin centres, scaled back and clipped into the space.

        Raises:
          UserError: too few or too many tokens, or an id that its place cannot have.
        """
        tokens = np.asarray(ids).astype(np.int64).reshape(-1)
        where = f"action of {self.task.task_id}"
        action: dict[str, np.ndarray | str] = {}
        for key in self.layout.action_text:
            assert self.text is not None
            ends = np.flatnonzero(tokens == self.text.end_id)
            # Generation may have been cut before the end of the one text.
            stop = int(ends[0]) if ends.size else len(tokens)
            action[key] = self.text.decode(tokens[:stop])
            tokens = tokens[stop + 1 :]
        layout = self.layout.action_tokens
        if len(tokens) != len(layout):
            raise UserError(f"{where}: expected {len(layout)} tokens, got {len(tokens)}")
        for token, entry in zip(tokens.tolist(), layout, strict=True):
            if not entry.low <= token < entry.high:
                raise UserError(
                    f"{where}: {entry.field}[{entry.element}]: "
                    f"expected an id in [{entry.low}, {entry.high}), got {token}"
                )
        for key in self.layout.action_tensors:
            spec = self.task.action_spec[key]
            action[key] = action_values.from_ids(tokens[: spec.size], spec)
            tokens = tokens[spec.size :]
        return action

    def _observation_parts(
        self, fields: Mapping[str, FieldValues], num_steps: int, where: str
    ) -> tuple[list[_Part], np.ndarray, list[np.ndarray]]:
        """The observation and the separator as parts; text tokens of each step [S]; the images."""
        where = f"{where}: observations"
        parts: list[_Part] = []
        num_text = np.zeros(num_steps, np.int64)
        for key in self.layout.observation_text:
            ragged = self._encode_text(_field(fields, key, where), num_steps, f"{where}/{key}", end=False)
            num_text += ragged.lengths
            parts.append(ragged)
        frames = []
        for key, _ in self.layout.observation_images:
            spec = self.task.observation_spec[key]
            frames.append(_steps(_field(fields, key, where), spec, num_steps, f"{where}/{key}"))
        if frames:
            parts.append(np.full((num_steps, self.layout.num_patches), PATCH_PLACEHOLDER, TOKEN_DTYPE))
        for key in self.layout.observation_tensors:
            spec = self.task.observation_spec[key]
            field_where = f"{where}/{key}"
            values = _steps(_field(fields, key, where), spec, num_steps, field_where)
            if spec.modality == Modality.DISCRETE:
                ids = action_values.discrete_to_ids(values, spec, where=field_where)
            else:
                ids = bins.companded_to_ids(values, where=field_where)
            parts.append(ids.reshape(num_steps, spec.size))
        parts.append(np.full((num_steps, 1), SEPARATOR, TOKEN_DTYPE))
        return parts, num_text, frames

    def _action_parts(self, fields: Mapping[str, FieldValues], num_steps: int, where: str) -> list[_Part]:
        where = f"{where}: actions"
        parts: list[_Part] = [
            self._encode_text(_field(fields, key, where), num_steps, f"{where}/{key}", end=True)
            for key in self.layout.action_text
        ]
        for key in self.layout.action_tensors:
            spec = self.task.action_spec[key]
            values = _steps(_field(fields, key, where), spec, num_steps, f"{where}/{key}")
            parts.append(action_values.to_ids(values, spec, where=f"{where}/{key}").reshape(num_steps, spec.size))
        return parts

    def _encode_text(self, texts: Any, num_steps: int, where: str, *, end: bool) -> _Ragged:
        assert self.text is not None
        if isinstance(texts, str) or len(texts) < num_steps or not all(isinstance(text, str) for text in texts):
            raise EpisodeError(f"{where}: expected at least {num_steps} strings")
        rows = self.text.encode_batch(texts[:num_steps])
        if end:
            last = np.array([self.text.end_id], TOKEN_DTYPE)
            rows = [part for row in rows for part in (row, last)]
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        if end:
            lengths = lengths[0::2] + 1
        return _Ragged(np.concatenate([*rows, np.empty(0, TOKEN_DTYPE)]), lengths)

    def _sequence(
        self,
        parts: list[_Part],
        num_steps: int,
        num_text: np.ndarray,
        frames: list[np.ndarray],
        exploratory: np.ndarray | None,
        **facts: Any,
    ) -> TokenSequence:
        tokens, offsets = _join(parts, num_steps)
        targets = loss_mask.target_kinds(tokens, offsets, num_text_tokens=num_text, exploratory=exploratory)
        images: dict[str, Any] = {}
        if self.layout.num_patches:
            patches, patch_index = image_patches.unique_patches_of_frames(frames)
            images = {
                "patches": patches,
                "patch_index": patch_index.reshape(-1),
                "patch_intervals": np.tile(self._intervals, (num_steps, 1)),
            }
        return TokenSequence(
            task_id=self.task.task_id, tokens=tokens, targets=targets, timestep_offsets=offsets, **images, **facts
        )


class _Ragged:
    """Tokens of a text field, all steps after each other, with the number of each step."""

    def __init__(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        self.tokens = tokens
        self.lengths = lengths


# The tokens of one field over time: uint16 [S, width], or text.
_Part = np.ndarray | _Ragged


def _join(parts: Sequence[_Part], num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Puts the parts of each timestep side by side: tokens uint16 [N] and timestep offsets int64 [S + 1]."""
    if all(isinstance(part, np.ndarray) or _is_even(part) for part in parts):
        columns = [part if isinstance(part, np.ndarray) else part.tokens.reshape(num_steps, -1) for part in parts]
        width = sum(column.shape[1] for column in columns)
        matrix = np.concatenate(columns, axis=1, dtype=TOKEN_DTYPE)
        return matrix.reshape(-1), np.arange(num_steps + 1, dtype=np.int64) * width
    lengths = sum((_lengths(part, num_steps) for part in parts), np.zeros(num_steps, np.int64))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.empty(offsets[-1], TOKEN_DTYPE)
    starts = offsets[:-1].copy()
    for part in parts:
        widths = _lengths(part, num_steps)
        values = part.reshape(-1) if isinstance(part, np.ndarray) else part.tokens
        within = np.arange(len(values)) - np.repeat(np.cumsum(widths) - widths, widths)
        tokens[np.repeat(starts, widths) + within] = values
        starts += widths
    return tokens, offsets


def _is_even(part: _Ragged) -> bool:
    return len(part.lengths) > 0 and bool((part.lengths == part.lengths[0]).all())


def _lengths(part: _Part, num_steps: int) -> np.ndarray:
    return np.full(num_steps, part.shape[1]) if isinstance(part, np.ndarray) else part.lengths


def _field(fields: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in fields:
        raise EpisodeError(f"{where}: expected a field {key!r}, got {sorted(fields)}")
    return fields[key]


def _steps(values: Any, spec: ArraySpec, num_steps: int, where: str) -> np.ndarray:
    """The first `num_steps` of an array field, checked for its shape."""
    if not isinstance(values, np.ndarray) or values.shape[1:] != spec.shape or len(values) < num_steps:
        found = values.shape if isinstance(values, np.ndarray) else type(values).__name__
        raise EpisodeError(f"{where}: expected shape {(num_steps, *spec.shape)}, got {found}")
    return values[:num_steps]
