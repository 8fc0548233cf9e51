"""Reads every byte of a store and names what is damaged: files, and the episodes in them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from episode_store import checked_json, command_line, layout, segment, storage, versions
from episode_store.errors import CorruptionError, EpisodeError, StoreError
from episode_store.record_format import padding_of, parse_header
from episode_store.segment import DATA_HEADER, SegmentIndex
from episode_store.storage import Data, StorePath
from episode_store.store import EpisodeStore


@dataclasses.dataclass(frozen=True, kw_only=True)
class Damage:
    """One damaged thing.

    Attributes:
      file: path from the store's folder.
      problem: what is wrong.
      episode_id, task_id: of the damaged episode; "" when it is the file as a whole.
    """

    file: str
    problem: str
    episode_id: str = ""
    task_id: str = ""

    def describe(self) -> str:
        """One line."""
        episode = f" episode {self.episode_id} of {self.task_id}" if self.episode_id else ""
        return f"{self.file}:{episode} {self.problem}"


@dataclasses.dataclass(kw_only=True)
class VerifyReport:
    """What `verify_store` found."""

    num_files: int = 0
    num_episodes: int = 0
    num_bytes: int = 0
    damages: list[Damage] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {**dataclasses.asdict(self), "ok": not self.damages}


def verify_store(path: str | StorePath, tasks: Sequence[str] | None = None, *, progress: bool = False) -> VerifyReport:
    """Checks a whole store.

    Args:
      path: the store's folder, or a URL.
      tasks: patterns of task ids whose episodes are read; all by default. Indexes are always checked.
      progress: show a progress bar.

    Raises:
      StoreError: the folder is not a store, or no task matches.
    """
    path = storage.locate(path)
    report = VerifyReport()
    try:
        layout.check_store(path)
    except CorruptionError as error:
        report.damages.append(Damage(file=layout.MARKER, problem=_without_path(error, path)))
        return report
    _verify_tasks(path, report)
    _verify_quarantine(path, report)
    hidden = _verify_versions(path, report)
    segments = [files for files in segment.list_segments(path) if files.name not in hidden]
    indexes = [index for files in segments if (index := _verify_index(path, files, report))]
    store = EpisodeStore.open(path, damaged="skip")
    wanted = set(store.find_tasks(tasks)) if tasks else None
    total = sum(index.table.num_rows for index in indexes)
    bar = command_line.progress(description="verify", total=total, unit="episodes") if progress else None
    for index in indexes:
        for _ in _verify_segment(store, index, wanted, report):
            if bar is not None:
                bar.update()
    if bar is not None:
        bar.close()
    folders = (layout.TASK_FOLDER, segment.SEGMENT_FOLDER, versions.VERSION_FOLDER)
    report.num_files = 1 + sum(len(storage.names(path / folder)) for folder in folders)
    report.num_files += len(layout.quarantine_files(path))
    return report


def _verify_tasks(path: StorePath, report: VerifyReport) -> None:
    for file in layout.task_files(path):
        try:
            layout.read_task(file)
        except CorruptionError as error:
            name = f"{layout.TASK_FOLDER}/{file.name}"
            report.damages.append(Damage(file=name, problem=_without_path(error, path)))


def _verify_quarantine(path: StorePath, report: VerifyReport) -> None:
    for file in layout.quarantine_files(path):
        name = f"{layout.QUARANTINE_FOLDER}/{file.name}"
        lines, torn = checked_json.split_lines(storage.read_bytes(file, layout.MAX_QUARANTINE_BYTES))
        if torn:
            report.notes.append(f"{name}: a line cut short after {len(torn)} bytes, by a writer that was killed")
        for number, line in enumerate(lines, start=1):
            if not checked_json.is_line(line):
                report.damages.append(Damage(file=name, problem=f"line {number}: its checksum does not match"))


def _verify_versions(path: StorePath, report: VerifyReport) -> frozenset[str]:
    """Checks every version; returns the segments that the newest one hides."""
    hidden: frozenset[str] = frozenset()
    oldest = 0
    for number in versions.numbers(path):
        try:
            version = versions.read_version(path, number)
            versions.read_excluded(path, version)
        except (StoreError, FileNotFoundError) as error:
            name = f"{versions.VERSION_FOLDER}/{number:06d}"
            report.damages.append(Damage(file=name, problem=_without_path(error, path)))
        else:
            hidden = hidden if version.name else frozenset(version.hidden)
            oldest = max(oldest, version.oldest)
    for file in versions.unsealed(path, oldest):
        problem = "has no seal: a version is lost, or was never finished; `repair` sets it aside"
        report.damages.append(Damage(file=f"{versions.VERSION_FOLDER}/{file.name}", problem=problem))
    there = [name for name in sorted(hidden) if segment.SegmentFiles(path / segment.SEGMENT_FOLDER, name).data.exists()]
    if there:
        report.notes.append(f"{len(there)} segments wait for the end of a merge or compact that was interrupted")
    return hidden


def _verify_index(path: StorePath, files: segment.SegmentFiles, report: VerifyReport) -> SegmentIndex | None:
    try:
        index = segment.load_index(files)
    except CorruptionError as error:
        name = f"{segment.SEGMENT_FOLDER}/{files.name}"
        report.damages.append(Damage(file=name, problem=_without_path(error, path)))
        return None
    report.notes += [f"segment {files.name}: its writer ended without closing it: {note}" for note in index.notes]
    if index.alive:
        report.notes.append(f"segment {files.name}: is being written; checked up to {index.data_bytes} bytes")
    return index


def _verify_segment(
    store: EpisodeStore, index: SegmentIndex, wanted: set[str] | None, report: VerifyReport
) -> Iterable[None]:
    """Checks one data file; yields once an episode."""
    name = f"{segment.SEGMENT_FOLDER}/{index.files.data.name}"
    try:
        data = segment.map_data(index.files.data)
    except CorruptionError as error:
        report.damages.append(Damage(file=name, problem=_without_path(error, store.path)))
        data = np.zeros(0, np.uint8)
    size = len(data)
    if index.sealed and size and size != index.data_bytes:
        report.damages.append(Damage(file=name, problem=f"{size} bytes, expected {index.data_bytes}"))
    report.num_bytes += size
    end = len(DATA_HEADER)
    gaps = dict(index.gaps)
    for row in index.table.to_pylist():
        while end in gaps:
            report.notes.append(f"{name}: bytes {end} to {gaps[end]} are damaged and left out; see the quarantine")
            end = gaps[end]
        if row["offset"] != end:
            problem = f"the index leaves out bytes {end} to {row['offset']}"
            report.damages.append(Damage(file=name, problem=problem))
        end = row["offset"] + row["record_bytes"]
        if wanted is None or row["task_id"] in wanted:
            report.num_episodes += 1
            try:
                _verify_episode(store, data, row)
            except (StoreError, EpisodeError) as error:
                problem = _without_path(error, store.path)
                damage = Damage(file=name, problem=problem, episode_id=row["episode_id"], task_id=row["task_id"])
                report.damages.append(damage)
        yield
    while end in gaps:
        report.notes.append(f"{name}: bytes {end} to {gaps[end]} are damaged and left out; see the quarantine")
        end = gaps[end]
    if index.sealed and end != index.data_bytes:
        problem = f"the index leaves out bytes {end} to {index.data_bytes}"
        report.damages.append(Damage(file=name, problem=problem))


def _verify_episode(store: EpisodeStore, data: Data, row: dict[str, Any]) -> None:
    """Checks one record: checksums, padding, index row, the task's contract, and both hashes over what was read."""
    record = storage.fetch(data[row["offset"] : row["offset"] + row["record_bytes"]])
    if len(record) < row["record_bytes"]:
        raise CorruptionError(f"the file is cut short, {len(record)} of the record's {row['record_bytes']} bytes left")
    header = parse_header(record)
    segment.check_blocks(record, header)
    if segment.index_row(header, row["segment"], row["offset"]) != row:
        raise CorruptionError("the record differs from its row in the index")
    for start, end in padding_of(header):
        if record[start:end].any():
            raise CorruptionError(f"bytes {start} to {end} of the record: padding was changed")
    episode = store.read_record(record, header)
    task = store.tasks.get(header.task_id)
    if task is not None:
        episode.validate(task)
    content_hash = episode.content_hash()
    if content_hash != header.content_hash or episode.episode_id(content_hash) != header.episode_id:
        raise CorruptionError("the content does not have the hash it was stored under")
    json.loads(header.metadata_json)


def _without_path(error: Exception, path: StorePath) -> str:
    return str(error).replace(f"{path}/", "")
