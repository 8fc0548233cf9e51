"""Files of text of strangers, read in bounded memory: lines of .txt and .jsonl, plain or .zst, and rows of Parquet.

What is broken becomes a `Broken` in its place and reading goes on, so that one bad line costs one line.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from episode_store.errors import CorruptionError, UserError
from episode_store.formats.folders import check_row_group
from episode_store.formats.format import one_line

MAX_LINE_BYTES = 16 << 20
# A compressed file that unfolds to more than this times its size, beside the allowance, is taken for a bomb.
MAX_EXPANSION = 1_000
EXPANSION_ALLOWANCE = 64 << 20
_ROWS_AT_ONCE = 256
_DAMAGE = (pa.ArrowException, OSError, EOFError, ValueError, CorruptionError)

JSON_LINES = (".jsonl", ".jsonl.zst", ".ndjson")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Broken:
    """What could not be read, in place of a record."""

    where: str
    what: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One JSON object, row or text.

    Attributes:
      where: file and line or row.
      values: name -> value; a text file has the one value "text".
    """

    where: str
    values: dict[str, Any]


def find_files(source: Path, suffixes: Sequence[str]) -> list[Path]:
    """The source itself, or the files below it with one of these endings, sorted by path; never a link out of it."""
    if source.is_file():
        return [source] if source.name.endswith(tuple(suffixes)) else []
    found = (
        path for path in source.rglob("*") if path.name.endswith(tuple(suffixes)) and not path.name.startswith(".")
    )
    return sorted(path for path in found if path.is_file() and not path.is_symlink())


def records(source: Path, file: Path, columns: Sequence[str], *, unit: str = "file") -> Iterator[Record | Broken]:
    """The records of one file, by its ending.

    Args:
      source: for which `where` is relative.
      file: .txt, .jsonl or .ndjson (both also .zst), or .parquet.
      columns: of Parquet that are read, those of them that are there.
      unit: of .txt: what one record is, "file", "paragraph" or "line".
    """
    where = file.name if file == source else file.relative_to(source).as_posix()
    plain = file.name.removesuffix(".zst")
    if plain.endswith(".parquet"):
        yield from _rows(file, where, columns)
    elif plain.endswith(".txt"):
        yield from _texts(file, where, unit)
    else:
        for number, line in _lines(file, where):
            if isinstance(line, Broken):
                yield line
            elif line.strip():
                yield _parse(line, f"{where} line {number}")


def first_record(file: Path, columns: Sequence[str]) -> dict[str, Any] | None:
    """The values of the first record of a file that can be read; None without one."""
    for record in records(file, file, columns):
        return record.values if isinstance(record, Record) else None
    return None


def _parse(line: bytes, where: str) -> Record | Broken:
    try:
        values = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        return Broken(where=where, what=f"is not JSON in UTF-8: {one_line(error)}")
    if not isinstance(values, dict):
        return Broken(where=where, what=f"expected a JSON object, got {type(values).__name__}")
    return Record(where=where, values=values)


def _texts(file: Path, where: str, unit: str) -> Iterator[Record | Broken]:
    gathered: list[str] = []
    size, start = 0, 1
    for number, line in _lines(file, where):
        if isinstance(line, Broken):
            yield line
            continue
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            yield Broken(where=f"{where} line {number}", what=f"is not UTF-8: {error.reason}")
            continue
        ends = unit == "line" or (unit == "paragraph" and not text.strip())
        size += len(line)
        if size > MAX_LINE_BYTES:
            yield Broken(where=f"{where} line {start}", what=f"a text of more than {MAX_LINE_BYTES} bytes")
            gathered, size, start = [], 0, number + 1
            continue
        gathered.append(text)
        if ends:
            yield from _text("".join(gathered), where, start)
            gathered, size, start = [], 0, number + 1
    yield from _text("".join(gathered), where, start)


def _text(text: str, where: str, start: int) -> Iterator[Record]:
    if text.strip():
        yield Record(where=where if start == 1 else f"{where} line {start}", values={"text": text.strip("\r\n")})


def _lines(file: Path, where: str) -> Iterator[tuple[int, bytes | Broken]]:
    """Number and bytes of each line; one that is too long is skipped, damage ends the file."""
    number = 0
    try:
        with file.open("rb") as raw:
            stream: BinaryIO = raw
            budget = None
            if file.name.endswith(".zst"):
                budget = file.stat().st_size * MAX_EXPANSION + EXPANSION_ALLOWANCE
                decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)
                stream = io.BufferedReader(decompressor.stream_reader(raw, read_across_frames=True))
            while line := stream.readline(MAX_LINE_BYTES + 1):
                number += 1
                size = len(line)
                too_long = size > MAX_LINE_BYTES
                while too_long and not line.endswith(b"\n") and (line := stream.readline(1 << 20)):
                    size += len(line)
                    if budget is not None and size > budget:
                        break
                if budget is not None:
                    budget -= size
                    if budget < 0:
                        what = f"unfolds to more than {MAX_EXPANSION} times its size, a bomb: the rest is left out"
                        yield number, Broken(where=f"{where} line {number}", what=what)
                        return
                if too_long:
                    what = f"a line of {size} bytes, expected at most {MAX_LINE_BYTES}"
                    yield number, Broken(where=f"{where} line {number}", what=what)
                else:
                    yield number, line
    except (zstandard.ZstdError, OSError, EOFError) as error:
        what = f"cannot be read further: {one_line(error)}"
        yield number + 1, Broken(where=f"{where} after line {number}", what=what)


def _rows(file: Path, where: str, columns: Sequence[str]) -> Iterator[Record | Broken]:
    row = 0
    try:
        with pq.ParquetFile(file) as table:
            names = [name for name in columns if name in table.schema_arrow.names]
            for number in range(table.num_row_groups):
                check_row_group(table, number)
                for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE, row_groups=[number], columns=names):
                    for values in batch.to_pylist():
                        yield Record(where=f"{where} row {row}", values=values)
                        row += 1
    except _DAMAGE as error:
        yield Broken(where=f"{where} after row {row}", what=f"cannot be read further: {one_line(error)}")


def require(found: list[Path], source: Path, expected: str) -> list[Path]:
    """The files that were found.

    Raises:
      UserError: there are none.
    """
    if not found:
        raise UserError(f"source {source}: expected {expected}, found none")
    return found
