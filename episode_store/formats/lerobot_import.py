"""Reads LeRobot v3.0 sets: what a set leaves out is assumed and said."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from episode_store.episode import Episode, EpisodeMetadata
from episode_store.errors import CorruptionError, UserError
from episode_store.formats import lerobot_files as files
from episode_store.formats import lerobot_video as video
from episode_store.formats.folders import read_task
from episode_store.formats.format import (
    Finding,
    LossLog,
    SingleTaskImporter,
    one_line,
    task_id_from,
    with_repeated_last,
)
from episode_store.formats.lerobot_files import BOOKKEEPING, Feature, Frames
from episode_store.formats.rlds_features import Leaf, decode_images
from episode_store.spec import ArraySpec, FieldValues, Modality, uniform_bounds
from episode_store.task import TaskSpec

_REWARDS = ("next.reward", "reward")
_TERMINATED = ("next.terminated", "next.done", "done")
_TRUNCATED = ("next.truncated", "truncated")
_SUCCESS = ("next.success", "success")
INSTRUCTION = "task"
# Timestamps are float32: at some hours they are this far from frame_index / fps.
_TIME_TOLERANCE = 1e-3


class LeRobotImporter(SingleTaskImporter):
    """The importer of one set; see `format.Importer`."""

    name = "lerobot"

    def __init__(self, source: Path, *, task_id: str | None, options: Mapping[str, str]) -> None:
        self._folder = files.open_folder(source)
        self._last_frame = _choice(options, "last_frame", ("repeat", "drop"))
        placement = _choice(options, "task", ("auto", "observation", "metadata"))
        self._discrete = parse_discrete(options.get("discrete", ""))
        super().__init__()
        self._own, content = read_task(source / files.TASK_FILE)
        self._keys: Mapping[str, Any] = content
        features = self._folder.features
        self._instruct = placement == "observation" or (placement == "auto" and len(self._folder.instructions) > 1)
        if self._own is not None:
            self._observations, self._actions, self._columns = self._own_fields()
            self._instruct = bool(content.get("instruction"))
            self._side = self._read_side()
        else:
            self._observations = _named(features, "observation")
            self._actions = _named(features, "action")
            taken = {*_REWARDS, *_TERMINATED, *_TRUNCATED, *_SUCCESS}
            self._columns = {
                key: feature
                for key, feature in features.items()
                if feature not in (*self._observations.values(), *self._actions.values())
                and key not in taken
                and feature.dtype not in ("string", "image", "video")
            }
            self._side = {}
        if not self._observations:
            raise UserError(f"source {source}: info.json has no feature observation.*: nothing to see")
        if not self._actions:
            raise UserError(f"source {source}: info.json has no feature action: nothing was done")
        videos = [feature.key for feature in self._used() if feature.dtype == "video"]
        if videos:
            video.check_decoder(videos, source)
        self._task = self._make_task(task_id)

    def num_episodes(self) -> int | None:
        """As info.json says."""
        count = self._folder.info.get("total_episodes")
        return count if isinstance(count, int) else None

    def episodes(self) -> Iterator[Episode]:
        """All episodes in the order of the files."""
        self._losses, self._findings = LossLog(), list(self._folder.findings)
        self._tell_assumptions()
        columns = [*BOOKKEEPING, *(feature.key for feature in self._used() if feature.dtype != "video")]
        seen: set[int] = set()
        num_frames = next_index = 0
        for frames in files.read_frames(self._folder, columns, self._findings):
            index = frames.episode_index
            where = f"{frames.where} episode {index}"
            num_frames += frames.table.num_rows
            if index in seen:
                self._add_error(where, "its frames stand in two places, with another episode between them")
                continue
            seen.add(index)
            try:
                next_index = self._check_order(frames, where, next_index)
                episode = self._episode(frames, where)
            except (CorruptionError, *files.DAMAGE) as error:
                self._add_error(where, one_line(error))
                continue
            yield episode
        self._check_counts(seen, num_frames)

    def _used(self) -> list[Feature]:
        """All features that are read."""
        features = self._folder.features
        extra = [features[key] for key in (*_REWARDS, *_TERMINATED, *_TRUNCATED, *_SUCCESS) if key in features]
        used = [*self._observations.values(), *self._actions.values(), *self._columns.values(), *extra]
        return list({feature.key: feature for feature in used}.values())

    def _add_error(self, where: str, what: str) -> None:
        remedy = "mend or remove this episode, or copy the set again; the others are read"
        self._findings.append(Finding(severity="error", where=where, what=what, remedy=remedy))

    def _own_fields(self) -> tuple[dict[str, Feature], dict[str, Feature], dict[str, Feature]]:
        """The fields of a set of ours: name -> feature, as its own file says."""
        fields: list[dict[str, Feature]] = []
        for group in ("observations", "actions", "step_columns"):
            keys = self._keys.get(group)
            if not isinstance(keys, dict) or not set(keys.values()) <= set(self._folder.features):
                raise UserError(
                    f"{self._folder.path / files.TASK_FILE}: {group} differ from info.json: the set was changed since "
                    "its export; remove this file to read it like any other"
                )
            fields.append({name: self._folder.features[key] for name, key in keys.items()})
        return fields[0], fields[1], fields[2]

    def _read_side(self) -> dict[int, Mapping[str, Any]]:
        """episode_index -> what LeRobot has no place for."""
        file = self._folder.path / files.SIDE_FILE
        try:
            rows = files.read_table(file, ["episode_index", "own"]).to_pylist()
            return {int(row["episode_index"]): row for row in rows}
        except (*files.DAMAGE, CorruptionError, TypeError, ValueError) as error:
            raise UserError(
                f"{file}: cannot be read: {one_line(error)}; remove {files.TASK_FILE} to do without"
            ) from None

    def _make_task(self, task_id: str | None) -> TaskSpec:
        if self._own is not None:
            return dataclasses.replace(self._own, task_id=task_id) if task_id else self._own
        info = self._folder.info
        observations = {name: self._spec(name, feature) for name, feature in self._observations.items()}
        if self._instruct:
            if INSTRUCTION in observations:
                raise UserError("feature observation.task exists: choose --option task=metadata")
            observations[INSTRUCTION] = ArraySpec(modality=Modality.TEXT, dtype="str")
        unknown = sorted(set(self._discrete) - set(self._observations) - set(self._actions))
        if unknown:
            fields = ", ".join([*self._observations, *self._actions])
            raise UserError(f"option discrete: no field {unknown[0]!r}: expected one of {fields}")
        facts = {
            "fps": info["fps"],
            "robot_type": info.get("robot_type"),
            "names": {
                key: info["features"][key].get("names") for key in self._folder.features if key in info["features"]
            },
            "tasks": list(self._folder.instructions.values())[:1000],
        }
        environment = {"dataset": self._folder.path.name, "lerobot": facts}
        return TaskSpec(
            task_id=task_id or task_id_from(f"lerobot/{self._folder.path.resolve().name}"),
            observation_spec=observations,
            action_spec={name: self._spec(name, feature) for name, feature in self._actions.items()},
            env_spec_json=json.dumps(environment, sort_keys=True),
            tags=("imported:lerobot",),
        )

    def _spec(self, name: str, feature: Feature) -> ArraySpec:
        if feature.dtype == "string":
            return ArraySpec(modality=Modality.TEXT, dtype="str")
        if feature.is_depth:
            return ArraySpec(modality=Modality.CONTINUOUS, shape=feature.shape, dtype="uint16")
        if feature.dtype in ("image", "video"):
            return ArraySpec(modality=Modality.IMAGE, shape=feature.shape, dtype="uint8")
        count = self._discrete.get(name) or (2 if feature.dtype == "bool" else 0)
        if count and feature.dtype[0] in "bui":
            size = int(np.prod(feature.shape))
            return ArraySpec(
                modality=Modality.DISCRETE,
                shape=feature.shape,
                dtype=feature.dtype,
                num_values=tuple(int(value) for value in uniform_bounds(count, (size,))),
            )
        return ArraySpec(modality=Modality.CONTINUOUS, shape=feature.shape, dtype=feature.dtype)

    def _tell_assumptions(self) -> None:
        add = self._losses.add
        for key, why in self._folder.left_out.items():
            add(f"feature {key}", f"left out, a store cannot hold it: {why}")
        if self._own is not None:
            return
        used = {feature.key for feature in self._used()}
        for key in self._folder.features:
            if key not in used:
                add(f"feature {key}", "left out: a text or picture beside observations and actions")
        names = set(self._folder.features)
        if not names & set(_REWARDS):
            add("reward", "the set has none (next.reward): taken as 0 everywhere")
        if not names & {*_TERMINATED, *_TRUNCATED}:
            add("end flags", "the set has none (next.done): every episode taken as truncated")
        elif not names & set(_TRUNCATED):
            add("truncation", "the set has no flag for it: taken as truncated where next.done is not set")
        for name, feature in {**self._observations, **self._actions}.items():
            if feature.dtype == "video":
                add(f"{name}: pixels", "decoded from a video whose codec lost detail when it was written")
            if feature.dtype[0] in "ui" and feature.dtype != "image" and name not in self._discrete:
                add(
                    f"{name}: number of values",
                    f"the set does not say how many values this {feature.dtype} takes: kept as numbers; if they are "
                    f"choices, say --option discrete={name}:N",
                )
        add("bounds of observations and actions", "info.json has none: taken as unbounded")
        add("seed, agent", "LeRobot has no place for them: left empty")

    def _check_order(self, frames: Frames, where: str, next_index: int) -> int:
        """Checks frame_index, index and timestamps; returns what the next episode's index should be."""
        table = frames.table
        rows = table.num_rows
        frame_index = files.numbers(table["frame_index"], _bookkeeping("frame_index")).reshape(rows)
        wrong = np.flatnonzero(frame_index != np.arange(rows))
        if len(wrong):
            step = int(wrong[0])
            raise CorruptionError(
                f"frame_index is {frame_index[step]} at its frame {step} of {rows}: frames are missing, doubled or in "
                "another order"
            )
        index = files.numbers(table["index"], _bookkeeping("index")).reshape(rows)
        if not np.array_equal(index, np.arange(next_index, next_index + rows)):
            self._warn(where, f"index runs from {index[0]} to {index[-1]}, expected from {next_index} without gaps")
        row = self._folder.episodes.get(frames.episode_index)
        if row is not None and row.get("length") != rows:
            raise CorruptionError(f"meta/episodes says {row.get('length')} frames, the data has {rows}")
        if row is None and self._folder.episodes:
            self._add_error(where, "meta/episodes has no row of it: LeRobot's reader fails there")
        self._check_times(table, rows, where)
        return int(index[-1]) + 1

    def _check_times(self, table: pa.Table, rows: int, where: str) -> None:
        times = files.numbers(table["timestamp"], _bookkeeping("timestamp")).reshape(rows).astype(np.float64)
        off = np.abs(times - times[0] - np.arange(rows) / self._folder.fps)
        step = int(np.argmax(off))
        if not off[step] <= _TIME_TOLERANCE:
            gaps = np.diff(times)
            rate = 1 / np.median(gaps) if len(gaps) and np.median(gaps) > 0 else 0
            what = f"timestamp is {times[step]:.4f} s at frame {step}, fps {self._folder.fps:g} makes it "
            what += f"{times[0] + step / self._folder.fps:.4f} s; the frames come at about {rate:.4g} a second"
            self._warn(where, what)

    def _warn(self, where: str, what: str) -> None:
        remedy = "frames are read in the order of the file, whatever their times"
        self._findings.append(Finding(severity="warning", where=where, what=what, remedy=remedy))

    def _check_counts(self, seen: set[int], num_frames: int) -> None:
        info = self._folder.info
        said = (info.get("total_episodes"), info.get("total_frames"))
        for what, expected, found in zip(("episodes", "frames"), said, (len(seen), num_frames), strict=True):
            if expected != found:
                self._findings.append(
                    Finding(
                        severity="error",
                        where=files.INFO_FILE,
                        what=f"says total_{what} {expected}, the data has {found}",
                        remedy="the writer was killed before finalize(), or the copy is not whole",
                    )
                )
        lost = sorted(set(self._folder.episodes) - seen)
        if lost:
            what = f"{len(lost)} episodes have no frames in data, for example {lost[:5]}"
            self._findings.append(
                Finding(severity="error", where=files.EPISODES_FOLDER, what=what, remedy="copy the set again")
            )

    def _episode(self, frames: Frames, where: str) -> Episode:
        """One episode.

        Raises:
          CorruptionError: it cannot be one.
          one of DAMAGE: it cannot be read.
        """
        table, rows = frames.table, frames.table.num_rows
        own = self._side.get(frames.episode_index) if self._own is not None else None
        steps = rows
        if own is None and self._last_frame == "drop":
            steps -= 1
            if not steps:
                raise CorruptionError("one frame only: nothing is left when the last action is dropped")
        observations = {name: self._values(feature, frames) for name, feature in self._observations.items()}
        if self._instruct:
            observations[INSTRUCTION] = self._instructions(table)
        if own is not None and self._own is not None:
            return self._own_episode(own, frames, observations)
        if steps == rows:
            observations = {name: with_repeated_last(values) for name, values in observations.items()}
            self._losses.add(
                "final observation",
                "LeRobot has none: the last one is repeated; --option last_frame=drop drops the last action instead",
            )
        else:
            self._losses.add("last action and reward", "dropped: there is no observation after them")
        actions = {name: self._values(feature, frames)[:steps] for name, feature in self._actions.items()}
        columns = {key: np.asarray(self._values(feature, frames))[:steps] for key, feature in self._columns.items()}
        return Episode(
            task_id=self._task.task_id,
            observations=observations,
            actions=actions,
            rewards=self._rewards(frames)[:steps],
            **self._end(frames),
            step_columns={key: _plain(values) for key, values in columns.items()},
            metadata=self._provenance(frames, where),
        )

    def _own_episode(self, own: Mapping[str, Any], frames: Frames, observations: Mapping[str, FieldValues]) -> Episode:
        """An episode that this project exported: its last observation lies beside."""
        assert self._own is not None
        specs = self._own.observation_spec
        try:
            facts = json.loads(own["own"])
            whole = {
                name: _with_final(_as_specified(values, specs[name]), own[f"final/{name}"], specs[name])
                for name, values in observations.items()
            }
            metadata = EpisodeMetadata.from_json(facts["metadata"])
            ends = {"terminated": bool(facts["terminated"]), "truncated": bool(facts["truncated"])}
            expected, kept = facts["content_hash"], facts["step_columns"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptionError(f"{files.SIDE_FILE}: cannot be understood: {one_line(repr(error))}") from None
        kinds = self._keys.get("step_column_kinds", {})
        columns = {}
        for name, feature in self._columns.items():
            if name in kept:
                dtype, shape = kinds[name]
                columns[name] = np.asarray(self._values(feature, frames)).astype(dtype).reshape(-1, *shape)
        episode = Episode(
            task_id=self._own.task_id,
            observations=whole,
            actions={
                name: _as_specified(self._values(feature, frames), self._own.action_spec[name])
                for name, feature in self._actions.items()
            },
            rewards=self._rewards(frames),
            step_columns=columns,
            metadata=metadata,
            **ends,
        )
        if episode.content_hash() != expected:
            self._losses.add("content hash", "differs from the exported episode's: the set was changed since, or lossy")
        return dataclasses.replace(episode, task_id=self._task.task_id)

    def _rewards(self, frames: Frames) -> np.ndarray:
        feature = self._flag(_REWARDS)
        if feature is None:
            return np.zeros(frames.table.num_rows)
        return np.asarray(self._values(feature, frames), np.float64).reshape(frames.table.num_rows)

    def _flag(self, keys: tuple[str, ...]) -> Feature | None:
        """The first of some features of one number a frame that the set has."""
        found = [self._folder.features[key] for key in keys if key in self._folder.features]
        return found[0] if found and int(np.prod(found[0].shape)) == 1 and found[0].dtype != "string" else None

    def _end(self, frames: Frames) -> dict[str, bool]:
        rows = frames.table.num_rows
        ends = {}
        for name, keys in (("terminated", _TERMINATED), ("truncated", _TRUNCATED)):
            feature = self._flag(keys)
            flags = np.zeros(rows, bool)
            if feature is not None:
                flags = np.asarray(self._values(feature, frames)).reshape(rows) != 0
                early = np.flatnonzero(flags[:-1])
                if len(early):
                    raise CorruptionError(
                        f"{feature.key} is set at frame {int(early[0])} of {rows}: an end in the middle; several "
                        "episodes in one, divide them"
                    )
            ends[name] = bool(flags[-1])
        if not (ends["terminated"] or ends["truncated"]):
            ends["truncated"] = True
        elif ends["truncated"] and "next.terminated" not in self._folder.features:
            # next.done is set at every end: a truncated one did not terminate.
            ends["terminated"] = False
        return ends

    def _instructions(self, table: pa.Table) -> list[str]:
        index = files.numbers(table["task_index"], _bookkeeping("task_index")).reshape(-1)
        try:
            return [self._folder.instructions[int(number)] for number in index]
        except KeyError as error:
            raise CorruptionError(f"task_index {error} is not in {files.TASKS_FILE}") from None

    def _values(self, feature: Feature, frames: Frames) -> FieldValues:
        if feature.dtype == "video":
            row = self._folder.episodes.get(frames.episode_index)
            start = None if row is None else row.get(f"videos/{feature.key}/from_timestamp")
            if row is None or not isinstance(start, int | float):
                raise CorruptionError(f"meta/episodes does not say where in the video {feature.key} it is")
            file = self._folder.video_file(feature.key, row)
            return video.read_frames(file, float(start), frames.table.num_rows, self._folder.fps, feature.shape)
        column = frames.table[feature.key]
        if feature.dtype == "string":
            texts = column.to_pylist()
            if not all(isinstance(text, str) for text in texts):
                raise CorruptionError(f"{feature.key}: expected a text in every frame")
            return texts
        if feature.dtype == "image":
            return _pictures(column, feature)
        values = files.numbers(column, feature)
        dtype = np.dtype(feature.dtype)
        if values.dtype != dtype:
            cast = values.astype(dtype)
            if not np.array_equal(cast, values, equal_nan=values.dtype.kind == "f"):
                raise CorruptionError(f"{feature.key}: {values.dtype} in the file, info.json declares {dtype}")
            values = cast
        return values

    def _provenance(self, frames: Frames, where: str) -> EpisodeMetadata:
        index = frames.episode_index
        row = self._folder.episodes.get(index, {})
        texts = row.get("tasks") or sorted(set(self._instructions(frames.table)))
        config: dict[str, Any] = {
            "dataset": self._folder.path.resolve().name,
            "source": where,
            "fps": self._folder.info["fps"],
            "tasks": [str(text) for text in texts],
            "last_frame": self._last_frame,
        }
        feature = self._flag(_SUCCESS)
        if feature is not None:
            config["success"] = bool(np.asarray(self._values(feature, frames)).reshape(-1)[-1])
        return EpisodeMetadata(
            agent_id=f"lerobot:{self._folder.path.resolve().name}",
            collection_index=index,
            split_group=f"{self._folder.path.resolve().name}:{index}",
            environment_config=config,
        )


def _choice(options: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str:
    value = options.get(name, choices[0])
    if value not in choices:
        raise UserError(f"option {name} {value!r}: expected one of {', '.join(choices)}")
    return value


def parse_discrete(text: str) -> dict[str, int]:
    """`field:N,field:N` -> field -> N.

    Raises:
      UserError: another form.
    """
    result = {}
    for item in filter(None, text.split(",")):
        name, _, count = item.rpartition(":")
        if not name or not count.isdecimal() or not 0 < int(count) < 1 << 31:
            raise UserError(f"option discrete {item!r}: expected FIELD:N, for example action:18")
        result[name] = int(count)
    return result


def _named(features: Mapping[str, Feature], role: str) -> dict[str, Feature]:
    """Field name -> feature: "observation.images.top" is "images/top", a bare "action" stays "action"."""
    fields = {}
    for key, feature in features.items():
        if key == role:
            fields[role] = feature
        elif key.startswith(f"{role}.") and len(key) > len(role) + 1:
            fields[key.removeprefix(f"{role}.").replace(".", "/")] = feature
    return fields


def _bookkeeping(key: str) -> Feature:
    return Feature(key=key, dtype=BOOKKEEPING[key], shape=())


def _plain(values: np.ndarray) -> np.ndarray:
    """One number a step as [T], since LeRobot's scalars have shape (1,)."""
    return values[:, 0] if values.shape[1:] == (1,) else values


def _pictures(column: pa.ChunkedArray, feature: Feature) -> np.ndarray:
    """[rows, height, width, channels] from structs of bytes and path."""
    kind = column.type
    items: list[Any]
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        items = [None if row is None else row.get("bytes") for row in column.to_pylist()]
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        items = column.to_pylist()
    else:
        raise CorruptionError(f"{feature.key}: of type {kind}, expected pictures")
    if not all(isinstance(item, bytes) for item in items):
        raise CorruptionError(f"{feature.key}: a picture is not in the file: only its path is")
    dtype = "uint16" if feature.is_depth else "uint8"
    leaf = Leaf(path=(feature.key,), key=feature.key, kind="image", dtype=dtype, shape=feature.shape)
    return decode_images(leaf, items)


def _as_specified(values: FieldValues, spec: ArraySpec) -> FieldValues:
    if isinstance(values, list):
        return values
    return np.ascontiguousarray(values.astype(spec.dtype, copy=False).reshape(len(values), *spec.shape))


def _with_final(values: FieldValues, data: Any, spec: ArraySpec) -> FieldValues:
    """T observations and the one that lies beside, as its bytes."""
    if not isinstance(data, bytes):
        raise ValueError("the final observation is missing")
    if isinstance(values, list):
        return [*values, data.decode()]
    last = np.frombuffer(data, np.dtype(spec.dtype).newbyteorder("<")).reshape(1, *spec.shape)
    return np.concatenate([values, last.astype(spec.dtype, copy=False)])
