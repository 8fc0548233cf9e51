"""One run of the job in a process of its own: `python -m benchmarks.beam_run HOW STORE`; prints what it took as JSON.

HOW is `loop` (a plain Python loop), `pool` (a plain pool of two processes), `beam` or `beam2` (Beam's local runner with
one worker and with two), or `flink` (Beam with the flags of a cluster, which follow STORE). All plan, build every shard
with `ShardBuilder.build` and commit, and write equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from beam_jobs import commit
from beam_jobs.build_shards import build_locally, build_shards
from beam_jobs.plan import BuildConfig, ShardPlan, plan_task
from beam_jobs.return_filter import FilterRule, ReturnFilter
from beam_jobs.shard_builder import RECORDS_FOLDER, ShardBuilder
from beam_jobs.stores import Source, Stores
from benchmarks.synthetic_store import TASK_IDS

_builder: ShardBuilder


def main() -> None:
    """Runs once; the start of the interpreter and imports are not counted, those of worker processes are."""
    how, store = sys.argv[1], Path(sys.argv[2])
    with tempfile.TemporaryDirectory(dir=store.parent) as folder:
        config = BuildConfig(
            sources=(Source(name="store", store=store),),
            output=Path(folder) / "shards",
            text_model=None,
            task_ids=TASK_IDS,
            return_filter=ReturnFilter(rule=FilterRule.NONE),
        )
        began, cpu = time.perf_counter(), _cpu()
        manifest = _run(how, config)
        result = {"seconds": time.perf_counter() - began, "cpu_seconds": _cpu() - cpu, **_memory(how)}
        result["digest"] = hashlib.sha256(json.dumps(manifest["shards"], sort_keys=True).encode()).hexdigest()
    print(json.dumps(result))


def _run(how: str, config: BuildConfig) -> dict[str, Any]:
    if how == "loop":
        return build_locally(config)[0]
    if how == "pool":
        return _pool(config)
    if how == "flink":
        return build_shards(config, beam_flags=sys.argv[3:])[0]
    return build_shards(config, workers=2 if how == "beam2" else 1)[0]


def _pool(config: BuildConfig) -> dict[str, Any]:
    """Two processes that take one shard after the other."""
    (config.output / RECORDS_FOLDER).mkdir(parents=True)
    builder = ShardBuilder(config, Stores.open(config.sources))
    plans = [plan_task(builder.stores, task_id, config) for task_id in config.task_ids]
    with multiprocessing.get_context("fork").Pool(2, _start, (config,)) as pool:
        records = pool.map(_build, [shard for plan in plans for shard in plan.shards], chunksize=1)
        pool.close()
        pool.join()
    return commit.commit(builder, plans, records)


def _start(config: BuildConfig) -> None:
    global _builder
    _builder = ShardBuilder(config, Stores.open(config.sources))


def _build(shard: ShardPlan) -> dict[str, Any]:
    return _builder.build(shard)


def _cpu() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _memory(how: str) -> dict[str, float]:
    """Peak of the largest worker, MB; with one worker it is this process."""
    who = resource.RUSAGE_CHILDREN if how in ("pool", "beam2") else resource.RUSAGE_SELF
    return {"worker_mb": resource.getrusage(who).ru_maxrss / 1024}


if __name__ == "__main__":
    main()
