"""Planning a job of 1,000,000 episodes from an index alone, and sending its references through Beam's shuffle: time and
memory, each round in a process of its own.

The store is that of `store.million`: the index is as writers make it, 20 tasks, most data files have holes, which no
plan reads. The plan filters by return, splits, assigns shards and orders every reference, and hashes the whole plan;
the job computes it three times at most (driver, scan, commit). The peer groups the same references by shard with
pyarrow, from columns in memory: no filter, no splits, no order.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Limit
from benchmarks.store_million import EPISODES, make_store

_PREAMBLE = """
import json, sys, time
from pathlib import Path
from episode_store.store import EpisodeStore

def peak():
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

"""
_OURS = """
from beam_jobs import commit
from beam_jobs.plan import BuildConfig, plan_task
from beam_jobs.return_filter import FilterRule, ReturnFilter
from beam_jobs.shard_builder import ShardBuilder
from beam_jobs.stores import Source, Stores

before, began = peak(), time.perf_counter()
sources = (Source(name="store", store=Path(sys.argv[1])),)
stores = Stores.open(sources)
config = BuildConfig(sources=sources, output=Path("none"), text_model=None, task_ids=tuple(stores.tasks),
                     return_filter=ReturnFilter(rule=FilterRule.NONE))
plans = [plan_task(stores, task_id, config) for task_id in config.task_ids]
planned = time.perf_counter() - began
commit.dataset_fingerprint(ShardBuilder(config, stores), plans)
assert sum(plan.num_episodes for plan in plans) == int(sys.argv[2])
"""
_SHUFFLE = """
import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from beam_jobs.build_shards import FilterAndAssign, References, ShardKey
from beam_jobs.job import Job
from beam_jobs.plan import BuildConfig
from beam_jobs.return_filter import FilterRule, ReturnFilter
from beam_jobs.runners import pipeline_flags
from beam_jobs.stores import Source, Stores

before, began = peak(), time.perf_counter()
sources = (Source(name="store", store=Path(sys.argv[1])),)
stores = Stores.open(sources)
config = BuildConfig(sources=sources, output=Path("none"), text_model=None, task_ids=tuple(stores.tasks),
                     return_filter=ReturnFilter(rule=FilterRule.NONE))
job = Job(config=config, stores=stores, content_fingerprint="bench", owner="bench")

def check(counts):
    assert sum(counts) == int(sys.argv[2])

with beam.Pipeline(options=PipelineOptions(pipeline_flags([], 1))) as pipeline:
    _ = (
        pipeline
        | beam.Create([(task_id, "") for task_id in config.task_ids])
        | "GroupByTask" >> beam.GroupByKey()
        | beam.MapTuple(lambda task_id, parts: (task_id, []))
        | beam.ParDo(FilterAndAssign(job)).with_output_types(tuple[ShardKey, References])
        | "GroupByShard" >> beam.GroupByKey()
        | beam.MapTuple(lambda shard, groups: ("all", sum(map(len, groups))))
        | "GatherRecords" >> beam.GroupByKey()
        | beam.MapTuple(lambda key, counts: check(counts))
    )
planned = time.perf_counter() - began
"""
_PEER = """
import glob
import pyarrow as pa
import pyarrow.parquet as pq
before, began = peak(), time.perf_counter()
columns = ["task_id", "episode_id", "content_hash"]
paths = glob.glob(sys.argv[1] + "/segments/*.parquet")
table = pa.concat_tables(pq.read_table(path, columns=columns) for path in paths)
numbers = pa.array([int(each[:6], 16) % 100 for each in table["episode_id"].to_pylist()])
groups = table.append_column("shard", numbers).group_by(["task_id", "shard"]).aggregate(
    [("episode_id", "list"), ("content_hash", "list")]).to_pylist()
planned = time.perf_counter() - began
assert sum(len(group["episode_id_list"]) for group in groups) == int(sys.argv[2])
"""
_END = """
print(json.dumps({"plan": planned, "whole": time.perf_counter() - began, "memory": peak(), "before": before}))
"""


def measures() -> Iterator[Limit]:
    """`beam.million.seconds` (the plan and its fingerprint), `.memory` (MB, peak of the process), and `.shuffle.*`: the
    job's own steps up to the shards with the local runner, where the episodes of each shard are only counted.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        make_store(Path(store), EPISODES)
        for name, ours, key, unit, goal in (
            ("seconds", _OURS, "whole", "s", 30.0),
            ("memory", _OURS, "memory", "MB", 1_000.0),
            ("shuffle.seconds", _SHUFFLE, "whole", "s", 120.0),
            ("shuffle.memory", _SHUFFLE, "memory", "MB", 2_500.0),
        ):
            yield Limit(
                name=f"beam.million.{name}",
                unit=unit,
                goal=goal,
                ours=lambda ours=ours, key=key: _run(ours, store)[key],
                peer=lambda key=key: _run(_PEER, store)[key],
                peer_name="pyarrow: references grouped by shard in memory",
            )


def _run(body: str, store: str) -> dict[str, float]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", _PREAMBLE + body + _END, store, str(EPISODES)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result
