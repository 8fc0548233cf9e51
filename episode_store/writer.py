"""Adds episodes to a store. Each writer appends to a segment of its own, so several processes write at once.

When `add_episode` returns, the episode survives `kill -9` of the process: its bytes are with the kernel. With
`sync=True` they are also on the disk, and it survives a power loss.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import pyarrow as pa

from episode_store import checked_json, layout, lossy, segment, storage
from episode_store.episode import Episode
from episode_store.episode_ids import IdSet
from episode_store.errors import CorruptionError, EpisodeError, StoreError
from episode_store.files import sync_folder
from episode_store.record_format import EncodedColumn, RecordEncoder, encode_metadata
from episode_store.segment import DATA_HEADER, INDEX_SCHEMA, SegmentFiles
from episode_store.store import EpisodeStore
from episode_store.task import TaskSpec

_LOGGER = logging.getLogger("episode_store")
# A segment is sealed and the next one begun at either limit; they bound a writer's memory.
MAX_SEGMENT_BYTES = 1 << 30
MAX_SEGMENT_EPISODES = 65_536
# The most buffers that one call of writev takes.
_MOST_PARTS = 1_024
_PACKED_ROWS = 1_024
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


class EpisodeWriter:
    """Appends episodes to a store, making the store if the folder is missing or empty.

    Opening one seals what killed writers left behind and says so in the log; `recovered` has the same sentences.
    Use it as a context manager. Safe to share among threads; a forked process must open its own.

    Args:
      path: the store's folder.
      on_invalid: "raise" refuses an episode that breaks the contract with an `EpisodeError`; "quarantine" notes it
        with its reason in the store's quarantine table, and `add_episode` returns "".
      sync: also survive a power loss: every episode is fsynced, a thousand times slower on a slow disk. Without it a
        segment is synced when it is closed.
      lossy_images: None keeps every image as it is. 1 (smallest) to 100 keeps images of observations as WebP of that
        quality; the episode is then what these files decode to, which its hashes are of, and each record says so.

    Raises:
      StoreError: the folder is not a store, or cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        on_invalid: Literal["raise", "quarantine"] = "raise",
        sync: bool = False,
        lossy_images: int | None = None,
    ) -> None:
        if on_invalid not in ("raise", "quarantine"):
            raise ValueError(f"on_invalid: expected 'raise' or 'quarantine', got {on_invalid!r}")
        if lossy_images is not None and lossy_images not in range(1, 101):
            raise ValueError(f"lossy_images: expected a quality from 1 to 100 or None, got {lossy_images!r}")
        self._lossy_images = lossy_images
        self._path = storage.local(path)
        self._on_invalid = on_invalid
        self._sync = sync
        self._encoder = RecordEncoder()
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._closed = False
        self._open: _OpenSegment | None = None
        self._quarantine_file: Path | None = None
        with self._disk_told():
            layout.create_store(self._path)
            self.recovered = recover(self._path)
        store = EpisodeStore.open(self._path, damaged="skip")
        self._tasks = dict(store.tasks)
        self._known = IdSet(store.index.halves)

    @property
    def num_known(self) -> int:
        """Episodes in the store as far as this writer knows: those it found, and its own."""
        return len(self._known)

    def add_task(self, task: TaskSpec) -> None:
        """Adds a task; the same one again is no change.

        Raises:
          UserError: the store has another task of this id.
        """
        self._check_usable()
        if self._tasks.get(task.task_id) == task:
            return
        with self._disk_told():
            layout.create_task(self._path, task)
        self._tasks[task.task_id] = task

    def add_episode(self, episode: Episode) -> str:
        """Adds one episode and returns its id; an id that the store has already is not written again.

        Raises:
          EpisodeError: the episode breaks the contract (and `on_invalid` is "raise"); nothing was written.
          StoreError: its task was not added, or the disk is full; episodes added before are safe.
        """
        self._check_usable()
        task = self._tasks.get(episode.task_id)
        if task is None:
            raise StoreError(
                f"task {episode.task_id!r} is not in store {self._path}; call add_task first"
                f"{layout.near(str(episode.task_id), self._tasks)}"
            )
        try:
            episode.validate(task)
            encoded: Mapping[str, EncodedColumn] = {}
            if self._lossy_images is not None:
                episode, encoded = lossy.with_lossy_images(episode, task, self._lossy_images)
            content_hash, digests = episode.hash_content()
            metadata_json = encode_metadata(episode.metadata, f"episode of {episode.task_id}")
            episode_id = episode.episode_id(content_hash, metadata_json)
            if episode_id in self._known:
                return episode_id
            record = self._encoder.encode(
                episode,
                task,
                content_hash,
                episode_id,
                metadata_json=metadata_json,
                digests=digests,
                encoded=encoded,
            )
        except EpisodeError as error:
            if self._on_invalid == "raise":
                raise
            self._quarantine(episode, str(error))
            return ""
        metadata = episode.metadata
        row = {
            "task_id": episode.task_id,
            "episode_id": episode_id,
            "content_hash": content_hash,
            "num_steps": episode.num_steps,
            "episode_return": episode.episode_return,
            "terminated": bool(episode.terminated),
            "truncated": bool(episode.truncated),
            "agent_id": metadata.agent_id,
            "seed": metadata.seed,
            "collection_index": metadata.collection_index,
            "experiment_id": metadata.experiment_id,
            "agent_hash": metadata.agent_hash,
            "split_group": metadata.split_group,
            "attribution": metadata.attribution,
            "success": metadata.success,
        }
        with self._lock:
            if episode_id in self._known:
                return episode_id
            if self._open is None:
                with self._disk_told():
                    self._open = _OpenSegment(self._path, sync=self._sync)
            try:
                self._open.append(record, row)
            except OSError as error:
                raise self._told(error) from error
            self._known.add(episode_id)
            if self._open.data_bytes >= MAX_SEGMENT_BYTES or self._open.num_rows >= MAX_SEGMENT_EPISODES:
                self._seal()
        return episode_id

    def close(self) -> None:
        """Seals the segment: syncs it and writes its index. Calling it again does nothing.

        Raises:
          StoreError: the disk is full; every episode is safe all the same, the next writer seals the segment.
        """
        if self._closed:
            return
        self._closed = True
        if self._process == os.getpid():
            with self._lock:
                self._seal()

    def __enter__(self) -> EpisodeWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _seal(self) -> None:
        opened, self._open = self._open, None
        if opened is not None:
            with self._disk_told():
                opened.seal()

    @contextlib.contextmanager
    def _disk_told(self) -> Iterator[None]:
        """Tells a full or a read-only disk in one line."""
        try:
            yield
        except OSError as error:
            raise self._told(error) from error

    def _told(self, error: OSError) -> Exception:
        if error.errno in _FULL:
            problem, remedy = "no space left on the disk", "free some space"
        elif error.errno in _FORBIDDEN:
            problem, remedy = "it cannot be written", "allow writing to it"
        else:
            return error
        return StoreError(
            f"store {self._path}: {problem} ({os.strerror(error.errno)}); every episode already in the store is "
            f"safe; {remedy} and run the same command again"
        )

    def _check_usable(self) -> None:
        if self._closed:
            raise StoreError(f"store {self._path}: this writer is closed; open another")
        if self._process != os.getpid():
            raise StoreError(f"store {self._path}: a writer cannot be used in a forked process; open one in each")

    def _quarantine(self, episode: Episode, reason: str) -> None:
        folder = self._path / layout.QUARANTINE_FOLDER
        with self._lock:
            if self._quarantine_file is None:
                folder.mkdir(exist_ok=True)
                self._quarantine_file = folder / f"{segment.new_segment_name()}.jsonl"
            line = checked_json.encode_line(
                {
                    "task_id": str(episode.task_id),
                    "agent_id": str(episode.metadata.agent_id),
                    "seed": None if episode.metadata.seed is None else str(episode.metadata.seed),
                    "collection_index": str(episode.metadata.collection_index),
                    "reason": reason.encode("utf-8", "backslashreplace").decode(),
                }
            )
            with self._disk_told():
                _append_file(self._quarantine_file, line)
        _LOGGER.warning("quarantined: %s", reason)


class _OpenSegment:
    """The segment a writer is appending to."""

    def __init__(self, store: Path, *, sync: bool) -> None:
        self.files = SegmentFiles(store / segment.SEGMENT_FOLDER, segment.new_segment_name())
        self.num_rows = 0
        # Rows as dictionaries are large: they are packed as soon as there are some.
        self._rows: list[dict[str, Any]] = []
        self._packed: list[pa.Table] = []
        self.data_bytes = len(DATA_HEADER)
        self._journal_bytes = 0
        self._sync = sync
        self._journal = segment.create_journal(self.files)
        try:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
            self._data = os.open(self.files.data, flags, 0o666)
        except OSError:
            self.files.journal.unlink(missing_ok=True)
            os.close(self._journal)
            raise
        try:
            _write(self._data, DATA_HEADER)
            if sync:
                os.fsync(self._data)
                sync_folder(self.files.folder)
        except OSError:
            self.files.data.unlink(missing_ok=True)
            self.files.journal.unlink(missing_ok=True)
            self._close_files()
            raise

    def append(self, record: list[Any], row: dict[str, Any]) -> None:
        """Writes the record, then its journal line; on any error or interrupt both files are as they were."""
        before = self.data_bytes, self._journal_bytes, len(self._rows)
        record_bytes = sum(map(len, record))
        row = {**row, "offset": self.data_bytes, "record_bytes": record_bytes}
        line = checked_json.encode_line(row)
        try:
            _write(self._data, *record)
            if self._sync:
                os.fdatasync(self._data)
            _write(self._journal, line)
            if self._sync:
                os.fdatasync(self._journal)
            self.data_bytes += record_bytes
            self._journal_bytes += len(line)
            row["segment"] = self.files.name
            self._rows.append(row)
        except BaseException:
            # Also when the user interrupts: what follows must not land behind half a record.
            self.data_bytes, self._journal_bytes, num_rows = before
            del self._rows[num_rows:]
            for file, size in ((self._journal, self._journal_bytes), (self._data, self.data_bytes)):
                os.ftruncate(file, size)
                os.lseek(file, size, os.SEEK_SET)
            raise
        self.num_rows += 1
        if len(self._rows) >= _PACKED_ROWS:
            self._pack()

    def _pack(self) -> None:
        """Turns rows into columns, texts that repeat into numbers."""
        table = pa.Table.from_pylist(self._rows, schema=INDEX_SCHEMA)
        self._packed.append(table.cast(segment.CODED_SCHEMA))
        self._rows.clear()

    def seal(self) -> None:
        """Syncs the data and writes the index; without an episode the segment's files go."""
        try:
            if self.num_rows:
                os.fsync(self._data)
                self._pack()
                table = pa.concat_tables(self._packed).cast(INDEX_SCHEMA)
                segment.write_seal(self.files, table, self.data_bytes)
            else:
                self.files.data.unlink(missing_ok=True)
                self.files.journal.unlink(missing_ok=True)
        finally:
            self._close_files()

    def _close_files(self) -> None:
        os.close(self._data)
        os.close(self._journal)


def recover(path: str | Path) -> list[str]:
    """Seals the segments that killed writers left; writers do so when they open a store.

    Returns:
      One sentence a segment that needed it; each is also logged as a warning.
    """
    sentences = []
    for files in segment.list_segments(Path(path)):
        if not files.journal.exists():
            continue
        try:
            notes = segment.recover_segment(files)
        except CorruptionError as error:
            notes = [f"damaged, left as it is: {error}"]
        if notes:
            sentences.append(f"segment {files.name}: its writer ended without closing it: {'; '.join(notes)}")
            _LOGGER.warning("store %s: %s", path, sentences[-1])
    return sentences


def _write(descriptor: int, *parts: Any) -> None:
    """Writes buffers of bytes one after the other without joining them; the kernel may take less than it is given."""
    for start in range(0, len(parts), _MOST_PARTS):
        some = parts[start : start + _MOST_PARTS]
        written = os.writev(descriptor, some)
        if written == sum(map(len, some)):
            continue
        views = [memoryview(part) for part in some if len(part)]
        while True:
            while views and written >= len(views[0]):
                written -= len(views.pop(0))
            if not views:
                break
            views[0] = views[0][written:]
            written = os.writev(descriptor, views)


def _append_file(path: Path, line: bytes) -> None:
    with open(path, "ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            _write(file.fileno(), line)
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise
