"""The catalogue: every task by its id."""

from __future__ import annotations

import difflib
import fnmatch
import functools
import importlib
import pkgutil
from collections.abc import Mapping, Sequence

from collectors import tasks as _families
from collectors.task import (
    Controller,
    CorpusSource,
    Disturbance,
    Environment,
    ExpertRecipe,
    Sb3Expert,
    Script,
    ScriptedExpert,
    Task,
)
from episode_store.errors import UserError

__all__ = [
    "Controller",
    "CorpusSource",
    "Disturbance",
    "Environment",
    "ExpertRecipe",
    "Sb3Expert",
    "Script",
    "ScriptedExpert",
    "Task",
    "all_tasks",
    "find",
    "get",
]


@functools.cache
def _catalogue() -> Mapping[str, Task]:
    """Task id -> task. Every module of `collectors.tasks` and `collectors.corpora` has a `TASKS`."""
    modules = [importlib.import_module(f"{_families.__name__}.{info.name}") for info in _modules()]
    modules.append(importlib.import_module("collectors.corpora"))
    catalogue: dict[str, Task] = {}
    for module in modules:
        for task in getattr(module, "TASKS", ()):
            if task.task_id in catalogue:
                raise ValueError(f"{module.__name__}: the task id {task.task_id} is taken")
            catalogue[task.task_id] = task
    return dict(sorted(catalogue.items()))


def _modules() -> list[pkgutil.ModuleInfo]:
    return [info for info in pkgutil.iter_modules(_families.__path__) if not info.name.startswith("_")]


def all_tasks() -> list[Task]:
    """Every task, by id."""
    return list(_catalogue().values())


def get(task_id: str) -> Task:
    """The task of that id.

    Raises:
      UserError: with the nearest names when there is none.
    """
    try:
        return _catalogue()[task_id]
    except KeyError:
        raise _unknown(task_id) from None


def find(patterns: Sequence[str] | None) -> list[Task]:
    """Tasks whose id, family or tag matches any of the patterns ('metaworld/*', 'toy_text'), each once; None: all.

    A pattern that fits a task leaves out the variants of that task, such as its twin in pixels; one that fits the
    variant alone ('metaworld/*-rgb-*') finds it.

    Raises:
      UserError: for a pattern that matches nothing.
    """
    if patterns is None:
        return all_tasks()
    found: dict[str, Task] = {}
    for pattern in patterns:
        matches = [task for task in all_tasks() if _matches(task, pattern)]
        if not matches:
            raise _unknown(pattern)
        found |= {task.task_id: task for task in matches}
    return list(found.values())


def _matches(task: Task, pattern: str) -> bool:
    if pattern in task.tags:
        return True
    if task.variant_of:
        return fnmatch.fnmatchcase(task.task_id, pattern) and not fnmatch.fnmatchcase(task.variant_of, pattern)
    return fnmatch.fnmatchcase(task.task_id, pattern) or pattern == task.family


def _unknown(name: str) -> UserError:
    known = list(_catalogue())
    lowered = {task_id.lower(): task_id for task_id in known}
    short = {task_id.rpartition("/")[2].lower(): task_id for task_id in known}
    near = [
        lowered.get(match) or short[match]
        for match in difflib.get_close_matches(name.lower(), [*lowered, *short], n=3, cutoff=0.6)
    ]
    hint = f"did you mean {' or '.join(dict.fromkeys(near))}?" if near else "`collectors list` shows all"
    return UserError(f"unknown task {name!r}: {hint}")
