"""What a store holds in numbers: returns, lengths and sizes by task and agent, and the range of each field."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from episode_store.episode import Episode
from episode_store.spec import FieldValues, is_text, numbers_of
from episode_store.store import EpisodeStore

GROUPS = ("task_id", "agent_id", "experiment_id")
_COLUMNS = ("episode_return", "num_steps", "record_bytes", "terminated", "truncated", "success")


def episode_statistics(
    store: EpisodeStore, by: Sequence[str], tasks: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """One entry a group, sorted by its names.

    Args:
      store: to look into.
      by: columns of `GROUPS` that make a group.
      tasks: ids of the tasks to look at; all by default.
    """
    table = store.query(columns=[*by, *([] if "task_id" in by else ["task_id"]), *_COLUMNS])
    names = [table[name].to_pylist() for name in by]
    task_ids = table["task_id"].to_pylist()
    wanted = set(tasks) if tasks is not None else None
    groups: dict[tuple[str, ...], list[int]] = {}
    for row in range(table.num_rows):
        if wanted is None or task_ids[row] in wanted:
            groups.setdefault(tuple(column[row] for column in names), []).append(row)
    numbers = {name: table[name].to_numpy() for name in ("episode_return", "num_steps", "record_bytes")}
    ends = {name: np.asarray(table[name].to_pylist(), bool) for name in ("terminated", "truncated")}
    success = np.array([np.nan if value is None else float(value) for value in table["success"].to_pylist()])
    results = []
    for group, rows in sorted(groups.items()):
        returns, steps = numbers["episode_return"][rows], numbers["num_steps"][rows]
        known = success[rows][~np.isnan(success[rows])]
        results.append(
            {
                **dict(zip(by, group, strict=True)),
                "episodes": len(rows),
                "steps": int(steps.sum()),
                "return": _summary(returns) | {"median": float(np.median(returns))},
                "length": _summary(steps) | {"median": float(np.median(steps))},
                "stored_bytes": int(numbers["record_bytes"][rows].sum()),
                "terminated": int(ends["terminated"][rows].sum()),
                "truncated": int(ends["truncated"][rows].sum()),
                "success_rate": float(known.mean()) if len(known) else None,
                "success_known": len(known),
            }
        )
    return results


def field_statistics(store: EpisodeStore, episode_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Minimum, maximum, mean and count of each field of numbers over whole episodes; characters of each text.

    Args:
      store: to read from.
      episode_ids: of one task; each is read.
    """
    found: dict[str, _Range] = {}
    for episode_id in episode_ids:
        for path, values in _fields(store.read(episode_id)):
            found.setdefault(path, _Range()).add(values)
    return {path: range_.to_json() for path, range_ in found.items()}


def lossy_statistics(store: EpisodeStore, episode_ids: Iterable[str]) -> dict[str, dict[str, int]]:
    """The columns that lost something when they were written, as their writer asked; empty where nothing was lost.

    Args:
      store: to look into.
      episode_ids: whose headers are read; no frame is.

    Returns:
      Column -> how many of the episodes lost something there, and the least and the greatest quality.
    """
    found: dict[str, dict[str, int]] = {}
    for episode_id in episode_ids:
        for path, quality in store.lossy_columns(episode_id).items():
            column = found.setdefault(path, {"episodes": 0, "min_quality": quality, "max_quality": quality})
            column["episodes"] += 1
            column["min_quality"] = min(column["min_quality"], quality)
            column["max_quality"] = max(column["max_quality"], quality)
    return found


class _Range:
    def __init__(self) -> None:
        self.low, self.high, self.total, self.count = np.inf, -np.inf, 0.0, 0
        self.not_finite = 0

    def add(self, values: FieldValues) -> None:
        numbers = np.array([len(text) for text in values], np.float64) if is_text(values) else numbers_of(values)
        if numbers.dtype.kind == "f":
            finite = np.isfinite(numbers)
            self.not_finite += int(numbers.size - finite.sum())
            numbers = numbers[finite]
        if numbers.size:
            self.low, self.high = min(self.low, float(numbers.min())), max(self.high, float(numbers.max()))
            self.total += float(numbers.sum(dtype=np.float64))
            self.count += numbers.size

    def to_json(self) -> dict[str, Any]:
        known = self.count > 0
        return {
            "min": self.low if known else None,
            "max": self.high if known else None,
            "mean": self.total / self.count if known else None,
            "values": self.count,
            "not_finite": self.not_finite,
        }


def _fields(episode: Episode) -> Iterable[tuple[str, FieldValues]]:
    for name, values in episode.observations.items():
        yield f"observations/{name}", values
    for name, values in episode.actions.items():
        yield f"actions/{name}", values
    yield "rewards", episode.rewards
    for name, values in episode.step_columns.items():
        yield f"step_columns/{name}", values


def _summary(values: np.ndarray) -> dict[str, float]:
    return {
        "mean": float(values.mean()),
        "min": float(values.min()),
        "max": float(values.max()),
        "std": float(values.std()),
    }
