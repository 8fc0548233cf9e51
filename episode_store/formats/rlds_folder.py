"""The folder of a TFDS set: dataset_info.json, features.json, shards. Reads what is there and names what is not.

<name>/<config?>/<version>/dataset_info.json, features.json
                           <name>-<split>.<tfrecord|array_record>-00000-of-00004
                           episode_store.json             ours only: the task, as checked JSON
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from episode_store import layout
from episode_store.errors import CorruptionError, UserError
from episode_store.formats.folders import TASK_FILE, read_json_object, read_task
from episode_store.formats.format import Finding
from episode_store.formats.rlds_features import Features, parse_features
from episode_store.formats.tfrecord import ArrayRecordReader, DamagedRecord, TFRecordReader, TruncatedShard
from episode_store.task import TaskSpec

INFO_FILE, FEATURES_FILE = "dataset_info.json", "features.json"
FILE_FORMATS = ("tfrecord", "array_record")
# The default of tensorflow-datasets.
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_SHARD = re.compile(
    r"(?P<name>.+)-(?P<split>[^-]+)\.(?P<format>tfrecord|array_record)-(?P<index>\d+)-of-(?P<count>\d+)"
)
_MAX_SHARDS = 1 << 20
_MAX_MISSING_TOLD = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of records.

    Attributes:
      path: where.
      split: for example "train".
      file_format: "tfrecord" or "array_record".
      num_records: as dataset_info.json says; None when it does not.
    """

    path: Path
    split: str
    file_format: str
    num_records: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One record and where it was found."""

    data: memoryview
    shard: Shard
    number: int

    @property
    def where(self) -> str:
        """File and record number."""
        return f"{self.shard.path.name} record {self.number}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RldsFolder:
    """A set as its two JSON files describe it.

    Attributes:
      path: the folder of one version.
      name, version: of the set.
      features: the fields.
      shards: in the order of splits and shards; missing files are left out.
      findings: about files that are missing or that nobody lists.
      task: of a set that this project exported; None for others.
    """

    path: Path
    name: str
    version: str
    description: str
    features: Features
    shards: tuple[Shard, ...]
    findings: tuple[Finding, ...]
    task: TaskSpec | None

    def num_records(self, split: str | None) -> int | None:
        """Records as dataset_info.json says; None when it does not."""
        counts = [shard.num_records for shard in self.shards if split in (None, shard.split)]
        return None if None in counts else sum(count or 0 for count in counts)


def find_folder(source: Path) -> Path | None:
    """The folder of the one version in `source`: itself, or up to three folders down.

    Raises:
      UserError: there are several.
    """
    if not source.is_dir():
        return None
    for depth in range(4):
        found = sorted(source.glob("/".join(["*"] * depth + [FEATURES_FILE]))) if depth else [source / FEATURES_FILE]
        folders = [file.parent for file in found if file.is_file() and not file.parent.name.startswith(".")]
        if len(folders) > 1:
            names = ", ".join(str(folder.relative_to(source)) for folder in folders[:5])
            raise UserError(f"source {source}: holds {len(folders)} sets or versions ({names}); give one of them")
        if folders:
            return folders[0]
    return None


def open_folder(source: Path) -> RldsFolder:
    """Reads the two JSON files and looks for the shards.

    Raises:
      UserError: not such a folder, or its files cannot be understood.
    """
    path = find_folder(source)
    if path is None:
        raise UserError(
            f"source {source}: has no {FEATURES_FILE}, so the fields of its records are not known; expected the folder "
            "of one version of a TFDS set"
        )
    findings: list[Finding] = []
    info = _read_info(path, findings)
    try:
        features = parse_features(read_json_object(path / FEATURES_FILE))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path / FEATURES_FILE}: cannot be understood: {error!r}") from None
    if not features.steps:
        raise UserError(f"{path / FEATURES_FILE}: has no 'steps': this TFDS set holds no episodes (it is not RLDS)")
    shards = _listed_shards(path, info, findings) if info.get("splits") else _found_shards(path)
    if not shards and not findings:
        raise UserError(f"source {path}: holds no shards (*.tfrecord-00000-of-00001 or *.array_record-...)")
    task, _ = read_task(path / TASK_FILE)
    return RldsFolder(
        path=path,
        name=str(info.get("name") or (shards[0].path.name.split("-")[0] if shards else path.parent.name)),
        version=str(info.get("version") or path.name),
        description=str(info.get("description", "")),
        features=features,
        shards=tuple(shards),
        findings=tuple(findings),
        task=task,
    )


def _read_info(path: Path, findings: list[Finding]) -> Mapping[str, Any]:
    file = path / INFO_FILE
    if not file.exists():
        findings.append(
            Finding(
                severity="warning",
                where=str(file),
                what="missing: how many episodes there should be is not known, so lost shards or records go unnoticed",
                remedy="copy the set again with this file",
            )
        )
        return {}
    return read_json_object(file)


def _listed_shards(path: Path, info: Mapping[str, Any], findings: list[Finding]) -> list[Shard]:
    """The shards that dataset_info.json lists."""
    file_format = str(info.get("fileFormat") or "tfrecord")
    if file_format not in FILE_FORMATS:
        raise UserError(f"{path / INFO_FILE}: file format {file_format!r}: expected {' or '.join(FILE_FORMATS)}")
    shards: list[Shard] = []
    try:
        for split in info["splits"]:
            lengths = [int(length) for length in split.get("shardLengths", [])]
            if lengths:
                shards += _split_shards(path, info, split, file_format, lengths, findings)
            else:
                shards += [shard for shard in _found_shards(path) if shard.split == split["name"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path / INFO_FILE}: splits: cannot be understood: {error!r}") from None
    listed = {shard.path for shard in shards}
    for shard in _found_shards(path):
        if shard.path not in listed:
            findings.append(
                Finding(
                    severity="warning",
                    where=shard.path.name,
                    what=f"{INFO_FILE} does not list this file; it is left out",
                    remedy="remove it, or mend the list",
                )
            )
    return shards


def _split_shards(
    path: Path,
    info: Mapping[str, Any],
    split: Mapping[str, Any],
    file_format: str,
    lengths: list[int],
    findings: list[Finding],
) -> list[Shard]:
    count = len(lengths)
    if count > _MAX_SHARDS:
        raise UserError(f"{path / INFO_FILE}: {count} shards, expected at most {_MAX_SHARDS}")
    shards: list[Shard] = []
    missing: list[Shard] = []
    for index, length in enumerate(lengths):
        values = {
            "{DATASET}": str(info["name"]),
            "{SPLIT}": str(split["name"]),
            "{FILEFORMAT}": file_format,
            "{SHARD_X_OF_Y}": f"{index:05d}-of-{count:05d}",
            "{SHARD_INDEX}": f"{index:05d}",
            "{NUM_SHARDS}": f"{count:05d}",
        }
        name = str(split.get("filepathTemplate") or TEMPLATE)
        for placeholder, value in values.items():
            name = name.replace(placeholder, value)
        if "/" in name or "\\" in name or "\0" in name or name in ("", ".", ".."):
            raise UserError(f"{path / INFO_FILE}: shard name {layout.shorten(name)!r} leaves the folder")
        shard = Shard(path=path / name, split=str(split["name"]), file_format=file_format, num_records=length)
        (shards if shard.path.is_file() else missing).append(shard)
    if len(missing) > _MAX_MISSING_TOLD:
        # As when someone copied only the first shards of a large set.
        lost = sum(shard.num_records or 0 for shard in missing)
        findings.append(_missing(missing[0], f", and {len(missing) - 1} more of {count} shards", lost))
    else:
        findings += [_missing(shard, "", shard.num_records or 0) for shard in missing]
    return shards


def _missing(shard: Shard, others: str, lost: int) -> Finding:
    what = f"missing{others}: {lost} episodes of split {shard.split} are lost"
    return Finding(severity="error", where=shard.path.name, what=what, remedy="copy the set again")


def _found_shards(path: Path) -> list[Shard]:
    """The files whose names look like shards."""
    shards = []
    for file in sorted(path.iterdir()):
        match = _SHARD.fullmatch(file.name)
        if match and file.is_file():
            shards.append(Shard(path=file, split=match["split"], file_format=match["format"], num_records=None))
    return shards


def read_records(shard: Shard, findings: list[Finding]) -> Iterator[Record]:
    """The readable records of a shard in order; what is damaged becomes findings."""
    reader = (TFRecordReader if shard.file_format == "tfrecord" else ArrayRecordReader)(shard.path)
    number = 0
    try:
        for record in reader:
            if isinstance(record, DamagedRecord):
                findings.append(_damage(shard, record))
            else:
                yield Record(data=record, shard=shard, number=number)
            number += 1
    except TruncatedShard as error:
        findings.append(_damage(shard, error))
    if shard.num_records is not None and number != shard.num_records:
        findings.append(
            Finding(
                severity="error",
                where=shard.path.name,
                what=f"{INFO_FILE} says {shard.num_records} records, {number} were found",
                remedy="copy the set again",
            )
        )


def _damage(shard: Shard, error: CorruptionError) -> Finding:
    what = str(error).removeprefix(f"{shard.path.parent}/")
    where, _, rest = what.partition(": ")
    return Finding(severity="error", where=where, what=rest, remedy="copy the file again; the rest is read")
