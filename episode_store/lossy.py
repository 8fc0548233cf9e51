"""An episode whose images lose something because its writer was asked for that."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from episode_store import column_codecs, webp
from episode_store.column_codecs import Codec
from episode_store.episode import Episode
from episode_store.record_format import EncodedColumn, Group, column_path, image_blocks
from episode_store.spec import Modality
from episode_store.task import TaskSpec


def with_lossy_images(episode: Episode, task: TaskSpec, quality: int) -> tuple[Episode, Mapping[str, EncodedColumn]]:
    """The episode with its observed images as a reader will see them, and their blocks.

    Args:
      episode: a valid one.
      task: its task.
      quality: of WebP, 1 (smallest) to 100.

    Raises:
      StoreError: Pillow is missing, or WebP cannot hold such frames.
    """
    observations = dict(episode.observations)
    encoded = {}
    for name, spec in task.observation_spec.items():
        if spec.modality != Modality.IMAGE or not spec.size:
            continue
        path = column_path(Group.OBSERVATION, name)
        frames = np.ascontiguousarray(observations[name])
        seen = np.empty_like(frames)
        blocks, row = [], 0
        for block in image_blocks(frames):
            blocks.append(webp.encode_frames(block, quality, f"episode of {episode.task_id}: {path}"))
            stored = np.frombuffer(blocks[-1], np.uint8)
            webp.decode_frames(stored, seen[row : row + len(block)], 0, len(block))
            row += len(block)
        rows = column_codecs.image_block_rows(frames.nbytes // len(frames))
        encoded[path] = EncodedColumn.of_blocks(Codec.WEBP, rows, blocks, quality)
        observations[name] = seen
    return dataclasses.replace(episode, observations=observations), encoded
