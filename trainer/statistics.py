"""What a few rollouts say, and how sure it is (Agarwal et al. 2021, "rliable"; Efron 1979)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NUM_RESAMPLES = 2_000
_PERCENTILES = (2.5, 97.5)


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """95% percentile bootstrap of the mean of `values` [N], always the same for the same values."""
    picks = np.random.default_rng(0).integers(len(values), size=(NUM_RESAMPLES, len(values)))
    low, high = np.percentile(values[picks].mean(axis=1), _PERCENTILES)
    return float(low), float(high)


def interquartile_mean(scores: np.ndarray) -> float:
    """Mean of the middle half of all `scores`, whatever their shape: a quarter is cut off at each end.

    As `scipy.stats.trim_mean(scores, 0.25)`, which rliable uses: the number cut off is rounded down.
    """
    flat = np.sort(scores, axis=None)
    cut = flat.size // 4
    return float(flat[cut : flat.size - cut].mean())


def interquartile_interval(tasks: Sequence[np.ndarray]) -> tuple[float, float]:
    """95% percentile bootstrap of the interquartile mean; episodes are drawn again inside each task.

    Args:
      tasks: the scores of each task's episodes, [N_t] each.
    """
    rng = np.random.default_rng(0)
    means = [
        interquartile_mean(np.concatenate([rng.choice(scores, len(scores)) for scores in tasks]))
        for _ in range(NUM_RESAMPLES)
    ]
    low, high = np.percentile(means, _PERCENTILES)
    return float(low), float(high)
