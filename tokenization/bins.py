"""1,024 uniform bins over [-1, 1], as vocabulary ids (Gato, section 2.2).

    id = 32000 + min(1023, floor((v + 1) / 2 * 1024))

so -1 is 32000 and +1 is 33023. Decoding returns the centre of a bin. The rule of precision: ids are those of this
formula in float64, whatever the dtype of the values. `companded_to_ids` computes in float32, bounds its error, and
computes again in float64 the few values (0.1%) that lie so near an edge that float32 cannot decide.
"""

from __future__ import annotations

import numpy as np

from episode_store.errors import UserError
from tokenization import mu_law
from tokenization.vocabulary import CONTINUOUS_OFFSET, NUM_BINS, TOKEN_DTYPE

_HALF = NUM_BINS / 2

# The fast path works on positions (v + 1) / 2 * 1024 in fixed point: id in the upper 16 bits, place in the bin below.
_UNIT = 65_536.0
# Bound of the error of a float32 position, in 65536ths of a bin. NumPy's log is within 4 ulp: at log 10.15 that is
# 3.8e-6, times 512 / 10.15 gives 1.9e-4 bins; casting and mu|x|+1 add 1e-5, the last two roundings 6e-5. 2.6e-4 bins
# are 17 units; 32 leaves room for a poorer log.
_MARGIN = 32
_IN_THE_MIDDLE = 32_768  # of a bin, in its 65536ths
_CHUNK = 131_072  # values: large enough to hide the cost of some twenty NumPy calls, small enough for the cache

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
    scratch = _Scratch(min(_CHUNK, flat.size))
    doubtful: list[np.ndarray] = []
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, flat.size, _CHUNK):
            chunk = flat[start : start + _CHUNK]
            near_edge = _chunk_to_ids(chunk, ids[start : start + _CHUNK], scratch)
            if near_edge is None:
                mu_law.check_finite(values, where=where)
            else:
                doubtful.append(near_edge + start)
    if doubtful:
        places = np.concatenate(doubtful)
        exact = flat[places].astype(np.float64)
        if not np.isfinite(exact).all():  # some processors turn NaN into the integer 0, which lies on an edge
            mu_law.check_finite(values, where=where)
        ids[places] = _to_ids(mu_law.compand_finite(exact))
    return ids.reshape(values.shape)


class _Scratch:
    """Buffers of one call, so that a chunk stays in the cache and nothing is allocated for it."""

    def __init__(self, size: int) -> None:
        self.work = np.empty(size, np.float32)
        self.sign = np.empty(size, np.uint32)
        self.fixed = np.empty(size, np.int32)
        self.low = np.empty(size, np.uint16)
        self.near = np.zeros(-(-size // 8) * 8, np.bool_)  # whole 8-byte words


def _chunk_to_ids(exact: np.ndarray, ids: np.ndarray, scratch: _Scratch) -> np.ndarray | None:
    """Fills `ids`. Returns the places that float32 cannot decide, or None when a value is not finite."""
    n = len(exact)
    work, sign, fixed, low = scratch.work[:n], scratch.sign[:n], scratch.fixed[:n], scratch.low[:n]
    np.multiply(exact, np.float32(mu_law.MU), out=work, dtype=np.float32, casting="unsafe")
    bits = work.view(np.uint32)  # the sign moves by integer operations, which are several times as fast
    np.bitwise_and(bits, np.uint32(0x8000_0000), out=sign)
    np.bitwise_xor(bits, sign, out=bits)
    work += np.float32(1.0)
    np.log(work, out=work)
    work *= np.float32(_HALF * _UNIT / mu_law.LOG_RANGE)
    np.bitwise_or(bits, sign, out=bits)
    work += np.float32(_HALF * _UNIT + _MARGIN)  # the margin makes both sides of an edge lie in [0, 2 * margin)
    np.copyto(fixed, work, casting="unsafe")
    np.copyto(low, fixed, casting="unsafe")  # the lower 16 bits
    np.right_shift(fixed, 16, out=fixed)
    np.copyto(ids, fixed, casting="unsafe")
    if ids.max() >= NUM_BINS:  # as uint16: below the first bin, above the last, and what is no number
        if not np.isfinite(exact).all():
            return None
        _saturate(exact, ids, low)
    ids += np.uint16(CONTINUOUS_OFFSET)
    near = scratch.near
    np.less(low, 2 * _MARGIN, out=near[:n])
    near[n:] = False
    (words,) = (near.view(np.uint64) != 0).nonzero()
    if words.size > n // 64:
        # Zero lies on an edge, is exact in float32 too (log 1 = 0), and is common.
        np.logical_and(near[:n], exact, out=near[:n])
        (words,) = (near.view(np.uint64) != 0).nonzero()
    (places,) = near.reshape(-1, 8)[words].reshape(-1).nonzero()
    return words[places >> 3] * 8 + (places & 7)


def _saturate(exact: np.ndarray, ids: np.ndarray, low: np.ndarray) -> None:
    """Puts values of at least 256, whose positions lie beyond the bins, into the first and the last one."""
    (beyond,) = (ids >= NUM_BINS).nonzero()
    ids[beyond] = np.where(exact[beyond] > 0, NUM_BINS - 1, 0)
    low[beyond] = _IN_THE_MIDDLE


def _to_ids(clipped: np.ndarray) -> np.ndarray:
    """Ids of finite float64 values in [-1, 1]."""
    bins = np.minimum(np.floor((clipped + 1.0) / 2.0 * NUM_BINS), NUM_BINS - 1)
    return (bins + CONTINUOUS_OFFSET).astype(TOKEN_DTYPE)
