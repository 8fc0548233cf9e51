"""D4RL HDF5: one flat file of transitions. Needs h5py (extra hdf5).

    observations [N, ...], actions [N, ...], rewards [N], terminals [N], timeouts [N] (missing in some),
    next_observations [N, ...] (in few), infos/* [N, ...], metadata/*

An episode ends where terminals or timeouts is set. The observation after the last action is not stored, unless
next_observations is there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from episode_store.episode import Episode, EpisodeMetadata
from episode_store.errors import CorruptionError, UserError
from episode_store.formats import hdf5
from episode_store.formats.format import (
    Finding,
    Importer,
    LossLog,
    SingleTaskImporter,
    one_line,
    task_id_from,
    with_repeated_last,
)
from episode_store.formats.transfer import Bar, examine_importer, no_bar
from episode_store.spec import STORED_DTYPES, ArraySpec, FieldValues, Modality
from episode_store.task import TaskSpec

_REQUIRED = ("observations", "actions", "rewards", "terminals")
_MAX_METADATA_BYTES = 4096


def detect(source: Path) -> bool:
    """Whether the file is HDF5 with the arrays of D4RL at its top."""
    if not hdf5.is_hdf5(source):
        return False
    try:
        with hdf5.open_file(source) as file:
            return all(name in file for name in _REQUIRED)
    except hdf5.DAMAGE:
        return False


def open_importer(source: Path, *, task_id: str | None = None, options: Mapping[str, str]) -> Importer:
    """Opens one file."""
    return D4rlImporter(source, task_id=task_id)


def doctor(source: Path, progress: Bar = no_bar) -> list[Finding]:
    """Reads the whole file and holds every episode against the contract."""
    found = examine_importer(lambda: D4rlImporter(source, task_id=None), source, progress)
    what = "HDF5 has no checksums unless its writer asked for them: a changed bit may go unnoticed"
    return [*found, Finding(severity="note", where=str(source), what=what)]


class D4rlImporter(SingleTaskImporter):
    """The importer of one file; see `format.Importer`."""

    name = "d4rl"

    def __init__(self, source: Path, *, task_id: str | None) -> None:
        self._path = source
        super().__init__()
        with hdf5.open_file(source) as file:
            arrays = dict(hdf5.datasets(file))
            missing = [name for name in _REQUIRED if name not in arrays and not _below(arrays, name)]
            if missing:
                raise UserError(f"{source}: has no {', '.join(missing)}: not a D4RL file")
            self._num_rows = int(arrays["rewards"].shape[0]) if arrays["rewards"].ndim else 0
            self._observations = _below(arrays, "observations")
            self._actions = _below(arrays, "actions")
            self._next = _below(arrays, "next_observations")
            infos = {name: path for name, path in _below(arrays, "infos").items() if self._is_column(arrays[path])}
            self._infos = {f"infos/{name}": path for name, path in infos.items()}
            for path in [*self._observations.values(), *self._actions.values(), "terminals"]:
                if not arrays[path].ndim or arrays[path].shape[0] != self._num_rows:
                    raise UserError(f"{source}: {path} has shape {arrays[path].shape}, rewards {self._num_rows} rows")
            if set(self._next) != set(self._observations):
                self._next = {}
            self._ends, self._terminals = self._find_ends(arrays)
            self._task = TaskSpec(
                task_id=task_id or task_id_from(f"d4rl/{source.stem}"),
                observation_spec={name: _spec(arrays[path]) for name, path in self._observations.items()},
                action_spec={name: _spec(arrays[path]) for name, path in self._actions.items()},
                env_spec_json=json.dumps({"file": source.name, "metadata": _metadata(arrays)}, sort_keys=True),
                tags=("imported:d4rl",),
            )
            self._has_timeouts = "timeouts" in arrays
            self._unread = [path for path in arrays if path.startswith("metadata/") and not hdf5.is_fixed(arrays[path])]

    def num_episodes(self) -> int | None:
        """Ends in the file, and the rest after the last one."""
        return len(self._ends)

    def episodes(self) -> Iterator[Episode]:
        """All episodes in the order of the file."""
        self._losses, self._findings = LossLog(), []
        add = self._losses.add
        add("bounds, seed, agent, environment", "the file has no place for them: unbounded, or left empty")
        add("metadata", "texts of variable length are not read: in a damaged file they hang HDF5", len(self._unread))
        if not self._has_timeouts:
            add("timeouts", "the file has none: episodes end at terminals only")
        with hdf5.open_file(self._path) as file:
            start = 0
            for index, end in enumerate(self._ends.tolist()):
                where = f"{self._path.name} rows {start} to {end}"
                try:
                    yield self._episode(file, start, end + 1, index, where)
                except hdf5.DAMAGE as error:
                    self._findings.append(
                        Finding(
                            severity="error",
                            where=where,
                            what=f"cannot be read: {one_line(error)}",
                            remedy="copy the file again; the rest is read",
                        )
                    )
                start = end + 1

    def _episode(self, file: Any, start: int, stop: int, index: int, where: str) -> Episode:
        observations = {}
        for name, path in self._observations.items():
            values = file[path][start:stop]
            if self._next:
                observations[name] = np.concatenate([values, file[self._next[name]][stop - 1 : stop]])
            else:
                observations[name] = _as_array(with_repeated_last(values))
        if not self._next:
            self._losses.add("final observation", "not in the file: the last observation is repeated in its place")
        terminated = bool(self._terminals[index])
        at_rest = index == len(self._ends) - 1 and self._rest_open
        if at_rest:
            self._losses.add("end of the last episode", "the file ends before it does: taken as truncated")
        return Episode(
            task_id=self._task.task_id,
            observations=observations,
            actions={name: file[path][start:stop] for name, path in self._actions.items()},
            rewards=np.asarray(file["rewards"][start:stop], np.float64).reshape(stop - start),
            terminated=terminated,
            truncated=not terminated,
            step_columns={name: file[path][start:stop] for name, path in self._infos.items()},
            metadata=EpisodeMetadata(
                agent_id=f"d4rl:{self._path.stem}",
                collection_index=index,
                environment_config={"source": where},
            ),
        )

    def _is_column(self, dataset: Any) -> bool:
        return (
            dataset.ndim > 0
            and dataset.shape[0] == self._num_rows
            and dataset.dtype.newbyteorder("<").str in STORED_DTYPES
        )

    def _find_ends(self, arrays: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """The last row of each episode, and whether it terminated there."""
        try:
            terminals = np.asarray(arrays["terminals"][:]).reshape(self._num_rows) != 0
            ends = terminals.copy()
            if "timeouts" in arrays:
                ends |= np.asarray(arrays["timeouts"][:]).reshape(self._num_rows) != 0
        except hdf5.DAMAGE as error:
            raise CorruptionError(f"{self._path}: terminals and timeouts cannot be read: {error}") from None
        self._rest_open = bool(self._num_rows) and not ends[-1]
        if self._rest_open:
            ends[-1] = True
        rows = np.flatnonzero(ends)
        return rows, terminals[rows]


def _below(arrays: Mapping[str, Any], group: str) -> dict[str, str]:
    """Field name -> path, for an array or a group of arrays; a bare array has the field name of our stores."""
    if group in arrays:
        return {group.removeprefix("next_").rstrip("s"): group}
    return {path.removeprefix(f"{group}/"): path for path in arrays if path.startswith(f"{group}/")}


def _as_array(values: FieldValues) -> np.ndarray:
    return np.asarray(values)


def _spec(dataset: Any) -> ArraySpec:
    shape, dtype = tuple(int(side) for side in dataset.shape[1:]), dataset.dtype
    if dtype.newbyteorder("<").str not in STORED_DTYPES:
        raise UserError(f"{dataset.file.filename}: {dataset.name}: dtype {dtype}: expected numbers")
    if dtype == np.uint8 and len(shape) == 3 and shape[2] in (1, 3, 4):
        return ArraySpec(modality=Modality.IMAGE, shape=shape, dtype="uint8")
    if dtype.kind == "b":
        size = int(np.prod(shape))
        return ArraySpec(modality=Modality.DISCRETE, shape=shape, dtype="bool", num_values=(2,) * size)
    return ArraySpec(modality=Modality.CONTINUOUS, shape=shape, dtype=dtype.name)


def _metadata(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The short facts of the file's metadata group; without those of variable length, see `hdf5.is_fixed`."""
    facts: dict[str, Any] = {}
    for path, dataset in arrays.items():
        if path.startswith("metadata/") and not dataset.ndim and hdf5.is_fixed(dataset):
            if dataset.dtype.itemsize > _MAX_METADATA_BYTES:
                continue
            try:
                value = dataset[()]
            except hdf5.DAMAGE:
                continue
            text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
            facts[path.removeprefix("metadata/")] = text
    return facts
