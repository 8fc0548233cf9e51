"""New segments made of records that exist already: byte copies, checked on the way, and whole files shared."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from episode_store import segment
from episode_store.errors import CorruptionError
from episode_store.files import sync_folder
from episode_store.record_format import padding_of, parse_header
from episode_store.segment import DATA_HEADER, INDEX_SCHEMA, SegmentFiles, SegmentIndex

# Where hard links do not work: another disk, a file system without them, too many of one file.
_NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES}


class SegmentBuilder:
    """Writes records into a new segment. While it works, and if it is killed, readers see an empty segment.

    Use it as a context manager; leaving it by an error removes what was written.

    Attributes:
      files: of the new segment.
      data_bytes: written so far.
      num_rows: records so far.
    """

    def __init__(self, store: Path, name: str | None = None) -> None:
        """`name`: of the new segment; a fresh one by default."""
        self.files = SegmentFiles(store / segment.SEGMENT_FOLDER, name or segment.new_segment_name())
        self.data_bytes = len(DATA_HEADER)
        self.num_rows = 0
        self._tables: list[pa.Table] = []
        self._journal = segment.create_journal(self.files)
        self._temporary = temporary_data(self.files)
        self._data = open(self._temporary, "xb")  # noqa: SIM115 - closed in __exit__
        self._data.write(DATA_HEADER)

    def add(self, data: np.ndarray, rows: pa.Table) -> None:
        """Copies records.

        Args:
          data: uint8 [n], the bytes of the data file they are in.
          rows: their index rows, as `INDEX_SCHEMA`.

        Raises:
          CorruptionError: a record is damaged.
        """
        offsets = []
        for row in rows.select(["episode_id", "offset", "record_bytes"]).to_pylist():
            record = data[row["offset"] : row["offset"] + row["record_bytes"]]
            try:
                header = parse_header(record)
                if header.record_bytes != row["record_bytes"] or header.episode_id != row["episode_id"]:
                    raise CorruptionError("another record is there")
                segment.check_blocks(record, header)
                record = _with_zeros(record, padding_of(header))
            except CorruptionError as error:
                raise CorruptionError(f"episode {row['episode_id']}: {error}") from None
            offsets.append(self.data_bytes)
            self._data.write(record.data)
            self.data_bytes += len(record)
        self.num_rows += rows.num_rows
        moved = {"segment": pa.array([self.files.name] * rows.num_rows), "offset": pa.array(offsets, pa.int64())}
        for name, column in moved.items():
            rows = rows.set_column(rows.schema.get_field_index(name), INDEX_SCHEMA.field(name), column)
        self._tables.append(rows)

    def __enter__(self) -> SegmentBuilder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None and self.num_rows:
                self._data.flush()
                os.fsync(self._data.fileno())
                os.replace(self._temporary, self.files.data)
                segment.write_seal(self.files, pa.concat_tables(self._tables), self.data_bytes)
        finally:
            self._data.close()
            self._temporary.unlink(missing_ok=True)
            if not self.files.seal.exists():
                self.files.data.unlink(missing_ok=True)
                self.files.journal.unlink(missing_ok=True)
            os.close(self._journal)


def _with_zeros(record: np.ndarray, padding: Sequence[tuple[int, int]]) -> np.ndarray:
    """The record, its padding zeros again in case it was changed."""
    if any(record[start:end].any() for start, end in padding):
        record = record.copy()
        for start, end in padding:
            record[start:end] = 0
    return record


def temporary_data(files: SegmentFiles) -> Path:
    """The data file of a segment that a `SegmentBuilder` is making."""
    return files.folder / f".{files.name}.data.tmp"


def share_segment(source: SegmentIndex, target: SegmentFiles, *, copy: bool) -> bool:
    """Brings a whole sealed segment into another store, the seal last; what is there already stays.

    Args:
      source: sealed.
      target: where to; a name other than the source's gets an index of its own.
      copy: never hard links.

    Returns:
      Whether the data file is shared by a hard link.

    Raises:
      CorruptionError: the source's data file is not as long as its seal says.
    """
    if target.seal.exists():
        return False
    size = source.files.data.stat().st_size
    if size != source.data_bytes:
        raise CorruptionError(f"{source.files.data}: {size} bytes, expected {source.data_bytes}; repair that store")
    linked = share_file(source.files.data, target.data, copy=copy)
    if target.name != source.files.name:
        table = source.table
        place = table.schema.get_field_index("segment")
        names = pa.array([target.name] * table.num_rows)
        table = table.set_column(place, INDEX_SCHEMA.field("segment"), names)
        segment.write_seal(target, table, source.data_bytes, gaps=source.gaps)
        return linked
    seal = segment.read_seal(source.files)
    generation = seal["index_generation"]
    share_file(source.files.index_of(generation), target.index_of(generation), copy=copy)
    share_file(source.files.seal, target.seal, copy=copy)
    return linked


def share_file(source: Path, target: Path, *, copy: bool) -> bool:
    """Links or copies a file that never changes, replacing a half one; returns whether it is a link."""
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    linked = False
    if not copy:
        try:
            os.link(source, temporary)
            linked = True
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
    try:
        if not linked:
            shutil.copyfile(source, temporary)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        # Renaming a link onto another link of the same file does nothing and leaves both.
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(target.parent)
    return linked


def remove_segment(files: SegmentFiles) -> int:
    """Removes a segment's files that no version shows any more, the seal last; returns the bytes freed."""
    freed = 0
    generations = list(files.folder.glob(f"{files.name}.r*.parquet"))
    for path in (files.data, files.index, *generations, files.journal, files.seal):
        try:
            freed += path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            continue
    return freed
