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
import errno
import fcntl
import io
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, overload

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from episode_store import checked_json, column_codecs, storage
from episode_store.errors import CorruptionError
from episode_store.files import write_bytes
from episode_store.record_format import ALIGNMENT, RecordHeader, parse_header
from episode_store.storage import Data, Place, Record, StorePath

FORMAT_VERSION = 2
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
        # Newer than the rest: an index without it reads as nulls.
        pa.field("success", pa.bool_()),
    ]
)
_OPTIONAL_COLUMNS = frozenset({"success"})
# Columns whose values repeat: read as dictionaries, so a row costs four bytes whatever the text.
_REPEATING_COLUMNS = ["task_id", "agent_id", "experiment_id", "agent_hash", "attribution", "segment"]
# The same with those dictionaries.
CODED_SCHEMA = pa.schema(
    [
        pa.field(field.name, pa.dictionary(pa.int32(), pa.string()), nullable=False)
        if field.name in _REPEATING_COLUMNS
        else field
        for field in INDEX_SCHEMA
    ]
)
# Decoded columns of an index that are kept.
_KEPT_COLUMNS = 2
_MAX_JOURNAL_BYTES = 1 << 30
_MAX_FILE_BYTES = 1 << 62


def new_segment_name() -> str:
    """A name no other writer has: milliseconds since 1970, then chance, in hex; names sort by age."""
    return f"{time.time_ns() // 1_000_000:012x}-{secrets.token_hex(4)}"


@dataclasses.dataclass(frozen=True)
class SegmentFiles(Generic[Place]):
    """The paths of one segment's files."""

    folder: Place
    name: str

    @property
    def data(self) -> Place:
        """Records."""
        return self.folder / f"{self.name}.data"

    @property
    def journal(self) -> Place:
        """Index lines of a segment that is not sealed."""
        return self.folder / f"{self.name}.journal"

    @property
    def index(self) -> Place:
        """Index of a sealed segment."""
        return self.index_of(0)

    def index_of(self, generation: int) -> Place:
        """Index of a sealed segment after so many repairs."""
        return self.folder / (f"{self.name}.r{generation}.parquet" if generation else f"{self.name}.parquet")

    @property
    def seal(self) -> Place:
        """Written last: the segment is complete."""
        return self.folder / f"{self.name}.seal"


def list_segments(store: Place) -> list[SegmentFiles[Place]]:
    """All segments of a store, oldest first."""
    folder = store / SEGMENT_FOLDER
    names = {name.split(".")[0] for name in storage.names(folder)}
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
        "success": metadata.success,
    }


@overload
def map_data(path: Path) -> np.ndarray: ...
@overload
def map_data(path: StorePath) -> Data: ...
def map_data(path: StorePath) -> Data:
    """A segment's data file, read-only; a local one memory-mapped as uint8 [n].

    Raises:
      CorruptionError: missing, empty or not a segment.
    """
    try:
        data = storage.open_data(path)
        header = data[: len(DATA_HEADER)].tobytes()
    except FileNotFoundError:
        raise CorruptionError(f"{path}: missing, the episodes in it are lost") from None
    if header != DATA_HEADER:
        raise CorruptionError(f"{path}: does not start with the header of a segment (format version {FORMAT_VERSION})")
    return data


@dataclasses.dataclass(kw_only=True)
class SegmentIndex:
    """What is known of one segment. Columns of a sealed one are decoded when they are asked for.

    Attributes:
      files: its paths.
      source: all rows, in the order of writing; either a table or a checked Parquet file.
      num_rows: how many of them count; a reader may see fewer than there are by now.
      data_bytes: end of the last record, or of the data file.
      sealed: whether it is complete.
      alive: whether its writer still runs (never for a sealed one).
      notes: what was found after a writer's sudden end, one sentence each.
      gaps: byte ranges of the data file that `repair` left out as damaged: (start, end).
    """

    files: SegmentFiles
    source: pa.Table | IndexFile
    num_rows: int
    data_bytes: int
    sealed: bool
    alive: bool = False
    notes: list[str] = dataclasses.field(default_factory=list)
    gaps: list[tuple[int, int]] = dataclasses.field(default_factory=list)

    @property
    def table(self) -> pa.Table:
        """One row an episode, in the order of writing, as `INDEX_SCHEMA`."""
        return self.columns(INDEX_SCHEMA.names).cast(INDEX_SCHEMA)

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Some columns; texts that repeat may come as dictionaries.

        Raises:
          CorruptionError: the index holds something else than `INDEX_SCHEMA` or points outside the data file.
        """
        wanted = list(names)
        if not {"offset", "record_bytes"}.isdisjoint(wanted):
            wanted = list(dict.fromkeys([*wanted, "offset", "record_bytes"]))
        table = self.source.select(wanted) if isinstance(self.source, pa.Table) else self.source.read(wanted)
        if "offset" in wanted:
            _check_rows(self, table)
        return table.slice(0, self.num_rows).select(list(names))

    def limit_bytes(self, end: int) -> None:
        """Shows only the records that begin before byte `end` of the data file."""
        if end < self.data_bytes:
            offsets = self.columns(["offset"])["offset"].to_numpy()
            self.num_rows = int(np.searchsorted(offsets, end))


class IndexFile:
    """The Parquet index of a sealed segment, its checksum compared already; decodes columns when asked."""

    def __init__(self, path: StorePath, content: np.ndarray) -> None:
        """Reads the footer.

        Raises:
          CorruptionError: not Parquet.
        """
        self._path = path
        self._content = content
        with self._told():
            self._metadata = self._open(None).metadata
        self.num_rows: int = self._metadata.num_rows
        self._names = frozenset(self._metadata.schema.names)
        self._kept: dict[str, pa.ChunkedArray] = {}

    def read(self, names: Sequence[str]) -> pa.Table:
        """Columns of all rows.

        Raises:
          CorruptionError: a column is missing, of another type, or cannot be decoded.
        """
        with self._told():
            # Looked at once: another thread may put others in its place.
            decoded = dict(self._kept)
            kept = list(decoded)
            unknown = [name for name in names if name not in decoded]
            if unknown:
                decoded |= self._decode(unknown)
            result = pa.Table.from_arrays([decoded[name] for name in names], names=list(names))
        # The column that chose rows is often asked for again; numbers and codes are small.
        small = [name for name in names if decoded[name].type not in (pa.string(), pa.bool_())]
        latest = dict.fromkeys(reversed([*kept, *small]))
        self._kept = {name: decoded[name] for name in reversed(list(latest)[:_KEPT_COLUMNS])}
        return result

    def _decode(self, names: Sequence[str]) -> dict[str, pa.ChunkedArray]:
        table = self._open(self._metadata).read([name for name in names if name in self._names], use_threads=False)
        columns = {}
        for name in names:
            field = INDEX_SCHEMA.field(name)
            if name in self._names:
                column = table[name]
                keeps = pa.types.is_dictionary(column.type) and column.type.value_type == field.type
                if keeps:
                    # Parquet's reader believes the places in a dictionary that a damaged file claims.
                    column.validate(full=True)
                columns[name] = column if keeps else column.cast(field.type)
            elif name in _OPTIONAL_COLUMNS:
                columns[name] = pa.chunked_array([pa.nulls(self.num_rows, field.type)])
            else:
                raise CorruptionError(f"{self._path}: lacks column {name}")
            if not field.nullable and columns[name].null_count:
                raise CorruptionError(f"{self._path}: {name} is missing in a row")
            if len(columns[name]) != self.num_rows:
                raise CorruptionError(f"{self._path}: its columns differ in length")
        return columns

    def _open(self, metadata: pq.FileMetaData | None) -> pq.ParquetFile:
        return pq.ParquetFile(
            pa.BufferReader(pa.py_buffer(self._content)),
            metadata=metadata,
            read_dictionary=_REPEATING_COLUMNS,
            page_checksum_verification=True,
        )

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
            raise CorruptionError(f"{self._path}: unexpected content: {error}") from None


def load_index(files: SegmentFiles) -> SegmentIndex:
    """The index of a segment, whether sealed, being written, or left by a killed writer. Changes nothing on disk.

    Raises:
      CorruptionError: an index file is damaged or missing.
    """
    for _ in range(3):
        # A writer may seal the segment between two looks: the seal appears before the journal goes.
        with contextlib.suppress(FileNotFoundError):
            return _load_sealed(files)
        with contextlib.suppress(FileNotFoundError):
            return _load_journal(files)
    raise CorruptionError(f"{files.data}: has neither an index nor a journal: its episodes cannot be found")


def read_seal(files: SegmentFiles) -> dict[str, Any]:
    """The seal of a segment, its facts checked.

    Raises:
      CorruptionError: damaged, or of another segment.
      FileNotFoundError: there is none.
    """
    seal = checked_json.read_file(files.seal)
    try:
        if seal["version"] != FORMAT_VERSION or seal["segment"] != files.name:
            raise CorruptionError(f"{files.seal}: is not the seal of this segment and format version {FORMAT_VERSION}")
        facts = {name: int(seal[name]) for name in ("num_episodes", "data_bytes", "index_bytes", "index_crc32c")}
        generation = int(seal.get("index_generation", 0))
        gaps = [(int(start), int(end)) for start, end in seal.get("gaps", [])]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CorruptionError(f"{files.seal}: lacks a fact: {error}") from None
    if not 0 <= facts["num_episodes"] * ALIGNMENT <= facts["data_bytes"] <= _MAX_FILE_BYTES or generation < 0:
        raise CorruptionError(f"{files.seal}: {facts['num_episodes']} episodes in {facts['data_bytes']} bytes")
    return {**facts, "index_generation": generation, "gaps": gaps}


def _load_sealed(files: SegmentFiles) -> SegmentIndex:
    seal = read_seal(files)
    path = files.index_of(seal["index_generation"])
    content = storage.read_exactly(path, seal["index_bytes"])
    if google_crc32c.value(content) != seal["index_crc32c"]:
        raise CorruptionError(f"{path}: its checksum does not match: a byte was changed")
    source = IndexFile(path, content)
    if source.num_rows != seal["num_episodes"]:
        raise CorruptionError(f"{path}: {source.num_rows} rows, its seal says {seal['num_episodes']}")
    return SegmentIndex(
        files=files,
        source=source,
        num_rows=source.num_rows,
        data_bytes=seal["data_bytes"],
        sealed=True,
        gaps=seal["gaps"],
    )


def _load_journal(files: SegmentFiles) -> SegmentIndex:
    # The lock is looked at before the content: a writer that ended in between wrote all it was going to.
    alive = is_alive(files)
    return _parse_journal(files, storage.read_bytes(files.journal, _MAX_JOURNAL_BYTES), alive=alive)


def _parse_journal(files: SegmentFiles, content: bytes, *, alive: bool) -> SegmentIndex:
    lines, tail = checked_json.split_lines(content)
    rows = [
        checked_json.decode_line(line, where=f"{files.journal} line {number}")
        for number, line in enumerate(lines, start=1)
    ]
    notes = []
    if tail and not alive:
        notes.append(f"a journal line cut short after {len(tail)} bytes")
    end = len(DATA_HEADER)
    for row in rows:
        row["segment"] = files.name
        try:
            end = max(end, int(row["offset"]) + int(row["record_bytes"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptionError(f"{files.journal}: lacks a fact: {error}") from None
    if end > _MAX_FILE_BYTES:
        raise CorruptionError(f"{files.journal}: names byte {end} of its data file")
    if not alive:
        adopted, end, note = _adopt_records(files, end)
        rows += adopted
        notes += note
    try:
        table = pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise CorruptionError(f"{files.journal}: unexpected facts: {error}") from None
    for field in INDEX_SCHEMA:
        if not field.nullable and table[field.name].null_count:
            raise CorruptionError(f"{files.journal}: {field.name} is missing in a line")
    index = SegmentIndex(
        files=files, source=table, num_rows=len(table), data_bytes=end, sealed=False, alive=alive, notes=notes
    )
    _check_rows(index, table)
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


def check_blocks(record: Record, header: RecordHeader) -> None:
    """Compares the checksums of every column of a record and of every block.

    Raises:
      CorruptionError: a block was changed.
    """
    for column in header.columns:
        start = column.offset
        if column_codecs.digest(record[start : start + column.stored_bytes]) != column.digest:
            raise CorruptionError(f"{column.path}: its checksum does not match")
        for size, checksum in zip(column.block_bytes, column.checksums, strict=True):
            if column_codecs.checksum(record[start : start + size]) != checksum:
                raise CorruptionError(f"{column.path}: the checksum of a block does not match")
            start += size


def _check_rows(index: SegmentIndex, table: pa.Table) -> None:
    """Bounds what the index may claim before anyone follows it: aligned records that do not overlap, in order."""
    offsets, sizes = table["offset"].to_numpy(), table["record_bytes"].to_numpy()
    inside = (offsets >= len(DATA_HEADER)) & (sizes >= ALIGNMENT) & (offsets <= index.data_bytes - sizes)
    ordered = (offsets[1:] >= offsets[:-1] + sizes[:-1]).all()
    if not (ordered and (inside & (offsets % ALIGNMENT == 0)).all()):
        raise CorruptionError(f"{index.files.name}: the index points outside its data file")


def write_seal(
    files: SegmentFiles,
    table: pa.Table,
    data_bytes: int,
    *,
    generation: int = 0,
    gaps: Sequence[tuple[int, int]] = (),
) -> None:
    """Writes index and seal of a segment whose data is synced, then removes its journal.

    Args:
      files: of the segment.
      table: its rows, as `INDEX_SCHEMA`.
      data_bytes: size of the data file.
      generation: 0 for a segment's first index; `repair` writes later ones beside it, and the seal, which is renamed
        into place, decides which one counts.
      gaps: damaged byte ranges that the index leaves out.
    """
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        write_page_checksum=True,
        compression="zstd",
        row_group_size=65_536,
        # Ids and hashes never repeat: a dictionary of them only costs time.
        use_dictionary=[*_REPEATING_COLUMNS, "split_group", "num_steps"],
    )
    content = sink.getbuffer()
    write_bytes(files.index_of(generation), content)
    seal: dict[str, Any] = {
        "format": "episode-segment",
        "version": FORMAT_VERSION,
        "segment": files.name,
        "num_episodes": table.num_rows,
        "data_bytes": data_bytes,
        "index_bytes": len(content),
        "index_crc32c": google_crc32c.value(sink.getvalue()),
    }
    if generation:
        seal["index_generation"] = generation
    if gaps:
        seal["gaps"] = [list(gap) for gap in gaps]
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
        with _open_own(files.data) as file:
            if os.fstat(file.fileno()).st_size > index.data_bytes:
                file.truncate(index.data_bytes)
            os.fsync(file.fileno())
        write_seal(files, index.table, index.data_bytes)
        return [*index.notes, f"{index.table.num_rows} episodes kept"]


def create_journal(files: SegmentFiles) -> int:
    """Makes the journal of a new segment; its descriptor holds the exclusive lock.

    The journal is locked before it has its name, so no one ever takes it for a dead writer's.
    """
    hidden = files.journal.with_name(f".{files.journal.name}.tmp")
    journal = os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(journal, fcntl.LOCK_EX)
        os.replace(hidden, files.journal)
    except OSError:
        hidden.unlink(missing_ok=True)
        os.close(journal)
        raise
    return journal


def is_alive(files: SegmentFiles) -> bool:
    """Whether a writer holds the segment's journal. From afar no lock is seen: then taken to be so, since the whole
    lines of a living writer's journal, which count, have every episode that was acknowledged."""
    if not isinstance(files.journal, Path):
        return True
    try:
        with open(files.journal, "rb") as file:
            return not _try_lock(file.fileno(), fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def _open_own(path: Path) -> io.BufferedRandom:
    """Opens a data file to change it; a link is refused, since it may lead out of the store.

    Raises:
      CorruptionError: missing, a folder, a link.
    """
    try:
        return open(path, "r+b", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC))
    except FileNotFoundError:
        raise CorruptionError(f"{path}: missing, the episodes in it are lost") from None
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR):
            raise
        raise CorruptionError(f"{path}: is a link or a folder, expected the data file itself") from None


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
