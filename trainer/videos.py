"""Short films of policies for the report: animated WebP, small enough to travel inside a page.

<folder>/<task_file_name>-<role>.webp
<folder>/videos.json     list of {task_id, role, seed, file, episode_return, num_steps, error}; `file` is null and
                         `error` a line where this machine cannot draw the task
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from collectors.headless import RenderingUnavailable
from collectors.registry import Task
from collectors.rollout import FilmedEpisode, Policy, rollout
from episode_store.files import write_bytes, write_json
from episode_store.task import task_file_name

VIDEOS_FILE = "videos.json"
MAX_SIDE = 160
MAX_BYTES = 300_000
_SECONDS = 6.0
_SLOWEST_FRAME_SECONDS, _FASTEST_FRAME_SECONDS = 0.25, 0.05
_LAST_FRAME_SECONDS = 1.2
# Tried in this order until a film is small enough: (quality, every how many frames).
_ECONOMIES = ((75, 1), (55, 1), (45, 2), (30, 3), (15, 4))


def record_video(task: Task, policy: Policy, seed: int, path: Path, *, max_frames: int = 90) -> dict[str, Any]:
    """Films one whole episode, evenly thinned to `max_frames` with the first and the last.

    Returns:
      episode_return, num_steps and file (the name), for `videos.json`.

    Raises:
      RenderingUnavailable: this machine cannot draw the task.
    """
    (episode,) = rollout(task, policy, seeds=[seed], frames=True)
    assert isinstance(episode, FilmedEpisode)
    write_bytes(path, encode(episode.frames, max_frames=max_frames))
    return {"episode_return": float(episode.episode_return), "num_steps": episode.num_steps, "file": path.name}


def record_videos(task: Task, policies: Mapping[str, Policy], seed: int, folder: Path) -> list[dict[str, Any]]:
    """Films each role ("generalist", "specialist") from the same first state and enters it into `videos.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for role, policy in policies.items():
        path = folder / f"{task_file_name(task.task_id)}-{role}.webp"
        entry: dict[str, Any] = {"task_id": task.task_id, "role": role, "seed": seed, "file": None, "error": None}
        try:
            entry |= record_video(task, policy, seed, path)
        except RenderingUnavailable as error:
            entry["error"] = str(error)
        entries.append(entry)
    file = folder / VIDEOS_FILE
    before = json.loads(file.read_text()) if file.exists() else []
    others = [
        entry for entry in before if (entry["task_id"], entry["role"]) not in {(task.task_id, r) for r in policies}
    ]
    write_json(file, others + entries)
    return entries


def encode(frames: np.ndarray, *, max_frames: int) -> bytes:
    """uint8 [T + 1, height, width, 3] as an endless animated WebP of at most `MAX_BYTES`, as good as that allows.

    A long episode runs fast and a short one slowly; the last frame stays for a moment.
    """
    places = np.unique(np.linspace(0, len(frames) - 1, min(max_frames, len(frames))).round().astype(int))
    pictures = [_small(frames[place]) for place in places]
    for quality, stride in _ECONOMIES:
        # Counted from the end: the last frame shows how it went.
        kept = pictures[::-1][::stride][::-1]
        seconds = float(np.clip(_SECONDS / len(kept), _FASTEST_FRAME_SECONDS * stride, _SLOWEST_FRAME_SECONDS * stride))
        durations = [round(1000 * seconds)] * (len(kept) - 1) + [round(1000 * _LAST_FRAME_SECONDS)]
        buffer = io.BytesIO()
        kept[0].save(
            buffer, "WEBP", save_all=True, append_images=kept[1:], duration=durations, loop=0, quality=quality, method=4
        )
        if buffer.tell() <= MAX_BYTES:
            break
    return buffer.getvalue()


def _small(frame: np.ndarray) -> Image.Image:
    picture = Image.fromarray(frame).convert("RGB")
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return picture
