"""The whole job beside plain Python over the same functions, its memory, its growth; each run is a process of its own.

`benchmarks/synthetic_store.py` makes the episodes, `benchmarks/beam_run.py` runs the job: it reads, filters, tokenizes,
writes and hashes shards. Every way gives the same manifest, which is compared. GENERALIST_BENCH_GB (1) is the size of
the smallest store in GB of raw episodes; `beam.growth` takes one, four and sixteen times as much, `beam.memory` one and
four. GENERALIST_BENCH_STORES is a folder where the stores are kept and found again.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Limit
from benchmarks.synthetic_store import make_store

_GB = float(os.environ.get("GENERALIST_BENCH_GB", "1"))
_digests: dict[Path, str] = {}


def measures() -> Iterator[Limit]:
    """`beam.local` and `beam.two_workers` (ratios), `beam.memory` (MB), `beam.growth` (ratio)."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = os.environ.get("GENERALIST_BENCH_STORES", temporary)
        stores = {times: Path(folder) / f"store-{times}" for times in (1, 4, 16)}

        def store(times: int) -> Path:
            if not stores[times].exists():
                make_store(stores[times], times * _GB * 1e9)
            return stores[times]

        yield Limit(
            name="beam.local",
            unit="CPU of Beam's local runner / of a plain loop, 1 GB",
            goal=1.10,
            ours=lambda: _ratio("cpu_seconds", ("beam", store(1)), ("loop", store(1))),
            peer=lambda: _ratio("cpu_seconds", ("beam", store(4)), ("loop", store(4))),
            peer_name="the same at 4 GB",
            warm_up=False,
        )
        yield Limit(
            name="beam.two_workers",
            unit="time of Beam with two workers / of a plain pool of two, 4 GB",
            goal=1.15,
            ours=lambda: _ratio("seconds", ("beam2", store(4)), ("pool", store(4))),
            peer=lambda: _ratio("cpu_seconds", ("beam2", store(4)), ("pool", store(4))),
            peer_name="the same of CPU, all processes",
            warm_up=False,
        )
        yield Limit(
            name="beam.memory",
            unit="MB, peak of the largest worker of two, 4 GB",
            goal=500,
            ours=lambda: run("beam2", store(4))["worker_mb"],
            peer=lambda: run("beam2", store(1))["worker_mb"],
            peer_name="the same at 1 GB",
            warm_up=False,
        )
        once = functools.cache(lambda times: run("beam", store(times))["cpu_seconds"] / times)
        yield Limit(
            name="beam.growth",
            unit="CPU a GB at 16 GB / at 1 GB, one worker",
            goal=1.10,
            ours=lambda: once(16) / once(1),
            peer=lambda: once(4) / once(1),
            peer_name="4 GB / 1 GB",
            warm_up=False,
        )


def _ratio(what: str, *runs: tuple[str, Path]) -> float:
    """Of two runs, one right after the other."""
    ours, theirs = (run(*each)[what] for each in runs)
    return ours / theirs


def run(how: str, store: Path, *flags: str) -> dict[str, float]:
    """What one run took; `flags` are Beam's, of a cluster.

    Raises:
      RuntimeError: when it made other shards than an earlier run on the same store.
    """
    command = [sys.executable, "-m", "benchmarks.beam_run", how, str(store), *flags]
    folder = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2_000:])
    result = json.loads(done.stdout)
    if _digests.setdefault(store, result["digest"]) != result["digest"]:
        raise RuntimeError(f"{how} on {store}: other shards than before")
    return result
