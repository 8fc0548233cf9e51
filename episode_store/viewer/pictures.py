"""Arrays of uint8 as PNG (ISO/IEC 15948), with nothing but zlib."""

from __future__ import annotations

import struct
import zlib

import numpy as np

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOR_TYPES = {1: 0, 3: 2}
_FILTER_UP = 2
# Channels that are no colours stand side by side, with so many pixels between them.
_GAP = 1


def encode_png(pixels: np.ndarray) -> bytes:
    """A PNG file.

    Args:
      pixels: uint8 [height, width, 1] (grey) or [height, width, 3] (RGB), no side 0.
    """
    height, width, channels = pixels.shape
    rows = np.empty((height, 1 + width * channels), np.uint8)
    flat = pixels.reshape(height, width * channels)
    # Each row minus the one above: simulators draw plain areas, which become zeros.
    rows[:, 0] = _FILTER_UP
    rows[0, 1:] = flat[0]
    np.subtract(flat[1:], flat[:-1], out=rows[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOR_TYPES[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 3)), (b"IEND", b""))
    return _SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def displayable(frame: np.ndarray, *, scale_to: int | None = None) -> np.ndarray:
    """uint8 [height, width, 1 or 3] of a frame with any number of channels.

    Args:
      frame: uint8 [height, width, channels]; 1 channel is grey, 3 are RGB, any others stand side by side in grey.
      scale_to: the highest value there can be, when the numbers are no colours (the kinds of objects of a grid): each
        channel is then shown apart, with this value as white.
    """
    height, width, channels = frame.shape
    if scale_to is not None:
        frame = (np.minimum(frame, scale_to).astype(np.uint16) * 255 // max(scale_to, 1)).astype(np.uint8)
    if channels == 1 or (channels == 3 and scale_to is None):
        return np.ascontiguousarray(frame)
    wide = np.full((height, channels * (width + _GAP) - _GAP, 1), 128, np.uint8)
    for channel in range(channels):
        start = channel * (width + _GAP)
        wide[:, start : start + width, 0] = frame[..., channel]
    return wide
