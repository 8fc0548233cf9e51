"""Writes one task as a robomimic HDF5 file. Needs h5py (extra hdf5).

Actions are one float array [T, A], as robomimic wants them: the fields side by side, by sorted name. Texts, both end
flags and provenance stand in `episode_store` of each demo, where other readers do not look.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from episode_store import files
from episode_store.episode import Episode
from episode_store.errors import UserError
from episode_store.formats import folders
from episode_store.formats.format import ExportResult, LossLog, Progress, need
from episode_store.spec import ArraySpec, FieldValues, Modality
from episode_store.splits import TRAIN, VALIDATION
from episode_store.store import EpisodeStore
from episode_store.task import TaskSpec, task_file_name

OWN = "episode_store"
_GYM_TYPE = 2
_FRAMES_A_CHUNK = 16
_BESIDE = "kept beside in episode_store, which robomimic does not read"
# Integers beyond it have no float64.
_EXACT = 1 << 53


def export_robomimic(
    store: EpisodeStore, task_id: str, destination: Path, *, options: Mapping[str, str], progress: Progress
) -> ExportResult:
    """Writes `destination/<task>.hdf5`: under a temporary name, renamed when it is whole.

    Raises:
      UserError: the file exists, the task has no episodes or no actions of numbers, or h5py is missing.
    """
    h5py = need("h5py", "hdf5", "writing robomimic files")
    level = options.get("gzip", "4")
    if level not in tuple("0123456789"):
        raise UserError(f"option gzip {level!r}: expected 0 to 9")
    task = store.tasks[task_id]
    target = destination / f"{task_file_name(task_id)}.hdf5"
    ids = folders.episodes_to_export(store, task_id, target)
    losses = LossLog()
    layout = _Layout(task, int(level), losses)
    masks: dict[str, list[str]] = {}
    destination.mkdir(parents=True, exist_ok=True)
    folders.remove_leftovers(target)
    temporary = files.temporary_path(target)
    try:
        with h5py.File(temporary, "w") as file:
            data = file.create_group("data")
            num_steps = 0
            for index, episode_id in enumerate(progress(ids)):
                episode = store.read(episode_id)
                layout.write(data.create_group(f"demo_{index}"), episode)
                num_steps += episode.num_steps
                for name in _mask_names(episode):
                    masks.setdefault(name, []).append(f"demo_{index}")
            data.attrs["total"] = num_steps
            data.attrs["env_args"] = json.dumps(_env_args(task, losses))
            data.attrs["episode_store_task"] = json.dumps(task.to_json())
            for name, demos in masks.items():
                file[f"mask/{name}"] = np.array(demos, dtype="S")
        files.sync_file(temporary)
        os.rename(temporary, target)
        files.sync_folder(destination)
    finally:
        temporary.unlink(missing_ok=True)
    losses.add("agent, seed, provenance", _BESIDE, len(ids))
    return ExportResult(
        format="robomimic",
        task_id=task_id,
        destination=target,
        num_episodes=len(ids),
        num_steps=num_steps,
        num_bytes=target.stat().st_size,
        losses=losses.losses(),
    )


def _mask_names(episode: Episode) -> list[str]:
    """The masks that an imported demo was in, else the side of its split group."""
    masks = episode.metadata.environment_config.get("masks")
    if isinstance(masks, list) and all(isinstance(name, str) and name and "/" not in name for name in masks):
        return [name for name in masks if name != "."]
    side = episode.metadata.split_group.partition("/")[0]
    return {TRAIN: ["train"], VALIDATION: ["valid"]}.get(side, [])


def _env_args(task: TaskSpec, losses: LossLog) -> dict[str, Any]:
    try:
        facts = json.loads(task.env_spec_json)
    except ValueError:
        facts = {}
    if isinstance(facts, dict) and isinstance(facts.get("env_args"), dict) and facts["env_args"]:
        return facts["env_args"]
    facts = facts if isinstance(facts, dict) else {}
    if facts.get("wrappers"):
        losses.add("wrappers of the environment", f"env_args has no place for them; {_BESIDE}")
    kwargs = facts.get("kwargs")
    return {
        "env_name": str(facts.get("id") or task.task_id),
        "type": _GYM_TYPE,
        "env_kwargs": kwargs if isinstance(kwargs, dict) else {},
    }


class _Layout:
    """Where each field of a demo goes."""

    def __init__(self, task: TaskSpec, level: int, losses: LossLog) -> None:
        self._task = task
        self._level = level
        self._losses = losses
        where = f"export of {task.task_id}"
        numbers = [spec for spec in task.action_spec.values() if spec.modality != Modality.TEXT]
        if not numbers:
            raise UserError(f"{where}: its actions are texts only; robomimic holds arrays of numbers")
        self._keys = {name: name.replace("/", "_") for name in task.observation_spec}
        if len(set(self._keys.values())) != len(self._keys):
            raise UserError(f"{where}: two observations get one name when '/' becomes '_': {sorted(self._keys)}")
        dtypes = {spec.dtype for spec in numbers}
        one = dtypes.pop() if len(dtypes) == 1 else "float64"
        self._action_dtype = one if one in ("float32", "float64") else "float64"

    def write(self, group: Any, episode: Episode) -> None:
        """One episode."""
        texts: dict[str, list[str]] = {}
        for name, values in episode.observations.items():
            if isinstance(values, list):
                texts[f"observations/{name}"] = values
                self._losses.add(f"observation {name}: text", f"robomimic has no texts; {_BESIDE}")
                continue
            key = self._keys[name]
            self._write_array(group, f"obs/{key}", values[:-1], self._task.observation_spec[name])
            self._write_array(group, f"next_obs/{key}", values[1:], self._task.observation_spec[name])
        group["actions"] = self._actions(episode, texts)
        group["rewards"] = episode.rewards
        dones = np.zeros(episode.num_steps, np.int64)
        dones[-1] = episode.terminated
        group["dones"] = dones
        if episode.truncated:
            self._losses.add("truncation", f"robomimic has dones only; {_BESIDE}")
        columns = {}
        for name, values in episode.step_columns.items():
            # A simulator's states are where robomimic's playback looks for them.
            columns[name] = path = "states" if name == "states" else f"step_columns/{name.replace('/', '_')}"
            if path in group:
                raise UserError(f"export of {self._task.task_id}: two step columns get the name {path}")
            group[path] = values
            if name != "states":
                self._losses.add(f"step column {name}", f"written as {path}, which robomimic does not read")
        group.attrs["num_samples"] = episode.num_steps
        model = episode.metadata.environment_config.get("model_file")
        if isinstance(model, str):
            group.attrs["model_file"] = model
        own = {
            "metadata": episode.metadata.to_json(),
            "terminated": bool(episode.terminated),
            "truncated": bool(episode.truncated),
            "content_hash": episode.content_hash(),
            "observation_keys": self._keys,
            "step_columns": columns,
            "texts": texts,
        }
        group[OWN] = json.dumps(own, sort_keys=True)

    def _actions(self, episode: Episode, texts: dict[str, list[str]]) -> np.ndarray:
        """[T, A], the fields side by side."""
        parts = []
        for name, values in episode.actions.items():
            if isinstance(values, list):
                texts[f"actions/{name}"] = values
                self._losses.add(f"action {name}: text", f"robomimic has no texts; {_BESIDE}")
                continue
            if values.dtype.name != self._action_dtype:
                self._losses.add(f"action {name}: {values.dtype}", f"written as {self._action_dtype} columns")
                if values.dtype.kind in "iu" and values.size and int(np.abs(values.astype(object)).max()) > _EXACT:
                    self._losses.add(f"action {name}: digits", "integers beyond 2**53 have no float64: rounded")
            parts.append(values.reshape(episode.num_steps, -1).astype(self._action_dtype))
        if len(episode.actions) > 1:
            self._losses.add("names of actions", f"robomimic has one array: fields side by side; names {_BESIDE}")
        return np.concatenate(parts, axis=1)

    def _write_array(self, group: Any, path: str, values: FieldValues, spec: ArraySpec) -> None:
        if spec.modality == Modality.IMAGE and self._level and len(values) and spec.size:
            chunks = (min(_FRAMES_A_CHUNK, len(values)), *spec.shape)
            group.create_dataset(path, data=values, chunks=chunks, compression="gzip", compression_opts=self._level)
        else:
            group.create_dataset(path, data=values)
