"""Whether the memory of a writer and of a reader grows with the number of episodes; each is a process of its own.

The small set is larger than what is kept on purpose: a writer keeps the rows of the segment that it fills (65,536 at
most) and seals it with them, a reader keeps the 4,096 records that it read lately. What grows is the index: 32 bytes an
episode for a writer, 56 for a reader.
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

SMALL, LARGE = 70_000, 280_000
_PROGRAM = """
import json, sys
import numpy as np
from episode_store.episode import Episode, EpisodeMetadata
from episode_store.spec import ArraySpec, Modality
from episode_store.store import EpisodeStore
from episode_store.task import TaskSpec
from episode_store.writer import EpisodeWriter

task = TaskSpec(
    task_id="Memory-v0",
    observation_spec={"observation": ArraySpec(modality=Modality.CONTINUOUS, shape=(17,), dtype="float32")},
    action_spec={"action": ArraySpec(modality=Modality.CONTINUOUS, shape=(6,), dtype="float32")},
)
role, path, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
if role == "write":
    chance = np.random.default_rng(0)
    with EpisodeWriter(path) as writer:
        writer.add_task(task)
        for number in range(count):
            writer.add_episode(
                Episode(
                    task_id=task.task_id,
                    observations={"observation": chance.normal(size=(6, 17)).astype(np.float32)},
                    actions={"action": chance.normal(size=(5, 6)).astype(np.float32)},
                    rewards=chance.normal(size=5),
                    terminated=True,
                    truncated=False,
                    metadata=EpisodeMetadata(agent_id="benchmark", seed=number, collection_index=number),
                )
            )
else:
    store = EpisodeStore.open(path)
    out = {"observations/observation": np.empty((6, 17), np.float32)}
    for episode_id in store.episode_ids:
        store.read(episode_id, out=out)
# A writer maps no data: its peak. A reader's mapped files are the kernel's to drop: its own memory.
status = {line.split(":")[0]: line.split()[1] for line in open("/proc/self/status") if "kB" in line}
print(json.dumps(int(status["RssAnon" if role == "read" else "VmHWM"]) / 1024))
"""


def measures() -> Iterator[Limit]:
    """`store.memory`, MB of a writer and of a reader of 280,000 episodes beside those of 70,000."""
    with tempfile.TemporaryDirectory() as folder:
        for role in ("write", "read"):
            yield Limit(
                name="store.memory",
                unit=f"MB to {role} {LARGE:,} episodes",
                goal=200.0,
                ours=lambda role=role: _run(role, Path(folder), LARGE),
                peer=lambda role=role: _run(role, Path(folder), SMALL),
                peer_name=f"the same with {SMALL:,} episodes",
                warm_up=False,
            )


@functools.cache  # memory hardly differs from run to run: once
def _run(role: str, folder: Path, count: int) -> float:
    path = folder / f"store-{count}"
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, role, str(path), str(count)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(json.loads(done.stdout))
