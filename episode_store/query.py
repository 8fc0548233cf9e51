"""Queries over the episode table that decode only the columns they need."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from episode_store.episode_index import EpisodeIndex
from episode_store.errors import UserError
from episode_store.layout import near
from episode_store.segment import INDEX_SCHEMA
from episode_store.where import Condition

_ROW = "__row__"


def check_columns(names: Sequence[str] | None) -> list[str]:
    """Names of columns of the episode table; all by default.

    Raises:
      UserError: there is no such column, or one is named twice.
    """
    if names is None:
        return list(INDEX_SCHEMA.names)
    for name in names:
        if name not in INDEX_SCHEMA.names:
            raise UserError(f"the episode table has no column {name!r}{near(name, INDEX_SCHEMA.names)}")
    if len(set(names)) != len(names) or not names:
        raise UserError(f"columns: expected some, each once, got {', '.join(names) or 'none'}")
    return list(names)


def select_rows(index: EpisodeIndex, where: str | None) -> np.ndarray:
    """Rows that a condition chooses, in the order of writing.

    Raises:
      UserError: the condition cannot be understood.
    """
    if where is None:
        return index.rows()
    condition = Condition(where)
    # A condition without a column, such as "True", still has a row for each episode.
    table = index.columns(condition.columns or ["num_steps"], coded=True)
    chosen = pc.fill_null(condition.mask(table), False)
    parts = [chunk.to_numpy(zero_copy_only=False) for chunk in chosen.chunks]
    places = np.flatnonzero(np.concatenate([np.zeros(0, bool), *parts]))
    rows = index.visible
    return places if rows is None else rows[places]


def run(
    index: EpisodeIndex,
    where: str | None,
    *,
    columns: Sequence[str] | None,
    sort: Sequence[str],
    limit: int | None,
) -> pa.Table:
    """See `EpisodeStore.query`."""
    names = check_columns(columns)
    if limit is not None and limit < 0:
        raise UserError(f"limit: expected 0 or more, got {limit}")
    return index.columns(names, sort_rows(index, select_rows(index, where), sort, limit))


def sort_rows(index: EpisodeIndex, rows: np.ndarray, sort: Sequence[str], limit: int | None = None) -> np.ndarray:
    """Rows by columns, "-name" for the largest first; what ties, and all without columns, keeps its order.

    Args:
      index: of the store.
      rows: ascending.
      sort: names of columns.
      limit: only the first so many of the result.

    Raises:
      UserError: there is no such column.
    """
    keys = [(name.removeprefix("-"), "descending" if name.startswith("-") else "ascending") for name in sort]
    if keys:
        check_columns([name for name, _ in keys])
    if not keys or not len(rows):
        return rows[:limit]
    table = index.columns([name for name, _ in keys], rows).append_column(_ROW, pa.array(rows))
    # The row as the last key: what ties comes in the order of writing.
    keys.append((_ROW, "ascending"))
    if limit is not None and limit < len(rows):
        places = pc.select_k_unstable(table, k=limit, sort_keys=keys) if limit else pa.array([], pa.int64())
    else:
        places = pc.sort_indices(table, sort_keys=keys)
    return rows[places.to_numpy()]
