"""Windows of many episodes at once: NumPy finds and gathers the bytes of a whole batch, where numbers are RAW.

Of each episode whose windows are read it keeps where its columns and their checksums lie in the mapped file, in rows of
one array, which costs a batch far fewer small objects than an episode after the other would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from episode_store import column_codecs
from episode_store.column_codecs import Codec
from episode_store.errors import CorruptionError
from episode_store.record_format import Group, RecordHeader

# Windows of a column that are larger gain nothing from being gathered.
_MOST_WINDOW_BYTES = 1 << 20


class _RawColumn(NamedTuple):
    """What a RAW column is in every episode of its task."""

    number: int
    dtype: np.dtype
    shape: tuple[int, ...]
    row_bytes: int
    # Observations have one row more than there are steps.
    more: int


class WindowTable:
    """The episodes of one task in one mapped data file, as far as windows of them were read.

    Attributes:
      ids: of its episodes, by row.
      num_steps: int64 [capacity], of the same.
    """

    def __init__(self, data: np.ndarray, header: RecordHeader) -> None:
        """`data`: uint8 [n], a whole data file, read-only; `header`: of any of its episodes of the task."""
        self.ids: list[str] = []
        self.num_steps = np.zeros(64, np.int64)
        self._data, self._buffer = data, data.data
        self._columns: dict[str, _RawColumn] = {}
        for column in header.columns:
            dtype = np.dtype("u1" if column.dtype == "str" else column.dtype)
            row_bytes = column_codecs.row_bytes(column.shape, dtype)
            if column.codec == Codec.RAW and column.group != Group.STEP_COLUMN and row_bytes:
                number, more = len(self._columns), int(column.group == Group.OBSERVATION)
                self._columns[column.path] = _RawColumn(number, dtype, column.shape, row_bytes, more)
        # Of each column in the file: first byte, rows, first checksum, rows of a block.
        self._facts = np.zeros((64, len(self._columns), 4), np.int64)

    def add(self, header: RecordHeader, start: int) -> int | None:
        """Takes up the episode whose record starts at this byte of the file.

        Returns:
          Its row; None where a column is not stored as in the episodes before.
        """
        columns = {column.path: column for column in header.columns}
        if any(columns[path].codec != Codec.RAW for path in self._columns if path in columns):
            return None
        row = len(self.ids)
        if row == len(self.num_steps):
            self.num_steps = np.concatenate([self.num_steps, np.zeros_like(self.num_steps)])
            self._facts = np.concatenate([self._facts, np.zeros_like(self._facts)])
        self._facts[row] = [
            (start + column.offset, column.num_rows, start + column.checksums_offset, column.block_rows)
            for column in (columns[path] for path in self._columns)
        ]
        self.num_steps[row] = header.num_steps
        self.ids.append(header.episode_id)
        return row

    def gathers(self, path: str, length: int) -> bool:
        """Whether `read` can read windows of so many steps of a column."""
        column = self._columns.get(path)
        return column is not None and (length + column.more) * column.row_bytes <= _MOST_WINDOW_BYTES

    def read(self, paths: Sequence[str], rows: np.ndarray, starts: np.ndarray, length: int) -> list[np.ndarray]:
        """Windows of some columns, each block that holds a part of them compared with its checksum.

        Args:
          paths: of columns that it gathers.
          rows: int64 [n], of the episodes.
          starts: int64 [n], first steps; the windows lie inside their episodes.
          length: steps.

        Returns:
          Of each path [n, length, ...], or [n, length + 1, ...] of observations.

        Raises:
          WindowDamageError: a block was changed.
        """
        columns = [self._columns[path] for path in paths]
        facts = self._facts[rows][:, [column.number for column in columns]]
        row_bytes = np.array([column.row_bytes for column in columns])
        num_rows = np.array([length + column.more for column in columns])
        begins = facts[..., 0] + starts[:, None] * row_bytes

        def place(window: int) -> tuple[str, int]:
            return paths[window % len(paths)], int(rows[window // len(paths)])

        self._check(facts, starts[:, None], num_rows, row_bytes, place)
        found = []
        for number, column in enumerate(columns):
            gathered = self._pieces(int(num_rows[number]) * column.row_bytes)[begins[:, number]]
            found.append(gathered.view(column.dtype).reshape(len(rows), num_rows[number], *column.shape))
        return found

    def _check(
        self,
        facts: np.ndarray,
        starts: np.ndarray,
        num_rows: np.ndarray,
        row_bytes: np.ndarray,
        place: Callable[[int], tuple[str, int]],
    ) -> None:
        """Compares the checksums of windows [n, columns]; `place` tells path and row of one of them."""
        first_byte, rows_there, checksums, block_rows = np.moveaxis(facts, -1, 0)
        first = starts // block_rows
        counts = ((starts + (num_rows - 1)) // block_rows - first + 1).reshape(-1)
        block_bytes = block_rows * row_bytes
        # Of each block: which window needs it, and its place among the blocks of that window's episode.
        window = np.repeat(np.arange(len(counts)), counts)
        blocks = np.arange(len(window)) + (first.reshape(-1) - np.cumsum(counts) + counts)[window]
        sizes = block_bytes.reshape(-1)[window]
        low = first_byte.reshape(-1)[window] + blocks * sizes
        high = np.minimum(low + sizes, (first_byte + rows_there * row_bytes).reshape(-1)[window])
        expected = self._pieces(8)[checksums.reshape(-1)[window] + 8 * blocks].view("<u8").tolist()
        buffer, checksum = self._buffer, column_codecs.checksum
        found = [checksum(buffer[start:stop]) for start, stop in zip(low.tolist(), high.tolist(), strict=True)]
        if found != expected:
            wrong = next(number for number, value in enumerate(found) if value != expected[number])
            path, row = place(int(window[wrong]))
            raise WindowDamageError(
                f"{path}: the checksum of block {blocks[wrong]} does not match: a byte was changed", self.ids[row]
            )

    def _pieces(self, size: int) -> np.ndarray:
        """The file as pieces of so many bytes, one beginning at each byte."""
        return np.ndarray((len(self._data) - size + 1,), f"V{size}", self._data, strides=(1,))


class WindowDamageError(CorruptionError):
    """A block was changed.

    Attributes:
      episode_id: of which episode.
    """

    def __init__(self, message: str, episode_id: str) -> None:
        super().__init__(message)
        self.episode_id = episode_id
