"""The files of a Minari 0.5 set: metadata.json, and episodes as HDF5, Arrow or Parquet.

    <dataset_id>/data/metadata.json         dataset_id, total_*, data_format, observation_space, action_space, ...
    hdf5:           main_data.hdf5          episode_<i>/observations, actions, rewards, terminations, truncations, infos
    arrow, parquet: <i>/part-0.<format>     the same as columns of T + 1 rows, the last row of actions padding
                    <i>/metadata.json       id, total_steps, seed

`env_spec` in metadata.json names code; nothing of it is imported or called here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from episode_store.errors import CorruptionError, UserError
from episode_store.formats import hdf5
from episode_store.formats.folders import check_row_group, read_json_object
from episode_store.formats.format import one_line
from episode_store.formats.hdf5_texts import check_texts

METADATA_FILE, HDF5_FILE = "metadata.json", "main_data.hdf5"
DATA_FORMATS = ("hdf5", "arrow", "parquet")
_EPISODE = re.compile(r"episode_(0|[1-9][0-9]{0,11})")
_NUMBER = re.compile(r"(0|[1-9][0-9]{0,11})")
_MAX_ROWS = 1 << 26
_MAX_DEPTH = 16
# What stands where an episode cannot be read.
DAMAGE = (*hdf5.DAMAGE, pa.ArrowException, CorruptionError)


def find_folder(source: Path) -> Path | None:
    """The folder with metadata.json: the source or `data` in it."""
    for folder in (source, source / "data"):
        if (folder / METADATA_FILE).is_file():
            return folder
    return None


def read_metadata(source: Path) -> tuple[Path, dict[str, Any]]:
    """The folder and its metadata.json.

    Raises:
      UserError: there is none, or it is not Minari's.
    """
    folder = find_folder(source)
    if folder is None:
        raise UserError(f"source {source}: has no {METADATA_FILE}, expected the folder of a Minari set (or its 'data')")
    metadata = read_json_object(folder / METADATA_FILE)
    if metadata.get("data_format", "hdf5") not in DATA_FORMATS:
        raise UserError(
            f"{folder / METADATA_FILE}: data_format {metadata['data_format']!r}: expected {', '.join(DATA_FORMATS)}"
        )
    for name in ("observation_space", "action_space"):
        if not isinstance(metadata.get(name), str):
            raise UserError(
                f"{folder / METADATA_FILE}: has no {name}. Minari would make the environment that env_spec names to "
                "learn it, which runs code; write the set again with Minari 0.5"
            )
    return folder, metadata


class Node(Protocol):
    """A place in one episode: a group or a struct column with members, or an array."""

    def member(self, key: str | int) -> Node:
        """A member: a key of a Dict, an index of a Tuple.

        Raises:
          CorruptionError: there is none.
        """
        ...

    def values(self) -> Any:
        """The array, [rows, ...]; texts and encoded pictures as a list of bytes or str."""
        ...

    def leaves(self) -> Iterator[tuple[str, Node]]:
        """All arrays below, with their names joined with '/'."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class RawEpisode:
    """One episode as it lies in the file.

    Attributes:
      index: its number.
      where: file and group.
      observations, actions: places.
      infos: the place of the infos, or None.
      rewards, terminations, truncations: [T].
      facts: seed, options and other attributes of the episode.
      own: JSON of ours, or None in sets of others.
    """

    index: int
    where: str
    observations: Node
    actions: Node
    infos: Node | None
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    facts: Mapping[str, Any]
    own: str | None


class EpisodeFiles(Protocol):
    """The episodes of one set."""

    indices: list[int]

    def where(self, index: int) -> str:
        """File and place of an episode, for messages."""
        ...

    def read(self, index: int) -> RawEpisode:
        """One episode.

        Raises:
          one of DAMAGE: it cannot be read.
        """
        ...

    def close(self) -> None:
        """Closes files."""
        ...


def open_episodes(folder: Path, data_format: str) -> EpisodeFiles:
    """The episodes of a folder.

    Raises:
      UserError: the file of all episodes is missing or cannot be opened.
    """
    return Hdf5Episodes(folder) if data_format == "hdf5" else ArrowEpisodes(folder, data_format)


@dataclasses.dataclass(frozen=True)
class _Hdf5Node:
    arrays: Mapping[str, Any]
    path: str

    def member(self, key: str | int) -> _Hdf5Node:
        name = f"_index_{key}" if isinstance(key, int) else key
        return _Hdf5Node(self.arrays, f"{self.path}/{name}")

    def values(self) -> Any:
        if self.path not in self.arrays:
            raise CorruptionError(f"has no {self.path}")
        dataset = self.arrays[self.path]
        if not dataset.ndim:
            raise CorruptionError(f"{self.path}: one value, expected one a step")
        content = dataset[()]
        return content.tolist() if content.dtype.kind == "O" else content

    def leaves(self) -> Iterator[tuple[str, _Hdf5Node]]:
        prefix = f"{self.path}/"
        for path in sorted(self.arrays):
            if path.startswith(prefix):
                yield path.removeprefix(prefix), _Hdf5Node(self.arrays, path)


class Hdf5Episodes:
    """main_data.hdf5."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / HDF5_FILE
        if not self._path.is_file():
            raise UserError(f"{self._path}: missing")
        try:
            check_texts(self._path)
        except CorruptionError as error:
            raise UserError(str(error)) from None
        self._file = hdf5.open_file(self._path)
        try:
            matches = [match for match in (_EPISODE.fullmatch(name) for name in self._file) if match]
        except hdf5.DAMAGE as error:
            self._file.close()
            raise UserError(f"{self._path}: cannot be read: {one_line(error)}") from None
        self.indices = sorted(int(match[1]) for match in matches)

    def where(self, index: int) -> str:
        """File and group."""
        return f"{HDF5_FILE} episode_{index}"

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def read(self, index: int) -> RawEpisode:
        """One episode; arrays are read when they are asked for."""
        group = hdf5.subgroup(self._file, f"episode_{index}")
        arrays = dict(hdf5.datasets(group))
        own = arrays.pop("episode_store", None)
        return RawEpisode(
            index=index,
            where=self.where(index),
            observations=_Hdf5Node(arrays, "observations"),
            actions=_Hdf5Node(arrays, "actions"),
            infos=_Hdf5Node(arrays, "infos"),
            rewards=_column(_Hdf5Node(arrays, "rewards")),
            terminations=_column(_Hdf5Node(arrays, "terminations")),
            truncations=_column(_Hdf5Node(arrays, "truncations")),
            facts={str(name): value for name, value in group.attrs.items()},
            own=None if own is None else own.asstr()[()],
        )


def _column(node: Node) -> np.ndarray:
    values = np.asarray(node.values())
    return values.reshape(len(values), -1)[:, 0] if values.ndim > 1 and values[0].size == 1 else values


@dataclasses.dataclass(frozen=True)
class _ArrowNode:
    array: pa.Array
    rows: int
    path: str
    shape: bytes | None = None

    def member(self, key: str | int) -> _ArrowNode:
        if not pa.types.is_struct(self.array.type) or self.array.type.get_field_index(str(key)) < 0:
            raise CorruptionError(f"{self.path} has no {key}")
        return _ArrowNode(self.array.field(str(key)), self.rows, f"{self.path}/{key}")

    def values(self) -> Any:
        array = self.array.slice(0, self.rows)
        if array.null_count:
            raise CorruptionError(f"{self.path}: {array.null_count} of {len(array)} steps have no value")
        kind = array.type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
            return array.to_pylist()
        depth = 0
        while _is_list(array.type):
            depth += 1
            array = array.flatten()
            if depth > _MAX_DEPTH or array.null_count:
                raise CorruptionError(f"{self.path}: nulls inside, or nested more than {_MAX_DEPTH} deep")
        if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_boolean(array.type)):
            raise CorruptionError(f"{self.path}: of type {array.type}, expected numbers or texts")
        flat = array.to_numpy(zero_copy_only=False)
        if not depth:
            return flat
        if not self.rows or len(flat) % self.rows:
            raise CorruptionError(f"{self.path}: {len(flat)} numbers in {self.rows} steps: their size varies")
        return flat.reshape(self.rows, *_inner_shape(self.shape, len(flat) // self.rows))

    def leaves(self) -> Iterator[tuple[str, _ArrowNode]]:
        yield from _arrow_leaves(self.array, "", self.rows, 0)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _inner_shape(text: bytes | None, size: int) -> tuple[int, ...]:
    """Of infos: the field's metadata has "2,3", and "" for one number a step."""
    sides = [side for side in text.split(b",") if side] if text is not None else [b""]
    if all(side.isdigit() and len(side) < 10 for side in sides):
        shape = tuple(int(side) for side in sides)
        if np.prod(shape, dtype=np.float64) == size:
            return shape
    return (size,)


def _arrow_leaves(array: pa.Array, name: str, rows: int, depth: int) -> Iterator[tuple[str, _ArrowNode]]:
    if depth > _MAX_DEPTH or not pa.types.is_struct(array.type):
        return
    for index in range(array.type.num_fields):
        field, member = array.type.field(index), array.field(index)
        path = f"{name}/{field.name}" if name else field.name
        if pa.types.is_struct(member.type):
            yield from _arrow_leaves(member, path, rows, depth + 1)
        else:
            yield path, _ArrowNode(member, rows, path, (field.metadata or {}).get(b"shape"))


class ArrowEpisodes:
    """One folder an episode, with one Arrow IPC or Parquet file (or several parts) in it."""

    def __init__(self, folder: Path, data_format: str) -> None:
        self._folder = folder
        self._format = data_format
        self.indices = sorted(int(entry.name) for entry in folder.iterdir() if _NUMBER.fullmatch(entry.name))

    def where(self, index: int) -> str:
        """The folder."""
        return f"data/{index}"

    def close(self) -> None:
        """Nothing stays open."""

    def read(self, index: int) -> RawEpisode:
        """One episode, mapped or read whole."""
        folder = self._folder / str(index)
        parts = sorted(file for file in folder.iterdir() if file.suffix == f".{self._format}")
        if not parts:
            raise CorruptionError(f"has no *.{self._format} file")
        table = pa.concat_tables([self._read_part(part) for part in parts]).combine_chunks()
        for name in ("observations", "actions", "rewards", "terminations", "truncations"):
            if name not in table.column_names:
                raise CorruptionError(f"has no column {name}")
        rows = table.num_rows
        columns = {name: _one_chunk(table[name]) for name in table.column_names}
        steps = max(rows - 1, 0)
        facts = read_json_object(folder / METADATA_FILE) if (folder / METADATA_FILE).is_file() else {}
        return RawEpisode(
            index=index,
            where=self.where(index),
            observations=_ArrowNode(columns["observations"], rows, "observations"),
            actions=_ArrowNode(columns["actions"], steps, "actions"),
            infos=_ArrowNode(columns["infos"], rows, "infos") if "infos" in columns else None,
            rewards=_column(_ArrowNode(columns["rewards"], steps, "rewards")),
            terminations=_column(_ArrowNode(columns["terminations"], steps, "terminations")),
            truncations=_column(_ArrowNode(columns["truncations"], steps, "truncations")),
            facts=facts,
            own=None,
        )

    def _read_part(self, part: Path) -> pa.Table:
        if self._format == "parquet":
            with pq.ParquetFile(part) as file:
                _check_rows(file.metadata.num_rows)
                for number in range(file.num_row_groups):
                    check_row_group(file, number)
                table = file.read()
        else:
            with pa.memory_map(str(part)) as source:
                table = pa.ipc.open_file(source).read_all()
        _check_rows(table.num_rows)
        table.validate(full=True)
        return table


def _check_rows(rows: int) -> None:
    if rows > _MAX_ROWS:
        raise CorruptionError(f"{rows} steps, expected at most {_MAX_ROWS}")


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return (
        column.chunk(0)
        if column.num_chunks == 1
        else pa.concat_arrays(column.chunks)
        if column.num_chunks
        else (pa.array([], column.type))
    )
