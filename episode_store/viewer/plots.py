"""A field of numbers over time as few points as a plot can show, in little memory however long the episode is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

MAX_POINTS = 1_000
MAX_LINES = 12
_CANDIDATES = 64
_ROWS_AT_ONCE = 16_384


def series(read: Callable[[int, int], np.ndarray], num_rows: int, shape: tuple[int, ...]) -> dict[str, Any]:
    """What a plot of a field needs.

    Args:
      read: read(start, stop) gives rows [start, stop) of the field.
      num_rows: of the field.
      shape: of one row.

    Returns:
      "rows" and "elements" of the field; "steps", where the points are; "lines": for each element shown its "index"
      and its "values" at the points (None where not finite); "low" and "high" of them all; "bucketed": whether a
      point is the minimum or the maximum of several steps, in turn.
    """
    elements = int(np.prod(shape))
    candidates = min(elements, _CANDIDATES)
    edges = np.linspace(0, num_rows, min(num_rows, MAX_POINTS // 2) + 1).astype(np.int64)
    bucketed = num_rows > MAX_POINTS
    if not bucketed:
        edges = np.arange(num_rows + 1)
    parts = [
        _points(read, edges[low : low + _buckets_at_once(edges) + 1], candidates, bucketed)
        for low in range(0, len(edges) - 1, _buckets_at_once(edges))
    ]
    steps = np.repeat(edges[:-1], 2) if bucketed else edges[:-1]
    if bucketed:
        steps[1::2] += np.diff(edges) // 2
    points = np.concatenate([*parts, np.zeros((0, candidates))])
    shown = _liveliest(points)
    finite = points[:, shown][np.isfinite(points[:, shown])]
    return {
        "rows": num_rows,
        "elements": elements,
        "considered": candidates,
        "steps": steps.tolist(),
        "lines": [
            {
                "index": [int(i) for i in np.unravel_index(element, shape)] if shape else [],
                "values": [value if np.isfinite(value) else None for value in points[:, element].tolist()],
            }
            for element in shown.tolist()
        ],
        "low": float(finite.min()) if finite.size else None,
        "high": float(finite.max()) if finite.size else None,
        "bucketed": bucketed,
    }


def _buckets_at_once(edges: np.ndarray) -> int:
    widest = int(np.diff(edges).max(initial=1))
    return max(1, _ROWS_AT_ONCE // widest)


def _points(read: Callable[[int, int], np.ndarray], edges: np.ndarray, candidates: int, bucketed: bool) -> np.ndarray:
    """float64 [points, candidates] of the rows between the first and the last edge."""
    first, last = int(edges[0]), int(edges[-1])
    rows = read(first, last).reshape(last - first, -1)[:, :candidates].astype(np.float64)
    if not bucketed:
        return rows
    starts = (edges[:-1] - first).astype(np.int64)
    both = np.stack([np.minimum.reduceat(rows, starts), np.maximum.reduceat(rows, starts)], axis=1)
    return both.reshape(-1, candidates)


def _liveliest(points: np.ndarray) -> np.ndarray:
    """The elements that vary most, in their order; all when there are few."""
    if points.shape[1] <= MAX_LINES:
        return np.arange(points.shape[1])
    spread = np.nan_to_num(np.std(np.where(np.isfinite(points), points, 0.0), axis=0))
    return np.sort(np.argsort(-spread, kind="stable")[:MAX_LINES])
