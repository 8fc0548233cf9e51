"""Which tokens the network learns to predict (Gato, section 2.3).

The loss is on text tokens and on the agent's logged actions. Image patches, other observation tokens and separators
are never targets. Here, an action that was a deliberate disturbance (step column "exploratory") is no target either:
it is what the agent had to recover from, not what it chose.
"""

from __future__ import annotations

import numpy as np

from tokenization.token_sequence import TargetKind
from tokenization.vocabulary import SEPARATOR


def target_kinds(
    tokens: np.ndarray,
    timestep_offsets: np.ndarray,
    *,
    num_text_tokens: np.ndarray,
    exploratory: np.ndarray | None = None,
) -> np.ndarray:
    """The kind of target each token is: uint8 [N].

    Args:
      tokens: [N]; each timestep holds one separator.
      timestep_offsets: [S + 1].
      num_text_tokens: [S], how many tokens at the start of each observation are text.
      exploratory: bool [S], steps whose actions are no targets.
    """
    starts, lengths = timestep_offsets[:-1], np.diff(timestep_offsets)
    targets = np.zeros(len(tokens), np.uint8)
    separator = _shared_separator(tokens, lengths, num_text_tokens)
    if separator is not None:
        # Every timestep is laid out alike: one row of the mask serves all.
        rows = targets.reshape(len(lengths), lengths[0])
        rows[:, : num_text_tokens[0]] = TargetKind.OBSERVATION_TEXT
        rows[:, separator + 1 :] = TargetKind.ACTION
        if exploratory is not None:
            rows[np.asarray(exploratory, np.bool_), separator + 1 :] = TargetKind.NONE
        return targets
    place = np.arange(len(tokens)) - np.repeat(starts, lengths)
    is_separator = tokens == SEPARATOR
    # Steps have one separator each, so before the separator of step s stand exactly s of them.
    is_action = np.cumsum(is_separator) - is_separator > np.repeat(np.arange(len(lengths)), lengths)
    targets[place < np.repeat(num_text_tokens, lengths)] = TargetKind.OBSERVATION_TEXT
    targets[is_action] = TargetKind.ACTION
    if exploratory is not None:
        targets[is_action & np.repeat(np.asarray(exploratory, np.bool_), lengths)] = TargetKind.NONE
    return targets


def _shared_separator(tokens: np.ndarray, lengths: np.ndarray, num_text_tokens: np.ndarray) -> int | None:
    """Where the separator stands in every timestep, if all have it, and their text, at the same place."""
    if not len(lengths) or (lengths != lengths[0]).any() or (num_text_tokens != num_text_tokens[0]).any():
        return None
    rows = tokens.reshape(len(lengths), lengths[0])
    separators = np.flatnonzero(rows[0] == SEPARATOR)
    return int(separators[0]) if separators.size and (rows[:, separators[0]] == SEPARATOR).all() else None
