"""TFRecord files: records framed with their length and two checksums. Also the reader of ArrayRecord files.

uint64      bytes of the record, little-endian
uint32      masked CRC-32C of those eight bytes
...         the record
uint32      masked CRC-32C of the record
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import google_crc32c
import numpy as np

from episode_store.errors import CorruptionError
from episode_store.formats.format import need, one_line

_LENGTH = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")
_HEADER_BYTES = 12
# How files of gzip and of zlib begin.
_COMPRESSED = (b"\x1f\x8b", b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")
# What the ArrayRecord package raises for files that were cut or changed.
_ARRAY_RECORD_ERRORS = (ValueError, RuntimeError, IndexError)


def masked_crc32c(data: bytes | memoryview) -> int:
    """The checksum as TFRecord stores it: rotated right by 15 bits, plus a constant, so that checksums of data that
    holds checksums stay good."""
    # Through NumPy, which hands out a buffer that the package accepts without a copy; a memoryview does not.
    crc = google_crc32c.value(np.frombuffer(data, np.uint8))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frame(record: bytes) -> bytes:
    """One record as it stands in a file."""
    length = _LENGTH.pack(len(record))
    return b"".join((length, _CHECKSUM.pack(masked_crc32c(length)), record, _CHECKSUM.pack(masked_crc32c(record))))


class DamagedRecord(CorruptionError):  # noqa: N818 - named after what it is
    """A record whose checksum does not match; the next one can still be read."""


class TruncatedShard(CorruptionError):  # noqa: N818
    """The rest of a file cannot be read."""


class TFRecordReader:
    """The records of one file, in order; the file is mapped, so nothing is allocated on a length's word.

    Iterating yields memoryviews, or a `DamagedRecord` in place of a record whose checksum does not match.

    Raises (while iterating):
      TruncatedShard: the file ends inside a record, or a length is damaged, so that what follows cannot be found.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = path.stat().st_size

    def __iter__(self) -> Iterator[memoryview | DamagedRecord]:
        if not self._size:
            return
        with open(self._path, "rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        position = number = 0
        while position < len(data):
            where = f"{self._path} record {number} (byte {position})"
            if position + _HEADER_BYTES > len(data):
                raise TruncatedShard(f"{where}: the file ends inside the record's header")
            length_bytes = data[position : position + 8]
            if masked_crc32c(length_bytes) != _CHECKSUM.unpack_from(data, position + 8)[0]:
                if not position and bytes(data[:2]) in _COMPRESSED:
                    raise TruncatedShard(f"{where}: a compressed file, which tensorflow-datasets does not read either")
                raise TruncatedShard(
                    f"{where}: the checksum of the record's length does not match; nothing after it can be found"
                )
            length = _LENGTH.unpack(length_bytes)[0]
            start = position + _HEADER_BYTES
            if length + 4 > len(data) - start:
                raise TruncatedShard(
                    f"{where}: the file ends inside the record: {length} bytes announced, {len(data) - start} left"
                )
            record = data[start : start + length]
            if masked_crc32c(record) == _CHECKSUM.unpack_from(data, start + length)[0]:
                yield record
            else:
                yield DamagedRecord(f"{where}: the checksum of the record does not match: a byte was changed")
            position = start + length + 4
            number += 1


class TFRecordWriter:
    """Appends records to a new file."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = open(path, "xb")  # noqa: SIM115 - closed by close()

    def write(self, record: bytes) -> None:
        """Appends one record."""
        self._file.write(frame(record))

    def close(self) -> None:
        """Flushes and closes; the caller syncs."""
        self._file.close()

    def __enter__(self) -> TFRecordWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class ArrayRecordReader:
    """The records of one ArrayRecord file, in order. Raises while iterating as `TFRecordReader` does."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._module = need("array_record.python.array_record_module", "array_record", "reading ArrayRecord files")

    def __iter__(self) -> Iterator[memoryview | DamagedRecord]:
        # A killed writer leaves a file without its footer, which the package reports as having no record.
        if self._path.stat().st_size == 0:
            raise TruncatedShard(f"{self._path}: the file is empty: its writer ended before closing it")
        # The package tells some damage only when the reader is closed.
        try:
            reader = self._module.ArrayRecordReader(str(self._path))
            for number in range(reader.num_records()):
                try:
                    records = reader.read([number])
                except _ARRAY_RECORD_ERRORS as error:
                    yield DamagedRecord(f"{self._path} record {number}: cannot be read: {one_line(error)}")
                    continue
                yield memoryview(records[0])
            reader.close()
        except _ARRAY_RECORD_ERRORS as error:
            raise TruncatedShard(f"{self._path}: cannot be read: {one_line(error)}") from None


class ArrayRecordWriter:
    """Writes records to a new ArrayRecord file; each can be read by its number (group_size:1)."""

    def __init__(self, path: Path) -> None:
        module = need("array_record.python.array_record_module", "array_record", "writing ArrayRecord files")
        self._writer = module.ArrayRecordWriter(str(path), "group_size:1")

    def write(self, record: bytes) -> None:
        """Appends one record."""
        self._writer.write(record)

    def close(self) -> None:
        """Writes the index and closes."""
        self._writer.close()

    def __enter__(self) -> ArrayRecordWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
