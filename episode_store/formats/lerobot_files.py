"""The files of a LeRobot v3.0 set, read with pyarrow alone.

meta/info.json                               codebase_version, fps, features, total_*, video_path, ...
meta/tasks.parquet                           task_index, task (the instruction)
meta/episodes/chunk-000/file-000.parquet     one row an episode: length, tasks, where its frames and videos lie
meta/stats.json                              of the whole set
data/chunk-000/file-000.parquet              one row a frame, one row group an episode
videos/<key>/chunk-000/file-000.mp4
meta/episode_store.json, .parquet            ours only: the task, and what LeRobot has no place for
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from episode_store.errors import CorruptionError, UserError
from episode_store.formats.folders import check_row_group, read_json_object
from episode_store.formats.format import Finding, one_line

INFO_FILE, STATS_FILE, TASKS_FILE = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"
TASK_FILE, SIDE_FILE = "meta/episode_store.json", "meta/episode_store.parquet"
EPISODES_FOLDER, DATA_FOLDER = "meta/episodes", "data"
VERSION = "v3.0"
# Columns that every set has.
BOOKKEEPING = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
DAMAGE = (pa.ArrowException, OSError, EOFError, ValueError, OverflowError)
_NUMBERS = {"bool", "float16", "float32", "float64"} | {
    f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)
}
_MAX_ROWS = 1 << 31
_MAX_SIZE = 1 << 28
_PLACEHOLDER = re.compile(r"\{(video_key|chunk_index|file_index)(:0?[0-9]{1,2}d)?\}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feature:
    """One feature of info.json.

    Attributes:
      key: its name.
      dtype: a NumPy name, "string", "image" or "video".
      shape: of one frame; (1,) for a scalar; (height, width, channels) for pictures, whatever the order in the file.
      is_depth: a picture of distances.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    is_depth: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeRobotFolder:
    """A set as its metadata describe it.

    Attributes:
      path: the folder.
      info: info.json.
      fps: frames a second.
      features: those that a store can hold; without bookkeeping.
      left_out: key -> why not.
      instructions: task_index -> text.
      episodes: episode_index -> row of meta/episodes, without statistics.
      data_files: in order.
      findings: about metadata files that are missing or damaged.
    """

    path: Path
    info: Mapping[str, Any]
    fps: float
    features: Mapping[str, Feature]
    left_out: Mapping[str, str]
    instructions: Mapping[int, str]
    episodes: Mapping[int, Mapping[str, Any]]
    data_files: tuple[Path, ...]
    findings: tuple[Finding, ...]

    def video_file(self, key: str, episode: Mapping[str, Any]) -> Path:
        """The video that holds a feature of an episode.

        Raises:
          CorruptionError: its name leaves the folder, or metadata do not say it.
        """
        template = self.info.get("video_path") or "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        values: dict[str, Any] = {"video_key": key}
        for name in ("chunk_index", "file_index"):
            number = episode.get(f"videos/{key}/{name}")
            if not isinstance(number, int) or not 0 <= number < 1 << 31:
                raise CorruptionError(f"meta/episodes has no videos/{key}/{name}")
            values[name] = number
        # str.format of a stranger's text could reach attributes: only three names are replaced.
        name = _PLACEHOLDER.sub(lambda match: format(values[match[1]], (match[2] or ":")[1:]), str(template))
        root = self.path.resolve()
        file = (root / name).resolve()
        if not file.is_relative_to(root):
            raise CorruptionError(f"video_path leads out of the folder: {name}")
        return file


def is_lerobot(source: Path) -> bool:
    """Whether the folder has meta/info.json with features."""
    if not (source / INFO_FILE).is_file():
        return False
    try:
        return "features" in read_json_object(source / INFO_FILE)
    except UserError:
        return (source / DATA_FOLDER).is_dir()


def open_folder(source: Path) -> LeRobotFolder:
    """Reads the metadata.

    Raises:
      UserError: not such a folder, of another version, or its info.json cannot be understood.
    """
    file = source / INFO_FILE
    if not file.is_file():
        raise UserError(f"source {source}: has no {INFO_FILE}: expected the folder of a LeRobot set")
    info = read_json_object(file)
    version = str(info.get("codebase_version"))
    if not re.fullmatch(r"v3\.[0-9]+", version):
        raise UserError(
            f"{file}: codebase_version {version}, expected {VERSION}; convert the set with LeRobot's own "
            "lerobot.scripts.convert_dataset_v21_to_v30"
        )
    fps = info.get("fps")
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < math.inf:
        raise UserError(f"{file}: fps {fps!r}: expected a positive number")
    declared = info.get("features")
    if not isinstance(declared, dict) or not declared:
        raise UserError(f"{file}: has no features")
    features: dict[str, Feature] = {}
    left_out: dict[str, str] = {}
    for key, content in declared.items():
        if key in BOOKKEEPING:
            continue
        feature = _feature(key, content)
        if isinstance(feature, str):
            left_out[key] = feature
        else:
            features[key] = feature
    findings: list[Finding] = []
    return LeRobotFolder(
        path=source,
        info=info,
        fps=float(fps),
        features=features,
        left_out=left_out,
        instructions=_read_instructions(source, findings),
        episodes=_read_episodes(source, findings),
        data_files=tuple(sorted((source / DATA_FOLDER).glob("*/*.parquet"))),
        findings=tuple(findings),
    )


def _feature(key: str, content: Any) -> Feature | str:
    """A feature, or why a store cannot hold it."""
    try:
        dtype = str(content["dtype"])
        shape = tuple(int(side) for side in content["shape"])
        names = content.get("names")
        facts = {**(content.get("video_info") or {}), **(content.get("info") or {})}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return f"its entry cannot be understood: {one_line(repr(error))}"
    if any(side < 0 for side in shape) or math.prod(shape) > _MAX_SIZE:
        return f"shape {shape}"
    if dtype == "string":
        return Feature(key=key, dtype=dtype, shape=shape) if shape in ((1,), ()) else f"texts of shape {shape}"
    if dtype in ("image", "video"):
        if len(shape) != 3:
            return f"a picture of shape {shape}"
        if isinstance(names, list) and names and str(names[0]).startswith("c"):
            shape = (shape[1], shape[2], shape[0])
        is_depth = bool(facts.get("is_depth_map") or facts.get("video.is_depth_map"))
        if is_depth and dtype == "video":
            return "a video of distances, which are quantized by its codec's own rule"
        return Feature(key=key, dtype=dtype, shape=shape, is_depth=is_depth)
    if dtype not in _NUMBERS:
        return f"dtype {dtype!r}"
    return Feature(key=key, dtype=dtype, shape=shape)


def _read_instructions(source: Path, findings: list[Finding]) -> dict[int, str]:
    file = source / TASKS_FILE
    try:
        table = read_table(file, ["task_index"])
        rows = table.to_pylist()
    except (*DAMAGE, CorruptionError) as error:
        remedy = "copy the set again: LeRobot's reader fails without it"
        findings.append(Finding(severity="error", where=TASKS_FILE, what=one_line(error), remedy=remedy))
        return {}
    # pandas keeps the index, which is the text, under its name.
    text = next((name for name in ("task", "__index_level_0__") if name in table.column_names), None)
    return {int(row["task_index"]): str(row[text]) for row in rows} if text else {}


def _read_episodes(source: Path, findings: list[Finding]) -> dict[int, dict[str, Any]]:
    episodes: dict[int, dict[str, Any]] = {}
    files = sorted((source / EPISODES_FOLDER).glob("*/*.parquet"))
    if not files:
        remedy = "the writer was killed before finalize(), or the copy is not whole; frames are read without it"
        findings.append(Finding(severity="error", where=EPISODES_FOLDER, what="holds no Parquet file", remedy=remedy))
    for file in files:
        where = str(file.relative_to(source))
        try:
            with pq.ParquetFile(file) as reader:
                names = [name for name in reader.schema_arrow.names if not name.startswith("stats/")]
                if reader.metadata.num_rows > _MAX_ROWS:
                    raise CorruptionError(f"{reader.metadata.num_rows} rows")
                for number in range(reader.num_row_groups):
                    check_row_group(reader, number)
                rows = reader.read(columns=names).to_pylist()
        except (*DAMAGE, CorruptionError) as error:
            remedy = "the writer was killed before finalize(), or the copy is not whole; frames are read without it"
            findings.append(Finding(severity="error", where=where, what=one_line(error), remedy=remedy))
            continue
        for row in rows:
            index = row.get("episode_index")
            if not isinstance(index, int):
                findings.append(Finding(severity="error", where=where, what="a row without episode_index"))
            elif index in episodes:
                what = f"episode {index} stands there twice"
                findings.append(Finding(severity="error", where=where, what=what, remedy="keep one of the two rows"))
            else:
                episodes[index] = row
    return episodes


def read_table(file: Path, required: list[str]) -> pa.Table:
    """A whole small Parquet file.

    Raises:
      CorruptionError: it lacks a column or claims to be too large.
      one of DAMAGE: it cannot be read.
    """
    with pq.ParquetFile(file) as reader:
        if reader.metadata.num_rows > _MAX_ROWS:
            raise CorruptionError(f"{file.name}: {reader.metadata.num_rows} rows")
        for name in required:
            if name not in reader.schema_arrow.names:
                raise CorruptionError(f"{file.name}: has no column {name}")
        for number in range(reader.num_row_groups):
            check_row_group(reader, number)
        return reader.read()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frames:
    """The frames of one episode, in the order of the file."""

    episode_index: int
    table: pa.Table
    where: str


def read_frames(folder: LeRobotFolder, columns: list[str], findings: list[Finding]) -> Iterator[Frames]:
    """Episode after episode, file by file, row group by row group; what is damaged becomes findings.

    An episode ends where episode_index changes.
    """
    rest: pa.Table | None = None
    rest_where = ""
    for file in folder.data_files:
        where = str(file.relative_to(folder.path))
        for table in _row_groups(file, where, columns, findings):
            rest_where = rest_where if rest is not None else where
            table = table if rest is None else pa.concat_tables([rest, table])
            index = table["episode_index"].to_numpy()
            starts = [0, *(np.flatnonzero(np.diff(index)) + 1).tolist()]
            for start, stop in itertools.pairwise(starts):
                part = table.slice(start, stop - start)
                yield Frames(episode_index=int(index[start]), table=part, where=rest_where)
                rest_where = where
            rest = table.slice(starts[-1])
    if rest is not None:
        yield Frames(episode_index=int(rest["episode_index"][0].as_py()), table=rest, where=rest_where)


def _row_groups(file: Path, where: str, columns: list[str], findings: list[Finding]) -> Iterator[pa.Table]:
    """The readable row groups of a file; what is damaged becomes findings."""
    remedy = "its frames are lost: the writer was killed before finalize(), or copy the file again"
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as reader:
            if reader.metadata.num_rows > _MAX_ROWS:
                raise CorruptionError(f"{reader.metadata.num_rows} rows")
            missing = [name for name in columns if name not in reader.schema_arrow.names]
            if missing:
                raise CorruptionError(f"has no column {', '.join(missing)}, which info.json declares")
            for number in range(reader.num_row_groups):
                try:
                    check_row_group(reader, number)
                    table = reader.read_row_group(number, columns=columns)
                    table.validate(full=True)
                    if table["episode_index"].null_count:
                        raise CorruptionError("frames without episode_index")
                except (*DAMAGE, CorruptionError) as error:
                    what = f"cannot be read: {one_line(error)}"
                    place = f"{where} row group {number}"
                    findings.append(Finding(severity="error", where=place, what=what, remedy=remedy))
                    continue
                if table.num_rows:
                    yield table
    except (*DAMAGE, CorruptionError) as error:
        what = f"cannot be read: {one_line(error)}"
        findings.append(Finding(severity="error", where=where, what=what, remedy=remedy))


def numbers(column: pa.ChunkedArray, feature: Feature) -> np.ndarray:
    """A column of numbers as [rows, *shape], with the dtype of the file.

    Raises:
      CorruptionError: values are missing, or the shape is not the declared one.
    """
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    rows = len(array)
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    for _ in range(8):
        if array.null_count:
            raise CorruptionError(f"{feature.key}: {array.null_count} values are missing")
        kind = array.type
        if not (pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)):
            break
        array = array.flatten()
    kind = array.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise CorruptionError(f"{feature.key}: of type {kind}, expected numbers")
    flat = array.to_numpy(zero_copy_only=False)
    if len(flat) != rows * math.prod(feature.shape):
        raise CorruptionError(
            f"{feature.key}: {len(flat)} numbers in {rows} frames, info.json declares shape {list(feature.shape)}"
        )
    return flat.reshape(rows, *feature.shape)
