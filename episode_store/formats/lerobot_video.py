"""Frames of LeRobot's videos. Needs PyAV (extra video)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from episode_store.errors import CorruptionError, UserError
from episode_store.formats.folders import one_line
from episode_store.formats.format import need

_MAX_PIXELS = 1 << 26


def check_decoder(keys: list[str], source: Path) -> None:
    """Checks that videos can be decoded.

    Raises:
      UserError: PyAV is missing.
    """
    try:
        need("av", "video", "decoding videos")
    except UserError as error:
        raise UserError(f"source {source}: {', '.join(keys)}: videos (mp4): {error}") from None


def read_frames(file: Path, start: float, count: int, fps: float, shape: tuple[int, ...]) -> np.ndarray:
    """`count` frames from `start` seconds on, uint8 [count, height, width, channels].

    Frame i is the one whose time is nearest to start + i / fps, and no further away than half a frame.

    Raises:
      CorruptionError: the video is missing, cannot be decoded, is too short, or has another size.
    """
    av: Any = need("av", "video", "decoding videos")
    if not file.is_file():
        raise CorruptionError(f"{file.name}: the video is missing")
    height, width, channels = shape
    if height * width > _MAX_PIXELS or channels not in (1, 3):
        raise CorruptionError(f"{file.name}: frames of {shape}")
    frames = np.empty((count, *shape), np.uint8)
    filled = 0
    half = 0.5 / fps
    try:
        with av.open(str(file)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            if (stream.height, stream.width) != (height, width):
                raise CorruptionError(
                    f"{file.name}: {stream.height} x {stream.width} pixels, info.json declares {height} x {width}"
                )
            container.seek(max(int((start - half) / stream.time_base), 0), stream=stream, backward=True)
            for frame in container.decode(stream):
                if frame.time is None or frame.time < start + filled / fps - half:
                    continue
                if frame.time > start + filled / fps + half:
                    raise CorruptionError(
                        f"{file.name}: no frame at {start + filled / fps:.3f} s, the next is at {frame.time:.3f} s"
                    )
                pixels = frame.to_ndarray(format="rgb24" if channels == 3 else "gray")
                frames[filled] = pixels.reshape(shape)
                filled += 1
                if filled == count:
                    break
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise CorruptionError(f"{file.name}: cannot be decoded: {one_line(error)}") from None
    if filled < count:
        raise CorruptionError(f"{file.name}: ends {count - filled} frames before the episode does")
    return frames
