"""The episode stores of a job seen as one: each task is in exactly one of them, with its weight, split and licence."""

from __future__ import annotations

import collections
import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from episode_store import layout
from episode_store.errors import UserError
from episode_store.splits import TRAIN, VALIDATION
from episode_store.storage import StorePath
from episode_store.store import EpisodeStore
from episode_store.task import TaskSpec

BY_CONTENT = "by-content"  # a corpus by the hash of what must stay together, a control task all for training
SPLITS = (BY_CONTENT, TRAIN, VALIDATION)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """One store of a job.

    Attributes:
      name: of the source, as errors and the manifest call it.
      store: folder of its episode store.
      kind: "store", or the format that it was imported from.
      tasks: ids or patterns of the tasks to take; () takes all.
      weight: share of the tokens of training, relative to the other sources, divided equally among its tasks; None
        gives each of its tasks the weight 1.
      split: `BY_CONTENT`, or the split that all of its episodes go into.
      licence: of the data, where the tasks do not say one.
      imported: facts of the import, for the manifest; {} for a store.
      dead: what the import refused: {"task_id", "episode_id", "kind", "reason"}.
    """

    name: str
    store: StorePath
    kind: str = "store"
    tasks: tuple[str, ...] = ()
    weight: float | None = None
    split: str = BY_CONTENT
    licence: str = ""
    imported: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dead: tuple[Mapping[str, str], ...] = ()


class Stores:
    """Reads the tasks of several stores. Pickles as their paths and extents, so all workers see the same episodes.

    Attributes:
      sources: as they were given.
      tasks: task id -> spec, sorted.
    """

    def __init__(self, opened: Sequence[tuple[Source, EpisodeStore]]) -> None:
        """Use `Stores.open`.

        Raises:
          UserError: a pattern matches no task, or two sources have the same task.
        """
        self._opened = tuple(opened)
        self._ids: tuple[str, pa.ChunkedArray] | None = None
        self.sources = tuple(source for source, _ in opened)
        self._by_task: dict[str, tuple[Source, EpisodeStore]] = {}
        specs: dict[str, TaskSpec] = {}
        for source, store in opened:
            for task_id in store.find_tasks(source.tasks or None):
                if task_id in self._by_task:
                    other = self._by_task[task_id][0]
                    raise UserError(
                        f"task {task_id}: it is in source {other.name!r} and in {source.name!r}; leave it out of one "
                        "with `tasks`, or make one store of both with `episode_store merge`"
                    )
                self._by_task[task_id] = source, store
                spec = store.tasks[task_id]
                specs[task_id] = spec if spec.licence else dataclasses.replace(spec, licence=source.licence)
        self.tasks: Mapping[str, TaskSpec] = MappingProxyType(dict(sorted(specs.items())))
        self._num_tasks = collections.Counter(source.name for source, _ in self._by_task.values())

    @classmethod
    def open(cls, sources: Sequence[Source]) -> Stores:
        """Opens every store. Raises as `EpisodeStore.open` and `Stores` do."""
        return cls([(source, EpisodeStore.open(source.store)) for source in sources])

    def __reduce__(self) -> tuple[Any, ...]:
        return Stores, (self._opened,)

    def of(self, task_id: str) -> EpisodeStore:
        """The store that has a task."""
        return self._by_task[task_id][1]

    def source(self, task_id: str) -> Source:
        """The source that has a task."""
        return self._by_task[task_id][0]

    def table(self, task_id: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The episodes of a task, in the order of collection; all columns, or those that are named."""
        return self.of(task_id).table(task_id, columns)

    def episode_ids(self, task_id: str) -> pa.ChunkedArray:
        """Ids of a task's episodes in the order of `table`; those of the last task that was asked for are kept."""
        if self._ids is None or self._ids[0] != task_id:
            self._ids = task_id, self.table(task_id, ["episode_id"])["episode_id"]
        return self._ids[1]

    def weight(self, task_id: str) -> float:
        """Share of the training tokens of a task, relative to the others."""
        source = self.source(task_id)
        return 1.0 if source.weight is None else source.weight / self._num_tasks[source.name]

    def find_tasks(self, patterns: Sequence[str] | None) -> list[str]:
        """Ids of the tasks that match any of the patterns, sorted; all without patterns.

        Raises:
          UserError: a pattern matches none.
        """
        if not patterns:
            return list(self.tasks)
        found: set[str] = set()
        for pattern in patterns:
            matches = fnmatch.filter(self.tasks, pattern)
            if not matches:
                raise UserError(f"--tasks {pattern}: no such task in the sources{layout.near(pattern, self.tasks)}")
            found.update(matches)
        return sorted(found)
