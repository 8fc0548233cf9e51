"""The JAT dataset's Parquet files: one folder a task, one row an episode. Needs Pillow for images.

    <task>/<split>-00000-of-00012.parquet
    image_observations [T] (encoded files), continuous_observations [T][n], discrete_observations [T][n] or [T],
    text_observations [T]; continuous_actions [T][n], discrete_actions [T]; rewards [T]

The final observation, the end flags and the sizes of discrete spaces are not in the files.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from episode_store.episode import Episode, EpisodeMetadata
from episode_store.errors import CorruptionError, UserError
from episode_store.formats.format import Finding, Importer, ImporterBase, LossLog, task_id_from, with_repeated_last
from episode_store.formats.rlds_features import Leaf, decode_images
from episode_store.formats.transfer import Bar, examine_importer, no_bar
from episode_store.spec import ArraySpec, FieldValues, Modality
from episode_store.splits import TRAIN, VALIDATION
from episode_store.task import TaskSpec

_OBSERVATIONS = {f"{kind}_observations": kind for kind in ("text", "image", "discrete", "continuous")}
_ACTIONS = {f"{kind}_actions": kind for kind in ("discrete", "continuous")}
_FILE = re.compile(r"(?P<split>[A-Za-z0-9_]+)-(?P<index>\d+)-of-(?P<count>\d+)(?:-[0-9a-f]+)?\.parquet")
_EPISODES_AT_ONCE = 4
_MAX_CHOICES = 1 << 31
# A changed byte in the footer also shows as names that are not UTF-8, a ValueError.
_DAMAGE = (pa.ArrowException, OSError, EOFError, ValueError)


def detect(source: Path) -> bool:
    """Whether the folder, or one below it, holds Parquet files with JAT's columns."""
    return any(_has_columns(files[0]) for files in _folders(source).values())


def open_importer(source: Path, *, task_id: str | None = None, options: Mapping[str, str]) -> Importer:
    """Opens the folder of one task or of many."""
    return JatImporter(source, task_id=task_id)


def doctor(source: Path, progress: Bar = no_bar) -> list[Finding]:
    """Reads every file and holds every episode against the contract."""
    found = examine_importer(lambda: JatImporter(source, task_id=None), source, progress)
    what = "Parquet has no checksums unless its writer asked for them: a changed bit may go unnoticed"
    return [*found, Finding(severity="note", where=str(source), what=what)]


def _folders(source: Path) -> dict[Path, list[Path]]:
    """Folder -> its files, for the source itself or the folders in it."""
    if not source.is_dir():
        return {}
    found: dict[Path, list[Path]] = {}
    for folder in [source, *sorted(entry for entry in source.iterdir() if entry.is_dir())]:
        files = sorted(file for file in folder.iterdir() if _FILE.fullmatch(file.name) and file.is_file())
        if files:
            found[folder] = files
    return found


def _has_columns(file: Path) -> bool:
    try:
        names = pq.read_schema(file).names
    except _DAMAGE:
        return False
    return "rewards" in names and any(name in names for name in _ACTIONS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Task:
    """One folder."""

    spec: TaskSpec
    files: Sequence[Path]


class JatImporter(ImporterBase):
    """The importer of one or many folders; see `format.Importer`."""

    name = "jat"

    def __init__(self, source: Path, *, task_id: str | None) -> None:
        super().__init__()
        self._opening: list[Finding] = []
        self._tasks: list[_Task] = []
        folders = _folders(source)
        for folder, files in folders.items():
            if not any(_has_columns(file) for file in files):
                what = "no actions and rewards: a corpus, not episodes; left out"
                self._opening.append(Finding(severity="warning", where=folder.name, what=what))
                continue
            try:
                spec = self._make_task(folder, files, task_id)
            except (ValueError, TypeError) as error:
                raise UserError(f"source {folder}: its columns are not JAT's: {error}") from None
            self._tasks.append(_Task(spec=spec, files=files))
        if not self._tasks:
            raise UserError(
                f"source {source}: no Parquet files with actions and rewards, named like train-00000-of-00001.parquet"
            )
        if task_id and len(self._tasks) > 1:
            raise UserError(
                f"--task-id names one task, {source} holds {len(self._tasks)}; give the folder of one of them"
            )
        self._findings = list(self._opening)

    def tasks(self) -> list[TaskSpec]:
        """One task a folder."""
        return [task.spec for task in self._tasks]

    def num_episodes(self) -> int | None:
        """Rows of all files that can be opened."""
        count = 0
        for task in self._tasks:
            for file in task.files:
                try:
                    count += pq.read_metadata(file).num_rows
                except _DAMAGE:
                    continue
        return count

    def episodes(self) -> Iterator[Episode]:
        """All episodes, task by task, file by file."""
        self._losses, self._findings = LossLog(), list(self._opening)
        self._losses.add("bounds, seed, agent, environment", "the files have no place for them", len(self._tasks))
        for task in self._tasks:
            index = 0
            for file in task.files:
                for row, values in self._rows(task, file):
                    where = f"{file.parent.name}/{file.name} row {row}"
                    try:
                        episode = self._episode(task, file, values, index, where)
                    except (CorruptionError, ValueError, TypeError) as error:
                        self._tell(where, str(error))
                    else:
                        yield episode
                    index += 1

    def _rows(self, task: _Task, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        columns = [*(c for c in (*_OBSERVATIONS, *_ACTIONS) if _key(task.spec, c)), "rewards"]
        row = 0
        try:
            with pq.ParquetFile(file, page_checksum_verification=True) as table:
                for batch in table.iter_batches(batch_size=_EPISODES_AT_ONCE, columns=columns):
                    for position in range(batch.num_rows):
                        yield row, {name: batch.column(name)[position] for name in columns}
                        row += 1
        except _DAMAGE as error:
            self._tell(f"{file.parent.name}/{file.name}", f"cannot be read after row {row}: {error}")

    def _tell(self, where: str, what: str) -> None:
        what = " ".join(what.split())[:300]
        self._findings.append(Finding(severity="error", where=where, what=what, remedy="copy the file again"))

    def _make_task(self, folder: Path, files: Sequence[Path], task_id: str | None) -> TaskSpec:
        sample = self._sample(folder, files)
        observations = {}
        actions = {}
        for column, kind in _OBSERVATIONS.items():
            if column in sample:
                observations[kind] = self._spec(files, column, kind, sample[column])
        for column, kind in _ACTIONS.items():
            if column in sample:
                actions["action" if len(set(_ACTIONS) & set(sample)) == 1 else kind] = self._spec(
                    files, column, kind, sample[column]
                )
        if len(observations) == 1:
            observations = {"observation": next(iter(observations.values()))}
        return TaskSpec(
            task_id=task_id or task_id_from(f"jat/{folder.resolve().name}"),
            observation_spec=observations,
            action_spec=actions,
            env_spec_json=json.dumps({"dataset": "jat-project/jat-dataset", "config": folder.resolve().name}),
            tags=("imported:jat",),
        )

    def _sample(self, folder: Path, files: Sequence[Path]) -> dict[str, Any]:
        """The first row that can be read."""
        for file in files:
            try:
                with pq.ParquetFile(file) as table:
                    names = [n for n in (*_OBSERVATIONS, *_ACTIONS, "rewards") if n in table.schema_arrow.names]
                    for batch in table.iter_batches(batch_size=1, columns=names):
                        row = {name: batch.column(name)[0] for name in names}
                        # The full set has all columns in every folder, with null where a task has no such thing.
                        return {name: value for name, value in row.items() if value.is_valid and len(_items(value))}
            except _DAMAGE:
                continue
        raise UserError(f"source {folder}: no row can be read")

    def _spec(self, files: Sequence[Path], column: str, kind: str, value: Any) -> ArraySpec:
        if kind == "text":
            return ArraySpec(modality=Modality.TEXT, dtype="str")
        if kind == "image":
            image = _images(_items(value)[:1], None)
            return ArraySpec(modality=Modality.IMAGE, shape=image.shape[1:], dtype="uint8")
        array = _numbers(value, np.float32 if kind == "continuous" else np.int64)
        if kind == "continuous":
            return ArraySpec(modality=Modality.CONTINUOUS, shape=array.shape[1:], dtype="float32")
        low, high = _range(files, column)
        if high - low >= _MAX_CHOICES:
            raise CorruptionError(f"source {files[0].parent}: {column}: values from {low} to {high} are no choices")
        start = (float(low),) * int(np.prod(array.shape[1:])) if low < 0 else ()
        return ArraySpec(
            modality=Modality.DISCRETE,
            shape=array.shape[1:],
            dtype="int64",
            low=start,
            num_values=(high + 1 - min(low, 0),) * int(np.prod(array.shape[1:])),
        )

    def _episode(self, task: _Task, file: Path, row: Mapping[str, Any], index: int, where: str) -> Episode:
        rewards = _numbers(row["rewards"], np.float64)
        fields: dict[str, FieldValues] = {}
        for column in (*_OBSERVATIONS, *_ACTIONS):
            key = _key(task.spec, column)
            if key is None:
                continue
            specs = task.spec.observation_spec if column in _OBSERVATIONS else task.spec.action_spec
            values = _values(row[column], specs[key])
            if len(values) != len(rewards):
                raise CorruptionError(f"{column}: {len(values)} steps, rewards have {len(rewards)}")
            fields[column] = values
        if not len(rewards):
            raise CorruptionError("no steps")
        add = self._losses.add
        add("final observation", "not in the files: the last observation is repeated in its place")
        add("end of the episode", "the files do not tell terminated from truncated: taken as truncated")
        for column in _ACTIONS | _OBSERVATIONS:
            if column.startswith("discrete") and column in fields:
                add(f"{column}: number of values", "not in the files: one more than the largest value in them")
        match = _FILE.fullmatch(file.name)
        split = match["split"] if match else ""
        side = TRAIN if split.startswith("train") else VALIDATION if split.startswith(("val", "test")) else ""
        return Episode(
            task_id=task.spec.task_id,
            observations={
                _key(task.spec, column) or "": with_repeated_last(values)
                for column, values in fields.items()
                if column in _OBSERVATIONS
            },
            actions={_key(task.spec, column) or "": values for column, values in fields.items() if column in _ACTIONS},
            rewards=rewards,
            terminated=False,
            truncated=True,
            metadata=EpisodeMetadata(
                agent_id=f"jat:{file.parent.name}",
                collection_index=index,
                split_group=f"{side}/{where}" if side else where,
                environment_config={"source": where, "split": split},
            ),
        )


def _key(spec: TaskSpec, column: str) -> str | None:
    """The field of a column; None when the task has no such column."""
    kind = (_OBSERVATIONS | _ACTIONS)[column]
    specs, bare = (spec.observation_spec, "observation") if column in _OBSERVATIONS else (spec.action_spec, "action")
    if kind in specs:
        return kind
    return bare if bare in specs and specs[bare].modality == kind else None


def _values(value: Any, spec: ArraySpec) -> FieldValues:
    if not value.is_valid:
        raise CorruptionError("a column is null")
    if spec.modality == Modality.TEXT:
        return [text or "" for text in _items(value).to_pylist()]
    if spec.modality == Modality.IMAGE:
        return _images(_items(value), spec.shape)
    return _numbers(value, np.dtype(spec.dtype))


def _items(value: Any) -> pa.Array:
    """The steps of one cell.

    Raises:
      CorruptionError: it is not a list.
    """
    if not isinstance(value, pa.ListScalar | pa.LargeListScalar | pa.FixedSizeListScalar):
        raise CorruptionError(f"expected a list of steps, got {value.type}")
    return value.values


def _images(values: pa.Array, shape: tuple[int, ...] | None) -> np.ndarray:
    """uint8 [T, height, width, channels] of encoded files, bare or as {bytes, path} structs."""
    is_struct = pa.types.is_struct(values.type)
    if is_struct and values.type.get_field_index("bytes") < 0:
        raise CorruptionError(f"expected images as bytes, got {values.type}")
    files = values.field("bytes") if is_struct else values
    if not (pa.types.is_binary(files.type) or pa.types.is_large_binary(files.type)):
        raise CorruptionError(f"expected images as bytes, got {files.type}")
    if files.null_count:
        raise CorruptionError("an image is missing (only its path is given)")
    leaf = Leaf(path=("image",), key="image", kind="image", dtype="uint8", shape=shape or (None, None, None))
    return decode_images(leaf, [item.as_buffer() for item in files])


def _numbers(value: Any, dtype: Any) -> np.ndarray:
    """[T] or [T, n] of a list, or of a list of lists of one length."""
    values = _items(value)
    if not pa.types.is_nested(values.type):
        return np.asarray(values.to_numpy(zero_copy_only=False), dtype)
    lengths = pc.list_value_length(values).to_numpy(zero_copy_only=False)
    if not len(lengths) or (lengths != lengths[0]).any():
        raise CorruptionError("steps of different lengths")
    flat = values.flatten()
    if pa.types.is_nested(flat.type):
        raise CorruptionError("lists nested more than two deep")
    return np.asarray(flat.to_numpy(zero_copy_only=False), dtype).reshape(len(lengths), -1)


def _range(files: Sequence[Path], column: str) -> tuple[int, int]:
    """Smallest and largest value of an integer column over all files that can be read."""
    low = high = 0
    for file in files:
        try:
            with pq.ParquetFile(file) as table:
                for batch in table.iter_batches(batch_size=64, columns=[column]):
                    values = batch.column(0)
                    while pa.types.is_nested(values.type):
                        values = values.flatten()
                    if pa.types.is_integer(values.type) and len(values) - values.null_count:
                        least, most = pc.min_max(values).as_py().values()
                        low, high = min(low, least), max(high, most)
        except _DAMAGE:
            continue
    return low, high
