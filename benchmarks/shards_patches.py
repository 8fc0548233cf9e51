"""Reading shards with image patches; what is measured is told in `benchmarks/shards.py`."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.measure import Race
from benchmarks.shards import image_episode, races

_NUM_EPISODES = 26  # of 19 sequences, 370 MB of patches in all


def measures() -> Iterator[Race]:
    """`shards.patches` (our reader) and `shards.patches.stock` (stock webdataset on our shards)."""
    episodes = [image_episode(seed) for seed in range(_NUM_EPISODES)]
    yield from races("shards.patches", episodes, goal=10_000, stock_goal=10_000, with_patches=True)
