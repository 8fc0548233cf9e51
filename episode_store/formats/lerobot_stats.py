"""Statistics as LeRobot keeps them: of each feature, per element of its last axis (per channel of pictures).

min, max, mean, std, count and the quantiles 1, 10, 50, 90, 99%. Of an episode they are exact; of the whole set
quantiles are the episodes' averaged by their counts, which is what LeRobot's own aggregation does. Pictures are
measured on at most 100 frames an episode, in [0, 1], with shape [channels, 1, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

_QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
_MAX_FRAMES = 100

Stats = dict[str, np.ndarray]


def episode_stats(values: np.ndarray, *, is_picture: bool) -> Stats:
    """Statistics of one feature in one episode.

    Args:
      values: [frames, ...]; pictures [frames, height, width, channels] of uint8.
      is_picture: whether they are pictures.
    """
    if is_picture:
        return _picture_stats(values)
    flat = values.reshape(len(values), 1) if values.ndim == 1 else values.reshape(-1, values.shape[-1])
    flat = flat.astype(np.float64)
    stats = {"min": flat.min(0), "max": flat.max(0), "mean": flat.mean(0), "std": flat.std(0)}
    stats["count"] = np.array([len(values)])
    for name, value in zip(_QUANTILES, np.quantile(flat, list(_QUANTILES.values()), axis=0), strict=True):
        stats[name] = value
    return stats


def _picture_stats(frames: np.ndarray) -> Stats:
    """From counts of the 256 values, so that memory is a frame's."""
    picked = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), _MAX_FRAMES)).astype(int))
    channels = frames.shape[3]
    counts = np.zeros((channels, 256), np.int64)
    for index in picked:
        for channel in range(channels):
            counts[channel] += np.bincount(frames[index, :, :, channel].reshape(-1), minlength=256)
    levels = np.arange(256) / 255
    total = counts.sum(1)
    mean = counts @ levels / total
    cumulative = counts.cumsum(1)
    stats = {
        "min": np.array([levels[row.argmax()] for row in counts > 0]),
        "max": np.array([levels[255 - row[::-1].argmax()] for row in counts > 0]),
        "mean": mean,
        "std": np.sqrt(np.maximum(counts @ levels**2 / total - mean**2, 0)),
        **{
            name: np.array([levels[np.searchsorted(row, share * row[-1])] for row in cumulative])
            for name, share in _QUANTILES.items()
        },
    }
    return {name: value.reshape(channels, 1, 1) for name, value in stats.items()} | {"count": np.array([len(picked)])}


class RunningStats:
    """Statistics of the whole set from those of its episodes, in constant memory."""

    def __init__(self) -> None:
        self._stats: dict[str, Stats] = {}
        self._squares: dict[str, np.ndarray] = {}

    def add(self, episode: Mapping[str, Stats]) -> None:
        """Takes up one episode."""
        for key, new in episode.items():
            squares = new["std"] ** 2 + new["mean"] ** 2
            old = self._stats.get(key)
            if old is None:
                self._stats[key], self._squares[key] = dict(new), squares
                continue
            count = old["count"] + new["count"]
            share = new["count"][0] / count[0]
            for name in ("mean", *_QUANTILES):
                old[name] = old[name] + (new[name] - old[name]) * share
            self._squares[key] = self._squares[key] + (squares - self._squares[key]) * share
            old["min"], old["max"] = np.minimum(old["min"], new["min"]), np.maximum(old["max"], new["max"])
            old["std"] = np.sqrt(np.maximum(self._squares[key] - old["mean"] ** 2, 0))
            old["count"] = count

    def to_json(self) -> dict[str, dict[str, Any]]:
        """As stats.json has them."""
        return {key: {name: value.tolist() for name, value in stats.items()} for key, stats in self._stats.items()}
