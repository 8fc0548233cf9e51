"""Lossless codecs of blocks of frames as pure functions: frames to the bytes that zstd packs, and back.

Screens of simulators change in few places, so what is stored is the first frame and the parts that change. Pictures of
cameras change everywhere; there the difference to the neighbours inside each frame is small.
"""

from __future__ import annotations

import numpy as np

from episode_store.errors import CorruptionError

_SMALLEST_UNIT = 64
_MAX_UNITS = 1 << 16


def unit_bytes(frame_bytes: int) -> int:
    """Size of the parts that a frame is compared in: 64 bytes, doubled until a frame has at most 65,536 of them."""
    unit = _SMALLEST_UNIT
    while unit * _MAX_UNITS < frame_bytes:
        unit *= 2
    return unit


def changed_units(block: np.ndarray) -> bytes:
    """What CHANGED_UNITS_ZSTD packs: the first frame, then what differs from the frame before it.

    A frame is divided into units of `unit_bytes`; zeros fill the last one.

    Args:
      block: uint8 [n, ...], contiguous.

    Returns:
      uint32 [n - 1], the number of changed units of each later frame; uint16 [k], which ones; the first frame with its
      filling; the k changed units.
    """
    units = _as_units(block)
    num_frames, num_units = units.shape
    words = units.reshape(num_frames, -1).view(np.uint64)
    words_a_unit = units.dtype.itemsize // 8
    differs = np.not_equal(words[1:], words[:-1])
    if words_a_unit == 8:
        places = np.flatnonzero(differs.view(np.uint64))
    else:
        places = np.flatnonzero(differs.reshape(-1, words_a_unit).any(axis=1))
    edges = np.searchsorted(places, np.arange(num_frames) * num_units)
    counts = np.diff(edges).astype("<u4")
    changed = units.reshape(-1).take(places + num_units)
    return b"".join([counts.tobytes(), (places % num_units).astype("<u2").tobytes(), units[0].tobytes(), changed])


def changed_units_bytes(counts: np.ndarray, frame_bytes: int) -> int:
    """Bytes of a whole `changed_units` with these counts."""
    unit = unit_bytes(frame_bytes)
    total = int(counts.sum(dtype=np.uint64))
    return 4 * len(counts) + (2 + unit) * total + _units(frame_bytes) * unit


def most_changed_units_bytes(num_frames: int, frame_bytes: int) -> int:
    """The most bytes that `changed_units` makes of so many frames."""
    num_units, unit = _units(frame_bytes), unit_bytes(frame_bytes)
    return (num_frames - 1) * (4 + num_units * (2 + unit)) + num_units * unit


def restore_changed_units(packed: np.ndarray, out: np.ndarray, skip: int, num_frames: int) -> None:
    """Frames [skip, skip + len(out)) of a block; those before them cost next to nothing.

    Args:
      packed: uint8, what `changed_units` made, at least up to the last frame wanted.
      out: uint8 [rows, ...], contiguous.
      skip: frames before the first wanted one.
      num_frames: of the whole block.

    Raises:
      CorruptionError: it is not what `changed_units` makes.
    """
    frame_bytes = out.nbytes // len(out)
    num_units, unit = _units(frame_bytes), f"V{unit_bytes(frame_bytes)}"
    counts = packed[: 4 * (num_frames - 1)].view("<u4")
    edges = [0, *np.cumsum(counts, dtype=np.int64).tolist()]
    position = 4 * len(counts)
    places = packed[position : position + 2 * edges[-1]].view("<u2")
    if len(places) and int(places.max()) >= num_units:
        raise CorruptionError("a changed part lies outside its frame")
    units = packed[position + 2 * edges[-1] :]
    units = units[: len(units) // np.dtype(unit).itemsize * np.dtype(unit).itemsize].view(unit)
    first, changed = units[:num_units], units[num_units:]
    if len(first) < num_units or len(changed) < edges[skip + len(out) - 1]:
        raise CorruptionError("a block of images lacks some of its parts")
    flat = out.reshape(len(out), frame_bytes)
    whole = frame_bytes % _SMALLEST_UNIT == 0 and num_units * first.dtype.itemsize == frame_bytes
    frames = flat.view(unit) if whole else np.empty((len(out), num_units), unit)
    frames[0] = first
    done = edges[skip]
    # Of a part that changes several times the last one stays.
    frames[0][places[:done]] = changed[:done]
    for row in range(1, len(out)):
        end = edges[skip + row]
        frames[row] = frames[row - 1]
        if end > done:
            frames[row][places[done:end]] = changed[done:end]
        done = end
    if not whole:
        flat[:] = frames.view(np.uint8)[:, :frame_bytes]


def _units(frame_bytes: int) -> int:
    """How many units a frame has."""
    return -(-frame_bytes // unit_bytes(frame_bytes))


def _as_units(block: np.ndarray) -> np.ndarray:
    """A block as void [n, units]; a view where frames are whole units."""
    frame_bytes = block.nbytes // len(block)
    unit, num_units = unit_bytes(frame_bytes), _units(frame_bytes)
    flat = block.reshape(len(block), frame_bytes)
    if num_units * unit != frame_bytes:
        filled = np.zeros((len(block), num_units * unit), np.uint8)
        filled[:, :frame_bytes] = flat
        flat = filled
    return flat.view(f"V{unit}")


def temporal_difference(block: np.ndarray) -> np.ndarray:
    """The first frame, then each minus the one before it, modulo 256."""
    difference = np.empty_like(block)
    difference[0] = block[0]
    np.subtract(block[1:], block[:-1], out=difference[1:])
    return difference


def restore_temporal_difference(packed: np.ndarray, out: np.ndarray, skip: int) -> None:
    """Frames [skip, skip + len(out)) from `temporal_difference`, uint8 [at least skip + len(out), ...]."""
    if skip:
        np.sum(packed[: skip + 1], axis=0, dtype=out.dtype, out=out[0])
    else:
        out[0] = packed[0]
    for row in range(1, len(out)):
        np.add(out[row - 1], packed[skip + row], out=out[row])


def spatial_difference(block: np.ndarray) -> np.ndarray:
    """uint8 [n, channels, height, width]: each pixel minus left, minus above, plus left above; red and blue less green.

    All modulo 256, with zeros outside the frame; green is taken off where there are at least three channels.

    Args:
      block: uint8 [n, height, width, channels].
    """
    difference = block.copy()
    difference[:, :, 1:] -= block[:, :, :-1]
    rows = difference.copy()
    difference[:, 1:] -= rows[:, :-1]
    if block.shape[-1] >= 3:
        difference[..., 0] -= difference[..., 1]
        difference[..., 2] -= difference[..., 1]
    return np.ascontiguousarray(np.moveaxis(difference, -1, 1))


def restore_spatial_difference(packed: np.ndarray, out: np.ndarray) -> None:
    """The inverse of `spatial_difference`, of len(out) frames."""
    planes = packed.copy()
    if planes.shape[1] >= 3:
        planes[:, 0] += planes[:, 1]
        planes[:, 2] += planes[:, 1]
    np.add.accumulate(planes, axis=2, out=planes)
    np.add.accumulate(planes, axis=3, out=planes)
    out[:] = np.moveaxis(planes, 1, -1)
