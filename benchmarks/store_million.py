"""A store of 1,000,000 episodes: opening it, a query over the returns, memory. Each round is a process of its own.

The index files are as writers make them, 65,536 episodes a segment, with different ids, hashes, returns, seeds and
splits. The data files have holes: of every 1,000 records one is there, and those are the ones that are read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.measure import Limit
from episode_store import layout, segment
from episode_store.episode import Episode, EpisodeMetadata
from episode_store.record_format import RecordEncoder
from episode_store.segment import DATA_HEADER, INDEX_SCHEMA, SegmentFiles
from episode_store.spec import ArraySpec, Modality
from episode_store.task import TaskSpec

EPISODES = 1_000_000
_SEGMENT, _REAL = 65_536, 1_000
_RECORD_BYTES = 1_024

_PREAMBLE = """
import json, resource, sys, time
import pyarrow as pa, pyarrow.compute as pc
from episode_store.store import EpisodeStore

# pyarrow's first conversion imports pandas where that is installed: no more a part of a query than other imports.
pa.array([0])

def memory():
    return {line.split(":")[0]: int(line.split()[1]) / 1024 for line in open("/proc/self/status") if "kB" in line}

before, began = memory()["VmRSS"], time.perf_counter()
"""
# Opened: the number of episodes is known, duplicates are found, and an episode has been read.
_OPEN = """
store = EpisodeStore.open(sys.argv[1])
assert len(store) == int(sys.argv[2])
store.read(sys.argv[3])
opened = time.perf_counter() - began
"""
_QUERY = """
began = time.perf_counter()
best = store.query("episode_return > 400 and task_id == 'bench/Swing-v3'", columns=["episode_id", "episode_return"])
mean = pc.mean(store.query(columns=["episode_return"])["episode_return"]).as_py()
queried = time.perf_counter() - began
assert 0 < best.num_rows < len(store) and 99 < mean < 101
"""
_PEER = """
import glob
import pyarrow.parquet as pq
began = time.perf_counter()
table = pq.read_table(sorted(glob.glob(sys.argv[1] + "/segments/*.parquet")), page_checksum_verification=True)
assert table.num_rows == int(sys.argv[2])
opened = time.perf_counter() - began
began = time.perf_counter()
chosen = (pc.field("episode_return") > 400) & (pc.field("task_id") == "bench/Swing-v3")
best = table.filter(chosen).select(["episode_id", "episode_return"])
mean = pc.mean(table["episode_return"]).as_py()
queried = time.perf_counter() - began
"""
_END = """
print(json.dumps({"open": opened, "query": queried, "memory": memory()["VmHWM"], "before": before}))
"""


def measures() -> Iterator[Limit]:
    """`store.million.open`, `.query` (seconds) and `.memory` (MB, the peak of a process that does both)."""
    with tempfile.TemporaryDirectory() as folder:
        ours = [_PREAMBLE + _OPEN + _QUERY + _END, *_arguments(Path(folder))]
        peer = [_PREAMBLE + _PEER + _END, *ours[1:]]
        peer_name = "pyarrow: all columns of the same index files in memory, no lookup by id"
        for name, unit, goal in (("open", "s", 0.5), ("query", "s", 0.1), ("memory", "MB", 300.0)):
            yield Limit(
                name=f"store.million.{name}",
                unit=unit,
                goal=goal,
                ours=lambda name=name: _run(ours)[name],
                peer=lambda name=name: _run(peer)[name],
                peer_name=peer_name,
            )


def _run(arguments: list[str]) -> dict[str, float]:
    """Runs one round in a fresh interpreter; the page cache is warm after the first."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def _arguments(folder: Path) -> list[str]:
    """Makes the store; its path, its size and the id of an episode that is there."""
    known = make_store(folder / "store", EPISODES)
    return [str(folder / "store"), str(EPISODES), known[len(known) // 2]]


def make_store(path: Path, num_episodes: int) -> list[str]:
    """Writes a store of so many episodes; returns the ids of those whose records are there."""
    layout.create_store(path)
    tasks = [_task(number) for number in range(20)]
    for task in tasks:
        layout.create_task(path, task)
    rng = np.random.default_rng(0)
    known: list[str] = []
    for first in range(0, num_episodes, _SEGMENT):
        files = SegmentFiles(path / segment.SEGMENT_FOLDER, f"{first:012x}-00000000")
        known += _write_segment(files, tasks, rng, first, min(_SEGMENT, num_episodes - first))
    return known


def _write_segment(
    files: SegmentFiles, tasks: list[TaskSpec], rng: np.random.Generator, first: int, rows: int
) -> list[str]:
    numbers = np.arange(first, first + rows)
    ids, hashes = ([rng.bytes(16).hex() for _ in range(rows)] for _ in range(2))
    columns: dict[str, Any] = {
        "task_id": [tasks[number % 20].task_id for number in numbers],
        "episode_id": ids,
        "content_hash": hashes,
        "num_steps": rng.integers(1, 1_000, rows),
        "episode_return": rng.normal(100, 150, rows),
        "terminated": rng.random(rows) < 0.5,
        "truncated": np.ones(rows, bool),
        "agent_id": [f"agent-{number}" for number in rng.integers(0, 50, rows)],
        "seed": rng.integers(0, 1 << 31, rows),
        "collection_index": numbers // 20,
        "experiment_id": ["bench"] * rows,
        "agent_hash": [f"{number % 50:032x}" for number in numbers],
        "split_group": [""] * rows,
        "attribution": [""] * rows,
        "segment": [files.name] * rows,
        "offset": len(DATA_HEADER) + _RECORD_BYTES * np.arange(rows),
        "record_bytes": np.full(rows, _RECORD_BYTES),
        "success": pa.nulls(rows, pa.bool_()),
    }
    encoder = RecordEncoder()
    with open(files.data, "wb") as data:
        data.write(DATA_HEADER)
        for row in range(0, rows, _REAL):
            task = tasks[(first + row) % 20]
            record = b"".join(encoder.encode(_episode(task), task, columns["content_hash"][row], ids[row]))
            columns["record_bytes"][row] = len(record)
            data.seek(int(columns["offset"][row]))
            data.write(record)
        data_bytes = int(columns["offset"][-1]) + _RECORD_BYTES
        data.truncate(data_bytes)
    segment.write_seal(files, pa.table(columns, schema=INDEX_SCHEMA), data_bytes)
    return ids[::_REAL]


def _task(number: int) -> TaskSpec:
    return TaskSpec(
        task_id=f"bench/Swing-v{number}",
        observation_spec={"observation": ArraySpec(modality=Modality.CONTINUOUS, shape=(4,), dtype="float32")},
        action_spec={"action": ArraySpec(modality=Modality.DISCRETE, dtype="int64", num_values=(2,))},
    )


def _episode(task: TaskSpec) -> Episode:
    return Episode(
        task_id=task.task_id,
        observations={"observation": np.zeros((2, 4), np.float32)},
        actions={"action": np.zeros(1, np.int64)},
        rewards=np.zeros(1),
        terminated=True,
        truncated=False,
        metadata=EpisodeMetadata(agent_id="agent-0"),
    )
