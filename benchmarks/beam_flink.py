"""The whole job on a real Flink cluster with two workers beside a plain pool of two processes, on the same store.

A job on Flink has a fixed start: the job server plans it and ships its jars, Python workers start. It is measured on a
store of a hundredth of the size, taken off, and shown. GENERALIST_BENCH_GB (1) is a quarter of the size in GB of raw
episodes. The cluster is that of `make test-cluster`; Java, Maven and Go are needed.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import beam
from benchmarks.measure import commit, machine
from benchmarks.synthetic_store import make_store

_GB = 4 * float(os.environ.get("GENERALIST_BENCH_GB", "1"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlinkRace:
    """`beam.flink`: time of Flink without its fixed start / time of the pool.

    Attributes:
      flags: Beam's, of the cluster.
      store, small_store: the one that is measured, and one with next to nothing in it.
    """

    flags: list[str]
    store: Path
    small_store: Path
    name: str = "beam.flink"
    peer_name: str = "a plain pool of two, seconds"

    def run(self, rounds: int) -> dict[str, object]:
        """A line of `results.jsonl`; `start_seconds` is the fixed start, `flink_seconds` includes it."""
        beam.run("flink", self.small_store, *self.flags)  # Java warms up
        starts, flinks, pools = [], [], []
        for _ in range(rounds):
            starts.append(beam.run("flink", self.small_store, *self.flags)["seconds"])
            flinks.append(beam.run("flink", self.store, *self.flags)["seconds"])
            pools.append(beam.run("pool", self.store)["seconds"])
        times = zip(starts, flinks, pools, strict=True)
        ratios = [(flink - start) / pool for start, flink, pool in times]
        return {
            "name": self.name,
            "value": round(statistics.median(ratios), 3),
            "unit": f"time of Flink with two workers, without its start / of a plain pool of two, {_GB:g} GB",
            "goal": 1.3,
            "peer": self.peer_name,
            "peer_value": round(statistics.median(pools), 2),
            "ratio": round(statistics.median(ratios), 3),
            "spread": [round(min(ratios), 3), round(max(ratios), 3)],
            "start_seconds": round(statistics.median(starts), 2),
            "flink_seconds": round(statistics.median(flinks), 2),
            "load": round(os.getloadavg()[1], 1),
            "machine": machine(),
            "commit": commit(),
        }


def measures() -> Iterator[FlinkRace]:
    """`beam.flink`, where Java, Maven and Go are installed."""
    sys.path.append(str(Path(__file__).parents[1] / "tests" / "cluster"))
    import flink
    import parts

    if lines := parts.missing_tools():
        print(f"beam.flink: not measured: {'; '.join(lines)}")
        return
    parts.fetch()
    with tempfile.TemporaryDirectory() as name, flink.cluster(Path(name) / "flink", {}) as cluster:
        folder = Path(name)
        make_store(folder / "small", _GB * 1e7)
        make_store(folder / "large", _GB * 1e9)
        yield FlinkRace(flags=cluster.flags(), store=folder / "large", small_store=folder / "small")
