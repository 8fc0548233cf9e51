"""Frames of LeRobot's videos, read and written. Needs PyAV (extra video)."""

from __future__ import annotations

import fractions
from pathlib import Path
from typing import Any

import numpy as np

from episode_store.errors import CorruptionError, UserError
from episode_store.formats.format import need, one_line

_MAX_PIXELS = 1 << 26
# As LeRobot writes them: AV1, a key frame every second frame, so that a random frame is soon decoded.
CODEC, _PIXEL_FORMAT = "libsvtav1", "yuv420p"
_OPTIONS = {"g": "2", "crf": "30", "preset": "12"}
_MIN_SIDE = 64


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


def can_encode(shape: tuple[int, ...]) -> bool:
    """Whether the codec takes frames of this shape: colours, even sides, not too small."""
    return len(shape) == 3 and shape[2] == 3 and min(shape[:2]) >= _MIN_SIDE and not any(side % 2 for side in shape[:2])


def write_frames(file: Path, frames: np.ndarray, fps: float) -> None:
    """Writes uint8 [count, height, width, 3] as an mp4. Detail is lost.

    Raises:
      UserError: PyAV is missing, or lacks the codec.
    """
    av: Any = need("av", "video", "encoding videos")
    file.parent.mkdir(parents=True, exist_ok=True)
    rate = fractions.Fraction(fps).limit_denominator(100_000)
    try:
        with av.open(str(file), "w") as container:
            stream = container.add_stream(CODEC, rate=rate, options=_OPTIONS)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = _PIXEL_FORMAT
            for pixels in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
            container.mux(stream.encode())
    except (av.FFmpegError, ValueError) as error:
        raise UserError(f"encoding videos with {CODEC}: {one_line(error)}") from None


def describe(shape: tuple[int, ...], fps: float) -> dict[str, Any]:
    """The facts of a video as info.json has them."""
    return {
        "video.height": shape[0],
        "video.width": shape[1],
        "video.channels": shape[2],
        "video.codec": "av1",
        "video.pix_fmt": _PIXEL_FORMAT,
        "video.fps": fps,
        "is_depth_map": False,
        "has_audio": False,
    }
