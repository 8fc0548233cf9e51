"""Writes one task as a LeRobot v3.0 set, as its own reader wants it: pictures as PNG in Parquet.

LeRobot has T frames an episode and no observation after the last action. That one, provenance, both end flags and the
names of fields stand in `meta/episode_store.*`, where other readers do not look, so an import of our own set is exact.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from episode_store.episode import Episode
from episode_store.errors import UserError
from episode_store.files import write_bytes
from episode_store.formats import folders
from episode_store.formats import lerobot_files as files
from episode_store.formats import lerobot_video as video
from episode_store.formats.format import ExportResult, LossLog, Progress, need
from episode_store.formats.lerobot_columns import Column, to_bytes
from episode_store.formats.lerobot_import import INSTRUCTION
from episode_store.formats.lerobot_stats import RunningStats, Stats, episode_stats
from episode_store.spec import ArraySpec, FieldValues, Modality
from episode_store.splits import TRAIN
from episode_store.store import EpisodeStore
from episode_store.task import TaskSpec, task_file_name

_FILE_MB = 100
_CHUNK_FILES = 1000
_DEFAULT_FPS = 30.0
_VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_BESIDE = "kept beside in meta/episode_store.parquet, which LeRobot does not read"


def export_lerobot(
    store: EpisodeStore, task_id: str, destination: Path, *, options: Mapping[str, str], progress: Progress
) -> ExportResult:
    """Writes `destination/<task>`: under a temporary name, renamed when it is whole.

    `LeRobotDataset("any/name", root=destination/<task>)` opens it.

    Raises:
      UserError: the folder exists, the task has no episodes, an option cannot be used, or a package is missing.
    """
    task = store.tasks[task_id]
    target = destination / task_file_name(task_id)
    ids = folders.episodes_to_export(store, task_id, target)
    losses = LossLog()
    fps = _fps(task, options, losses)
    images = options.get("images", "png")
    if images not in ("png", "video"):
        raise UserError(f"option images {images!r}: expected png or video")
    if images == "video":
        need("av", "video", "encoding videos")
    kinds = folders.step_column_kinds(store, ids, losses)
    exact = all(_is_float32(store.read_window(i, 0, n, ["rewards"]).rewards) for i, n in _lengths(store, task_id))
    layout = _Layout(task, kinds, "float32" if exact else "float64", images == "video", losses)
    with folders.temporary_folder(target) as folder:
        writer = _SetWriter(folder, layout, fps)
        for episode_id in progress(ids):
            writer.add(store.read(episode_id))
        writer.finish(options.get("robot_type") or _fact(task, "robot_type"))
        folders.write_task(
            folder / files.TASK_FILE,
            task,
            observations=layout.keys("observations"),
            actions=layout.keys("actions"),
            step_columns=layout.keys("step_columns"),
            step_column_kinds={name: [dtype, list(shape)] for name, (dtype, shape) in kinds.items()},
            instruction=layout.has_instruction,
        )
        num_bytes = folders.folder_bytes(folder)
    _tell_losses(task, losses, len(ids))
    return ExportResult(
        format="lerobot",
        task_id=task_id,
        destination=target,
        num_episodes=len(ids),
        num_steps=writer.num_frames,
        num_bytes=num_bytes,
        losses=losses.losses(),
    )


def _tell_losses(task: TaskSpec, losses: LossLog, count: int) -> None:
    losses.add("final observation", f"LeRobot has no observation after the last action; {_BESIDE}", count)
    losses.add("agent, seed, provenance", _BESIDE, count)
    losses.add("bounds and numbers of values", "LeRobot has no place for them; kept beside in meta/episode_store.json")
    if task.env_spec_json not in ("", "{}"):
        losses.add("environment", "LeRobot has no place for it; kept beside in meta/episode_store.json")
    if task.licence:
        losses.add("licence", "stands in a set's card on the hub; kept beside in meta/episode_store.json")


def _lengths(store: EpisodeStore, task_id: str) -> Iterator[tuple[str, int]]:
    table = store.table(task_id)
    return zip(table["episode_id"].to_pylist(), table["num_steps"].to_pylist(), strict=True)


def _is_float32(values: np.ndarray | None) -> bool:
    with np.errstate(over="ignore"):
        return values is None or bool(np.array_equal(values.astype(np.float32), values))


def _fact(task: TaskSpec, name: str) -> Any:
    """A fact of an imported LeRobot set."""
    try:
        return json.loads(task.env_spec_json)["lerobot"][name]
    except (KeyError, TypeError, ValueError):
        return None


def _fps(task: TaskSpec, options: Mapping[str, str], losses: LossLog) -> float:
    text = options.get("fps")
    if text is None:
        fps = _fact(task, "fps")
        if isinstance(fps, int | float) and 0 < fps < 1e6:
            return float(fps)
        losses.add("fps", f"the store does not know it: {_DEFAULT_FPS:g} written; say --option fps=N")
        return _DEFAULT_FPS
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise UserError(f"option fps {text!r}: expected a positive number")
    return value


class _Layout:
    """Which feature holds which field."""

    def __init__(
        self, task: TaskSpec, kinds: folders.StepColumns, reward_dtype: str, videos: bool, losses: LossLog
    ) -> None:
        self.task = task
        self._videos = videos
        instruction = task.observation_spec.get(INSTRUCTION)
        self.has_instruction = instruction is not None and instruction.modality == Modality.TEXT
        self.groups: dict[str, dict[str, Column]] = {"observations": {}, "actions": {}, "step_columns": {}}
        self.losses = losses
        for name, spec in task.observation_spec.items():
            if not (name == INSTRUCTION and self.has_instruction):
                alone = list(task.observation_spec) == ["observation"]
                self._add("observations", name, _bare_key(spec) if alone else f"observation.{name}", spec)
        for name, spec in task.action_spec.items():
            self._add("actions", name, "action" if name == "action" else f"action.{name}", spec)
        for name, (dtype, shape) in kinds.items():
            spec = ArraySpec(modality=Modality.CONTINUOUS, dtype=dtype, shape=shape)
            self._add("step_columns", name, f"step.{name}", spec)
        self.reward = Column("next.reward", reward_dtype, ())
        self.ends = [Column("next.done", "bool", ()), Column("next.truncated", "bool", ())]
        self.bookkeeping = [Column(key, dtype, ()) for key, dtype in files.BOOKKEEPING.items()]
        columns = [column for group in self.groups.values() for column in group.values()]
        for column in (*columns, self.reward):
            if column.dtype == "float64":
                losses.add(f"{column.key}: float64", "in the file; LeRobot's reader hands it out as float32")
        self.columns = [*columns, self.reward, *self.ends, *self.bookkeeping]
        keys = [column.key for column in self.columns]
        if len(set(keys)) != len(keys):
            raise UserError(f"export of {task.task_id}: two fields get one name when '/' becomes '.': {sorted(keys)}")

    def _add(self, group: str, name: str, key: str, spec: ArraySpec) -> None:
        key = key.replace("/", ".")
        if not spec.size:
            raise UserError(
                f"export of {self.task.task_id}: {name} has shape {spec.shape}: LeRobot holds no empty arrays"
            )
        # PNG has one to four channels.
        is_picture = spec.modality == Modality.IMAGE and spec.shape[2] in (1, 3, 4)
        is_video = is_picture and self._videos and video.can_encode(spec.shape)
        if is_video:
            self.losses.add(f"{group}/{name}: pixels", "written as video (option images=video), which loses detail")
        elif is_picture and self._videos:
            self.losses.add(f"{group}/{name}: video", f"written as PNG: the codec does not take frames of {spec.shape}")
        column = Column(key, spec.dtype, spec.shape, is_picture=is_picture, is_video=is_video)
        self.groups[group][name] = column
        if "/" in name:
            self.losses.add("levels of names", f"'/' becomes '.'; names kept beside in {files.TASK_FILE}")
        if spec.shape and not is_picture and column.shape != spec.shape:
            why = f"written as {list(column.shape)}, LeRobot has no {spec.shape}; kept beside in {files.TASK_FILE}"
            self.losses.add(f"{group}/{name}: shape", why)

    def keys(self, group: str) -> dict[str, str]:
        """Field name -> feature."""
        return {name: column.key for name, column in self.groups[group].items()}


def _bare_key(spec: ArraySpec) -> str:
    """The one observation of a task gets the name that LeRobot's policies look for."""
    return "observation.image" if spec.modality == Modality.IMAGE else "observation.state"


class _SetWriter:
    """Writes frames as they come; the small tables at the end."""

    def __init__(self, folder: Path, layout: _Layout, fps: float) -> None:
        self._folder = folder
        self._layout = layout
        self._fps = fps
        self._stats = RunningStats()
        self._instructions: dict[str, int] = {}
        self._writer: pq.ParquetWriter | None = None
        self._file_number = -1
        self._rows: list[dict[str, Any]] = []
        self._side: list[dict[str, Any]] = []
        self.num_frames = 0
        self._stored = [column for column in layout.columns if not column.is_video]
        features = {column.key: column.hugging_face() for column in self._stored}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        self._schema = pa.schema([column.field() for column in self._stored], metadata=metadata)

    def add(self, episode: Episode) -> None:
        """One episode: one row group."""
        layout, steps, index = self._layout, episode.num_steps, len(self._rows)
        values: dict[str, FieldValues] = {}
        for name, column in layout.groups["observations"].items():
            values[column.key] = episode.observations[name][:-1]
        for name, column in layout.groups["actions"].items():
            values[column.key] = episode.actions[name]
        kept = []
        for name, column in layout.groups["step_columns"].items():
            own = episode.step_columns.get(name)
            if (
                own is not None
                and own.dtype.name == column.dtype
                and len(own.reshape(-1)) == steps * np.prod(column.shape)
            ):
                kept.append(name)
                values[column.key] = own
            else:
                values[column.key] = np.zeros((steps, *column.shape), column.dtype)
        values["next.reward"] = episode.rewards
        last = np.arange(steps) == steps - 1
        # LeRobot's done says that the episode ends here, for whatever reason.
        values["next.done"], values["next.truncated"] = last, last & episode.truncated
        if episode.terminated and episode.truncated:
            layout.losses.add("terminated", f"with next.truncated set, next.done cannot say so; {_BESIDE}")
        texts = self._texts(episode)
        numbers = [self._instructions.setdefault(text, len(self._instructions)) for text in texts]
        values |= {
            "timestamp": (np.arange(steps) / self._fps).astype(np.float32),
            "frame_index": np.arange(steps),
            "episode_index": np.full(steps, index),
            "index": np.arange(self.num_frames, self.num_frames + steps),
            "task_index": np.array(numbers, np.int64),
        }
        arrays = [column.array(values[column.key]) for column in self._stored]
        for column in layout.columns:
            if column.is_video:
                video.write_frames(self._video_path(column.key, index), np.asarray(values[column.key]), self._fps)
        writer = self._open_writer()
        writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema), row_group_size=steps)
        stats = {
            column.key: episode_stats(column.numbers(values[column.key]), is_picture=column.is_picture)
            for column in layout.columns
            if column.dtype != "string"
        }
        self._stats.add(stats)
        self._rows.append(self._episode_row(index, steps, sorted(set(texts), key=texts.index), stats))
        self._side.append(self._side_row(index, episode, kept))
        self.num_frames += steps

    def _texts(self, episode: Episode) -> list[str]:
        """The instruction of each frame."""
        if self._layout.has_instruction:
            texts = episode.observations[INSTRUCTION]
            assert isinstance(texts, list)
            return texts[:-1]
        return [self._layout.task.task_id] * episode.num_steps

    def _open_writer(self) -> pq.ParquetWriter:
        """The data file that takes the next episode: a new one when the last is full."""
        if self._writer is not None and self._path(self._file_number).stat().st_size >= _FILE_MB << 20:
            self._close()
        if self._writer is None:
            self._file_number += 1
            path = self._path(self._file_number)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(path, self._schema, compression="snappy", write_page_checksum=True)
        return self._writer

    def _path(self, number: int) -> Path:
        chunk, file = divmod(number, _CHUNK_FILES)
        return self._folder / files.DATA_FOLDER / f"chunk-{chunk:03d}" / f"file-{file:03d}.parquet"

    def _video_path(self, key: str, index: int) -> Path:
        """One video an episode, so that nothing is encoded twice."""
        chunk, file = divmod(index, _CHUNK_FILES)
        return self._folder / "videos" / key / f"chunk-{chunk:03d}" / f"file-{file:03d}.mp4"

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _episode_row(self, index: int, steps: int, texts: list[str], stats: Mapping[str, Stats]) -> dict[str, Any]:
        chunk, file = divmod(self._file_number, _CHUNK_FILES)
        return {
            "episode_index": index,
            "tasks": texts,
            "length": steps,
            "data/chunk_index": chunk,
            "data/file_index": file,
            "dataset_from_index": self.num_frames,
            "dataset_to_index": self.num_frames + steps,
            **self._video_facts(index, steps),
            **{f"stats/{key}/{name}": value.tolist() for key, own in stats.items() for name, value in own.items()},
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }

    def _video_facts(self, index: int, steps: int) -> dict[str, Any]:
        chunk, file = divmod(index, _CHUNK_FILES)
        facts: dict[str, Any] = {}
        for column in self._layout.columns:
            if column.is_video:
                prefix = f"videos/{column.key}"
                facts |= {f"{prefix}/chunk_index": chunk, f"{prefix}/file_index": file}
                facts |= {f"{prefix}/from_timestamp": 0.0, f"{prefix}/to_timestamp": steps / self._fps}
        return facts

    def _side_row(self, index: int, episode: Episode, kept: list[str]) -> dict[str, Any]:
        own = {
            "metadata": episode.metadata.to_json(),
            "terminated": bool(episode.terminated),
            "truncated": bool(episode.truncated),
            "content_hash": episode.content_hash(),
            "step_columns": kept,
        }
        finals = {f"final/{name}": to_bytes(values[-1]) for name, values in episode.observations.items()}
        return {"episode_index": index, "own": json.dumps(own, sort_keys=True), **finals}

    def finish(self, robot_type: Any) -> None:
        """Closes the data and writes meta/."""
        self._close()
        meta = self._folder / files.EPISODES_FOLDER / "chunk-000"
        meta.mkdir(parents=True)
        _write_table(pa.Table.from_pylist(self._rows), meta / "file-000.parquet")
        _write_table(pa.Table.from_pylist(self._side), self._folder / files.SIDE_FILE)
        _write_table(_instruction_table(self._instructions), self._folder / files.TASKS_FILE)
        folders.write_json(self._folder / files.STATS_FILE, self._stats.to_json())
        fps: float | int = int(self._fps) if self._fps.is_integer() else self._fps
        info = {
            "codebase_version": files.VERSION,
            "fps": fps,
            "features": {column.key: column.info(self._fps) for column in self._layout.columns},
            "total_episodes": len(self._rows),
            "total_frames": self.num_frames,
            "total_tasks": len(self._instructions),
            "chunks_size": _CHUNK_FILES,
            "data_files_size_in_mb": _FILE_MB,
            "video_files_size_in_mb": 200,
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": _VIDEO_PATH if any(column.is_video for column in self._layout.columns) else None,
            "robot_type": robot_type,
            "splits": {TRAIN: f"0:{len(self._rows)}"},
        }
        folders.write_json(self._folder / files.INFO_FILE, info)


def _instruction_table(instructions: Mapping[str, int]) -> pa.Table:
    """As pandas writes a frame whose index is the text: LeRobot looks texts up by it."""

    def describe(name: str, kind: str, numpy_type: str) -> dict[str, Any]:
        return {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy_type, "metadata": None}

    pandas = {
        "index_columns": ["task"],
        "column_indexes": [describe("", "unicode", "object") | {"name": None, "field_name": None}],
        "columns": [describe("task_index", "int64", "int64"), describe("task", "unicode", "object")],
        "pandas_version": "2.0.0",
    }
    table = pa.table({"task_index": pa.array(list(instructions.values()), pa.int64()), "task": list(instructions)})
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def _write_table(table: pa.Table, path: Path) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True)
    write_bytes(path, memoryview(sink.getvalue()))
