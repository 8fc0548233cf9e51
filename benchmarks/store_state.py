"""States of floats: random windows of 32 steps, whole episodes in order, writing; ours and every peer."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.store_race import Comparison, Race

KINDS = {"windows": "windows/s", "sequential": "steps/s", "write": "steps/s"}


def measures() -> Iterator[Comparison]:
    """`store.state.windows`, `.sequential` and `.write`."""
    yield from Race("states").comparisons("store.state", KINDS)
