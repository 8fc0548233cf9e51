"""Reads the columns of one record, whole or in part, comparing the checksum of every block that is touched."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from episode_store import column_codecs
from episode_store.column_codecs import BlockDecoder, Codec
from episode_store.episode import EpisodeMetadata
from episode_store.errors import CorruptionError, StoreError
from episode_store.record_format import Column, Group, RecordHeader
from episode_store.spec import FieldValues


class RecordReader:
    """A record that is mapped, its header parsed and checked.

    Attributes:
      header: of the record.
      num_steps: of the episode.
      columns: path -> reader, in stored order.
    """

    def __init__(self, record: np.ndarray, header: RecordHeader, decoder: BlockDecoder) -> None:
        """`record`: uint8 [n], read-only; views of it are handed out."""
        self.header, self.num_steps = header, header.num_steps
        self.columns: Mapping[str, _ColumnReader] = {
            column.path: _reader(record, column, decoder) for column in header.columns
        }
        self._plan = [(reader.group, reader.name, reader.more, path, reader) for path, reader in self.columns.items()]

    @functools.cached_property
    def metadata(self) -> EpisodeMetadata:
        """The episode's provenance."""
        return self.header.metadata

    def read(
        self, start: int, num_steps: int, wanted: Mapping[str, Any] | None, out: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, FieldValues], dict[str, FieldValues], dict[str, FieldValues], dict[str, FieldValues]]:
        """Steps [start, start + num_steps), which must lie inside the episode.

        Args:
          start, num_steps: which.
          wanted: paths of columns; all when None.
          out: path -> where to put that column.

        Returns:
          Of each `Group`, in its order: name -> values.
        """
        groups: tuple[dict[str, Any], ...] = ({}, {}, {}, {})
        for group, name, more, path, reader in self._plan:
            if wanted is None or path in wanted:
                try:
                    values = reader.read(start, num_steps + more, out.get(path) if out else None)
                except CorruptionError as error:
                    raise CorruptionError(f"{path}: {error}") from None
                groups[group][name] = values
        return groups  # type: ignore[return-value]


class _ColumnReader:
    """One column; subclasses know how its blocks become rows."""

    # Thousands of records are kept open: fewer places in memory to look at.
    __slots__ = ("_column", "_dtype", "_shape", "_stored", "group", "more", "name", "path")

    def __init__(self, record: np.ndarray, column: Column) -> None:
        self.group, self.name, self.path = int(column.group), column.name, column.path
        # Observations have one row more than there are steps.
        self.more = int(column.group == Group.OBSERVATION)
        self._column = column
        self._dtype, self._shape = np.dtype("u1" if column.dtype == "str" else column.dtype), column.shape
        self._stored = record[column.offset : column.offset + column.stored_bytes]

    def read(self, start: int, rows: int, out: np.ndarray | None) -> FieldValues:
        """Rows [start, start + rows), in the first rows of `out` where it is given.

        Raises:
          CorruptionError: a block was changed.
          StoreError: `out` does not fit.
        """
        raise NotImplementedError

    def read_into(self, start: int, num_steps: int, batch: np.ndarray, number: int) -> None:
        """What belongs to steps [start, start + num_steps) as element `number` of a batch, all of it.

        Raises:
          CorruptionError: a block was changed.
          StoreError: the batch does not fit.
        """
        rows = num_steps + self.more
        if batch.shape[1:2] != (rows,):
            raise self._misfit(batch[number], rows)
        self.read(start, rows, batch[number])

    def _misfit(self, out: Any, rows: int) -> StoreError:
        """What is wrong with an array that the caller gave."""
        got = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        return StoreError(
            f"out[{self.path!r}]: expected a writeable contiguous {self._dtype} array of at least "
            f"{(rows, *self._shape)}, got {got}"
        )


class _RawReader(_ColumnReader):
    """Numbers as they are: read-only views of the mapped file."""

    __slots__ = ("_block_bytes", "_block_rows", "_checksums", "_digest", "_num_rows", "_values", "_whole")

    def __init__(self, record: np.ndarray, column: Column) -> None:
        super().__init__(record, column)
        dtype = np.dtype(column.dtype)
        self._block_rows = column.block_rows
        size = column.block_rows * column_codecs.row_bytes(column.shape, dtype)
        if size:
            self._values = self._stored.view(dtype).reshape(column.num_rows, *column.shape)
        else:
            self._values = np.zeros((column.num_rows, *column.shape), dtype)
        self._whole, self._digest, self._num_rows = self._stored.data, column.digest, column.num_rows
        self._block_bytes, self._checksums = size, column.checksums

    def read(self, start: int, rows: int, out: np.ndarray | None) -> FieldValues:
        if rows == self._num_rows:
            if column_codecs.digest(self._whole) != self._digest:
                raise CorruptionError("its checksum does not match: a byte was changed")
            values = self._values
        else:
            values = self._values[start : start + rows]
            self._check_blocks(start, start + rows)
        if out is None:
            return values
        try:
            out = out[:rows]
            if out.shape == values.shape and out.dtype == values.dtype:
                out[...] = values
                return out
        except (TypeError, ValueError, IndexError):
            pass  # no array, or one that cannot be written
        raise self._misfit(out, rows)

    def _check_blocks(self, start: int, stop: int) -> None:
        """Compares the checksum of each block that has any of these rows."""
        size, checksum, whole = self._block_bytes, column_codecs.checksum, self._whole
        first = start // self._block_rows
        position = first * size
        for expected in self._checksums[first : (stop - 1) // self._block_rows + 1]:
            if checksum(whole[position : position + size]) != expected:
                raise CorruptionError(f"the checksum of block {position // size} does not match: a byte was changed")
            position += size


class _BlockReader(_ColumnReader):
    """A column of blocks that must be decoded."""

    __slots__ = ("_decoder", "_ends")

    def __init__(self, record: np.ndarray, column: Column, decoder: BlockDecoder) -> None:
        super().__init__(record, column)
        self._decoder = decoder
        self._ends = np.cumsum(column.block_bytes).tolist()

    def _blocks(self, start: int, stop: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """Of each block that has any of rows [start, stop): its first row, its number of rows, its bytes, checked."""
        column = self._column
        for number in range(start // column.block_rows, (stop - 1) // column.block_rows + 1):
            first, end = number * column.block_rows, self._ends[number]
            stored = self._stored[end - column.block_bytes[number] : end]
            if column_codecs.checksum(stored) != column.checksums[number]:
                raise CorruptionError(f"the checksum of block {number} does not match: a byte was changed")
            yield first, min(column.block_rows, column.num_rows - first), stored


class _ImageReader(_BlockReader):
    """Numbers in blocks, decoded straight to where they are wanted."""

    __slots__ = ()

    def read(self, start: int, rows: int, out: np.ndarray | None) -> FieldValues:
        if out is None:
            values = np.empty((rows, *self._shape), self._dtype)
        else:
            if not isinstance(out, np.ndarray) or not out.ndim:
                raise self._misfit(out, rows)
            values = out[:rows]
            fits = values.shape == (rows, *self._shape) and values.dtype == self._dtype
            if not (fits and values.flags.c_contiguous and values.flags.writeable):
                raise self._misfit(out, rows)
        for first, block_rows, stored in self._blocks(start, start + rows):
            low, high = max(start, first), min(start + rows, first + block_rows)
            part = values[low - start : high - start]
            self._decoder.decode_rows(self._column.codec, stored, part, low - first, block_rows)
        return values


class _TextReader(_BlockReader):
    """Texts."""

    __slots__ = ()

    def read(self, start: int, rows: int, out: np.ndarray | None) -> FieldValues:
        if out is not None:
            raise StoreError(f"out[{self.path!r}]: texts cannot be read into an array")
        texts: list[str] = []
        for first, block_rows, stored in self._blocks(start, start + rows):
            block = self._decoder.decode_texts(self._column.codec, stored, block_rows)
            texts += block[max(start - first, 0) : start + rows - first]
        return texts


class _VaryingImageReader(_BlockReader):
    """Images whose size varies."""

    __slots__ = ()

    def read(self, start: int, rows: int, out: np.ndarray | None) -> FieldValues:
        if out is not None:
            raise StoreError(f"out[{self.path!r}]: images whose size varies cannot be read into an array")
        images: list[np.ndarray] = []
        for first, block_rows, stored in self._blocks(start, start + rows):
            block = self._decoder.decode_varying_images(stored, block_rows, self._shape[2])
            # Copies, which do not keep the whole block in memory.
            images += [image.copy() for image in block[max(start - first, 0) : start + rows - first]]
        return images


def _reader(record: np.ndarray, column: Column, decoder: BlockDecoder) -> _ColumnReader:
    if column.codec in column_codecs.TEXT_CODECS:
        return _TextReader(record, column, decoder)
    if column.codec == Codec.VARYING_IMAGES_ZSTD:
        return _VaryingImageReader(record, column, decoder)
    if column.codec == Codec.RAW:
        return _RawReader(record, column)
    return _ImageReader(record, column, decoder)
