"""Reads a store: its tasks, its table of episodes, whole episodes and windows of them. Every read is checked."""

from __future__ import annotations

import collections
import dataclasses
import fnmatch
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from episode_store import checked_json, layout, query, segment, storage, versions
from episode_store.column_codecs import BlockDecoder
from episode_store.episode import Episode, EpisodeMetadata
from episode_store.episode_ids import parse_ids
from episode_store.episode_index import EpisodeIndex
from episode_store.errors import CorruptionError, RemoteError, StoreError
from episode_store.record_format import (
    Column,
    RecordHeader,
    check_columns,
    expected_columns,
    parse_header,
    window_ranges,
)
from episode_store.record_reader import RecordReader
from episode_store.segment import INDEX_SCHEMA, SegmentIndex
from episode_store.spec import FieldValues
from episode_store.storage import Data, Record, StorePath
from episode_store.task import TaskSpec
from episode_store.window_table import WindowDamageError, WindowTable

_LOGGER = logging.getLogger("episode_store")
# Records kept open for windows of episodes read again and again; bounds a reader's memory.
_CACHED_RECORDS = 4096
# A batch that is too small to gain from being gathered.
_FEW_WINDOWS = 16
# Episodes of which a reader of batches remembers where they are, in about 300 bytes each.
_ENTERED_EPISODES = 32_768
# Of stores up to this size the table is kept; of larger ones so many looked-up ids.
_KEPT_ROWS = 65_536
# Data files that are mapped at once: each takes a file descriptor, of which a process has about 1,000.
_MAPPED_FILES = 256
# How often a store is read again because its versions changed meanwhile.
_TRIES = 5
_NOTHING: Mapping[str, Any] = MappingProxyType({})
_Made = TypeVar("_Made", Episode, "EpisodeWindow")
# Of a header: the byte ranges of the record that a read needs.
_Needed = Callable[[RecordHeader], list[tuple[int, int]]]

QUARANTINE_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("task_id", "agent_id", "seed", "collection_index", "reason")]
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EpisodeWindow:
    """Steps [start, start + num_steps) of an episode; only the columns that were asked for.

    Attributes:
      task_id, episode_id: of which episode.
      start: first step.
      num_steps: n, the number of actions.
      observations: field -> [n + 1, ...]: before each action, and after the last.
      actions: field -> [n, ...].
      rewards: float64 [n], or None when not asked for.
      step_columns: name -> [n].
      terminated, truncated: how the episode ended, when the window reaches its end; else False.
    """

    task_id: str
    episode_id: str
    start: int
    num_steps: int
    observations: Mapping[str, FieldValues]
    actions: Mapping[str, FieldValues]
    rewards: np.ndarray | None
    step_columns: Mapping[str, np.ndarray]
    terminated: bool
    truncated: bool


class EpisodeStore:
    """A store as it was when it was opened; open it again to see what writers added since.

    Reading is safe while other processes write. Pickles as its path and the extent it has seen, so a worker process
    sees the same episodes.

    Attributes:
      path: the folder, or where a URL leads.
      tasks: task id -> spec.
      damage: what was left out under `damaged="skip"`, one sentence each.
      view: which version is shown, and what it leaves out.
    """

    def __init__(
        self,
        path: StorePath,
        *,
        damaged: Literal["raise", "skip"],
        version: int | str | None = None,
        extent: Mapping[str, int] | None = None,
    ) -> None:
        """Use `EpisodeStore.open`."""
        layout.check_store(path)
        self.path = path
        self.damage: list[str] = []
        self._damaged = damaged
        self.tasks: Mapping[str, TaskSpec] = MappingProxyType(self._load_tasks())
        self._expected_columns = {task_id: expected_columns(task) for task_id, task in self.tasks.items()}
        self._index, self.view = self._load_index(version, extent)
        self._segments = {index.files.name: index for index in self._index.segments}
        self._table: pa.Table | None = None
        self._rows: dict[str, int] = {}
        self._maps: collections.OrderedDict[str, Data] = collections.OrderedDict()
        self._records: collections.OrderedDict[str, RecordReader] = collections.OrderedDict()
        # For batches of windows: by segment and task; where each episode is in them.
        self._tables: dict[tuple[str, str], WindowTable] = {}
        self._entries: dict[str, tuple[WindowTable | None, int]] = {}
        # Of remote records, whose bytes are not kept.
        self._headers: collections.OrderedDict[int, RecordHeader] = collections.OrderedDict()
        self._decoder = BlockDecoder()

    def _load_index(
        self, version: int | str | None, extent: Mapping[str, int] | None
    ) -> tuple[EpisodeIndex, versions.View]:
        """Reads the indexes; once more when a command changed the store's versions meanwhile."""
        for attempt in range(_TRIES):
            known, before = len(self.damage), versions.numbers(self.path)
            try:
                view = self._resolve(version)
                index = self._read_index(view, extent)
            except (CorruptionError, FileNotFoundError):
                if versions.numbers(self.path) == before or attempt + 1 == _TRIES:
                    raise
            else:
                if versions.numbers(self.path) == before or attempt + 1 == _TRIES:
                    return index, view
            del self.damage[known:]
        raise AssertionError("unreachable")

    def _resolve(self, version: int | str | None) -> versions.View:
        """The view; under `damaged="skip"` all there is when the newest version cannot be read."""
        before = versions.numbers(self.path)
        try:
            return versions.resolve(self.path, version)
        except CorruptionError as error:
            if version is not None or versions.numbers(self.path) != before:
                raise
            self._take_damage(error)
            latest = max(before, default=0)
            return versions.View(number=0, latest=latest, excluded={}, hidden=frozenset(), extent=None)

    def _read_index(self, view: versions.View, extent: Mapping[str, int] | None) -> EpisodeIndex:
        indexes, ids = [], []
        for files in segment.list_segments(self.path):
            if files.name in view.hidden or (view.extent is not None and files.name not in view.extent):
                continue
            if extent is not None and files.name not in extent:
                continue
            try:
                index = segment.load_index(files)
                if view.extent is not None:
                    index.limit_bytes(view.extent[files.name])
                if extent is not None:
                    index.num_rows = min(index.num_rows, extent[files.name])
                halves = parse_ids(index.columns(["episode_id"])["episode_id"], where=files.name)
            except CorruptionError as error:
                self._take_damage(error)
                continue
            for note in index.notes:
                _LOGGER.warning(
                    "store %s: segment %s: its writer ended without closing it: %s", self.path, files.name, note
                )
            indexes.append(index)
            ids.append(halves)
        if extent is not None and len(indexes) < len(extent) and not self.damage:
            raise StoreError(
                f"store {self.path}: {len(extent) - len(indexes)} of the segments that were there when it was opened "
                "are gone: it was compacted since; open it again"
            )
        missing = set(view.extent or ()) - {index.files.name for index in indexes}
        if missing and extent is None and not self.damage:
            raise CorruptionError(
                f"store {self.path}: {len(missing)} segments of version {view.number} are missing, "
                f"{min(missing)} among them"
            )
        return EpisodeIndex(indexes, ids, view.excluded)

    @classmethod
    def open(
        cls,
        path: str | StorePath,
        *,
        version: int | str | None = None,
        damaged: Literal["raise", "skip"] = "raise",
    ) -> EpisodeStore:
        """Opens a store for reading.

        Args:
          path: the folder, or a URL that fsspec opens ("http://...", "s3://bucket/store"), see docs/store.md.
          version: the number of an older version, or the name of one that `split` or `filter` made; by default the
            newest, to which writers add.
          damaged: "raise" refuses a store with a damaged index or task file; "skip" leaves out what it says, logs it
            and lists it in `damage`.

        Raises:
          StoreError: missing, not a store, or of a newer format.
          RemoteError: the place behind the URL cannot be reached.
          CorruptionError: an index or a task is damaged.
        """
        return cls(storage.locate(path), version=version, damaged=damaged)

    def __reduce__(self) -> tuple[Any, ...]:
        extent = {name: index.num_rows for name, index in self._segments.items()}
        return _reopen, (self.path, self._damaged, self.view.number, extent)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def episode_ids(self) -> Sequence[str]:
        """All ids, sorted by task, agent, order of collection."""
        return self._index.ids()

    @property
    def index(self) -> EpisodeIndex:
        """The rows behind `table`: ids in little memory, columns decoded when asked for."""
        return self._index

    def table(self, task_id: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """One row an episode, sorted by (task_id, agent_id, collection_index, episode_id).

        Args:
          task_id: only this task's rows.
          columns: only these; with many episodes that saves time and memory.

        Raises:
          StoreError: the store has no such task or column.
        """
        names = query.check_columns(columns)
        if task_id is not None:
            self._check_task(task_id)
        if len(self) > _KEPT_ROWS:
            rows = self._index.order() if task_id is None else self._index.task_rows(task_id)
            return self._index.columns(names, rows)
        if self._table is None:
            self._table = self._index.columns(INDEX_SCHEMA.names, self._index.order())
        table = self._table
        if task_id is not None:
            table = table.filter(pc.equal(table["task_id"], task_id))
        return table.select(names)

    def query(
        self,
        where: str | None = None,
        *,
        columns: Sequence[str] | None = None,
        sort: Sequence[str] = (),
        limit: int | None = None,
    ) -> pa.Table:
        """Rows of the episode table that a condition chooses; only the columns it needs are decoded.

        Args:
          where: for example "episode_return > 100 and task_id == 'CartPole-v1'"; see docs/store.md. All without.
          columns: of the result; all by default.
          sort: columns to sort by, "-name" for the largest first; in the order of writing by default.
          limit: at most so many rows.

        Raises:
          UserError: the condition cannot be understood, or there is no such column.
        """
        return query.run(self._index, where, columns=columns, sort=sort, limit=limit)

    def find_tasks(self, patterns: Sequence[str] | None) -> list[str]:
        """Ids of the tasks that match any of the patterns ('*' and '?'), in sorted order; all without patterns.

        Raises:
          StoreError: a pattern matches none.
        """
        if not patterns:
            return list(self.tasks)
        found: set[str] = set()
        for pattern in patterns:
            matches = fnmatch.filter(self.tasks, pattern)
            if not matches:
                self._check_task(pattern)
            found.update(matches)
        return sorted(found)

    def read(self, episode_id: str, *, out: Mapping[str, np.ndarray] = _NOTHING) -> Episode:
        """A whole episode. Arrays of numbers are read-only views of the mapped file; copy them to change them.

        Args:
          episode_id: which.
          out: path of a column, such as "observations/pixels" -> array to read it into, with at least as many rows.
            The episode then has the filled part of it.

        Raises:
          StoreError: the store has no such episode, or an array of `out` does not fit.
          CorruptionError: stored bytes do not match their checksum; names the episode and the file.
        """
        record = self._record(episode_id)
        try:
            _check_paths(record, out, "out")
            return _episode(record, out)
        except StoreError as error:
            raise self._told(error, episode_id) from None

    def read_into(self, episode_id: str, out: Mapping[str, np.ndarray]) -> int:
        """Columns of a whole episode straight into the caller's arrays, the fastest way to read one after the other.

        Args:
          episode_id: which.
          out: as for `read`.

        Returns:
          Its steps T: of an observation the first T + 1 rows were filled, of anything else the first T.

        Raises:
          StoreError: no such episode or column, or an array of `out` does not fit.
          CorruptionError: stored bytes do not match their checksum.
        """
        record = self._records.get(episode_id) or self._record(
            episode_id, lambda header: window_ranges(header, 0, header.num_steps, out)
        )
        columns, num_steps = record.columns, record.num_steps
        try:
            for path, target in out.items():
                column = columns[path]
                column.read(0, num_steps + column.more, target)
        except KeyError:
            _check_paths(record, out, "out")
            raise
        except StoreError as error:
            raise self._told(error, episode_id) from None
        return num_steps

    def unmap(self) -> None:
        """Lets go of mapped files, so that a process's memory does not grow with what it has read; views stay valid."""
        self._maps.clear()
        self._forget_records()

    def read_record(self, record: Record, header: RecordHeader) -> Episode:
        """The episode of a record that was found without the index; for `verify`.

        Args:
          record: uint8 [n], the record's bytes.
          header: its parsed header.

        Raises:
          CorruptionError: stored bytes do not match their checksum, or are not what the record's task has.
        """
        self._check_header(header)
        return _episode(RecordReader(storage.fetch(record), header, self._decoder), _NOTHING)

    def read_window(
        self,
        episode_id: str,
        start: int,
        length: int,
        columns: Sequence[str] | None = None,
        *,
        out: Mapping[str, np.ndarray] = _NOTHING,
    ) -> EpisodeWindow:
        """Steps [start, start + length) of an episode; only the blocks that hold them are read.

        Args:
          episode_id: which episode.
          start: first step.
          length: number of steps, at least 1; the window must lie inside the episode.
          columns: "observations/<field>", "actions/<field>", "rewards", "step_columns/<name>"; all by default.
          out: path of a column -> array to read it into, with at least as many rows; contiguous. Images are decoded
            straight into it. The window then has the filled part of it.

        Raises:
          StoreError: no such episode, steps or column, or an array of `out` does not fit.
          CorruptionError: stored bytes do not match their checksum.
        """
        needed = functools.partial(window_ranges, start=start, num_steps=length, wanted=columns)
        record = self._record(episode_id, needed)
        header = record.header
        if start < 0 or length < 1 or start + length > header.num_steps:
            raise _outside(episode_id, header.num_steps, start, length)
        wanted = None
        try:
            if columns is not None:
                wanted = dict.fromkeys(columns)
                _check_paths(record, wanted, "columns")
            if out:
                _check_paths(record, out, "out")
            observations, actions, rewards, step_columns = record.read(start, length, wanted, out)
        except StoreError as error:
            raise self._told(error, episode_id) from None
        at_end = start + length == header.num_steps
        return _make(
            EpisodeWindow,
            task_id=header.task_id,
            episode_id=episode_id,
            start=start,
            num_steps=length,
            observations=observations,
            actions=actions,
            rewards=rewards.get("rewards"),
            step_columns=step_columns,
            terminated=at_end and header.terminated,
            truncated=at_end and header.truncated,
        )

    def read_windows(self, places: Sequence[tuple[str, int]], length: int, out: Mapping[str, np.ndarray]) -> None:
        """A batch of windows straight into the caller's arrays, the fastest way to read short pieces.

        Args:
          places: (episode id, first step) of each window.
          length: steps of each, at least 1; every window must lie inside its episode.
          out: path of a column -> array [len(places), length, ...] of its dtype; [len(places), length + 1, ...] for
            observations. Texts cannot be read so.

        Raises:
          StoreError: no such episode, steps or column, or an array of `out` does not fit.
          CorruptionError: stored bytes do not match their checksum.
        """
        if length < 1:
            raise StoreError(f"expected windows of at least 1 step, got {length}")
        for path, target in out.items():
            if not isinstance(target, np.ndarray) or len(target) != len(places):
                got = len(target) if isinstance(target, np.ndarray) else type(target).__name__
                raise StoreError(f"out[{path!r}]: expected an array for {len(places)} windows, got {got}")
        if len(places) < _FEW_WINDOWS:
            for number, (episode_id, start) in enumerate(places):
                self._fill_window(episode_id, start, length, out, number)
            return
        entries = self._entries
        entered = [entries.get(episode_id) or self._enter(episode_id) for episode_id, _ in places]
        starts = np.array([start for _, start in places])
        rows = np.array([row for _, row in entered])
        tables = {table for table, _ in entered}
        for table in tables:
            numbers = None if len(tables) == 1 else np.array([n for n, (one, _) in enumerate(entered) if one is table])
            gathered = [path for path in out if table is not None and table.gathers(path, length)]
            if table is not None and gathered:
                self._gather(table, numbers, rows, starts, length, {path: out[path] for path in gathered})
            others = {path: target for path, target in out.items() if path not in gathered}
            if others:
                for number in range(len(places)) if numbers is None else numbers:
                    self._fill_window(*places[number], length, others, number)

    def _gather(
        self,
        table: WindowTable,
        numbers: np.ndarray | None,
        rows: np.ndarray,
        starts: np.ndarray,
        length: int,
        out: Mapping[str, np.ndarray],
    ) -> None:
        """Reads windows of one table's episodes into elements `numbers` of the batch, all by default."""
        if numbers is not None:
            rows, starts = rows[numbers], starts[numbers]
        outside = (starts < 0) | (starts + length > table.num_steps[rows])
        if outside.any():
            wrong = int(outside.argmax())
            raise _outside(table.ids[rows[wrong]], int(table.num_steps[rows[wrong]]), int(starts[wrong]), length)
        try:
            gathered = table.read(list(out), rows, starts, length)
        except WindowDamageError as error:
            raise self._told(CorruptionError(str(error)), error.episode_id) from None
        for (path, target), values in zip(out.items(), gathered, strict=True):
            if target.dtype != values.dtype or target.shape[1:] != values.shape[1:] or not target.flags.writeable:
                raise StoreError(
                    f"out[{path!r}]: expected a writeable {values.dtype} array {(len(target), *values.shape[1:])}, "
                    f"got {target.dtype} {target.shape}"
                )
            if numbers is None:
                target[...] = values
            else:
                target[numbers] = values

    def _fill_window(
        self, episode_id: str, start: int, length: int, out: Mapping[str, np.ndarray], number: int
    ) -> None:
        """Reads a window into element `number` of the batch."""
        needed = functools.partial(window_ranges, start=start, num_steps=length, wanted=out)
        record = self._record(episode_id, needed)
        if not 0 <= start <= record.header.num_steps - length:
            raise _outside(episode_id, record.header.num_steps, start, length)
        _check_paths(record, out, "out")
        try:
            for path, target in out.items():
                record.columns[path].read_into(start, length, target, number)
        except StoreError as error:
            raise self._told(error, episode_id) from None

    def _enter(self, episode_id: str) -> tuple[WindowTable | None, int]:
        """The table of an episode's windows and its row there; no table where it is remote."""
        record = self._record(episode_id, _no_rows)
        index, offset, _ = self._index.place(self._row(episode_id))
        data = self._maps.get(index.files.name)
        if not isinstance(data, np.ndarray):
            return None, 0
        if len(self._entries) >= _ENTERED_EPISODES:
            self._entries.clear()
            self._tables.clear()
        key = index.files.name, record.header.task_id
        if key not in self._tables:
            self._tables[key] = WindowTable(index.files.data, data, record.header)
        table = self._tables[key]
        row = table.add(record.header, offset)
        entry = (None, 0) if row is None else (table, row)
        self._entries[episode_id] = entry
        return entry

    def read_metadata(self, episode_id: str) -> EpisodeMetadata:
        """Where an episode comes from, without reading its columns."""
        return self._record(episode_id, _no_rows).metadata

    def lossy_columns(self, episode_id: str) -> dict[str, int]:
        """Columns whose images lost something when they were written, as their writer asked: path -> quality."""
        columns = self._record(episode_id, _no_rows).header.columns
        return {column.path: column.quality for column in columns if column.quality}

    def columns(self, episode_id: str) -> Sequence[Column]:
        """What an episode's columns are called, their dtypes and shapes, without reading them.

        Raises:
          StoreError: the store has no such episode.
          CorruptionError: the record's header does not match its checksum.
        """
        return self._record(episode_id, _no_rows).header.columns

    def facts(self, episode_id: str) -> dict[str, Any]:
        """The episode's row of the table, without reading its record.

        Raises:
          StoreError: the store has no such episode.
        """
        return self._index.columns(INDEX_SCHEMA.names, np.array([self._row(episode_id)])).to_pylist()[0]

    def find_episode(self, beginning: str) -> str:
        """The one id that begins so.

        Raises:
          StoreError: none does, or several do.
        """
        found = self._index.ids_starting_with(beginning)
        if len(found) != 1:
            raise StoreError(
                f"store {self.path}: {len(found)} episodes have ids that begin with {beginning!r}, expected 1"
            )
        return found[0]

    def quarantine(self) -> pa.Table:
        """Episodes that writers refused under `on_invalid="quarantine"`, with the reason of each."""
        rows = []
        for file in layout.quarantine_files(self.path):
            lines, _ = checked_json.split_lines(storage.read_bytes(file, layout.MAX_QUARANTINE_BYTES))
            for number, line in enumerate(lines, start=1):
                rows.append(checked_json.decode_line(line, where=f"{file} line {number}"))
        try:
            return pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA)
        except (pa.ArrowException, TypeError) as error:
            raise CorruptionError(f"store {self.path}: quarantine: unexpected facts: {error}") from None

    def segments(self) -> Mapping[str, SegmentIndex]:
        """The segments that were read, by name; for `verify`."""
        return self._segments

    def _load_tasks(self) -> dict[str, TaskSpec]:
        tasks = {}
        for file in layout.task_files(self.path):
            try:
                task = layout.read_task(file)
            except CorruptionError as error:
                self._take_damage(error)
            else:
                tasks[task.task_id] = task
        return dict(sorted(tasks.items()))

    def _take_damage(self, error: CorruptionError) -> None:
        if self._damaged == "raise":
            raise CorruptionError(f"{error}; run `python -m episode_store verify --store {self.path}`") from None
        self.damage.append(str(error))
        _LOGGER.warning("store %s: left out: %s", self.path, error)

    def _check_task(self, task_id: str) -> TaskSpec:
        task = self.tasks.get(task_id)
        if task is None:
            raise StoreError(f"store {self.path}: no task {task_id!r}{layout.near(task_id, self.tasks)}")
        return task

    def _told(self, error: StoreError, episode_id: str) -> StoreError:
        """The error with the episode it is about; of damage, with the file too."""
        if isinstance(error, CorruptionError):
            return CorruptionError(f"{self._where(self._row(episode_id))}: {error}")
        return type(error)(f"episode {episode_id}: {error}")

    def _where(self, row: int) -> str:
        index, _, _ = self._index.place(row)
        task_id = self._index.columns(["task_id"], np.array([row]))["task_id"][0].as_py()
        return f"episode {self._index.id_of(row)} of {task_id} in {index.files.data}"

    def _record(self, episode_id: str, needed: _Needed | None = None) -> RecordReader:
        """The record of an episode; those read lately are found at once.

        Args:
          episode_id: which.
          needed: of a remote record, the byte ranges to fetch, found in its header; all of it by default.
        """
        record = self._records.get(episode_id)
        if record is None:
            row = self._row(episode_id)
            index, offset, size = self._index.place(row)
            data = self._maps.get(index.files.name)
            if data is None:
                data = self._map(row, index)
            stored = data[offset : offset + size]
            if not isinstance(stored, np.ndarray):
                return self._remote_record(row, stored, size, needed)
            record = RecordReader(stored, self._parse(row, stored, size), self._decoder)
            self._records[episode_id] = record
            if len(self._records) > _CACHED_RECORDS:
                self._records.popitem(last=False)
        return record

    def _remote_record(self, row: int, stored: Record, size: int, needed: _Needed | None) -> RecordReader:
        header = self._headers.get(row)
        if header is None:
            header = self._parse(row, stored, size)
            self._headers[row] = header
            if len(self._headers) > _CACHED_RECORDS:
                self._headers.popitem(last=False)
        try:
            fetched = storage.fetch(stored, None if needed is None else needed(header))
        except (CorruptionError, RemoteError) as error:
            raise type(error)(f"{self._where(row)}: {error}") from None
        return RecordReader(fetched, header, self._decoder)

    def _row(self, episode_id: str) -> int:
        """The row of an id; those looked up lately are found at once."""
        row = self._rows.get(episode_id)
        if row is None:
            row = self._index.find(episode_id)
            if row is None:
                raise StoreError(f"store {self.path}: no episode {layout.shorten(episode_id)!r}")
            if len(self._rows) >= _KEPT_ROWS:
                self._rows.clear()
            self._rows[episode_id] = row
        return row

    def _map(self, row: int, index: SegmentIndex) -> Data:
        try:
            data = segment.map_data(index.files.data)
        except CorruptionError as error:
            if index.sealed and not index.files.data.exists() and not index.files.seal.exists():
                raise StoreError(
                    f"store {self.path}: segment {index.files.name} is gone: the store was compacted since it was "
                    "opened; open it again"
                ) from None
            raise CorruptionError(f"{self._where(row)}: {error}") from None
        except RemoteError as error:
            raise RemoteError(f"{self._where(row)}: {error}") from None
        self._maps[index.files.name] = data
        if len(self._maps) > _MAPPED_FILES:
            # The records hold their files open: half of the files go at once, so that this is rare.
            for _ in range(_MAPPED_FILES // 2):
                self._maps.popitem(last=False)
            self._forget_records()
        return data

    def _forget_records(self) -> None:
        """Lets go of everything that holds mapped files open."""
        self._records.clear()
        self._tables.clear()
        self._entries.clear()

    def _parse(self, row: int, record: Record, size: int) -> RecordHeader:
        try:
            if len(record) < size:
                raise CorruptionError(f"the file is cut short, {len(record)} of {size} bytes are left")
            header = parse_header(record)
            if header.episode_id != self._index.id_of(row) or header.record_bytes != size:
                raise CorruptionError(f"the record there is of episode {header.episode_id}")
            self._check_header(header)
        except (CorruptionError, RemoteError) as error:
            raise type(error)(f"{self._where(row)}: {error}") from None
        return header

    def _check_header(self, header: RecordHeader) -> None:
        expected = self._expected_columns.get(header.task_id)
        if expected is None:
            raise CorruptionError(f"the store lacks its task {layout.shorten(header.task_id)!r}")
        check_columns(header, expected)


def _no_rows(header: RecordHeader) -> list[tuple[int, int]]:
    """What a reader of headers needs besides."""
    return []


def _episode(record: RecordReader, out: Mapping[str, np.ndarray]) -> Episode:
    """All of a record."""
    header = record.header
    observations, actions, rewards, step_columns = record.read(0, header.num_steps, None, out)
    return _make(
        Episode,
        task_id=header.task_id,
        observations=observations,
        actions=actions,
        rewards=rewards["rewards"],
        terminated=header.terminated,
        truncated=header.truncated,
        step_columns=step_columns,
        metadata=record.metadata,
    )


def _make(kind: type[_Made], **attributes: Any) -> _Made:
    """As a frozen dataclass's own constructor would, which takes as long as reading a window of floats."""
    made = object.__new__(kind)
    made.__dict__.update(attributes)
    return made


def _outside(episode_id: str, num_steps: int, start: int, length: int) -> StoreError:
    return StoreError(
        f"episode {episode_id}: expected a window inside its {num_steps} steps, got [{start}, {start + length})"
    )


def _check_paths(record: RecordReader, names: Mapping[str, Any], where: str) -> None:
    """Refuses names that are no columns of the record."""
    for name in names:
        if name not in record.columns:
            raise StoreError(f"{where}: no column {name!r}{layout.near(name, record.columns)}")


def _reopen(
    path: StorePath, damaged: Literal["raise", "skip"], version: int, extent: Mapping[str, int]
) -> EpisodeStore:
    return EpisodeStore(path, damaged=damaged, version=version, extent=extent)
