"""Images: size, random windows of 32 steps, whole episodes in order, writing; ours and every peer."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.store_race import Comparison, Race

KINDS = {"size": "raw:stored", "windows": "windows/s", "sequential": "steps/s", "write": "steps/s"}


def measures() -> Iterator[Comparison]:
    """`store.image.size`, `.windows`, `.sequential` and `.write`, each on Atari, MuJoCo and MiniGrid."""
    for name in ("atari", "mujoco", "minigrid"):
        yield from Race(name).comparisons("store.image", KINDS)
