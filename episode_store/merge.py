"""Brings the episodes of other stores into one: whole segments by hard link or copy, nothing is encoded again.

Either all of a merge is visible or none. A first version names the segments that are on their way and hides them; the
last one shows them. A merge that was killed is taken up where it was when it is run again; `compact` clears what an
abandoned one left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from episode_store import command_line, layout, segment, storage, versions
from episode_store.errors import CorruptionError, StoreError, UserError
from episode_store.segment import SegmentFiles, SegmentIndex
from episode_store.segment_copy import SegmentBuilder, remove_segment, share_segment
from episode_store.store import EpisodeStore
from episode_store.task import TaskSpec


@dataclasses.dataclass(kw_only=True)
class MergeReport:
    """What `merge` did, or would do.

    Attributes:
      version: number of the new version; None when there was nothing to bring, or in a dry run.
      episodes: brought.
      duplicates: left out, because their ids are there already.
      segments: brought.
      linked: of these, how many share their data with the source by a hard link.
      bytes: of the segments' data files.
      tasks: new ones.
    """

    version: int | None = None
    episodes: int = 0
    duplicates: int = 0
    segments: int = 0
    linked: int = 0
    bytes: int = 0
    tasks: list[str] = dataclasses.field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Piece:
    """A segment of a source, the rows to show, and the segment's name here."""

    source: SegmentIndex
    rows: np.ndarray
    name: str


def merge(
    path: str | Path,
    sources: Sequence[tuple[str | Path, int | str | None]],
    *,
    copy: bool = False,
    dry_run: bool = False,
    progress: bool = False,
) -> MergeReport:
    """Brings what other stores show into the store at `path`, which is made when it is missing.

    Args:
      path: the store that grows. Writers may be at work on it.
      sources: stores, each with the version to take (None for the newest).
      copy: copy data files also where a hard link would do.
      dry_run: only tell.
      progress: show a progress bar.

    Raises:
      UserError: a task of two stores has the same id and another spec; nothing was changed.
      StoreError: a store is missing or damaged.
    """
    path = storage.local(path)
    opened = [EpisodeStore.open(storage.local(source), version=version) for source, version in sources]
    if any(storage.local(source).resolve() == path.resolve() for source, _ in sources):
        raise UserError(f"merge: store {path} is both source and target")
    exists = path.exists() and any(path.iterdir()) if not path.is_file() else True
    if dry_run and not exists:
        tasks = _new_tasks({}, opened)
        report, _, _ = _plan(None, opened)
        report.tasks = sorted(tasks)
        return report
    if exists:
        layout.check_store(path)
        _new_tasks(EpisodeStore.open(path).tasks, opened)  # refuses before anything is made
    else:
        _new_tasks({}, opened)
        layout.create_store(path)
    with versions.changing(path, dry_run=dry_run):
        return _merge(path, opened, copy=copy, dry_run=dry_run, progress=progress)


def _merge(path: Path, sources: Sequence[EpisodeStore], *, copy: bool, dry_run: bool, progress: bool) -> MergeReport:
    target = EpisodeStore.open(path)
    tasks = _new_tasks(target.tasks, sources)
    report, pieces, shown = _plan(target, sources)
    report.tasks = sorted(tasks)
    if dry_run:
        return report
    for task in tasks.values():
        layout.create_task(path, task)
    if not report.episodes:
        return report
    detail = {"sources": [f"{source.path.name}, version {source.view.number}" for source in sources]}
    names = {piece.name for piece in pieces}
    leftovers = set(target.view.hidden)
    extent, index = target.index.extent(), target.index
    if not names <= leftovers:
        versions.commit(
            path,
            operation="merge begun",
            detail=detail,
            extent=extent,
            excluded=index.leave_out(index.rows()),
            hidden=sorted(leftovers | names),
        )
    folder = path / segment.SEGMENT_FOLDER
    for name in leftovers - names:
        remove_segment(SegmentFiles(folder, name))
    excluded = index.leave_out(shown)
    bar = command_line.progress(description="merge", total=report.bytes, unit="B") if progress else None
    for piece in pieces:
        if piece.source.sealed:
            report.linked += share_segment(piece.source, SegmentFiles(folder, piece.name), copy=copy)
            excluded[piece.name] = _left_out(piece)
        else:
            _build(path, piece)
        if bar is not None:
            bar.update(piece.source.data_bytes)
    if bar is not None:
        bar.close()
    version = versions.commit(
        path,
        operation="merge",
        detail={**detail, "episodes": report.episodes, "duplicates": report.duplicates},
        hidden=(),
        extent=extent,
        excluded=excluded,
    )
    report.version = version.number
    return report


def _new_tasks(known: Any, sources: Sequence[EpisodeStore]) -> dict[str, TaskSpec]:
    """Tasks that the target lacks.

    Raises:
      UserError: two specs of one id.
    """
    tasks: dict[str, TaskSpec] = dict(known)
    for source in sources:
        for task_id, task in source.tasks.items():
            other = tasks.setdefault(task_id, task)
            if other != task:
                old, new = other.to_json(), task.to_json()
                name = next(name for name in new if new[name] != old[name])
                raise UserError(
                    f"merge: task {task_id}: {name} of store {source.path} differs: expected "
                    f"{layout.shorten(old[name])}, got {layout.shorten(new[name])}; nothing was merged"
                )
    return {task_id: task for task_id, task in tasks.items() if task_id not in known}


def _plan(target: EpisodeStore | None, sources: Sequence[EpisodeStore]) -> tuple[MergeReport, list[_Piece], np.ndarray]:
    """What to bring, and the target's own rows to show."""
    report = MergeReport()
    pieces: list[_Piece] = []
    known = [_fixed(target.index.halves)] if target else []
    shown = [target.index.rows()] if target else [np.zeros(0, np.int64)]
    own = {index.files.name: number for number, index in enumerate(target.index.segments)} if target else {}
    taken: set[str] = set()
    for source in sources:
        for number, index in enumerate(source.index.segments):
            rows = source.index.rows_of(number)
            ids = _fixed(source.index.halves_of(number)[rows])
            new = rows[~_is_in(ids, known)]
            report.duplicates += len(rows) - len(new)
            if not len(new):
                continue
            report.episodes += len(new)
            known.append(_fixed(source.index.halves_of(number)[new]))
            name = index.files.name if index.sealed else segment.new_segment_name()
            if name in own and target is not None:
                if _same(target.index.segments[own[name]], index):
                    # The very segment is here: show more of it.
                    shown.append(new + int(target.index.starts[own[name]]))
                    continue
                name = segment.new_segment_name()
            elif name in taken:
                name = segment.new_segment_name()
            taken.add(name)
            pieces.append(_Piece(source=index, rows=new, name=name))
            report.segments += 1
            report.bytes += index.data_bytes
    return report, pieces, np.unique(np.concatenate(shown))


def _same(mine: SegmentIndex, other: SegmentIndex) -> bool:
    if not mine.sealed or mine.num_rows < other.num_rows:
        return False
    ours, theirs = segment.read_seal(mine.files), segment.read_seal(other.files)
    return ours == theirs


def _fixed(halves: np.ndarray) -> pa.Array:
    buffer = pa.py_buffer(np.ascontiguousarray(halves).tobytes())
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(halves), [None, buffer])


def _is_in(ids: pa.Array, known: Sequence[pa.Array]) -> np.ndarray:
    found = np.zeros(len(ids), bool)
    if known:
        values = pa.concat_arrays(list(known))
        found = pc.is_in(ids, value_set=values).to_numpy(zero_copy_only=False)
    return found


def _left_out(piece: _Piece) -> np.ndarray:
    offsets = piece.source.columns(["offset"])["offset"].to_numpy()
    out = np.ones(len(offsets), bool)
    out[piece.rows] = False
    return offsets[out]


def _build(path: Path, piece: _Piece) -> None:
    """Copies the records of a segment that is not sealed."""
    try:
        with SegmentBuilder(path, piece.name) as builder:
            builder.add(segment.map_data(piece.source.files.data), piece.source.table.take(pa.array(piece.rows)))
    except CorruptionError as error:
        raise StoreError(f"{piece.source.files.data}: {error}; repair that store") from None
