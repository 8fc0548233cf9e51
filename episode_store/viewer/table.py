"""The table of episodes: filtered, sorted, a page at a time, however many there are."""

from __future__ import annotations

import collections
import math
from typing import Any

import numpy as np

from episode_store import query
from episode_store.errors import CorruptionError
from episode_store.store import EpisodeStore

COLUMNS = (
    *("episode_id", "task_id", "episode_return", "num_steps", "terminated", "truncated", "success"),
    *("agent_id", "seed", "collection_index"),
)
MAX_PAGE = 200
_KEPT_ORDERS = 8
# JavaScript's numbers are exact up to here.
_MAX_INTEGER = 1 << 53


class EpisodeTable:
    """The episodes of a store as it was opened."""

    def __init__(self, store: EpisodeStore) -> None:
        self._store = store
        self._orders: collections.OrderedDict[tuple[Any, ...], np.ndarray] = collections.OrderedDict()

    def page(
        self,
        *,
        task: str = "",
        where: str = "",
        lowest: float | None = None,
        highest: float | None = None,
        sort: str = "",
        offset: int = 0,
        limit: int = 50,
    ) -> dict[str, Any]:
        """A page of the table.

        Args:
          task: only this task's episodes.
          where: a condition as `query` takes it.
          lowest, highest: bounds of the return, inclusive.
          sort: a column, "-column" for the largest first; "" for the store's order.
          offset, limit: which rows of the result.

        Raises:
          UserError: the condition cannot be understood, or there is no such column.
        """
        conditions = [where.strip()] if where.strip() else []
        if task:
            conditions.append(f"task_id == {task!r}")
        conditions += [
            f"episode_return {relation} {bound!r}"
            for relation, bound in ((">=", lowest), ("<=", highest))
            if bound is not None and math.isfinite(bound)
        ]
        rows = self._order(tuple(conditions), sort)
        offset, limit = max(0, offset), max(0, min(limit, MAX_PAGE))
        page = self._store.index.columns(COLUMNS, rows[offset : offset + limit]).to_pylist()
        for row in page:
            row["damaged"] = self._header_damage(row["episode_id"])
            row["seed"] = number(row["seed"])
            row["episode_return"] = number(row["episode_return"])
        return {"total": len(rows), "offset": offset, "rows": page}

    def _order(self, conditions: tuple[str, ...], sort: str) -> np.ndarray:
        """Row numbers in the order of the page; those of the last few questions are kept."""
        key = (conditions, sort)
        kept = self._orders.pop(key, None)
        rows = self._ordered(conditions, sort) if kept is None else kept
        self._orders[key] = rows
        if len(self._orders) > _KEPT_ORDERS:
            self._orders.popitem(last=False)
        return rows

    def _ordered(self, conditions: tuple[str, ...], sort: str) -> np.ndarray:
        index = self._store.index
        if not conditions and not sort:
            return index.order()
        rows = index.rows()
        for condition in conditions:
            rows = np.intersect1d(rows, query.select_rows(index, condition), assume_unique=True)
        if sort:
            return query.sort_rows(index, rows, [sort])
        order = index.order()
        return order[np.isin(order, rows)]

    def _header_damage(self, episode_id: str) -> str:
        try:
            self._store.columns(episode_id)
        except CorruptionError as error:
            return str(error)
        return ""


def number(value: Any) -> Any:
    """A number that JSON and JavaScript hold exactly, or its text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _MAX_INTEGER:
        return str(value)
    return value
