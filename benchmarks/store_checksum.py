"""What it costs to compare the checksums on every read."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.store_race import OURS, UNCHECKED, Comparison, Race


def measures() -> Iterator[Comparison]:
    """`store.checksum`: with to without, as rates, on Atari and on states."""
    for name in ("atari", "states"):
        yield from Race(name, peers=(OURS, UNCHECKED)).checksums()
