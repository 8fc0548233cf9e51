"""Lossy images, only where a writer was asked for them: each frame a WebP file. Needs Pillow, to write and to read."""

from __future__ import annotations

import io
import itertools
import struct
from types import ModuleType

import numpy as np

from episode_store.errors import CorruptionError, StoreError

_LARGEST_SIDE = 16_383
_CHANNELS = (1, 3)


def encode_frames(frames: np.ndarray, quality: int, where: str) -> bytes:
    """The WEBP payload of one block: uint32 byte length of each frame, then the frames.

    Args:
      frames: uint8 [n, height, width, 1 or 3].
      quality: 1 (smallest) to 100.
      where: names the column in errors.

    Raises:
      StoreError: Pillow is missing, or WebP cannot hold such frames.
    """
    height, width, channels = frames.shape[1:]
    if channels not in _CHANNELS or not 0 < height <= _LARGEST_SIDE or not 0 < width <= _LARGEST_SIDE:
        raise StoreError(
            f"{where}: lossy images have 1 or 3 channels and sides of 1 to {_LARGEST_SIDE}, got "
            f"{height} x {width} x {channels}; write this one without lossy_images"
        )
    image_module = _pillow()
    files = []
    for frame in frames:
        # WebP has no grey: three equal channels come back as one.
        colours = frame if channels == 3 else np.broadcast_to(frame, (height, width, 3))
        file = io.BytesIO()
        image_module.fromarray(np.ascontiguousarray(colours)).save(file, "WEBP", quality=quality, method=4)
        files.append(file.getvalue())
    return struct.pack(f"<{len(files)}I", *map(len, files)) + b"".join(files)


def decode_frames(stored: np.ndarray, out: np.ndarray, skip: int, block_rows: int) -> None:
    """Frames [skip, skip + len(out)) of a block of `encode_frames`.

    Args:
      stored: uint8 [n], the block.
      out: uint8 [rows, height, width, 1 or 3].
      skip: frames before the first wanted one.
      block_rows: frames of the block.

    Raises:
      CorruptionError: it is not such a block.
      StoreError: Pillow is missing.
    """
    image_module = _pillow()
    height, width, channels = out.shape[1:]
    edges = [4 * block_rows]
    if len(stored) >= edges[0]:
        edges += (edges[0] + np.cumsum(stored[: edges[0]].view("<u4"), dtype=np.int64)).tolist()
    if len(edges) <= block_rows or edges[-1] != len(stored) or channels not in _CHANNELS:
        raise CorruptionError(f"a block of {len(stored)} bytes does not hold {block_rows} WebP files")
    for row, (start, end) in enumerate(itertools.pairwise(edges[skip : skip + len(out) + 1])):
        try:
            image = image_module.open(io.BytesIO(stored[start:end].tobytes()), formats=["WEBP"])
            # The size is known before anything is decoded.
            if image.size != (width, height) or image.mode != "RGB":
                raise CorruptionError(f"a frame of {image.size} {image.mode}, expected {(width, height)} RGB")
            colours = np.asarray(image)
        except (OSError, ValueError, SyntaxError) as error:
            raise CorruptionError(f"a frame is not WebP: {error}") from None
        out[row] = colours[..., :channels]


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError:
        raise StoreError("lossy images need Pillow: pip install 'generalist-agent[images]'") from None
    return Image
