"""Frees what no version has to show any more: deleted episodes, copies, old versions; joins small segments.

New segments come first; their episodes are copies, which change nothing for a reader. Then one version, which hides
the segments that are done with and is the oldest from then on; then files go. Killed anywhere, the store shows the
same episodes, and running it again ends the work.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from episode_store import command_line, segment, storage, versions
from episode_store.errors import CorruptionError
from episode_store.segment import SegmentFiles, SegmentIndex
from episode_store.segment_copy import SegmentBuilder, remove_segment, temporary_data
from episode_store.store import EpisodeStore
from episode_store.writer import MAX_SEGMENT_BYTES, MAX_SEGMENT_EPISODES, recover

# Whole segments smaller than this are joined: each costs a reader about a millisecond when it opens the store.
SMALL_SEGMENT_BYTES = 64 << 20


@dataclasses.dataclass(kw_only=True)
class CompactReport:
    """What `compact` did, or would do.

    Attributes:
      version: number of the new version; None when there was nothing to do, or in a dry run.
      episodes: that stay.
      removed: records that go: deleted episodes and copies.
      rewritten, dropped: segments.
      freed_bytes: less on the disk; in a dry run what is expected. Data shared with another store by hard links stays
        on the disk until that store lets go of it too.
      gone: versions that can no longer be opened.
      waiting: segments with something to remove that a writer still has open.
    """

    version: int | None = None
    episodes: int = 0
    removed: int = 0
    rewritten: int = 0
    dropped: int = 0
    freed_bytes: int = 0
    gone: list[str] = dataclasses.field(default_factory=list)
    waiting: list[str] = dataclasses.field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return dataclasses.asdict(self)


def compact(
    path: str | Path,
    *,
    small_bytes: int = SMALL_SEGMENT_BYTES,
    dry_run: bool = False,
    progress: bool = False,
) -> CompactReport:
    """Removes what the newest version does not show, and all older versions and views.

    Writers may be at work. Readers that were opened before say that the store was compacted when they look for a
    segment that is gone.

    Args:
      path: the store.
      small_bytes: whole segments smaller than this are joined.
      dry_run: only tell.
      progress: show a progress bar.

    Raises:
      CorruptionError: a record that would be copied is damaged: `repair` first. Nothing was removed.
    """
    path = storage.local(path)
    with versions.changing(path, dry_run=dry_run):
        if not dry_run:
            recover(path)
        store = EpisodeStore.open(path)
        report = CompactReport(episodes=len(store))
        rewrite, drop, keep = _plan(store, small_bytes, report)
        numbers = versions.numbers(path)
        hidden = [SegmentFiles(path / segment.SEGMENT_FOLDER, name) for name in sorted(store.view.hidden)]
        hidden = [files for files in hidden if any(file.exists() for file in (files.data, files.index, files.seal))]
        nothing = not (rewrite or drop or hidden) and len(numbers) < 2
        report.gone = _gone(path) if not nothing else []
        report.freed_bytes = sum(part.data_bytes for part in drop)
        for number, part in rewrite:
            sizes = part.columns(["record_bytes"])["record_bytes"].to_numpy()
            report.freed_bytes += part.data_bytes - int(sizes[store.index.rows_of(number)].sum())
        if dry_run or nothing:
            return report
        built = _rewrite(store, rewrite, progress=progress)
        index = store.index
        excluded = index.leave_out(index.rows())
        retired = [part.files for part in (*drop, *(part for _, part in rewrite))]
        names = {part.files.name for part in keep}
        version = versions.commit(
            path,
            operation="compact",
            detail={"episodes": report.episodes, "removed": report.removed},
            extent={name: size for name, size in index.extent().items() if name in names} | built,
            excluded={name: offsets for name, offsets in excluded.items() if name in names},
            hidden=[files.name for files in (*retired, *hidden)],
            collapse=True,
        )
        report.version = version.number
        for number in numbers:
            versions.seal_path(path, number).unlink(missing_ok=True)
        for file in versions.unsealed(path):
            file.unlink(missing_ok=True)
        for files in (*retired, *hidden):
            remove_segment(files)
        _clear(path)
        return report


def _plan(
    store: EpisodeStore, small_bytes: int, report: CompactReport
) -> tuple[list[tuple[int, SegmentIndex]], list[SegmentIndex], list[SegmentIndex]]:
    """Segments to rewrite (with their numbers), to drop, to keep."""
    rewrite, small, drop, keep = [], [], [], []
    for number, index in enumerate(store.index.segments):
        visible = len(store.index.rows_of(number))
        removed = index.num_rows - visible
        if not index.sealed:
            keep.append(index)
            if removed:
                report.waiting.append(index.files.name)
            continue
        report.removed += removed
        if not visible:
            drop.append(index)
        elif removed or index.gaps:
            rewrite.append((number, index))
        elif index.data_bytes < small_bytes:
            small.append((number, index))
        else:
            keep.append(index)
    if len(small) + len(rewrite) > 1:
        rewrite = sorted(rewrite + small, key=lambda item: item[0])
    else:
        keep += [index for _, index in small]
    report.rewritten, report.dropped = len(rewrite), len(drop)
    return rewrite, drop, keep


def _rewrite(store: EpisodeStore, rewrite: list[tuple[int, SegmentIndex]], *, progress: bool) -> dict[str, int]:
    """Copies what is visible into new segments; name -> bytes of each."""
    built: list[SegmentBuilder] = []
    total = sum(index.data_bytes for _, index in rewrite)
    bar = command_line.progress(description="compact", total=total, unit="B") if progress else None
    with contextlib.ExitStack() as stack:
        builder: SegmentBuilder | None = None
        for number, index in rewrite:
            table = index.table.take(pa.array(store.index.rows_of(number)))
            try:
                data = segment.map_data(index.files.data)
                for first in range(0, table.num_rows, 1_000):
                    part = table.slice(first, 1_000)
                    size = int(np.sum(part["record_bytes"].to_numpy()))
                    full = builder is not None and (
                        builder.data_bytes + size > MAX_SEGMENT_BYTES
                        or builder.num_rows + part.num_rows > MAX_SEGMENT_EPISODES
                    )
                    if builder is None or full:
                        stack.close()
                        builder = stack.enter_context(SegmentBuilder(storage.local(store.path)))
                        built.append(builder)
                    builder.add(data, part)
            except CorruptionError as error:
                for done in built[:-1]:
                    remove_segment(done.files)
                raise CorruptionError(
                    f"{index.files.data}: {error}; nothing was removed; run `python -m episode_store repair --store "
                    f"{store.path}` first"
                ) from None
            if bar is not None:
                bar.update(index.data_bytes)
    if bar is not None:
        bar.close()
    return {builder.files.name: builder.data_bytes for builder in built}


def _gone(path: Path) -> list[str]:
    """What can no longer be opened afterwards."""
    found = versions.read_versions(path)
    first = ["0"] if not found or found[0].oldest == 0 else []
    return first + [version.name or str(version.number) for version in found]


def _clear(path: Path) -> None:
    """Removes what builders left that were killed."""
    for file in (path / segment.SEGMENT_FOLDER).glob(".*.data.tmp"):
        files = SegmentFiles(file.parent, file.name[1:].removesuffix(".data.tmp"))
        if file == temporary_data(files) and not segment.is_alive(files):
            file.unlink(missing_ok=True)
