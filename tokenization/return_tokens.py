"""Returns-to-go as tokens: ask for a return, and act as those did who got it (Decision Transformer, arXiv 2106.01345).

    G_t = r_t + r_{t+1} + ... + r_{T-1},   id = 32000 + bin(F(G_t / |expert - random|))

G is the undiscounted return of the rest of the recorded episode (section 3 there), `random` and `expert` are the mean
returns of a random policy and of the task's expert, F and the bins are those of continuous observations (`mu_law.py`,
`bins.py`). The divisor gives every task one scale; nothing is subtracted, so what is still to come falls to 0 in all of
them. One bin is about 2% of the range at its top and 0.02% where nothing is left to come.

The token stands first in its timestep, before the observation, and is never a target.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from tokenization import bins


def returns_to_go(rewards: np.ndarray) -> np.ndarray:
    """G: float32 [T] of `rewards` [T], summed in float64 from the end."""
    return np.cumsum(np.asarray(rewards, np.float64)[::-1])[::-1].astype("<f4")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReturnRange:
    """What a random policy and the expert of a task get, on average.

    Attributes:
      random: 0 where it is unknown.
      expert: of the return filter, or of `collectors score`.
    """

    random: float
    expert: float

    @property
    def span(self) -> float:
        """|expert - random|; 1 where they are equal, or unknown."""
        span = abs(self.expert - self.random)
        return span if math.isfinite(span) and span > 0 else 1.0

    def target(self, scale: float) -> float:
        """The return of a normalised score: `random` at 0, `expert` at 1, more than the expert above.

        Not `scale` times the expert's return: where that is negative, 1.2 times as much would be worse.
        """
        return self.random + scale * (self.expert - self.random)

    def to_ids(self, returns: np.ndarray) -> np.ndarray:
        """Returns-to-go [S] of any real dtype as vocabulary ids, uint16 [S]."""
        return bins.companded_to_ids(np.asarray(returns, np.float64) / self.span, where="returns-to-go")


def put_first(
    ids: np.ndarray, tokens: np.ndarray, targets: np.ndarray, timestep_offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Puts one token before each timestep; returns the new tokens, targets and offsets.

    Args:
      ids: [S].
      tokens, targets: [N], as in `TokenSequence`.
      timestep_offsets: [S + 1].
    """
    starts = timestep_offsets[:-1]
    return (
        np.insert(tokens, starts, ids),
        np.insert(targets, starts, 0),
        timestep_offsets + np.arange(len(timestep_offsets)),
    )
