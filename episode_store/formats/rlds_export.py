"""Writes one task as an RLDS set that tensorflow-datasets opens with `builder_from_directory`.

T actions and T + 1 observations become T + 1 steps. What RLDS has no place for goes where other readers do not look:
the task into `episode_store.json`, an episode's provenance and hash into `episode_metadata/episode_store_metadata`,
step columns into `steps/step_columns`. So a set that is imported again is the same, bit by bit.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from episode_store import files
from episode_store.episode import Episode
from episode_store.errors import UserError
from episode_store.formats import folders
from episode_store.formats.format import ExportResult, LossLog, Progress
from episode_store.formats.rlds_features import Leaf, encode_leaf, features_json
from episode_store.formats.rlds_folder import FEATURES_FILE, FILE_FORMATS, INFO_FILE, TEMPLATE
from episode_store.formats.rlds_import import METADATA_FIELD, STEP_COLUMNS_FIELD
from episode_store.formats.tf_example import FeatureValues, encode_example
from episode_store.formats.tfrecord import ArrayRecordWriter, TFRecordWriter
from episode_store.spec import ArraySpec, FieldValues, Modality, is_text
from episode_store.splits import split_of
from episode_store.store import EpisodeStore
from episode_store.task import TaskSpec

_SHARD_BYTES = 256 << 20
# From this many elements a step on, one-byte numbers are stored as bytes and not as a list of integers.
_MANY = 16
_FACTS = {"episode_id": "str", "agent_id": "str", "terminated": "bool", "truncated": "bool", METADATA_FIELD: "str"}


def set_name(task_id: str) -> str:
    """The name of the set: lower-case letters, digits and '_', as tensorflow-datasets wants it."""
    name = re.sub(r"[^a-z0-9]+", "_", task_id.lower()).strip("_")
    return name if name[0].isalpha() else f"set_{name}"


def export_rlds(
    store: EpisodeStore, task_id: str, destination: Path, *, options: Mapping[str, str], progress: Progress
) -> ExportResult:
    """Writes `destination/<name>/<version>/`: under a temporary name, renamed when it is whole.

    Raises:
      UserError: an option cannot be used, the folder exists, the task has no episodes, or field names that cannot nest.
    """
    settings = _Settings(options)
    task = store.tasks[task_id]
    target = destination / set_name(task_id) / settings.version
    if target.exists():
        raise UserError(f"export of {task_id}: {target} exists; choose another --output or --option version=x.y.z")
    ids: list[str] = store.table(task_id)["episode_id"].to_pylist()
    if not ids:
        raise UserError(f"export of {task_id}: the store has no episodes of it")
    losses = LossLog()
    layout = _Layout(task, folders.step_column_kinds(store, ids, losses), settings.float64)
    with folders.temporary_folder(target) as folder:
        shards = _Shards(folder, settings)
        num_steps = 0
        for episode_id in progress(ids):
            episode = store.read(episode_id)
            num_steps += episode.num_steps
            split = split_of(
                is_corpus=task.is_corpus, split_group=episode.metadata.split_group, content_hash=episode_id, holdout=0
            )
            shards.add(split, encode_example(layout.encode(episode, episode_id, losses)))
        info = shards.finish(set_name(task_id))
        info |= {"description": f"Episodes of {task_id}.", "version": settings.version}
        if task.licence:
            info["redistributionInfo"] = {"license": task.licence}
        files.write_json(folder / FEATURES_FILE, features_json(layout.leaves))
        folders.write_task(folder / folders.TASK_FILE, task)
        files.write_json(folder / INFO_FILE, info)
        num_bytes = folders.folder_bytes(folder)
    return ExportResult(
        format="rlds",
        task_id=task_id,
        destination=target,
        num_episodes=len(ids),
        num_steps=num_steps,
        num_bytes=num_bytes,
        losses=losses.losses(),
    )


class _Settings:
    """The options, checked."""

    def __init__(self, options: Mapping[str, str]) -> None:
        self.file_format = options.get("file_format", "tfrecord")
        if self.file_format not in FILE_FORMATS:
            raise UserError(f"option file_format {self.file_format!r}: expected {' or '.join(FILE_FORMATS)}")
        self.float64 = options.get("float64", "bytes")
        if self.float64 not in ("bytes", "float32"):
            raise UserError(f"option float64 {self.float64!r}: expected bytes or float32")
        self.version = options.get("version", "1.0.0")
        if not re.fullmatch(r"\d{1,4}\.\d{1,4}\.\d{1,4}", self.version):
            raise UserError(f"option version {self.version!r}: expected x.y.z")
        episodes = options.get("shard_episodes", "")
        if episodes and (not episodes.isdecimal() or not int(episodes)):
            raise UserError(f"option shard_episodes {episodes!r}: expected a whole number of at least 1")
        self.shard_episodes = int(episodes) if episodes else None


class _Layout:
    """Which feature holds what, and the Example of an episode."""

    def __init__(self, task: TaskSpec, step_columns: Mapping[str, tuple[str, tuple[int, ...]]], float64: str) -> None:
        self._task_id = task.task_id
        self._float64 = float64
        self._observations = self._fields(task.observation_spec, "observation")
        self._actions = self._fields(task.action_spec, "action")
        self._step_columns = {
            name: self._numbers(f"steps/{STEP_COLUMNS_FIELD}/{name}", dtype, shape)
            for name, (dtype, shape) in step_columns.items()
        }
        _check_nesting(task, "step column", step_columns)
        self._reward = self._numbers("steps/reward", "float64", ())
        self._flags = {name: _leaf(f"steps/{name}", "bool") for name in ("is_first", "is_last", "is_terminal")}
        self._discount = _leaf("steps/discount", "float32")
        self._facts = {name: _leaf(f"episode_metadata/{name}", dtype) for name, dtype in _FACTS.items()}
        self.leaves = [
            *self._observations.values(),
            *self._actions.values(),
            *self._step_columns.values(),
            self._reward,
            *self._flags.values(),
            self._discount,
            *self._facts.values(),
        ]

    def _fields(self, specs: Mapping[str, ArraySpec], group: str) -> dict[str, Leaf]:
        if list(specs) == [group]:
            return {group: self._field(specs[group], f"steps/{group}")}
        return {name: self._field(spec, f"steps/{group}/{name}") for name, spec in specs.items()}

    def _field(self, spec: ArraySpec, key: str) -> Leaf:
        is_png = spec.modality == Modality.IMAGE and spec.shape[2] in (1, 3, 4)
        if spec.varies and not is_png:
            raise UserError(
                f"export of {self._task_id}: {key.removeprefix('steps/')}: images that vary in size: rlds holds those "
                f"of 1, 3 or 4 channels, got {spec.shape[2]}"
            )
        if is_png and (spec.size or spec.varies):
            path = tuple(key.split("/"))
            return Leaf(path=path, key=key, kind="image", dtype="uint8", shape=spec.shape, encoding="png")
        return _leaf(key, "str") if spec.dtype == "str" else self._numbers(key, spec.dtype, spec.shape)

    def _numbers(self, key: str, dtype: str, shape: tuple[int, ...]) -> Leaf:
        """Lists of float32 and int64 cannot hold everything: the rest is stored as the bytes of each step."""
        size = int(np.prod(shape))
        wide = dtype == "uint64" or (dtype == "float64" and self._float64 == "bytes")
        bulky = np.dtype(dtype).itemsize == 1 and size >= _MANY
        return _leaf(key, dtype, shape, "bytes" if wide or bulky or not size else "none")

    def encode(self, episode: Episode, episode_id: str, losses: LossLog) -> dict[str, FeatureValues]:
        """The features of one episode."""
        rows = episode.num_steps + 1
        last = np.arange(rows) == rows - 1
        features: dict[str, FeatureValues] = {}

        def put(leaf: Leaf, values: FieldValues) -> None:
            self._tell_digits(leaf, values, losses)
            features[leaf.key] = encode_leaf(leaf, values)

        for name, leaf in self._observations.items():
            put(leaf, episode.observations[name])
        for name, leaf in self._actions.items():
            put(leaf, _padded(episode.actions[name]))
        put(self._reward, _padded(episode.rewards))
        kept = []
        for name, leaf in self._step_columns.items():
            values = episode.step_columns.get(name)
            if values is not None and (values.dtype.name, values.shape[1:]) == (leaf.dtype, leaf.shape):
                kept.append(name)
            else:
                values = np.zeros((rows - 1, *(side or 0 for side in leaf.shape)), np.dtype(leaf.dtype))
            put(leaf, _padded(values))
        put(self._flags["is_first"], np.arange(rows) == 0)
        put(self._flags["is_last"], last)
        put(self._flags["is_terminal"], last & episode.terminated)
        discount = np.ones(rows, np.float32)
        discount[-2:] = [not episode.terminated, 0]
        put(self._discount, discount)
        if episode.truncated:
            losses.add("truncation", "RLDS has is_terminal only; kept in episode_metadata/truncated, which few read")
        metadata = {
            "metadata": episode.metadata.to_json(),
            "step_columns": kept,
            "truncated": bool(episode.truncated),
            "content_hash": episode.content_hash(),
        }
        facts: dict[str, FieldValues] = {
            "episode_id": [episode_id],
            "agent_id": [episode.metadata.agent_id],
            "terminated": np.array([episode.terminated]),
            "truncated": np.array([episode.truncated]),
            METADATA_FIELD: [json.dumps(metadata, sort_keys=True)],
        }
        for name, leaf in self._facts.items():
            put(leaf, facts[name])
        return features

    def _tell_digits(self, leaf: Leaf, values: FieldValues, losses: LossLog) -> None:
        if isinstance(values, np.ndarray) and leaf.dtype == "float64" and leaf.encoding == "none":
            with np.errstate(over="ignore"):
                changed = not np.array_equal(values.astype(np.float32), values, equal_nan=True)
            name = leaf.key.removeprefix("steps/")
            losses.add(f"{name}: float64", "stored as float32 (option float64=float32): digits beyond it", int(changed))


def _leaf(key: str, dtype: str, shape: tuple[int, ...] = (), encoding: str = "none") -> Leaf:
    kind: Any = "text" if dtype == "str" else "tensor"
    return Leaf(path=tuple(key.split("/")), key=key, kind=kind, dtype=dtype, shape=shape, encoding=encoding)


def _padded(values: FieldValues) -> FieldValues:
    """With a last row of zeros (an empty text, one black pixel): the last step's action and reward."""
    if isinstance(values, list):
        return [*values, "" if is_text(values) else np.zeros((1, 1, values[0].shape[2]), np.uint8)]
    return np.concatenate([values, np.zeros((1, *values.shape[1:]), values.dtype)])


def _check_nesting(task: TaskSpec, what: str, columns: Mapping[str, Any]) -> None:
    for kind, names in (("observation", task.observation_spec), ("action", task.action_spec), (what, columns)):
        for name in names:
            for other in names:
                if other.startswith(f"{name}/"):
                    raise UserError(
                        f"export of {task.task_id}: {kind} {name!r} is a field and {other!r} lies inside it; RLDS "
                        "cannot hold both"
                    )


class _Shards:
    """The shards of all splits; they get their names when their number is known."""

    def __init__(self, folder: Path, settings: _Settings) -> None:
        self._folder = folder
        self._settings = settings
        self._writer = TFRecordWriter if settings.file_format == "tfrecord" else ArrayRecordWriter
        self._open: dict[str, TFRecordWriter | ArrayRecordWriter] = {}
        self._lengths: dict[str, list[int]] = {}
        self._bytes: dict[str, list[int]] = {}

    def add(self, split: str, record: bytes) -> None:
        """Appends one record to the split's open shard, or to a new one when that is full."""
        lengths, sizes = self._lengths.setdefault(split, []), self._bytes.setdefault(split, [])
        limit = self._settings.shard_episodes
        full = split in self._open and (lengths[-1] >= limit if limit else sizes[-1] + len(record) > _SHARD_BYTES)
        if full:
            self._open.pop(split).close()
        if split not in self._open:
            self._open[split] = self._writer(self._path(split, len(lengths)))
            lengths.append(0)
            sizes.append(0)
        self._open[split].write(record)
        lengths[-1] += 1
        sizes[-1] += len(record)

    def close(self) -> None:
        """Closes what is open."""
        for writer in self._open.values():
            writer.close()
        self._open.clear()

    def finish(self, name: str) -> dict[str, Any]:
        """Closes and names the shards; returns what dataset_info.json says of them."""
        self.close()
        splits = []
        for split, lengths in sorted(self._lengths.items()):
            for index in range(len(lengths)):
                path = self._path(split, index)
                final = f"{name}-{split}.{self._settings.file_format}-{index:05d}-of-{len(lengths):05d}"
                os.replace(path, self._folder / final)
            splits.append(
                {
                    "name": split,
                    "filepathTemplate": TEMPLATE,
                    "numBytes": str(sum(self._bytes[split])),
                    "shardLengths": [str(length) for length in lengths],
                }
            )
        return {"name": name, "fileFormat": self._settings.file_format, "splits": splits}

    def _path(self, split: str, index: int) -> Path:
        return self._folder / f"{split}-{index}.part"
