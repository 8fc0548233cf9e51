"""Many episode ids in little memory: 32 hex digits as two 64-bit numbers, looked up by binary search."""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from episode_store.errors import CorruptionError

_DIGITS = 32
_ID = re.compile(r"[0-9a-f]{32}")
# Ids that wait in a plain set before they are sorted in.
_RECENT = 65_536


def parse_ids(column: pa.ChunkedArray, *, where: str) -> np.ndarray:
    """Ids of an index as uint64 [n, 2], the digits of each half.

    Raises:
      CorruptionError: one is not 32 hex digits.
    """
    parts = [np.zeros((0, 2), np.uint64)]
    for chunk in column.chunks:
        if not len(chunk):
            continue
        lengths = pc.min_max(pc.binary_length(chunk)).as_py()
        if lengths != {"min": _DIGITS, "max": _DIGITS}:
            raise CorruptionError(f"{where}: an episode id is not {_DIGITS} hex digits")
        _, offsets, text = chunk.buffers()
        first = int(np.frombuffer(offsets, np.int32, 1, 4 * chunk.offset)[0])
        try:
            digits = binascii.unhexlify(text[first : first + _DIGITS * len(chunk)])
        except binascii.Error:
            raise CorruptionError(f"{where}: an episode id is not {_DIGITS} hex digits") from None
        parts.append(np.frombuffer(digits, ">u8").reshape(-1, 2).astype(np.uint64))
    return np.concatenate(parts)


def parse_id(episode_id: str) -> tuple[int, int] | None:
    """Both halves of one id; None when it is not one."""
    if not _ID.fullmatch(episode_id):
        return None
    return int(episode_id[:16], 16), int(episode_id[16:], 16)


def format_ids(halves: np.ndarray) -> list[str]:
    """The inverse of `parse_ids`."""
    digits = halves.astype(">u8").tobytes().hex()
    return [digits[start : start + _DIGITS] for start in range(0, len(digits), _DIGITS)]


class SortedIds:
    """Rows of a table of ids, found by id. Of an id that is there twice, the first row counts.

    Attributes:
      order: intp [m], rows that count, by id.
    """

    def __init__(self, halves: np.ndarray, rows: np.ndarray | None = None) -> None:
        """Sorts.

        Args:
          halves: uint64 [n, 2]; kept.
          rows: the rows that count, ascending; all by default.
        """
        self._halves = halves
        high = halves[:, 0] if rows is None else halves[rows, 0]
        order = np.argsort(high)
        order = order if rows is None else rows[order]
        self._high = halves[order, 0]
        if (self._high[1:] == self._high[:-1]).any():
            # Equal halves: sort by both, rows of one id in their own order, and keep the first of each id.
            rows = np.sort(order)
            order = rows[np.lexsort((halves[rows, 1], halves[rows, 0]))]
            ordered = halves[order]
            first = np.ones(len(order), bool)
            first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
            order = order[first]
            self._high = halves[order, 0]
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def find(self, episode_id: str) -> int | None:
        """The row of an id."""
        halves = parse_id(episode_id)
        return None if halves is None else self.find_halves(*halves)

    def find_halves(self, high: int, low: int) -> int | None:
        """The row of an id given as two numbers."""
        position = int(np.searchsorted(self._high, np.uint64(high)))
        while position < len(self._high) and int(self._high[position]) == high:
            row = int(self.order[position])
            if int(self._halves[row, 1]) == low:
                return row
            position += 1
        return None

    def starting_with(self, digits: str) -> np.ndarray:
        """All rows whose id begins with these digits, by id."""
        if len(digits) > _DIGITS or not re.fullmatch("[0-9a-f]*", digits):
            return self.order[:0]
        low = int(digits[:16].ljust(16, "0"), 16)
        high = int(digits[:16].ljust(16, "f"), 16)
        first = int(np.searchsorted(self._high, np.uint64(low), side="left"))
        last = int(np.searchsorted(self._high, np.uint64(high), side="right"))
        rows = self.order[first:last]
        if len(digits) <= 16:
            return rows
        return rows[[text.startswith(digits) for text in format_ids(self._halves[rows])]]


class IdSet:
    """A growing set of ids, about 24 bytes each."""

    def __init__(self, halves: np.ndarray) -> None:
        self._sorted = SortedIds(halves)
        self._halves = halves
        self._recent: set[bytes] = set()

    def __contains__(self, episode_id: str) -> bool:
        if bytes.fromhex(episode_id) in self._recent:
            return True
        return len(self._halves) > 0 and self._sorted.find(episode_id) is not None

    def __len__(self) -> int:
        return len(self._halves) + len(self._recent)

    def add(self, episode_id: str) -> None:
        """Adds one."""
        self._recent.add(bytes.fromhex(episode_id))
        if len(self._recent) >= _RECENT:
            more = np.frombuffer(b"".join(self._recent), ">u8").reshape(-1, 2).astype(np.uint64)
            self._halves = np.concatenate([self._halves, more])
            self._sorted = SortedIds(self._halves)
            self._recent.clear()


class EpisodeIds(Sequence[str]):
    """Ids as a sequence of texts that are made when they are asked for."""

    def __init__(self, halves: np.ndarray) -> None:
        """`halves`: uint64 [n, 2] in the order of the sequence."""
        self._halves = halves

    def __len__(self) -> int:
        return len(self._halves)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> EpisodeIds: ...

    def __getitem__(self, index: int | slice) -> str | EpisodeIds:
        if isinstance(index, slice):
            return EpisodeIds(self._halves[index])
        return format_ids(self._halves[index])[0]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self._halves), 4096):
            yield from format_ids(self._halves[start : start + 4096])

    def __eq__(self, other: object) -> bool:
        if isinstance(other, EpisodeIds):
            return np.array_equal(self._halves, other._halves)
        return isinstance(other, Sequence) and not isinstance(other, str) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} episode ids>"
