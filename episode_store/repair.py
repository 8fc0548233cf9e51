"""Makes a damaged store whole again: indexes are made anew from the data, what is damaged is set aside with reasons.

Nothing is destroyed. A damaged file, or the bytes of a damaged record, go to `quarantine/damaged/`, and a line in the
quarantine table says why. The data files of segments stay as they are: their new index leaves the damaged ranges out.
Every step can be killed; the same command then ends the work.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa

from episode_store import checked_json, command_line, layout, segment, storage, versions
from episode_store.errors import CorruptionError, StoreError
from episode_store.files import sync_folder, write_bytes
from episode_store.record_format import RECORD_MAGIC, RecordHeader, padding_of, parse_header
from episode_store.segment import ALIGNMENT, DATA_HEADER, INDEX_SCHEMA, SegmentFiles
from episode_store.segment_copy import SegmentBuilder, share_file
from episode_store.writer import recover

DAMAGED_FOLDER = "damaged"
_FOUND_BYTES = 1 << 26


@dataclasses.dataclass(kw_only=True)
class RepairReport:
    """What `repair` found and did, or would do.

    Attributes:
      repaired: one sentence each.
      lost: what cannot be made again, one sentence each; its bytes are set aside.
      moved: files that were set aside, from the store's folder.
      episodes: readable in the segments that were repaired.
    """

    repaired: list[str] = dataclasses.field(default_factory=list)
    lost: list[str] = dataclasses.field(default_factory=list)
    moved: list[str] = dataclasses.field(default_factory=list)
    episodes: int = 0

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {**dataclasses.asdict(self), "ok": not self.lost}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Gap:
    """A damaged byte range of a data file, and what is known of the episode that was there.

    With `whole` only zeros between its columns were changed: the episode itself can be kept.
    """

    start: int
    end: int
    reason: str
    row: dict[str, Any]
    whole: bool = False


def repair(path: str | Path, *, dry_run: bool = False, progress: bool = False) -> RepairReport:
    """Repairs a store. Segments of writers at work are left alone.

    Args:
      path: the store.
      dry_run: only tell.
      progress: show a progress bar.

    Raises:
      StoreError: the folder is not a store.
    """
    path = storage.local(path)
    return _Repair(path, dry_run=dry_run).run(progress=progress)


class _Repair:
    def __init__(self, path: Path, *, dry_run: bool) -> None:
        self.path = path
        self.dry_run = dry_run
        self.report = RepairReport()
        self._excluded: versions.Excluded = {}

    def run(self, *, progress: bool) -> RepairReport:
        self._marker()
        with versions.changing(self.path, dry_run=self.dry_run):
            self._tasks()
            hidden = self._versions()
            self._quarantine()
            if not self.dry_run:
                for sentence in recover(self.path):
                    if "damaged" not in sentence:
                        self.report.repaired.append(sentence)
            found = [files for files in segment.list_segments(self.path) if files.name not in hidden]
            bar = command_line.progress(description="repair", total=len(found), unit="segments") if progress else None
            for files in found:
                if not segment.is_alive(files):
                    self._segment(files)
                if bar is not None:
                    bar.update()
            if bar is not None:
                bar.close()
        return self.report

    # --- the small files ---------------------------------------------------------------------------------------

    def _marker(self) -> None:
        """`store.json`, which is the same in every store of this format."""
        try:
            layout.check_store(self.path)
        except CorruptionError as error:
            if not (self.path / segment.SEGMENT_FOLDER).is_dir():
                raise
            self._tell(f"{layout.MARKER}: {self._short(error)}: written again")
            self._set_aside(self.path / layout.MARKER)
            if not self.dry_run:
                layout.create_store_marker(self.path)

    def _tasks(self) -> None:
        for file in layout.task_files(self.path):
            try:
                layout.read_task(file)
            except CorruptionError as error:
                self.report.lost.append(
                    f"{self._short(error)}: set aside; its episodes can be read again once the task is added again, "
                    "by a writer or by `merge` from a store that has it"
                )
                self._set_aside(file)
                self._remove(file)

    def _versions(self) -> frozenset[str]:
        """Checks the versions; returns the segments that the newest whole one hides."""
        broken: list[int] = []
        hidden: frozenset[str] = frozenset()
        numbers = versions.numbers(self.path)
        for number in numbers:
            try:
                version = versions.read_version(self.path, number)
                versions.read_excluded(self.path, version)
                if not version.name:
                    hidden = frozenset(version.hidden)
            except (CorruptionError, FileNotFoundError) as error:
                self.report.lost.append(
                    f"{self._short(error)}: version {number} is set aside; what it left out shows again where no "
                    "other version leaves it out"
                )
                broken.append(number)
        for number in broken:
            for file in (versions.seal_path(self.path, number), versions.excluded_path(self.path, number)):
                self._set_aside(file)
                self._remove(file)
        for file in versions.unsealed(self.path):
            if int(file.stem) not in broken:
                self._tell(f"{self._name(file)}: of a version that was never finished, or has lost its seal: set aside")
                self._set_aside(file)
                self._remove(file)
        head = versions.head_of([v for v in map(self._whole_version, numbers) if v and v.number not in broken])
        if broken and not self.dry_run and max(broken) > (head.number if head else 0):
            # A later version must not get the number of a lost one.
            versions.commit(
                self.path,
                operation="repair",
                detail={"lost_versions": broken},
                extent=head.extent if head else {},
                excluded=versions.read_excluded(self.path, head) if head else {},
                hidden=head.hidden if head else (),
                above=max(broken),
            )
        if head:
            self._excluded = versions.read_excluded(self.path, head)
        return hidden

    def _whole_version(self, number: int) -> versions.Version | None:
        try:
            return versions.read_version(self.path, number)
        except (StoreError, FileNotFoundError):
            return None

    def _quarantine(self) -> None:
        """Keeps the whole lines of a damaged table of refused episodes."""
        for file in sorted((self.path / layout.QUARANTINE_FOLDER).glob("*.jsonl")):
            lines, _ = checked_json.split_lines(file.read_bytes())
            whole = [line for line in lines if checked_json.is_line(line)]
            if len(whole) < len(lines):
                self._tell(f"{self._name(file)}: {len(lines) - len(whole)} damaged lines: set aside")
                self._set_aside(file)
                if not self.dry_run:
                    write_bytes(file, b"".join(whole))

    # --- segments ----------------------------------------------------------------------------------------------

    def _segment(self, files: SegmentFiles) -> None:
        try:
            index = segment.load_index(files)
            rows, problem = index.table.to_pylist(), ""
        except CorruptionError as error:
            index, rows, problem = None, None, self._short(error)
        if index is not None and not index.sealed:
            # Only in a dry run: `recover` has sealed it otherwise.
            self._tell(f"segment {files.name}: its writer ended without closing it: {index.num_rows} episodes kept")
            return
        data = _map(files.data)
        if data is None:
            self._lose_segment(files, rows)
            return
        known_gaps = index.gaps if index else []
        good, gaps = _scan(data, rows, known_gaps)
        header_whole = data[: len(DATA_HEADER)].tobytes() == DATA_HEADER
        if index is not None and not gaps and good == rows and header_whole and index.data_bytes == len(data):
            return
        table = pa.Table.from_pylist([{**row, "segment": files.name} for row in good], schema=INDEX_SCHEMA)
        if problem:
            self._tell(f"{problem}: index made again from the data, {table.num_rows} episodes")
        elif good != rows and not gaps:
            self._tell(f"{self._name(files.data)}: its index differs from the records: made again")
        if not header_whole:
            self._tell(f"{self._name(files.data)}: its header was changed: written again")
        for gap in gaps:
            if gap.whole:
                self._tell(f"{self._name(files.data)}: {_describe(gap)}: the episode is whole and was copied")
            else:
                self.report.lost.append(f"{self._name(files.data)}: {_describe(gap)}")
        self.report.episodes += table.num_rows
        ranges = {*known_gaps, *((gap.start, gap.end) for gap in gaps if gap.start < gap.end)}
        self._rewrite_index(files, data, table, gaps, sorted(ranges), header_whole=header_whole)

    def _rewrite_index(
        self,
        files: SegmentFiles,
        data: np.ndarray,
        table: pa.Table,
        gaps: list[_Gap],
        ranges: list[tuple[int, int]],
        *,
        header_whole: bool,
    ) -> None:
        for gap in gaps:
            if gap.start < gap.end:
                self._keep_bytes(f"{files.name}-{gap.start}.record", data[gap.start : gap.end])
        old = [files.seal, files.journal, *sorted(files.folder.glob(f"{files.name}*.parquet"))]
        for file in old:
            self._set_aside(file)
        if self.dry_run:
            return
        if not header_whole:
            self._set_aside(files.data)
            self._fix_header(files)
        self._copy_whole(files, data, gaps)
        if gaps:
            self._note(files, gaps)
        generation = 1 + max([0, *(int(match[1]) for file in old if (match := _GENERATION.search(file.name)))])
        if not any(file.suffix == ".parquet" for file in old):
            generation = 0
        segment.write_seal(files, table, len(data), generation=generation, gaps=ranges)
        for file in old:
            if file.suffix == ".parquet":
                file.unlink(missing_ok=True)
        sync_folder(files.folder)

    def _copy_whole(self, files: SegmentFiles, data: np.ndarray, gaps: list[_Gap]) -> None:
        """Copies episodes that are whole but for changed padding into a segment of their own; not deleted ones.

        Killed after this, the copies are copies of an id that an older segment has, which readers leave out.
        """
        deleted = set(self._excluded.get(files.name, np.zeros(0, np.int64)).tolist())
        whole = [gap for gap in gaps if gap.whole and gap.start not in deleted]
        if whole:
            with SegmentBuilder(self.path) as builder:
                for gap in whole:
                    row = {**gap.row, "segment": files.name}
                    builder.add(data, pa.Table.from_pylist([row], schema=INDEX_SCHEMA))

    def _fix_header(self, files: SegmentFiles) -> None:
        """A copy of the data file with the right header takes its place."""
        temporary = files.data.with_name(f".{files.data.name}.repair.tmp")
        shutil.copyfile(files.data, temporary)
        with open(temporary, "r+b") as file:
            file.write(DATA_HEADER)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, files.data)
        sync_folder(files.folder)

    def _lose_segment(self, files: SegmentFiles, rows: list[dict[str, Any]] | None) -> None:
        """A data file that is missing, or too short to hold anything: its index is set aside."""
        if rows == []:
            return
        count = "its" if rows is None else str(len(rows))
        self.report.lost.append(f"{self._name(files.data)}: missing or empty: {count} episodes are lost")
        gaps = [
            _Gap(start=row["offset"], end=row["offset"], reason="the file is missing", row=row) for row in rows or []
        ]
        files_there = [files.data, files.journal, *sorted(files.folder.glob(f"{files.name}*.parquet")), files.seal]
        for file in files_there:
            self._set_aside(file)
        if not self.dry_run:
            if gaps:
                self._note(files, gaps)
            for file in files_there:
                self._remove(file)

    # --- setting aside -----------------------------------------------------------------------------------------

    def _set_aside(self, file: Path) -> None:
        """Links or copies a file into `quarantine/damaged`, under a name that tells where it was."""
        if not file.exists():
            return
        folder = self.path / layout.QUARANTINE_FOLDER / DAMAGED_FOLDER
        checksum = _checksum(file)
        target = folder / f"{self._name(file).replace('/', '--')}.{checksum:08x}"
        self.report.moved.append(self._name(target))
        if not self.dry_run and not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            share_file(file, target, copy=False)

    def _keep_bytes(self, name: str, content: np.ndarray) -> None:
        target = self.path / layout.QUARANTINE_FOLDER / DAMAGED_FOLDER / name
        self.report.moved.append(self._name(target))
        if not self.dry_run:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(target, content.tobytes())

    def _note(self, files: SegmentFiles, gaps: list[_Gap]) -> None:
        """Lines in the quarantine table, one a damaged record."""
        lines = []
        for gap in gaps:
            facts = {name: str(gap.row.get(name, "")) for name in ("task_id", "agent_id", "collection_index")}
            seed = gap.row.get("seed")
            reason = f"{self._name(files.data)}: {_describe(gap)}"
            lines.append(
                checked_json.encode_line({**facts, "seed": None if seed is None else str(seed), "reason": reason})
            )
        content = b"".join(lines)
        folder = self.path / layout.QUARANTINE_FOLDER
        folder.mkdir(exist_ok=True)
        # Named by its content, so that a second run writes the same file.
        write_bytes(folder / f"{files.name}-{google_crc32c.value(content):08x}.jsonl", content)

    def _remove(self, file: Path) -> None:
        if not self.dry_run:
            file.unlink(missing_ok=True)

    def _tell(self, sentence: str) -> None:
        self.report.repaired.append(sentence)

    def _name(self, file: Path) -> str:
        return str(file.relative_to(self.path))

    def _short(self, error: Exception) -> str:
        return str(error).replace(f"{self.path}/", "")


_GENERATION = re.compile(r"\.r([0-9]+)\.parquet$")


def _describe(gap: _Gap) -> str:
    name = f"episode {gap.row['episode_id']} of {gap.row['task_id']}" if gap.row else "no known episode"
    return f"bytes {gap.start} to {gap.end}, {name}: {gap.reason}"


def _map(path: Path) -> np.ndarray | None:
    """A data file, whatever its header; None when it is missing or too short to hold anything."""
    try:
        if path.stat().st_size < len(DATA_HEADER):
            return None
    except FileNotFoundError:
        return None
    return np.memmap(path, np.uint8, mode="r")


def _scan(
    data: np.ndarray, rows: list[dict[str, Any]] | None, known_gaps: list[tuple[int, int]]
) -> tuple[list[dict[str, Any]], list[_Gap]]:
    """Index rows of the records that are whole, and what is damaged beside what is known to be.

    Args:
      data: uint8 [n], the data file.
      rows: of the index, where it could be read.
      known_gaps: left out by an earlier repair.
    """
    places = {row["offset"]: row for row in rows or []}
    skip = dict(known_gaps)
    good, gaps = [], []
    position = len(DATA_HEADER)
    while position < len(data):
        if position in skip:
            position = skip[position]
            continue
        record, row = data[position:], places.pop(position, {})
        try:
            header = parse_header(record)
        except CorruptionError as error:
            end = position + row["record_bytes"] if row else _next_record(data, position + ALIGNMENT)
            end = min(end, len(data))
            gaps.append(_Gap(start=position, end=end, reason=str(error), row=row))
            position = end
            continue
        end = position + header.record_bytes
        whole = False
        try:
            found = segment.index_row(header, row.get("segment", ""), position)
            segment.check_blocks(record, header)
            whole = True
            _check_padding(record, header)
            good.append(found)
        except CorruptionError as error:
            known = found if whole else row or {"episode_id": header.episode_id, "task_id": header.task_id}
            gaps.append(_Gap(start=position, end=end, reason=str(error), row=known, whole=whole))
        position = end
    cut = [row for offset, row in sorted(places.items()) if offset >= len(data)]
    gaps += [_Gap(start=len(data), end=len(data), reason="the file is cut short", row=row) for row in cut]
    return good, gaps


def _check_padding(record: np.ndarray, header: RecordHeader) -> None:
    for start, end in padding_of(header):
        if record[start:end].any():
            raise CorruptionError(f"padding at bytes {start} to {end} of the record was changed")


def _next_record(data: np.ndarray, start: int) -> int:
    """The next place where a whole header begins, or the end."""
    magic = np.frombuffer(RECORD_MAGIC, "<u8")[0]
    for first in range(start, len(data), _FOUND_BYTES):
        part = data[first : first + _FOUND_BYTES]
        part = part[: len(part) // ALIGNMENT * ALIGNMENT]
        words = np.ascontiguousarray(part).view("<u8")[:: ALIGNMENT // 8]
        for place in np.flatnonzero(words == magic).tolist():
            position = first + place * ALIGNMENT
            try:
                parse_header(data[position:])
            except CorruptionError:
                continue
            return position
    return len(data)


def _checksum(file: Path) -> int:
    checksum = 0
    with open(file, "rb") as content:
        while part := content.read(1 << 22):
            checksum = google_crc32c.extend(checksum, part)
    return checksum
