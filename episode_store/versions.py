"""Versions of a store: which of the stored episodes are visible. Data is shared; only `compact` removes any.

    versions/<number>.parquet   the records that this version leaves out: segment, offset
    versions/<number>.seal      checked JSON: what made it, how much was there before, size and checksum of the other

Version 0 is all that was ever written. `delete`, `filter`, `merge` and the like add a version; the highest number is
the head, which is what a reader opens and what writers append to: a version leaves out records, so episodes added
later are visible. An older version is shown as it last was, without what came after the next one was made. A version
with a name (`split` makes them) is a view beside the line: it shows what was there when it was made, for good.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from episode_store import checked_json, layout, storage
from episode_store.errors import CorruptionError, StoreError, UserError
from episode_store.files import hold, write_bytes
from episode_store.segment import FORMAT_VERSION, SEGMENT_NAME
from episode_store.storage import Place, StorePath

VERSION_FOLDER = "versions"
_FILE = re.compile(r"([0-9]{6,9})\.seal")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
# An exclusion takes 16 bytes in memory; a version that claims more than this many is refused before it is decoded.
_MAX_EXCLUDED = 1 << 31

# Segment name -> sorted int64 offsets of records that are left out.
Excluded = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Version:
    """One version, as its seal tells.

    Attributes:
      number: 1, 2, ...
      operation: what made it: delete, filter, merge, compact, ...
      name: of a view; "" on the line whose last one is the head.
      created: ISO 8601, UTC.
      detail: what the operation was asked to do, for people to read.
      extent: segment name -> bytes of its data file, of what was there before; for a view, of what it shows.
      hidden: segments that are not shown at all: `compact` is done with them, or `merge` is still bringing them.
      oldest: the oldest version that can still be opened.
      num_excluded: records left out.
      index_bytes, index_crc32c: of the Parquet file.
    """

    number: int
    operation: str
    name: str
    created: str
    detail: Mapping[str, Any]
    extent: Mapping[str, int]
    hidden: tuple[str, ...]
    oldest: int
    num_excluded: int
    index_bytes: int
    index_crc32c: int

    def to_json(self) -> dict[str, Any]:
        """What `list` tells."""
        return {
            "version": self.number,
            "name": self.name,
            "operation": self.operation,
            "created": self.created,
            "detail": dict(self.detail),
            "left_out": self.num_excluded,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """What a reader of one version shows.

    Attributes:
      number: of the version; 0 without any.
      latest: the highest number there was, to see whether anything changed meanwhile.
      excluded: records left out.
      hidden: segments left out.
      extent: segment name -> bytes of its data file that are shown; None shows all there is.
    """

    number: int
    latest: int
    excluded: Excluded
    hidden: frozenset[str]
    extent: Mapping[str, int] | None


def seal_path(path: Place, number: int) -> Place:
    """The seal of a version."""
    return path / VERSION_FOLDER / f"{number:06d}.seal"


def excluded_path(path: Place, number: int) -> Place:
    """What a version leaves out."""
    return path / VERSION_FOLDER / f"{number:06d}.parquet"


def numbers(path: StorePath) -> list[int]:
    """The numbers of all versions, ascending."""
    names = storage.names(path / VERSION_FOLDER)
    return sorted(int(match[1]) for match in map(_FILE.fullmatch, names) if match)


def unsealed(path: Place, oldest: int = 0) -> list[Place]:
    """Files of versions, from `oldest` on, that have no seal: never finished, or the seal was lost."""
    names = storage.names(path / VERSION_FOLDER)
    sealed = {int(match[1]) for match in map(_FILE.fullmatch, names) if match}
    stems = [name.removesuffix(".parquet") for name in names if name.endswith(".parquet")]
    wanted = {int(stem) for stem in stems if stem.isdecimal()} - sealed
    return [excluded_path(path, number) for number in sorted(wanted) if number >= oldest]


def read_version(path: StorePath, number: int) -> Version:
    """A version's seal.

    Raises:
      CorruptionError: damaged.
      FileNotFoundError: there is none.
    """
    file = seal_path(path, number)
    content = checked_json.read_file(file)
    try:
        if content["format"] != "episode-version" or content["number"] != number:
            raise CorruptionError(f"{file}: is not the seal of version {number}")
        if content["version"] != FORMAT_VERSION:
            raise StoreError(f"{file}: has format version {content['version']}; install a newer program")
        names = {field.name for field in dataclasses.fields(Version)}
        facts = {name: value for name, value in content.items() if name in names}
        facts["extent"] = {str(name): int(size) for name, size in facts["extent"].items()}
        facts["hidden"] = tuple(str(name) for name in facts["hidden"])
        for name in ("oldest", "num_excluded", "index_bytes", "index_crc32c"):
            facts[name] = int(facts[name])
        if not (isinstance(facts["name"], str) and isinstance(facts["detail"], dict)):
            raise CorruptionError(f"{file}: its name or detail is of another type")
        if not 0 <= facts["oldest"] <= number or facts["num_excluded"] < 0:
            raise CorruptionError(f"{file}: oldest version {facts['oldest']}, {facts['num_excluded']} records left out")
        return Version(**facts)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptionError(f"{file}: lacks a fact: {error}") from None


def read_excluded(path: StorePath, version: Version) -> dict[str, np.ndarray]:
    """What a version leaves out.

    Raises:
      CorruptionError: damaged or missing.
    """
    file = excluded_path(path, version.number)
    content = storage.read_exactly(file, version.index_bytes)
    if google_crc32c.value(content) != version.index_crc32c:
        raise CorruptionError(f"{file}: its checksum does not match: a byte was changed")
    try:
        source = pq.ParquetFile(
            pa.BufferReader(pa.py_buffer(content)), read_dictionary=["segment"], page_checksum_verification=True
        )
        if not source.metadata.num_rows == version.num_excluded <= _MAX_EXCLUDED:
            raise CorruptionError(f"{file}: {source.metadata.num_rows} rows, expected {version.num_excluded}")
        table = source.read(use_threads=False)
        segments = table["segment"].unify_dictionaries().combine_chunks()
        codes, offsets = segments.indices.to_numpy(), table["offset"].cast(pa.int64()).to_numpy()
        return {name: np.sort(offsets[codes == code]) for code, name in enumerate(segments.dictionary.to_pylist())}
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise CorruptionError(f"{file}: unexpected content: {error}") from None


def read_versions(path: StorePath) -> list[Version]:
    """All versions that can be opened, oldest first, without version 0.

    Raises:
      CorruptionError: a seal is damaged.
    """
    found = []
    for number in numbers(path):
        with contextlib.suppress(FileNotFoundError):  # compacted away meanwhile
            found.append(read_version(path, number))
    oldest = max((version.oldest for version in found), default=0)
    return [version for version in found if version.number >= oldest]


def head_of(found: Sequence[Version]) -> Version | None:
    """The last one on the line; None is version 0."""
    line = [version for version in found if not version.name]
    return line[-1] if line else None


def resolve(path: StorePath, wanted: int | str | None) -> View:
    """What a version shows.

    Args:
      path: the store.
      wanted: a number, a name, or None for the head.

    Raises:
      StoreError: there is no such version, or `compact` removed it.
      CorruptionError: its files are damaged.
    """
    found = read_versions(path)
    latest = found[-1].number if found else 0
    head = head_of(found)
    oldest = max((version.oldest for version in found), default=0)
    if isinstance(wanted, str) and wanted.isdecimal():
        wanted = int(wanted)
    if isinstance(wanted, str):
        named = [version for version in found if version.name == wanted]
        if not named:
            names = sorted({version.name for version in found if version.name})
            raise StoreError(f"store {path}: no version named {wanted!r}{layout.near(wanted, names)}")
        return _view(path, named[-1], latest, named[-1].extent)
    line = [version for version in found if not version.name]
    if wanted is None or (head is None and wanted == 0):
        if head is None:
            return View(number=0, latest=latest, excluded={}, hidden=frozenset(), extent=None)
        return _view(path, head, latest, None)
    for version in found:
        if version.number == wanted:
            if version.name:
                return _view(path, version, latest, version.extent)
            after = [later for later in line if later.number > version.number]
            return _view(path, version, latest, after[0].extent if after else None)
    if wanted == 0 and oldest == 0:
        return View(number=0, latest=latest, excluded={}, hidden=frozenset(), extent=line[0].extent)
    if 0 <= wanted < oldest:
        raise StoreError(f"store {path}: version {wanted} went when the store was compacted (version {oldest})")
    known = ", ".join(str(number) for number in [0, *(version.number for version in found)] if number >= oldest)
    raise StoreError(f"store {path}: no version {wanted}; there are {known}")


def _view(path: StorePath, version: Version, latest: int, extent: Mapping[str, int] | None) -> View:
    return View(
        number=version.number,
        latest=latest,
        excluded=read_excluded(path, version),
        hidden=frozenset(version.hidden),
        extent=extent,
    )


def check_name(name: str) -> str:
    """Returns the name of a view when it is one.

    Raises:
      UserError: it is not.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"version name {name!r}: expected a letter, then letters, digits, '_' and '-', at most 64")
    return name


@contextlib.contextmanager
def changing(path: Path, *, dry_run: bool = False) -> Iterator[None]:
    """Holds the lock of all commands that make versions; writers of episodes and readers do not need it.

    Args:
      path: the store.
      dry_run: nothing will be changed: no lock.

    Raises:
      StoreError: another command is at work, or the folder is not a store.
    """
    if dry_run:
        yield
        return
    if not path.is_dir():
        layout.check_store(path)
    folder = path / VERSION_FOLDER
    folder.mkdir(exist_ok=True)
    with hold(folder) as free:
        if not free:
            raise StoreError(
                f"store {path}: another command is changing its versions; run this one again when it is done"
            )
        yield


def commit(
    path: Path,
    *,
    operation: str,
    detail: Mapping[str, Any],
    extent: Mapping[str, int],
    excluded: Excluded,
    hidden: Sequence[str],
    name: str = "",
    collapse: bool = False,
    above: int = 0,
) -> Version:
    """Adds a version; from the moment its seal has its name, readers that open the store show it.

    Args:
      path: the store; call it while `changing`.
      operation, detail, extent, hidden, name: see `Version`.
      excluded: segment name -> offsets.
      collapse: whether older versions are gone with it.
      above: the number is larger than this one.
    """
    for segment in [*excluded, *extent, *hidden]:
        if not SEGMENT_NAME.fullmatch(segment):
            raise ValueError(f"not the name of a segment: {segment!r}")
    existing = numbers(path)
    number = max([above, *existing]) + 1
    oldest = number if collapse else max((version.oldest for version in read_versions(path)), default=0)
    names = sorted(segment for segment in excluded if len(excluded[segment]))
    counts = [len(excluded[segment]) for segment in names]
    codes = pa.array(np.repeat(np.arange(len(names), dtype=np.int32), counts))
    segments = pa.DictionaryArray.from_arrays(codes, pa.array(names, pa.string()))
    offsets = np.concatenate([np.zeros(0, np.int64), *(np.sort(excluded[segment]) for segment in names)])
    table = pa.table([segments, pa.array(offsets, pa.int64())], names=["segment", "offset"])
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        write_page_checksum=True,
        compression="zstd",
        use_dictionary=["segment"],
        column_encoding={"offset": "DELTA_BINARY_PACKED"},
    )
    content = sink.getvalue()
    write_bytes(excluded_path(path, number), content)
    version = Version(
        number=number,
        operation=operation,
        name=name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        detail=detail,
        extent=dict(extent),
        hidden=tuple(sorted(hidden)),
        oldest=oldest,
        num_excluded=table.num_rows,
        index_bytes=len(content),
        index_crc32c=google_crc32c.value(content),
    )
    seal = {"format": "episode-version", "version": FORMAT_VERSION, **dataclasses.asdict(version)}
    checked_json.write_file(seal_path(path, number), seal)
    return version
