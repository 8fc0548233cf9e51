"""Windows of many episodes at once: NumPy finds and gathers the bytes of a whole batch, where numbers are RAW.

Of each episode whose windows are read it keeps where its columns and their checksums lie in the mapped file, in rows of
one array, which costs a batch far fewer small objects than an episode after the other would.

A block is compared with its checksum when a window needs it for the first time, and again once the file has changed:
what the kernel keeps of an unchanged file is what was compared.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from episode_store import column_codecs
from episode_store.column_codecs import Codec
from episode_store.errors import CorruptionError
from episode_store.record_format import Group, RecordHeader

# Windows of a column that are larger gain nothing from being gathered.
_MOST_WINDOW_BYTES = 1 << 20
# Clocks of file systems tick every few milliseconds: of a file that changed just now, a second change might not show.
_SETTLED_SECONDS = 2.0


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

    def __init__(self, path: Path, data: np.ndarray, header: RecordHeader) -> None:
        """`data`: uint8 [n], the whole data file at `path`, read-only; `header`: of any of its episodes of the task."""
        self.ids: list[str] = []
        self.num_steps = np.zeros(64, np.int64)
        self._path, self._data, self._buffer = path, data, data.data
        self._columns: dict[str, _RawColumn] = {}
        for column in header.columns:
            dtype = np.dtype("u1" if column.dtype == "str" else column.dtype)
            row_bytes = column_codecs.row_bytes(column.shape, dtype)
            if column.codec == Codec.RAW and column.group != Group.STEP_COLUMN and row_bytes:
                number, more = len(self._columns), int(column.group == Group.OBSERVATION)
                self._columns[column.path] = _RawColumn(number, dtype, column.shape, row_bytes, more)
        # Of each column of each episode: first byte, rows, first checksum, rows of a block, place in `_compared`.
        self._facts = np.zeros((5, 64, len(self._columns)), np.int64)
        self._least_block_rows = np.full(len(self._columns), np.iinfo(np.int64).max)
        # Which blocks were compared since the file was as it is.
        self._compared, self._num_blocks = np.zeros(1024, np.bool_), 0
        self._file_state: tuple[int, ...] | None = None

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
            self._facts = np.concatenate([self._facts, np.zeros_like(self._facts)], axis=1)
        for place, column in enumerate(columns[path] for path in self._columns):
            where = start + column.offset, column.num_rows, start + column.checksums_offset, column.block_rows
            self._facts[:, row, place] = (*where, self._num_blocks)
            self._least_block_rows[place] = min(self._least_block_rows[place], column.block_rows)
            self._num_blocks += -(-column.num_rows // column.block_rows)
        if self._num_blocks > len(self._compared):
            more = np.zeros(2 * self._num_blocks - len(self._compared), np.bool_)
            self._compared = np.concatenate([self._compared, more])
        self.num_steps[row] = header.num_steps
        self.ids.append(header.episode_id)
        return row

    def gathers(self, path: str, length: int) -> bool:
        """Whether `read` can read windows of so many steps of a column."""
        column = self._columns.get(path)
        return column is not None and (length + column.more) * column.row_bytes <= _MOST_WINDOW_BYTES

    def read(self, paths: Sequence[str], rows: np.ndarray, starts: np.ndarray, length: int) -> list[np.ndarray]:
        """Windows of some columns; each block that holds a part of them was compared with its checksum.

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
        facts, numbers = self._facts.take(rows, axis=1), [column.number for column in columns]
        if numbers != list(range(len(self._columns))):
            facts = facts[..., numbers]
        row_bytes = np.array([column.row_bytes for column in columns])
        num_rows = np.array([length + column.more for column in columns])
        starts = starts[:, None]
        begins = facts[0] + starts * row_bytes

        def place(window: int) -> tuple[str, int]:
            return paths[window % len(paths)], int(rows[window // len(paths)])

        most_blocks = int(((num_rows - 2) // self._least_block_rows[numbers]).max(initial=-1)) + 2
        self._check(facts, starts, num_rows, row_bytes, most_blocks, place)
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
        most_blocks: int,
        place: Callable[[int], tuple[str, int]],
    ) -> None:
        """Compares the checksums of windows [n, columns], each of at most so many blocks.

        `place` tells path and row of one of them.
        """
        first_byte, rows_there, checksums, block_rows, here = facts
        first, last = starts // block_rows, (starts + (num_rows - 1)) // block_rows
        may_remember = self._look_at_file()
        known = self._all_compared(here + first, here + last, most_blocks)
        if known.all():
            return
        unsure = np.flatnonzero(~known)
        first_byte, rows_there, checksums, here, first, last, block_bytes, row_bytes = (
            np.broadcast_to(values, block_rows.shape).reshape(-1)[unsure]
            for values in (first_byte, rows_there, checksums, here, first, last, block_rows * row_bytes, row_bytes)
        )
        counts = last - first + 1
        # Of each block: which window needs it, and its place among the blocks of that window's episode.
        window = np.repeat(np.arange(len(counts)), counts)
        blocks = np.arange(len(window)) + (first - np.cumsum(counts) + counts)[window]
        sizes = block_bytes[window]
        low = first_byte[window] + blocks * sizes
        high = np.minimum(low + sizes, (first_byte + rows_there * row_bytes)[window])
        expected = self._pieces(8)[checksums[window] + 8 * blocks].view("<u8").tolist()
        buffer, checksum = self._buffer, column_codecs.checksum
        found = [checksum(buffer[start:stop]) for start, stop in zip(low.tolist(), high.tolist(), strict=True)]
        if found != expected:
            wrong = next(number for number, value in enumerate(found) if value != expected[number])
            path, row = place(int(unsure[window[wrong]]))
            raise WindowDamageError(
                f"{path}: the checksum of block {blocks[wrong]} does not match: a byte was changed", self.ids[row]
            )
        if may_remember:
            self._compared[here[window] + blocks] = True

    def _look_at_file(self) -> bool:
        """Forgets what was compared if the file has changed; returns whether a later change is sure to show."""
        try:
            found = os.stat(self._path)
        except OSError:
            state, settled = None, False
        else:
            # Who writes can set the time of modification, but not st_ctime.
            state = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
            settled = time.time() - max(found.st_ctime, found.st_mtime) > _SETTLED_SECONDS
        if state is None or state != self._file_state:
            self._compared[:] = False
            self._file_state = state
        return settled

    def _all_compared(self, first: np.ndarray, last: np.ndarray, most_blocks: int) -> np.ndarray:
        """Whether all blocks [first, last], at most so many, were compared; of arrays of one shape."""
        compared = self._compared
        known = compared[first]
        if most_blocks > 1:
            known &= compared[last]
        for more in range(1, most_blocks - 1):
            known &= compared[np.minimum(first + more, last)]
        return known

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
