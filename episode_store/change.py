"""Delete, filter, restore, split: each makes a version that shows other episodes; no byte of data is touched."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from episode_store import query, splitting, storage, versions
from episode_store.errors import StoreError, UserError
from episode_store.store import EpisodeStore


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """What a command did, or would do.

    Attributes:
      version: number of the new version; None when nothing changed or in a dry run.
      name: of the view it made; "" for the head.
      kept, removed: episodes that the version shows, and that it no longer shows.
      tasks: task id -> episodes removed.
    """

    version: int | None
    name: str
    kept: int
    removed: int
    tasks: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return dataclasses.asdict(self)


def delete(
    path: str | Path,
    *,
    where: str | None = None,
    episode_ids: Sequence[str] = (),
    note: str = "",
    dry_run: bool = False,
) -> Change:
    """Makes a version without some episodes. They stay on the disk and in older versions until `compact`.

    Args:
      path: the store.
      where: those a condition chooses, see where.py.
      episode_ids: these too.
      note: why, for `list`.
      dry_run: only tell.

    Raises:
      UserError: neither is given, or the condition cannot be understood.
      StoreError: there is no such episode.
    """
    if where is None and not episode_ids:
        raise UserError("delete: expected a condition or episode ids; nothing is deleted without one")
    path = storage.local(path)
    with versions.changing(path, dry_run=dry_run):
        store = EpisodeStore.open(path)
        gone = [np.zeros(0, np.int64)]
        if where is not None:
            gone.append(query.select_rows(store.index, where))
        gone.append(np.array([_row(store, episode_id) for episode_id in episode_ids], np.int64))
        keep = np.setdiff1d(store.index.rows(), np.concatenate(gone), assume_unique=False)
        detail = _detail(where=where, episode_ids=list(episode_ids)[:100], note=note)
        return _commit(store, keep, "delete", detail, dry_run=dry_run)


def filter_store(path: str | Path, *, where: str, name: str = "", note: str = "", dry_run: bool = False) -> Change:
    """Makes a version with only the episodes that a condition chooses.

    Args:
      path: the store.
      where: the condition, see where.py.
      name: makes a view of this name, which keeps showing just these; without it the head is changed, and episodes
        added later are shown whatever they are.
      note: why, for `list`.
      dry_run: only tell.
    """
    path = storage.local(path)
    if name:
        versions.check_name(name)
    with versions.changing(path, dry_run=dry_run):
        store = EpisodeStore.open(path)
        keep = query.select_rows(store.index, where)
        return _commit(store, keep, "filter", _detail(where=where, note=note), name=name, dry_run=dry_run)


def restore(path: str | Path, version: int | str, *, note: str = "", dry_run: bool = False) -> Change:
    """Makes a version that shows again what an older one shows, beside what the head does.

    Raises:
      StoreError: there is no such version, or it was compacted away.
    """
    path = storage.local(path)
    with versions.changing(path, dry_run=dry_run):
        store = EpisodeStore.open(path)
        old = EpisodeStore.open(path, version=version)
        start = {
            index.files.name: first for index, first in zip(store.index.segments, store.index.starts, strict=False)
        }
        rows = [store.index.rows()]
        for number, index in enumerate(old.index.segments):
            if index.files.name not in start:
                raise StoreError(f"store {path}: segment {index.files.name} of version {version} is no longer shown")
            rows.append(old.index.rows_of(number) + start[index.files.name])
        keep = np.unique(np.concatenate(rows))
        return _commit(store, keep, "restore", _detail(version=old.view.number, note=note), dry_run=dry_run)


def split(path: str | Path, parts: Mapping[str, float], *, dry_run: bool = False) -> list[Change]:
    """Makes a view for each part; no two parts have episodes of equal content, of one seed of a task, or of one group.

    Args:
      path: the store.
      parts: name -> share, which sum to 1. The same episodes get the same parts whenever and wherever it is run.

    Raises:
      UserError: the shares or names are no good, or the episodes themselves declare a split that leaks.
    """
    path = storage.local(path)
    splitting.check_parts(parts)
    for name in parts:
        versions.check_name(name)
    with versions.changing(path, dry_run=dry_run):
        store = EpisodeStore.open(path)
        chosen = splitting.assign(store.index.columns(splitting.COLUMNS), parts)
        rows = store.index.rows()
        detail = {"parts": dict(parts)}
        return [
            _commit(store, rows[chosen == number], "split", detail, name=name, dry_run=dry_run)
            for number, name in enumerate(parts)
        ]


def _row(store: EpisodeStore, episode_id: str) -> int:
    row = store.index.find(episode_id)
    if row is None:
        row = store.index.find(store.find_episode(episode_id))
        assert row is not None
    return row


def _detail(**facts: Any) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value not in (None, "", [])}


def _commit(
    store: EpisodeStore,
    keep: np.ndarray,
    operation: str,
    detail: Mapping[str, Any],
    *,
    name: str = "",
    dry_run: bool,
) -> Change:
    """Adds the version that shows `keep` of what the head has, unless nothing would change."""
    index = store.index
    before = index.rows()
    removed = np.setdiff1d(before, keep, assume_unique=True)
    changed = bool(name) or len(removed) > 0 or len(keep) != len(before)
    number = None
    if changed and not dry_run:
        number = versions.commit(
            storage.local(store.path),
            operation=operation,
            detail=detail,
            extent=index.extent(),
            excluded=index.leave_out(keep),
            hidden=sorted(store.view.hidden),
            name=name,
        ).number
    counts = pc.value_counts(index.columns(["task_id"], removed)["task_id"]).to_pylist()
    tasks = {entry["values"]: entry["counts"] for entry in sorted(counts, key=lambda entry: str(entry["values"]))}
    return Change(version=number, name=name, kept=len(keep), removed=len(removed), tasks=tasks)
