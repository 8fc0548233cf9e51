"""What a user of `episode_store view` waits for in a store of 100,000 episodes: a page of the table, sorted anew.

The peer is the same page without a store: pyarrow sorts the columns, which it has in memory, and takes 50 rows. It
looks at no episode; ours looks at the header of each it shows, to tell damaged ones.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.measure import Limit
from episode_store.episode import Episode, EpisodeMetadata
from episode_store.spec import ArraySpec, Modality
from episode_store.task import TaskSpec
from episode_store.viewer.content import Content
from episode_store.viewer.table import COLUMNS
from episode_store.writer import EpisodeWriter

EPISODES = 100_000
_GOAL_SECONDS = 0.2
_PAGE = 50


def measures() -> Iterator[Limit]:
    """`store.view.first`: the first page; `store.view.sorted`: the best returns from the middle on; seconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        make_store(path, EPISODES)
        content = Content(path)
        table = content.store.query(columns=COLUMNS)
        keys = {
            "first": ("", 0, [("task_id", "ascending"), ("agent_id", "ascending"), ("collection_index", "ascending")]),
            "sorted": ("-episode_return", EPISODES // 2, [("episode_return", "descending")]),
        }
        for name, (sort, offset, peer_keys) in keys.items():
            yield Limit(
                name=f"store.view.{name}",
                unit="s",
                goal=_GOAL_SECONDS,
                ours=lambda sort=sort, offset=offset: _ours(content, sort, offset),
                peer=lambda peer_keys=peer_keys, offset=offset: _peer(table, peer_keys, offset),
                peer_name="pyarrow: columns in memory sorted, 50 rows taken, no episode looked at",
            )


def _ours(content: Content, sort: str, offset: int) -> float:
    """The store opened anew, so that no order is kept from before."""
    content.reopen()
    began = time.perf_counter()
    answer = content.episodes(sort=sort, offset=offset, limit=_PAGE)
    seconds = time.perf_counter() - began
    assert (answer["total"], len(answer["rows"])) == (EPISODES, _PAGE)
    assert not any(row["damaged"] for row in answer["rows"])
    return seconds


def _peer(table: object, keys: list[tuple[str, str]], offset: int) -> float:
    began = time.perf_counter()
    rows = table.sort_by(keys).slice(offset, _PAGE).to_pylist()  # type: ignore[attr-defined]
    seconds = time.perf_counter() - began
    assert len(rows) == _PAGE
    return seconds


def make_store(path: Path, num_episodes: int) -> None:
    """Short episodes of ten tasks and seven agents."""
    tasks = [
        TaskSpec(
            task_id=f"bench/View-v{number}",
            observation_spec={"observation": ArraySpec(modality=Modality.CONTINUOUS, shape=(4,))},
            action_spec={"action": ArraySpec(modality=Modality.DISCRETE, dtype="int64", num_values=(2,))},
        )
        for number in range(10)
    ]
    rng = np.random.default_rng(0)
    with EpisodeWriter(path) as writer:
        for task in tasks:
            writer.add_task(task)
        for number in range(num_episodes):
            writer.add_episode(
                Episode(
                    task_id=tasks[number % 10].task_id,
                    observations={"observation": rng.normal(size=(3, 4)).astype(np.float32)},
                    actions={"action": np.zeros(2, np.int64)},
                    rewards=rng.normal(size=2),
                    terminated=True,
                    truncated=False,
                    metadata=EpisodeMetadata(agent_id=f"agent-{number % 7}", seed=number, collection_index=number),
                )
            )
