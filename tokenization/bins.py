"""1,024 uniform bins over [-1, 1], as vocabulary ids (Gato, section 2.2).

    id = 32000 + min(1023, floor((v + 1) / 2 * 1024))

so -1 is 32000 and +1 is 33023. Decoding returns the centre of a bin. The rule of precision: ids are those of this
formula in float64, whatever the dtype of the values. `companded_to_ids` looks them up: the upper 16 bits of a float32
are a cell of less than 0.8% in width, a bin is 2% wide or more, so each cell has one edge at most, and the lower 16
bits say on which side of it a value lies. The table comes from the formula itself.
"""

from __future__ import annotations

import functools

import numpy as np

from episode_store.errors import UserError
from tokenization import mu_law
from tokenization.vocabulary import CONTINUOUS_OFFSET, NUM_BINS, TOKEN_DTYPE

_HALF = NUM_BINS / 2

_CHUNK = 65_536  # values: large enough to hide the cost of some ten NumPy calls, small enough for the cache
_CELLS = 65_536  # upper halves of a float32, and as many lower ones
_NOT_FINITE = CONTINUOUS_OFFSET + 2 * NUM_BINS  # stands for the id of NaN and Inf
_FEW = 1_024  # fewer values than this are not worth the chunks


def to_ids(values: np.ndarray, *, where: str = "values") -> np.ndarray:
    """Bins values of any real dtype and shape, clipped to [-1, 1]: uint16 ids of the same shape.

    Raises:
      EpisodeError: for NaN and Inf, naming `where`, the step (first axis) and the element.
    """
    x = np.asarray(values, dtype=np.float64)
    mu_law.check_finite(x, where=where)
    return _to_ids(np.clip(x, -1.0, 1.0))


def from_ids(ids: np.ndarray) -> np.ndarray:
    """Bin centres in (-1, 1), float64, of the shape of `ids`.

    Raises:
      UserError: when an id is not one of a continuous value.
    """
    bins = np.asarray(ids).astype(np.int64) - CONTINUOUS_OFFSET
    if bins.size and (bins.min() < 0 or bins.max() >= NUM_BINS):
        wrong = np.asarray(ids)[(bins < 0) | (bins >= NUM_BINS)].flat[0]
        raise UserError(
            f"token {int(wrong)}: expected the id of a continuous value in "
            f"[{CONTINUOUS_OFFSET}, {CONTINUOUS_OFFSET + NUM_BINS})"
        )
    return (bins + 0.5) / _HALF - 1.0


def companded_from_ids(ids: np.ndarray) -> np.ndarray:
    """The values whose companded form is a bin's centre: float64, of the shape of `ids`."""
    return mu_law.decode(from_ids(ids))


def companded_to_ids(values: np.ndarray, *, where: str = "values") -> np.ndarray:
    """`to_ids(mu_law.encode(values))`, exactly, at many times its speed.

    Raises:
      EpisodeError: for NaN and Inf, naming `where`, the step (first axis) and the element.
    """
    values = np.asarray(values)
    if values.size < _FEW:
        return to_ids(mu_law.encode(values, where=where))
    flat = np.ascontiguousarray(values).reshape(-1)
    ids = np.empty(flat.size, TOKEN_DTYPE)
    lookup = _Lookup(min(_CHUNK, flat.size))
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, flat.size, _CHUNK):
            lookup.fill(ids[start : start + _CHUNK], flat[start : start + _CHUNK])
    if ids.max() >= CONTINUOUS_OFFSET + NUM_BINS:
        mu_law.check_finite(values, where=where)
    return ids.reshape(values.shape)


class _Lookup:
    """The table, and buffers of one call, so that a chunk stays in the cache and nothing is allocated for it."""

    def __init__(self, size: int) -> None:
        self._table = _table()
        self._single = np.empty(size, np.float32)
        self._cell = np.empty(size, np.intp)
        self._sum = np.empty(size, np.int32)

    def fill(self, ids: np.ndarray, values: np.ndarray) -> None:
        """Fills `ids`, of the shape [n] of `values`; `_NOT_FINITE` where they are not."""
        n = len(values)
        single, cell, total = self._single[:n], self._cell[:n], self._sum[:n]
        is_exact = values.dtype in (np.float32, np.float16)
        if values.dtype == np.float32:
            single = values
        else:
            np.copyto(single, values, casting="unsafe")
        np.right_shift(single.view(np.uint32), 16, out=cell, casting="unsafe")
        np.take(self._table, cell, out=total, mode="wrap")  # cells are in range; this mode does not copy
        np.add(total, single.view(np.int32), out=total)
        near = None if is_exact else ((total + 1) & 0xFFFF < 2).nonzero()[0]
        np.right_shift(total, 16, out=total)
        bins = ids.view(np.int16)
        np.copyto(bins, total, casting="unsafe")
        np.abs(bins, out=bins)
        ids += np.uint16(CONTINUOUS_OFFSET)
        if near is not None:
            # Rounding to float32 may have led across an edge, and to infinity.
            near = near[single[near] != values[near]]
            exact = values[near].astype(np.float64)
            finite = np.isfinite(exact)
            ids[near[finite]] = _to_ids(mu_law.compand_finite(exact[finite]))


@functools.cache
def _table() -> np.ndarray:
    """What, added to a value's bits, has its bin in the upper half, with the sign of the value: [65536] int32.

    The sign makes it grow with the bits, as the magnitude does. The lower half of the sum is the place beyond the
    cell's edge, or in the cell when it has none: 0 and 65535 are beside an edge, or beside another cell.
    """
    cells = np.arange(_CELLS, dtype=np.uint32)
    first, last = (_signed_bins(cells, np.full(_CELLS, place)) for place in (0, _CELLS - 1))
    (split,) = (first != last).nonzero()
    if (last[split] - first[split] != 1).any():
        raise AssertionError("a cell has two edges")
    # The first place that lies beyond the edge, by halving.
    low, high = np.zeros(split.size, np.int64), np.full(split.size, _CELLS - 1)
    while (high - low > 1).any():
        middle = (low + high) // 2
        beyond = _signed_bins(cells[split], middle) == last[split]
        low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
    table = (first - cells) * _CELLS
    table[split] += _CELLS - high
    return table.astype(np.uint32).view(np.int32)


def _signed_bins(cells: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Bins, negative below zero, of the float32 values whose halves these are: int64."""
    with np.errstate(invalid="ignore"):
        values = ((cells << 16) | places).astype(np.uint32).view(np.float32).astype(np.float64)
    finite = np.isfinite(values)
    ids = _to_ids(mu_law.compand_finite(np.where(finite, values, 0.0))).astype(np.int64)
    bins = np.where(finite, ids - CONTINUOUS_OFFSET, _NOT_FINITE - CONTINUOUS_OFFSET)
    return np.where(cells < _CELLS // 2, bins, -bins)


def _to_ids(clipped: np.ndarray) -> np.ndarray:
    """Ids of finite float64 values in [-1, 1]."""
    bins = np.minimum(np.floor((clipped + 1.0) / 2.0 * NUM_BINS), NUM_BINS - 1)
    return (bins + CONTINUOUS_OFFSET).astype(TOKEN_DTYPE)
