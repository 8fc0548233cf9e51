"""Training sequences, drawn from the shards when they are read.

Sequence number n of a run is a pure function of (data, settings, seed, n): that makes a resumed run exact whatever the
number of loader workers or ranks.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence

import numpy as np

from episode_store.errors import UserError
from tokenization import image_patches
from tokenization.token_sequence import ACTION_POSITION, TargetKind
from tokenization.vocabulary import PATCH_PLACEHOLDER, SEPARATOR
from trainer.config import SamplerConfig
from trainer.shards import TaskData

# A row is given up after this many segments in a row that do not fit into what is left of it.
_ATTEMPTS = 6
_SMALLEST_TEXT_PIECE = 24


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PackedSequence:
    """One row of a batch, of `context_tokens` places; what is left at the end is padding.

    Attributes:
      tokens: int64 [T], 0 in padding and at patches.
      local_positions: int64 [T].
      positions: int64 [T], place inside the segment.
      segment_lengths: lengths of the segments, padding included as the last one; they sum to T.
      patches: uint8 [U, 16, 16, 3]; patch_slots, patch_index: int64 [M]; patch_positions: int64 [M, 2].
      target_slots, target_ids, target_tasks: int64 [K]; target_weights: float32 [K]; target_is_text: bool [K].
      num_real: places that are not padding.
    """

    tokens: np.ndarray
    local_positions: np.ndarray
    positions: np.ndarray
    segment_lengths: list[int]
    patches: np.ndarray
    patch_slots: np.ndarray
    patch_index: np.ndarray
    patch_positions: np.ndarray
    target_slots: np.ndarray
    target_ids: np.ndarray
    target_weights: np.ndarray
    target_is_text: np.ndarray
    target_tasks: np.ndarray
    num_real: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """Consecutive tokens [start, end) of one task's stream."""

    start: int
    end: int


class Sampler:
    """Draws packed sequences from the mixture of tasks."""

    def __init__(self, data: Mapping[str, TaskData], config: SamplerConfig, seed: int) -> None:
        if not data:
            raise UserError("the shards hold no training data")
        self.task_ids = sorted(data)
        self._tasks = [data[task_id] for task_id in self.task_ids]
        if config.condition_on_return:
            self._tasks = [task.with_return_tokens() for task in self._tasks]
        self._config = config
        self._seed = seed
        for task in self._tasks:
            longest = int(np.diff(task.timestep_offsets).max())
            if not task.task.is_corpus and longest > config.context_tokens:
                raise UserError(
                    f"task {task.task.task_id}: a timestep has {longest} tokens, more than sampler.context_tokens="
                    f"{config.context_tokens}; raise it"
                )
        weights = np.array([_weight(task.task.task_id, config.task_weights, task.weight) for task in self._tasks])
        if not weights.sum() > 0:
            raise UserError("sampler.task_weights and the mixture: every task has weight 0")
        # Weights are shares of the tokens; tasks are drawn a segment at a time.
        rng = np.random.default_rng([seed, 1 << 40])
        mean_tokens = np.array([self._mean_segment_tokens(task, rng) for task in self._tasks])
        draws = weights / mean_tokens
        self._cumulative = np.cumsum(draws / draws.sum())
        self._action_weights = np.array([_action_weight(task, config.action_weight_exponent) for task in self._tasks])

    def _mean_segment_tokens(self, task: TaskData, rng: np.random.Generator) -> float:
        return float(np.mean([sum(p.end - p.start for p in self._segment(task, rng)) for _ in range(64)]))

    def sequence(self, number: int) -> PackedSequence:
        """Packed sequence `number`."""
        rng = np.random.default_rng([self._seed, number])
        room = self._config.context_tokens
        chosen: list[tuple[int, TaskData, list[Piece]]] = []
        failures = 0
        while room > 2 and failures < _ATTEMPTS:
            index = min(int(self._cumulative.searchsorted(rng.random(), side="right")), len(self._tasks) - 1)
            pieces = _fit(self._tasks[index], self._segment(self._tasks[index], rng), room)
            if not pieces:
                failures += 1
                continue
            chosen.append((index, self._tasks[index], pieces))
            room -= sum(piece.end - piece.start for piece in pieces)
        return assemble(chosen, config=self._config, rng=rng, action_weights=self._action_weights)

    def _segment(self, task: TaskData, rng: np.random.Generator) -> list[Piece]:
        """A segment, behind a prompt or not."""
        config = self._config
        episode = int(rng.integers(task.num_episodes))
        first, last = int(task.episode_offsets[episode]), int(task.episode_offsets[episode + 1])
        if task.task.is_corpus:
            return [self._text_piece(task, first, last, rng)]
        if rng.random() < config.short_segment_share:
            num_steps = int(rng.integers(1, config.short_segment_steps + 1))
        else:
            tokens_per_step = int(task.timestep_offsets[first + 1] - task.timestep_offsets[first])
            num_steps = max(1, config.long_segment_tokens // tokens_per_step)
        if rng.random() < config.early_start_share:
            # Log-uniform in the step: what happens once, before an episode settles, is seen as often as what lasts.
            start = first + int((last - first + 1) ** rng.random()) - 1
        else:
            # Steps, not episodes, are equally likely: long episodes have more to tell.
            start = int(rng.integers(task.num_timesteps))
            episode = int(task.episode_offsets.searchsorted(start, side="right")) - 1
            last = int(task.episode_offsets[episode + 1])
        pieces = [_steps(task, start, min(start + num_steps, last))]
        if rng.random() < config.prompt_share:
            prompt = self._prompt(task, episode, rng)
            if prompt is not None:
                pieces.insert(0, prompt)
        return pieces

    def _prompt(self, task: TaskData, episode: int, rng: np.random.Generator) -> Piece | None:
        """Steps of another episode by the same agent; half of them from its end."""
        candidates = rng.integers(task.num_episodes, size=4)
        for other in candidates.tolist():
            if other != episode and task.agents[other] == task.agents[episode]:
                break
        else:
            return None
        first, last = int(task.episode_offsets[other]), int(task.episode_offsets[other + 1])
        num_steps = min(int(rng.integers(1, self._config.prompt_steps + 1)), last - first)
        start = last - num_steps
        if rng.random() < 0.5:
            start = int(rng.integers(first, start + 1))
        return _steps(task, start, start + num_steps)

    def _text_piece(self, task: TaskData, first: int, last: int, rng: np.random.Generator) -> Piece:
        """A run of whole timesteps that fits into a sequence, or a part of one that does not."""
        offsets = task.timestep_offsets
        limit = self._config.context_tokens
        step = int(rng.integers(first, last))
        start, end = int(offsets[step]), int(offsets[step + 1])
        if end - start > limit:
            start += int(rng.integers(0, end - start - limit // 2))
            return Piece(start=start, end=min(start + limit, end))
        while step + 1 < last and int(offsets[step + 2]) - start <= limit:
            step += 1
        return Piece(start=start, end=int(offsets[step + 1]))


def assemble(
    chosen: Sequence[tuple[int, TaskData, list[Piece]]],
    *,
    config: SamplerConfig,
    rng: np.random.Generator,
    action_weights: np.ndarray | None = None,
) -> PackedSequence:
    """Lays segments end to end. Each is (number of its task, its task's data, its pieces).

    `action_weights` has the weight of an action in the loss by the number of its task; 1 without it.
    """
    length = config.context_tokens
    tokens = np.zeros(length, dtype=np.int64)
    local_positions = np.zeros(length, dtype=np.int64)
    positions = np.zeros(length, dtype=np.int64)
    lengths: list[int] = []
    slots, ids, weights, is_text, tasks = [], [], [], [], []
    patch_tables, patch_slots, patch_index, patch_positions = [], [], [], []
    num_patches = 0
    place = 0
    for index, task, pieces in chosen:
        action_weight = 1.0 if action_weights is None else action_weights[index]
        # By TargetKind.
        weight_of = np.array((0.0, action_weight, config.text_observation_weight))
        is_text_of = np.array((False, task.acts_in_text, True))
        segment_start = place
        contrast, brightness = 1.0, 0.0
        if config.image_jitter and len(task.patch_slots):
            change, brightness = rng.uniform(-config.image_jitter, config.image_jitter, 2)
            contrast = 1.0 + change
        for piece in pieces:
            size = piece.end - piece.start
            tokens[place : place + size] = task.tokens[piece.start : piece.end]
            local_positions[place : place + size] = task.local_positions[piece.start : piece.end]
            kinds = task.targets[piece.start : piece.end]
            token_weights = weight_of[kinds]
            if config.observation_weight:
                observed = _is_observed_number(task, piece)
                if config.condition_on_return:  # what is wished for is nothing to predict
                    observed &= task.local_positions[piece.start : piece.end] > 0
                token_weights[observed] = config.observation_weight
            if config.past_action_dropout and not task.task.is_corpus:
                later = _drop_actions(tokens[place : place + size], task, piece, config.past_action_dropout, rng)
                token_weights[later] = 0.0
            # The first token of a segment has no token before it that could predict it.
            token_weights[: int(place == segment_start)] = 0.0
            (places,) = np.nonzero(token_weights)
            if len(places):
                slots.append(place + places - 1)
                ids.append(task.tokens[piece.start + places])
                weights.append(token_weights[places])
                is_text.append(is_text_of[kinds[places]])
                tasks.append(np.full(len(places), index))
            if len(task.patch_slots):
                low, high = task.patch_slots.searchsorted((piece.start, piece.end))
                unique, inverse = np.unique(task.patch_index[low:high], return_inverse=True)
                patch_tables.append(_jittered(task.patches[unique], contrast, brightness))
                patch_slots.append(task.patch_slots[low:high] - piece.start + place)
                patch_index.append(inverse + num_patches)
                patch_positions.append(image_patches.training_positions(task.patch_intervals[low:high], rng))
                num_patches += len(unique)
            place += size
        positions[segment_start:place] = np.arange(place - segment_start)
        lengths.append(place - segment_start)
    if place < length:
        lengths.append(length - place)
    all_slots = _join(patch_slots, np.int64)
    tokens[all_slots] = 0
    return PackedSequence(
        tokens=tokens,
        local_positions=local_positions,
        positions=positions,
        segment_lengths=lengths,
        patches=np.concatenate(patch_tables) if patch_tables else np.zeros((0, 16, 16, 3), np.uint8),
        patch_slots=all_slots,
        patch_index=_join(patch_index, np.int64),
        patch_positions=np.concatenate(patch_positions) if patch_positions else np.zeros((0, 2), np.int64),
        target_slots=_join(slots, np.int64),
        target_ids=_join(ids, np.int64),
        target_weights=_join(weights, np.float32),
        target_is_text=_join(is_text, np.bool_),
        target_tasks=_join(tasks, np.int64),
        num_real=place,
    )


def _is_observed_number(task: TaskData, piece: Piece) -> np.ndarray:
    """Which tokens of a piece are discrete values or bins of an observation."""
    tokens = task.tokens[piece.start : piece.end]
    inside = task.local_positions[piece.start : piece.end] != ACTION_POSITION
    unasked = task.targets[piece.start : piece.end] == TargetKind.NONE
    return inside & unasked & (tokens != SEPARATOR) & (tokens != PATCH_PLACEHOLDER)


def _drop_actions(
    tokens: np.ndarray, task: TaskData, piece: Piece, probability: float, rng: np.random.Generator
) -> np.ndarray:
    """Hides the actions of some steps, all but the last of a piece's, in `tokens`; returns the places that lose their
    meaning as targets: in a hidden action every token but the first."""
    is_action = task.local_positions[piece.start : piece.end] == ACTION_POSITION
    starts = np.flatnonzero(is_action & ~np.concatenate(([False], is_action[:-1])))
    step = np.cumsum(np.isin(np.arange(len(tokens)), starts)) - 1
    dropped = rng.random(len(starts)) < probability
    dropped[-1:] = False
    hidden = np.flatnonzero(is_action & dropped[step]) if len(starts) else starts
    tokens[hidden] = SEPARATOR
    return np.setdiff1d(hidden, starts)


def _jittered(patches: np.ndarray, contrast: float, brightness: float) -> np.ndarray:
    """uint8 patches around mid-grey times `contrast`, and lighter by `brightness` of the range."""
    if contrast == 1.0 and brightness == 0.0:
        return patches
    changed = (patches.astype(np.float32) - 127.5) * contrast + 127.5 + 255.0 * brightness
    return np.clip(np.rint(changed), 0, 255).astype(np.uint8)


def _weight(task_id: str, weights: Mapping[str, float], default: float) -> float:
    for pattern, weight in weights.items():
        if fnmatch.fnmatchcase(task_id, pattern):
            return weight
    return default


def _action_weight(task: TaskData, exponent: float) -> float:
    """Weight in the loss of each action token of a task."""
    if task.task.is_corpus:
        return 1.0
    return float((len(task.tokens) / np.count_nonzero(task.targets == TargetKind.ACTION)) ** exponent)


def _steps(task: TaskData, first: int, last: int) -> Piece:
    return Piece(start=int(task.timestep_offsets[first]), end=int(task.timestep_offsets[last]))


def _fit(task: TaskData, pieces: list[Piece], room: int) -> list[Piece]:
    """Shortens a segment to `room` tokens: text anywhere, control at a timestep's end; empty when nothing fits."""
    size = sum(piece.end - piece.start for piece in pieces)
    if size <= room:
        return pieces
    last = pieces[-1]
    if task.task.is_corpus:
        return [Piece(start=last.start, end=last.start + room)] if room >= _SMALLEST_TEXT_PIECE else []
    step = int(task.timestep_offsets.searchsorted(last.start + room, side="right")) - 1
    end = min(int(task.timestep_offsets[step]), last.end)
    return [Piece(start=last.start, end=end)] if end > last.start else []


def _join(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)
