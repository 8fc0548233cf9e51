"""The rows of many segments as one table: which are visible, in which order, and their columns when asked for.

A row's number is its place in all segments' rows, oldest segment first; it is stable while the index lives. Only the
ids are kept in memory (about 32 bytes an episode); columns are decoded from the mapped index files on demand.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from episode_store import segment
from episode_store.episode_ids import EpisodeIds, SortedIds, format_ids
from episode_store.segment import INDEX_SCHEMA, SegmentIndex


class EpisodeIndex:
    """All episodes of several segments; of an id that several hold, the oldest segment's.

    Attributes:
      segments: oldest first.
      starts: int64 [segments + 1], number of each segment's first row.
    """

    def __init__(
        self, segments: Sequence[SegmentIndex], ids: Sequence[np.ndarray], excluded: Mapping[str, np.ndarray]
    ) -> None:
        """Finds out what is visible.

        Args:
          segments: oldest first.
          ids: of each segment, uint64 [rows, 2].
          excluded: segment name -> offsets of the records that are not visible.

        Raises:
          CorruptionError: an index cannot be decoded.
        """
        self.segments = list(segments)
        self.starts = np.cumsum([0, *(part.num_rows for part in segments)])
        self._halves = np.concatenate([np.zeros((0, 2), np.uint64), *ids])
        hidden = [np.zeros(0, np.int64)]
        for number, part in enumerate(segments):
            offsets = excluded.get(part.files.name)
            if offsets is not None and len(offsets):
                mine = part.columns(["offset"])["offset"].to_numpy()
                hidden.append(self.starts[number] + np.flatnonzero(np.isin(mine, offsets)))
        rows = None
        if any(len(places) for places in hidden):
            visible = np.ones(self.num_rows_stored, bool)
            visible[np.concatenate(hidden)] = False
            rows = np.flatnonzero(visible)
        self._ids = SortedIds(self._halves, rows)
        self._rows = None if len(self._ids) == self.num_rows_stored else np.sort(self._ids.order)
        self._order: np.ndarray | None = None
        self._task_rows: dict[str, slice] = {}
        self._places: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def num_rows_stored(self) -> int:
        """Rows of all segments, also those that are not visible."""
        return int(self.starts[-1])

    def __len__(self) -> int:
        return len(self._ids)

    def find(self, episode_id: str) -> int | None:
        """The row of an id, or None."""
        return self._ids.find(episode_id)

    def ids_starting_with(self, digits: str) -> EpisodeIds:
        """All visible ids that begin so, sorted."""
        return EpisodeIds(self._halves[self._ids.starting_with(digits)])

    def ids(self, rows: np.ndarray | None = None) -> EpisodeIds:
        """The ids of rows, all in canonical order by default."""
        return EpisodeIds(self._halves[self.order() if rows is None else rows])

    @property
    def halves(self) -> np.ndarray:
        """Visible ids as uint64 [n, 2], in no order."""
        return self._halves if self._rows is None else self._halves[self._rows]

    @property
    def visible(self) -> np.ndarray | None:
        """Visible rows, ascending; None when all are."""
        return self._rows

    def rows(self) -> np.ndarray:
        """All visible rows, ascending: in the order of writing."""
        return np.arange(self.num_rows_stored) if self._rows is None else self._rows

    def halves_of(self, number: int) -> np.ndarray:
        """Ids of all rows of segment `number`, also those that are not visible, as uint64 [rows, 2]."""
        return self._halves[int(self.starts[number]) : int(self.starts[number + 1])]

    def rows_of(self, number: int) -> np.ndarray:
        """Visible rows of segment `number`, counted from its first row."""
        start, stop = int(self.starts[number]), int(self.starts[number + 1])
        if self._rows is None:
            return np.arange(stop - start)
        low, high = np.searchsorted(self._rows, [start, stop])
        return self._rows[low:high] - start

    def leave_out(self, keep: np.ndarray) -> dict[str, np.ndarray]:
        """What a version that shows only some rows leaves out: segment name -> offsets.

        Copies of an episode that are not visible now are left out too, so that none takes the place of a deleted one.

        Args:
          keep: rows, ascending.
        """
        excluded = {}
        edges = np.searchsorted(keep, self.starts)
        for number, source in enumerate(self.segments):
            kept = keep[edges[number] : edges[number + 1]] - self.starts[number]
            if len(kept) < source.num_rows:
                out = np.ones(source.num_rows, bool)
                out[kept] = False
                excluded[source.files.name] = source.columns(["offset"])["offset"].to_numpy()[out]
        return excluded

    def extent(self) -> dict[str, int]:
        """Segment name -> bytes of its data file that this index knows."""
        return {source.files.name: source.data_bytes for source in self.segments}

    def place(self, row: int) -> tuple[SegmentIndex, int, int]:
        """Segment of a row, and where in its data file the record is: (offset, bytes)."""
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        part = self.segments[number]
        places = self._places.get(number)
        if places is None:
            table = part.columns(["offset", "record_bytes"])
            places = table["offset"].to_numpy(), table["record_bytes"].to_numpy()
            self._places[number] = places
        local = row - int(self.starts[number])
        return part, int(places[0][local]), int(places[1][local])

    def id_of(self, row: int) -> str:
        """The id of a row."""
        return format_ids(self._halves[row])[0]

    def task_rows(self, task_id: str) -> np.ndarray:
        """Visible rows of one task, in canonical order."""
        order = self.order()
        return order[self._task_rows.get(task_id, slice(0, 0))]

    def order(self) -> np.ndarray:
        """Visible rows by (task_id, agent_id, collection_index, episode_id)."""
        if self._order is None:
            rows = self.rows()
            tasks, task_codes = self._ranks("task_id", rows)
            agents, agent_codes = self._ranks("agent_id", rows)
            place = self._collection_indexes(rows)
            low, high = (int(place.min()), int(place.max())) if len(place) else (0, 0)
            groups = task_codes * len(agents) + agent_codes
            if (high - low + 1) * max(1, len(tasks) * len(agents)) < 1 << 62:
                keys = [groups * (high - low + 1) + (place - low)]
            else:
                keys = [groups, place]
            self._order = rows[self._sorted(keys, rows)]
            ordered = np.sort(task_codes)
            edges = np.searchsorted(ordered, np.arange(len(tasks) + 1))
            self._task_rows = {
                task: slice(int(start), int(stop))
                for task, (start, stop) in zip(tasks, itertools.pairwise(edges), strict=True)
            }
        return self._order

    def columns(self, names: Iterable[str], rows: np.ndarray | None = None, *, coded: bool = False) -> pa.Table:
        """Columns of some rows, in the order of `rows`; of all visible ones in the order of writing by default.

        Args:
          names: of `INDEX_SCHEMA`.
          rows: which.
          coded: leave texts that repeat as dictionaries.

        Raises:
          CorruptionError: an index cannot be decoded.
        """
        schema = segment.CODED_SCHEMA if coded else INDEX_SCHEMA
        schema = pa.schema([schema.field(name) for name in names])
        stored = [name for name in schema.names if name != "episode_id"]
        back = None
        if rows is None:
            rows = self._rows
        elif len(rows) and (np.diff(rows) < 0).any():
            ascending = np.argsort(rows, kind="stable")
            back = np.empty(len(rows), np.int64)
            back[ascending] = np.arange(len(rows))
            rows = rows[ascending]
        parts = []
        if stored:
            for part in self._parts(stored, rows):
                parts.append(part.cast(pa.schema([schema.field(name) for name in stored])))
        table = pa.concat_tables(parts) if parts else pa.schema([schema.field(name) for name in stored]).empty_table()
        if "episode_id" in schema.names:
            ids = _id_column(self._halves if rows is None else self._halves[rows])
            if stored:
                table = table.append_column(schema.field("episode_id"), ids).select(schema.names)
            else:
                table = pa.table([ids], schema=schema)
        if back is not None:
            # Column by column: a table in the making is then never there twice.
            table = pa.table([column.combine_chunks().take(pa.array(back)) for column in table.columns], schema=schema)
        return table

    def _parts(self, names: Sequence[str], rows: np.ndarray | None) -> Iterable[pa.Table]:
        """Columns of ascending rows, all by default, one table a segment that has some."""
        if rows is None:
            yield from (source.columns(names) for source in self.segments if source.num_rows)
            return
        edges = np.searchsorted(rows, self.starts)
        for number, source in enumerate(self.segments):
            low, high = int(edges[number]), int(edges[number + 1])
            if low < high:
                part = source.columns(names)
                if high - low < source.num_rows:
                    part = part.take(pa.array(rows[low:high] - self.starts[number]))
                yield part

    def _collection_indexes(self, rows: np.ndarray) -> np.ndarray:
        parts = [part["collection_index"].to_numpy() for part in self._parts(["collection_index"], rows)]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def _ranks(self, name: str, rows: np.ndarray) -> tuple[list[str], np.ndarray]:
        """Distinct texts of a column, sorted, and the place of each row's among them: int64 [rows]."""
        codes: dict[str, int] = {}
        parts = [np.zeros(0, np.int64)]
        for part in self._parts([name], rows):
            for chunk in part[name].chunks:
                encoded = chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode()
                table = [codes.setdefault(text, len(codes)) for text in encoded.dictionary.to_pylist()]
                parts.append(np.array(table, np.int64)[encoded.indices.to_numpy()])
        values = sorted(codes)
        rank = np.empty(len(codes), np.int64)
        rank[[codes[value] for value in values]] = np.arange(len(codes))
        return values, rank[np.concatenate(parts)]

    def _sorted(self, keys: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
        """Sorts by the keys, first one first, then by id."""
        order = np.lexsort(keys[::-1]) if len(keys) > 1 else np.argsort(keys[0], kind="stable")
        equal = np.ones(max(0, len(order) - 1), bool)
        for key in keys:
            ordered = key[order]
            equal &= ordered[1:] == ordered[:-1]
        if equal.any():
            # Runs of equal keys, ordered by id within each.
            run = np.concatenate([[0], np.cumsum(~equal)])
            tied = np.zeros(len(order), bool)
            tied[1:] |= equal
            tied[:-1] |= equal
            places = np.flatnonzero(tied)
            ids = self._halves[rows[order[places]]]
            order[places] = order[places][np.lexsort((ids[:, 1], ids[:, 0], run[places]))]
        return order


def _id_column(halves: np.ndarray) -> pa.Array:
    """Ids as an Arrow array of texts."""
    text = pa.py_buffer(halves.astype(">u8").tobytes().hex().encode())
    offsets = pa.py_buffer(np.arange(0, 32 * len(halves) + 1, 32, dtype=np.int32))
    return pa.StringArray.from_buffers(len(halves), offsets, text)
