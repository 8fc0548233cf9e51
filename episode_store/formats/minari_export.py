"""Writes one task as a Minari 0.5.4 set in HDF5. Needs h5py (extra hdf5).

Pictures are raw pixels under gzip (`jpeg_encoding` false, which Minari knows from 0.5.4 on), so nothing is lost.
Step columns are infos; their first row, which Minari has for the reset, is zeros. What Minari has no place for stands
in `episode_store` of each episode's group and in `data/episode_store.json`, where other readers do not look.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from episode_store.episode import Episode
from episode_store.errors import UserError
from episode_store.formats import folders
from episode_store.formats.format import ExportResult, LossLog, Progress, need
from episode_store.formats.minari_files import HDF5_FILE, METADATA_FILE
from episode_store.formats.space_json import Role, TextFacts, format_space, leaf_paths, stored_dtype
from episode_store.spec import ArraySpec, FieldValues, Modality
from episode_store.store import EpisodeStore
from episode_store.task import TaskSpec

MINARI_VERSION = "0.5.4"
_FRAMES_A_CHUNK = 16
# HDF5 has no NUL inside a text; this is the picture of it.
_NUL, _NUL_PICTURE = "\0", "\u2400"


def dataset_id(task_id: str) -> str:
    """The name of the set: the task's, with a namespace of at least two characters, as Minari wants it."""
    namespace, slash, name = task_id.rpartition("/")
    return f"{namespace}_/{name}" if len(namespace) == 1 else f"{namespace}{slash}{name}"


def export_minari(
    store: EpisodeStore, task_id: str, destination: Path, *, options: Mapping[str, str], progress: Progress
) -> ExportResult:
    """Writes `destination/<dataset id>/data`: under a temporary name, renamed when it is whole.

    `MINARI_DATASETS_PATH=destination` and `minari.load_dataset(<dataset id>)` open it.

    Raises:
      UserError: the folder exists, the task has no episodes, fields that cannot nest, or h5py is missing.
    """
    h5py = need("h5py", "hdf5", "writing Minari sets")
    level = options.get("gzip", "4")
    if level not in tuple("0123456789"):
        raise UserError(f"option gzip {level!r}: expected 0 to 9")
    task = store.tasks[task_id]
    target = destination / dataset_id(task_id)
    ids = folders.episodes_to_export(store, task_id, target)
    losses = LossLog()
    columns = folders.step_column_kinds(store, ids, losses)
    layout = _Layout(task, columns, int(level), losses)
    num_steps = 0
    agents: set[str] = set()
    with folders.temporary_folder(target) as folder:
        data = folder / "data"
        data.mkdir()
        with h5py.File(data / HDF5_FILE, "w") as file:
            for index, episode_id in enumerate(progress(ids)):
                episode = store.read(episode_id)
                layout.write(file.create_group(f"episode_{index}"), episode, index)
                num_steps += episode.num_steps
                agents.add(episode.metadata.agent_id)
        folders.write_task(data / folders.TASK_FILE, task, step_columns=sorted(columns))
        metadata: dict[str, Any] = {
            "total_episodes": len(ids),
            "total_steps": num_steps,
            "data_format": "hdf5",
            "jpeg_encoding": False,
            "observation_space": layout.space("observation"),
            "action_space": layout.space("action"),
            "dataset_id": dataset_id(task_id),
            "algorithm_name": ", ".join(sorted(agents)[:20]),
            "description": f"Episodes of {task_id}.",
            "minari_version": MINARI_VERSION,
            "dataset_size": round(folders.folder_bytes(folder) / 1e6, 1),
        }
        folders.write_json(data / METADATA_FILE, metadata)
        num_bytes = folders.folder_bytes(folder)
    _tell_losses(task, losses, len(ids))
    return ExportResult(
        format="minari",
        task_id=task_id,
        destination=target,
        num_episodes=len(ids),
        num_steps=num_steps,
        num_bytes=num_bytes,
        losses=losses.losses(),
    )


def _tell_losses(task: TaskSpec, losses: LossLog, count: int) -> None:
    beside = "kept beside in episode_store, which Minari does not read"
    losses.add("agent, provenance, step columns' names", beside, count)
    if task.env_spec_json not in ("", "{}"):
        losses.add("environment", f"no env_spec is written, since Minari runs what it names; {beside}")
    if task.licence:
        losses.add("licence", f"Minari has no place for it; {beside}")
    for role, specs in (("observation", task.observation_spec), ("action", task.action_spec)):
        for name, spec in specs.items():
            if spec.modality == Modality.DISCRETE and stored_dtype(spec) != spec.dtype:
                why = f"written as {stored_dtype(spec)}, which Gymnasium's space has; {beside}"
                losses.add(f"{role} {name}: {spec.dtype}", why)


class _Layout:
    """Where each field of an episode goes."""

    def __init__(self, task: TaskSpec, columns: folders.StepColumns, level: int, losses: LossLog) -> None:
        self._task = task
        self._level = level
        self._losses = losses
        self._columns = columns
        where = f"export of {task.task_id}"
        self._paths = {
            "observation": leaf_paths(task.observation_spec, "observation", where),
            "action": leaf_paths(task.action_spec, "action", where),
        }
        self._texts: dict[str, dict[str, TextFacts]] = {"observation": {}, "action": {}}
        for name in columns:
            if any(other.startswith(f"{name}/") for other in columns):
                raise UserError(f"{where}: step column {name!r} and others inside it: HDF5 cannot hold both")

    def space(self, role: Role) -> str:
        """JSON of the space, once all episodes were written."""
        specs = self._task.observation_spec if role == "observation" else self._task.action_spec
        return format_space(specs, role, self._texts[role], f"export of {self._task.task_id}")

    def write(self, group: Any, episode: Episode, index: int) -> None:
        """One episode."""
        own_texts: dict[str, list[str]] = {}
        for role, fields, specs in (
            ("observation", episode.observations, self._task.observation_spec),
            ("action", episode.actions, self._task.action_spec),
        ):
            for name, values in fields.items():
                path = "/".join([f"{role}s", *self._paths[role][name]])
                if isinstance(values, list):
                    self._write_texts(group, role, name, path, values, own_texts)
                else:
                    self._write_array(group, path, values.astype(stored_dtype(specs[name])), specs[name])
        ends = np.zeros((2, episode.num_steps), bool)
        ends[:, -1] = episode.terminated, episode.truncated
        group["rewards"], group["terminations"], group["truncations"] = episode.rewards, ends[0], ends[1]
        kept = []
        for name, (dtype, shape) in self._columns.items():
            column = episode.step_columns.get(name)
            if column is None or (column.dtype.name, column.shape[1:]) != (dtype, shape):
                column = np.zeros((episode.num_steps, *shape), dtype)
                self._losses.add(f"step column {name}", "this episode has none: zeros, which Minari cannot tell apart")
            else:
                kept.append(name)
            # Infos begin with the reset's.
            group[f"infos/{name}"] = np.concatenate([np.zeros((1, *shape), dtype), column])
        group.attrs["id"], group.attrs["total_steps"] = index, episode.num_steps
        if episode.metadata.seed is not None:
            group.attrs["seed"] = episode.metadata.seed
        own = {
            "metadata": episode.metadata.to_json(),
            "content_hash": episode.content_hash(),
            "step_columns": kept,
            "texts": own_texts,
        }
        group["episode_store"] = json.dumps(own, sort_keys=True)

    def _write_texts(
        self, group: Any, role: str, name: str, path: str, texts: Sequence[str], own: dict[str, list[str]]
    ) -> None:
        h5py = need("h5py", "hdf5", "writing Minari sets")
        if any(_NUL in text for text in texts):
            own[f"{role}s/{name}"] = list(texts)
            why = "HDF5 texts end at NUL: written as U+2400; kept beside in episode_store"
            self._losses.add(f"{role} {name}: NUL in a text", why)
            texts = [text.replace(_NUL, _NUL_PICTURE) for text in texts]
        self._texts[role].setdefault(name, TextFacts()).add(texts)
        group.create_dataset(path, data=list(texts), dtype=h5py.string_dtype(encoding="utf-8"))

    def _write_array(self, group: Any, path: str, values: FieldValues, spec: ArraySpec) -> None:
        if spec.modality == Modality.IMAGE and self._level and len(values) and spec.size:
            chunks = (min(_FRAMES_A_CHUNK, len(values)), *spec.shape)
            group.create_dataset(path, data=values, chunks=chunks, compression="gzip", compression_opts=self._level)
        else:
            group.create_dataset(path, data=values)
