"""What an episode looks like to the network: ids, targets, where timesteps begin, and image patches apart."""

from __future__ import annotations

import dataclasses
import enum

import numpy as np

from tokenization.image_patches import PATCH_SHAPE
from tokenization.vocabulary import PATCH_PLACEHOLDER, SEPARATOR

NUM_LOCAL_POSITIONS = 512  # of the table of positions inside an observation
ACTION_POSITION = -1  # all action tokens share one encoding of their own


class TargetKind(enum.IntEnum):
    """Why a token is a target; `loss_mask` decides."""

    NONE = 0
    ACTION = 1
    OBSERVATION_TEXT = 2


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TokenSequence:
    """An episode of S timesteps, or a window of it, in N tokens of which M are image patches.

    Attributes:
      task_id: of the episode.
      episode_id: of the episode.
      tokens: uint16 [N], vocabulary ids, `PATCH_PLACEHOLDER` at image patches.
      targets: uint8 [N] of `TargetKind`; the paper's loss mask is `targets > 0`.
      timestep_offsets: int64 [S + 1]; the tokens of timestep s are [offsets[s], offsets[s + 1]).
      patches: uint8 [U, 16, 16, 3], each different.
      patch_index: int32 [M], for the m-th placeholder its row of `patches`.
      patch_intervals: uint8 [M, 4], see `image_patches.patch_intervals`.
      returns_to_go: float32 [S], see `return_tokens`; empty where there are no rewards (a corpus, an observation).
      episode_return: undiscounted sum of rewards of the whole episode; NaN where there is none.
      agent_id: who acted.
      content_hash: of the episode.
    """

    task_id: str
    episode_id: str
    tokens: np.ndarray
    targets: np.ndarray
    timestep_offsets: np.ndarray
    patches: np.ndarray = dataclasses.field(default_factory=lambda: np.empty((0, *PATCH_SHAPE), np.uint8))
    patch_index: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.int32))
    patch_intervals: np.ndarray = dataclasses.field(default_factory=lambda: np.empty((0, 4), np.uint8))
    returns_to_go: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.float32))
    episode_return: float = float("nan")
    agent_id: str = ""
    content_hash: str = ""

    @property
    def num_steps(self) -> int:
        """S."""
        return len(self.timestep_offsets) - 1

    @property
    def num_tokens(self) -> int:
        """N."""
        return len(self.tokens)

    @property
    def num_targets(self) -> int:
        """Number of tokens with a loss."""
        return int(np.count_nonzero(self.targets))

    def window(self, start: int, stop: int) -> TokenSequence:
        """Timesteps [start, stop), clipped to the sequence; views, and all of `patches`."""
        start, stop, _ = slice(start, stop).indices(self.num_steps)
        stop = max(start, stop)
        first, last = int(self.timestep_offsets[start]), int(self.timestep_offsets[stop])
        first_patch, last_patch = 0, 0
        if len(self.patch_index):
            first_patch = int(np.count_nonzero(self.tokens[:first] == PATCH_PLACEHOLDER))
            last_patch = first_patch + int(np.count_nonzero(self.tokens[first:last] == PATCH_PLACEHOLDER))
        return dataclasses.replace(
            self,
            tokens=self.tokens[first:last],
            targets=self.targets[first:last],
            timestep_offsets=self.timestep_offsets[start : stop + 1] - first,
            patch_index=self.patch_index[first_patch:last_patch],
            patch_intervals=self.patch_intervals[first_patch:last_patch],
            returns_to_go=self.returns_to_go[start:stop],
        )


def observation_positions(tokens: np.ndarray, timestep_offsets: np.ndarray) -> np.ndarray:
    """The place of each token inside its timestep's observation: int16 [N].

    Counted from 0, the separator last, clipped to 511; `ACTION_POSITION` for everything after the separator.
    """
    lengths = np.diff(timestep_offsets)
    starts = np.asarray(timestep_offsets[:-1])
    place = np.arange(len(tokens)) - np.repeat(starts, lengths)
    is_separator = np.asarray(tokens) == SEPARATOR
    separators_before = np.cumsum(is_separator) - is_separator
    nonempty = np.minimum(starts, max(len(tokens) - 1, 0))
    before_step = separators_before[nonempty] if len(tokens) else np.zeros(len(starts), np.int64)
    is_action = separators_before > np.repeat(before_step, lengths)
    return np.where(is_action, ACTION_POSITION, np.minimum(place, NUM_LOCAL_POSITIONS - 1)).astype(np.int16)
