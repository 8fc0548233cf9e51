"""Reading shards of tokens alone; what is measured is told in `benchmarks/shards.py`."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.measure import Race
from benchmarks.shards import numbers_episode, races

_NUM_SEQUENCES = 16_384


def measures() -> Iterator[Race]:
    """`shards.tokens` (our reader) and `shards.tokens.stock` (stock webdataset on our shards)."""
    episodes = [numbers_episode(seed) for seed in range(_NUM_SEQUENCES)]
    yield from races("shards.tokens", episodes, goal=400_000, stock_goal=150_000, with_patches=False)
