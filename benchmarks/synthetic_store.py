"""Stores of any size for benchmarks of jobs: episodes of images and of floats, each different from all others.

Of every 10 raw bytes, 4.5 are frames of 96x96 and 4.5 frames of Atari's 210x160, both RGB: a ball and a paddle move
over a background that each episode has for itself. 1 is 40 floats a step with 8 continuous actions. The store keeps
frames in about a hundredth of their raw size, and floats as they are.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from episode_store.command_line import progress
from episode_store.episode import Episode, EpisodeMetadata
from episode_store.spec import ArraySpec, Modality
from episode_store.task import TaskSpec
from episode_store.writer import EpisodeWriter

_BUTTON = ArraySpec(modality=Modality.DISCRETE, dtype="int64", num_values=(18,))
_FRAMES = {"bench/Frames-v0": (96, 96), "bench/Screens-v0": (210, 160)}
_FLOATS = TaskSpec(
    task_id="bench/Arm-v0",
    observation_spec={"state": ArraySpec(modality=Modality.CONTINUOUS, shape=(40,))},
    action_spec={
        "action": ArraySpec(modality=Modality.CONTINUOUS, shape=(8,), low=(-1.0,) * 8, high=(1.0,) * 8),
    },
)
_TASKS = {
    task_id: TaskSpec(
        task_id=task_id,
        observation_spec={"image": ArraySpec(modality=Modality.IMAGE, shape=(*size, 3), dtype="uint8")},
        action_spec={"action": _BUTTON},
    )
    for task_id, size in _FRAMES.items()
} | {_FLOATS.task_id: _FLOATS}
TASK_IDS = tuple(sorted(_TASKS))
_EPISODE_BYTES = {"bench/Frames-v0": 10_000_000, "bench/Screens-v0": 10_000_000, "bench/Arm-v0": 200_000}
_SHARES = {"bench/Frames-v0": 0.45, "bench/Screens-v0": 0.45, "bench/Arm-v0": 0.1}


def make_store(path: Path, num_bytes: float) -> int:
    """Writes a store of about so many raw bytes; returns how many there are."""
    written = 0
    with EpisodeWriter(path, sync=False) as writer:
        for task_id, task in _TASKS.items():
            writer.add_task(task)
            numbers = range(max(1, round(_SHARES[task_id] * num_bytes / _EPISODE_BYTES[task_id])))
            for number in progress(numbers, description=task_id, unit="episodes"):
                episode = _floats(number) if task_id == _FLOATS.task_id else _frames(task_id, number)
                writer.add_episode(episode)
                written += sum(
                    values.nbytes
                    for values in (*episode.observations.values(), *episode.actions.values(), episode.rewards)
                    if isinstance(values, np.ndarray)
                )
    return written


def _frames(task_id: str, number: int) -> Episode:
    rng = np.random.default_rng(number)
    height, width = _FRAMES[task_id]
    steps = _EPISODE_BYTES[task_id] // (height * width * 3) - 1
    tiles = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    frames = np.repeat(tiles.repeat(8, 0).repeat(8, 1)[None, :height, :width], steps + 1, axis=0)
    ball = np.cumsum(rng.integers(-3, 4, (steps + 1, 2)), axis=0) % (np.array([height, width]) - 4)
    paddle = np.cumsum(rng.integers(-2, 3, steps + 1)) % (width - 16)
    for frame, (row, column), place in zip(frames, ball, paddle, strict=True):
        frame[row : row + 4, column : column + 4] = 236
        frame[-8:-4, place : place + 16] = 92, 186, 92
    return _episode(task_id, number, {"image": frames}, {"action": rng.integers(0, 18, steps)})


def _floats(number: int) -> Episode:
    rng = np.random.default_rng(number)
    steps = _EPISODE_BYTES[_FLOATS.task_id] // (4 * 48 + 8)
    states = np.cumsum(rng.normal(0, 0.1, (steps + 1, 40)), axis=0, dtype=np.float32)
    actions = rng.uniform(-1, 1, (steps, 8)).astype(np.float32)
    return _episode(_FLOATS.task_id, number, {"state": states}, {"action": actions})


def _episode(task_id: str, number: int, observations: dict, actions: dict) -> Episode:
    steps = len(next(iter(actions.values())))
    return Episode(
        task_id=task_id,
        observations=observations,
        actions=actions,
        rewards=np.full(steps, 1.0),
        terminated=False,
        truncated=True,
        metadata=EpisodeMetadata(agent_id="bench", seed=number, collection_index=number),
    )


def main() -> None:
    """`python -m benchmarks.synthetic_store PATH GB`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("gigabytes", type=float)
    arguments = parser.parse_args()
    print(f"{make_store(arguments.path, arguments.gigabytes * 1e9) / 1e9:.2f} GB raw in {arguments.path}")


if __name__ == "__main__":
    main()
