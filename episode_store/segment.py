"""The files of one segment: what one writer process appends to, and how it is recovered and sealed.

    <name>.data      64-byte file header, then records, each a multiple of 64 bytes
    <name>.journal   one checked JSON line an episode, written after its record; gone once the segment is sealed
    <name>.parquet   the index of a sealed segment, made from the journal
    <name>.seal      checked JSON: size of the data, size and checksum of the index; written last

Records first, index after. A writer holds an exclusive lock on its journal while it lives, so a journal without a
lock belongs to a writer that is gone: readers and the next writer then also take up a whole record whose journal line
is missing and leave out a torn one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import io
import mmap
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from episode_store import checked_json
from episode_store.errors import CorruptionError
from episode_store.files import write_bytes
from episode_store.record_format import ALIGNMENT, RecordHeader, parse_header

FORMAT_VERSION = 1
DATA_HEADER = b"EPISODE-SEGMENT\x00" + FORMAT_VERSION.to_bytes(4, "little") + bytes(ALIGNMENT - 20)
SEGMENT_FOLDER = "segments"
SEGMENT_NAME = re.compile(r"[0-9a-f]{12}-[0-9a-f]{8}")

INDEX_SCHEMA = pa.schema(
    [
        pa.field("task_id", pa.string(), nullable=False),
        pa.field("episode_id", pa.string(), nullable=False),
        pa.field("content_hash", pa.string(), nullable=False),
        pa.field("num_steps", pa.int32(), nullable=False),
        pa.field("episode_return", pa.float64(), nullable=False),
        pa.field("terminated", pa.bool_(), nullable=False),
        pa.field("truncated", pa.bool_(), nullable=False),
        pa.field("agent_id", pa.string(), nullable=False),
        pa.field("seed", pa.int64()),
        pa.field("collection_index", pa.int64(), nullable=False),
        pa.field("experiment_id", pa.string(), nullable=False),
        pa.field("agent_hash", pa.string(), nullable=False),
        pa.field("split_group", pa.string(), nullable=False),
        pa.field("attribution", pa.string(), nullable=False),
        pa.field("segment", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("record_bytes", pa.int64(), nullable=False),
    ]
)


def new_segment_name() -> str:
    """A name no other writer has: milliseconds since 1970, then chance, in hex; names sort by age."""
    return f"{time.time_ns() // 1_000_000:012x}-{secrets.token_hex(4)}"


@dataclasses.dataclass(frozen=True)
class SegmentFiles:
    """The paths of one segment's files."""

    folder: Path
    name: str

    @property
    def data(self) -> Path:
        """Records."""
        return self.folder / f"{self.name}.data"

    @property
    def journal(self) -> Path:
        """Index lines of a segment that is not sealed."""
        return self.folder / f"{self.name}.journal"

    @property
    def index(self) -> Path:
        """Index of a sealed segment."""
        return self.folder / f"{self.name}.parquet"

    @property
    def seal(self) -> Path:
        """Written last: the segment is complete."""
        return self.folder / f"{self.name}.seal"


def list_segments(store: Path) -> list[SegmentFiles]:
    """All segments of a store, oldest first."""
    folder = store / SEGMENT_FOLDER
    if not folder.is_dir():
        return []
    names = {entry.name.split(".")[0] for entry in os.scandir(folder) if not entry.name.startswith(".")}
    return [SegmentFiles(folder, name) for name in sorted(names) if SEGMENT_NAME.fullmatch(name)]


def index_row(header: RecordHeader, segment: str, offset: int) -> dict[str, Any]:
    """The index row of a record."""
    metadata = header.metadata
    return {
        "task_id": header.task_id,
        "episode_id": header.episode_id,
        "content_hash": header.content_hash,
        "num_steps": header.num_steps,
        "episode_return": header.episode_return,
        "terminated": header.terminated,
        "truncated": header.truncated,
        "agent_id": metadata.agent_id,
        "seed": metadata.seed,
        "collection_index": metadata.collection_index,
        "experiment_id": metadata.experiment_id,
        "agent_hash": metadata.agent_hash,
        "split_group": metadata.split_group,
        "attribution": metadata.attribution,
        "segment": segment,
        "offset": offset,
        "record_bytes": header.record_bytes,
    }


def map_data(path: Path) -> np.ndarray:
    """A segment's data file as read-only uint8 [n], memory-mapped.

    Raises:
      CorruptionError: missing, empty or not a segment.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b""
    except FileNotFoundError:
        raise CorruptionError(f"{path}: missing, the episodes in it are lost") from None
    if data[: len(DATA_HEADER)] != DATA_HEADER:
        raise CorruptionError(f"{path}: does not start with the header of a segment (format version {FORMAT_VERSION})")
    return np.frombuffer(data, np.uint8)


@dataclasses.dataclass(kw_only=True)
class SegmentIndex:
    """What is known of one segment.

    Attributes:
      files: its paths.
      table: one row an episode, in the order of writing.
      data_bytes: end of the last record.
      sealed: whether it is complete.
      alive: whether its writer still runs (never for a sealed one).
      notes: what was found after a writer's sudden end, one sentence each.
    """

    files: SegmentFiles
    table: pa.Table
    data_bytes: int
    sealed: bool
    alive: bool = False
    notes: list[str] = dataclasses.field(default_factory=list)


def load_index(files: SegmentFiles) -> SegmentIndex:
    """The index of a segment, whether sealed, being written, or left by a killed writer. Changes nothing on disk.

    Raises:
      CorruptionError: an index file is damaged or missing.
    """
    for _ in range(3):
        # A writer may seal the segment between two looks: the seal appears before the journal goes.
        if files.seal.exists():
            return _load_sealed(files)
        with contextlib.suppress(FileNotFoundError):
            return _load_journal(files)
    raise CorruptionError(f"{files.data}: has neither an index nor a journal: its episodes cannot be found")


def _load_sealed(files: SegmentFiles) -> SegmentIndex:
    seal = checked_json.read_file(files.seal)
    try:
        data_bytes, index_bytes, checksum = int(seal["data_bytes"]), int(seal["index_bytes"]), seal["index_crc32c"]
        if seal["version"] != FORMAT_VERSION or seal["segment"] != files.name:
            raise CorruptionError(f"{files.seal}: is not the seal of this segment and format version {FORMAT_VERSION}")
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptionError(f"{files.seal}: lacks a fact: {error}") from None
    try:
        size = files.index.stat().st_size
        content = files.index.read_bytes() if size == index_bytes else b""
    except FileNotFoundError:
        raise CorruptionError(f"{files.index}: missing") from None
    if size != index_bytes:
        raise CorruptionError(f"{files.index}: {size} bytes, expected {index_bytes}")
    if google_crc32c.value(content) != checksum:
        raise CorruptionError(f"{files.index}: its checksum does not match: a byte was changed")
    try:
        table = pq.read_table(io.BytesIO(content), page_checksum_verification=True, use_threads=False)
        table = table.cast(INDEX_SCHEMA)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptionError(f"{files.index}: unexpected content: {error}") from None
    index = SegmentIndex(files=files, table=table, data_bytes=data_bytes, sealed=True)
    _check_rows(index)
    return index


def _load_journal(files: SegmentFiles) -> SegmentIndex:
    # The lock is looked at before the content: a writer that ended in between wrote all it was going to.
    with open(files.journal, "rb") as file:
        alive = not _try_lock(file.fileno(), fcntl.LOCK_SH)
        return _parse_journal(files, file.read(), alive=alive)


def _parse_journal(files: SegmentFiles, content: bytes, *, alive: bool) -> SegmentIndex:
    complete, newline, tail = content.rpartition(b"\n")
    rows = [
        checked_json.decode_line(line + b"\n", where=f"{files.journal} line {number}")
        for number, line in enumerate(complete.split(b"\n") if newline else [], start=1)
    ]
    notes = []
    if tail and not alive:
        if checked_json.is_line(tail[:-1] + b"\n"):
            raise CorruptionError(f"{files.journal}: its last byte was changed")
        notes.append(f"a journal line cut short after {len(tail)} bytes")
    end = len(DATA_HEADER)
    for row in rows:
        row["segment"] = files.name
        try:
            end = max(end, int(row["offset"]) + int(row["record_bytes"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptionError(f"{files.journal}: lacks a fact: {error}") from None
    if not alive:
        adopted, end, note = _adopt_records(files, end)
        rows += adopted
        notes += note
    try:
        table = pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise CorruptionError(f"{files.journal}: unexpected facts: {error}") from None
    index = SegmentIndex(files=files, table=table, data_bytes=end, sealed=False, alive=alive, notes=notes)
    _check_rows(index)
    return index


def _adopt_records(files: SegmentFiles, end: int) -> tuple[list[dict[str, Any]], int, list[str]]:
    """Whole records after `end`, written by a writer that was killed before it could write their journal lines."""
    if not files.data.exists() or files.data.stat().st_size <= end:
        return [], end, []
    if files.data.stat().st_size < len(DATA_HEADER):
        return [], end, ["a data file cut short in its header"]
    data = map_data(files.data)
    rows: list[dict[str, Any]] = []
    while end < len(data):
        try:
            header = parse_header(data[end:])
            check_blocks(data[end:], header)
        except CorruptionError:
            break
        rows.append(index_row(header, files.name, end))
        end += header.record_bytes
    notes = [f"{len(rows)} whole episodes without a journal line, taken up"] if rows else []
    if end < len(data):
        notes.append(f"a record cut short after {len(data) - end} bytes, left out (it was never acknowledged)")
    return rows, end, notes


def check_blocks(record: np.ndarray, header: RecordHeader) -> None:
    """Compares the checksum of every block of a record.

    Raises:
      CorruptionError: a block was changed.
    """
    for column in header.columns:
        start = column.offset
        for size, checksum in zip(column.blocks[::2], column.blocks[1::2], strict=True):
            if google_crc32c.value(record[start : start + size]) != checksum:
                raise CorruptionError(f"{column.path}: the checksum of a block does not match")
            start += size


def _check_rows(index: SegmentIndex) -> None:
    """Bounds what the index may claim before anyone follows it."""
    offsets = index.table["offset"].to_numpy()
    sizes = index.table["record_bytes"].to_numpy()
    inside = (offsets >= len(DATA_HEADER)) & (sizes >= ALIGNMENT) & (offsets <= index.data_bytes - sizes)
    if not (inside & (offsets % ALIGNMENT == 0)).all():
        raise CorruptionError(f"{index.files.name}: the index points outside its data file")


def write_seal(files: SegmentFiles, table: pa.Table, data_bytes: int) -> None:
    """Writes index and seal of a segment whose data is synced, then removes its journal."""
    sink = io.BytesIO()
    pq.write_table(table, sink, write_page_checksum=True, compression="zstd", row_group_size=65_536)
    content = sink.getbuffer()
    write_bytes(files.index, content)
    seal = {
        "format": "episode-segment",
        "version": FORMAT_VERSION,
        "segment": files.name,
        "num_episodes": table.num_rows,
        "data_bytes": data_bytes,
        "index_bytes": len(content),
        "index_crc32c": google_crc32c.value(sink.getvalue()),
    }
    checked_json.write_file(files.seal, seal)
    files.journal.unlink(missing_ok=True)


def recover_segment(files: SegmentFiles) -> list[str]:
    """Seals a segment whose writer is gone; does nothing when the writer lives or another process recovers it.

    Returns:
      What was found, one sentence each; empty when there was nothing to do.
    """
    with _exclusively(files.journal) as locked:
        if not locked:
            return []
        if files.seal.exists():
            files.journal.unlink(missing_ok=True)
            return []
        index = _parse_journal(files, files.journal.read_bytes(), alive=False)
        if index.table.num_rows == 0:
            for path in (files.data, files.journal):
                path.unlink(missing_ok=True)
            return index.notes
        if not files.data.exists():
            raise CorruptionError(f"{files.data}: missing, the episodes in it are lost")
        with open(files.data, "r+b") as file:
            if os.fstat(file.fileno()).st_size > index.data_bytes:
                file.truncate(index.data_bytes)
            os.fsync(file.fileno())
        write_seal(files, index.table, index.data_bytes)
        return [*index.notes, f"{index.table.num_rows} episodes kept"]


@contextlib.contextmanager
def _exclusively(path: Path) -> Iterator[bool]:
    """Holds the exclusive lock on a file; yields whether it was free."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        yield _try_lock(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
