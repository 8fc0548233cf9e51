"""robomimic HDF5, read and written. Needs h5py (extra hdf5).

    /data              attributes total (steps), env_args (JSON: env_name, type, env_kwargs)
    /data/demo_<i>     attributes num_samples, model_file (XML of the simulator)
        actions [T, A], rewards [T], dones [T], states [T, D], obs/<key> [T, ...], next_obs/<key> [T, ...]
    /mask/<name>       names of demos: train, valid, 20_percent, ...

The observation after the last action is the last row of next_obs. dones is all there is about the end.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from episode_store.episode import Episode, EpisodeMetadata
from episode_store.errors import CorruptionError, UserError
from episode_store.formats import hdf5
from episode_store.formats.format import (
    ExportResult,
    Finding,
    LossLog,
    Progress,
    SingleTaskImporter,
    one_line,
    task_id_from,
    with_repeated_last,
)
from episode_store.formats.hdf5_texts import check_texts
from episode_store.formats.robomimic_export import OWN, export_robomimic
from episode_store.formats.transfer import Bar, examine_importer, no_bar
from episode_store.spec import STORED_DTYPES, ArraySpec, FieldValues, Modality
from episode_store.splits import TRAIN, VALIDATION
from episode_store.store import EpisodeStore
from episode_store.task import TaskSpec

_DEMO = re.compile(r"demo_(0|[1-9][0-9]{0,11})")
_STEP_ARRAYS = ("actions", "rewards", "dones")
_MAX_MODEL_CHARACTERS = 4 << 20
_MAX_OWN_CHARACTERS = 64 << 20
_MIN_IMAGE_SIDE = 16


def detect(source: Path) -> bool:
    """Whether the file is HDF5 with demos in /data."""
    if not hdf5.is_hdf5(source):
        return False
    try:
        with hdf5.open_file(source) as file:
            return any(_DEMO.fullmatch(name) for name in hdf5.subgroup(file, "data"))
    except (UserError, *hdf5.DAMAGE):
        return False


def open_importer(source: Path, *, task_id: str | None = None, options: Mapping[str, str]) -> RobomimicImporter:
    """Opens a file; see `RobomimicImporter`."""
    return RobomimicImporter(source, task_id=task_id, options=options)


def export(
    store: EpisodeStore, task_id: str, destination: Path, *, options: Mapping[str, str], progress: Progress
) -> ExportResult:
    """Writes one task; see `export_robomimic`."""
    return export_robomimic(store, task_id, destination, options=options, progress=progress)


def doctor(source: Path, progress: Bar = no_bar) -> list[Finding]:
    """Reads the whole file, holds every episode against the contract, and looks at counts and masks."""
    findings = examine_importer(lambda: RobomimicImporter(source, task_id=None, options={}), source, progress)
    if not hdf5.is_hdf5(source):
        return findings
    try:
        with _open_checked(source) as file:
            return [*_count_findings(file), *findings]
    except (UserError, *hdf5.DAMAGE) as error:
        counts = Finding(severity="error", where=str(source), what=f"counts cannot be read: {one_line(error)}")
        return [counts, *findings]


def _count_findings(file: Any) -> list[Finding]:
    data = hdf5.subgroup(file, "data")
    numbers = _demo_numbers(data)
    found: list[Finding] = []

    def add(severity: Any, where: str, what: str, remedy: str) -> None:
        found.append(Finding(severity=severity, where=where, what=what, remedy=remedy))

    steps = 0
    for number in numbers:
        demo = hdf5.subgroup(data, f"demo_{number}")
        length = demo["actions"].shape[0] if "actions" in demo else 0
        steps += length
        said = demo.attrs.get("num_samples")
        where = f"data/demo_{number}"
        if said is None:
            add("warning", where, "has no num_samples: robomimic's reader fails there", "write it: the rows of actions")
        elif int(said) != length:
            add("error", where, f"says num_samples {int(said)}, it has {length} actions", "copy the demo again")
    total = data.attrs.get("total")
    if total is not None and int(total) != steps:
        what = f"attribute total says {int(total)} steps, the demos have {steps}"
        add("error", "data", what, "the file is not whole, or was changed: copy it again")
    if "env_args" not in data.attrs:
        add("warning", "data", "has no env_args: robomimic cannot make the environment", "write env_args as JSON")
    if numbers != list(range(len(numbers))):
        add("note", "data", f"{len(numbers)} demos, the last is demo_{numbers[-1]}: the numbers have gaps", "")
    known = {f"demo_{number}" for number in numbers}
    for name, demos in _masks(file).items():
        missing = sorted(set(demos) - known)
        if missing:
            what = f"names {len(missing)} demos that are not there, for example {missing[0]}"
            add("error", f"mask/{name}", what, "copy the file again, or write the mask anew")
    masks = _masks(file)
    both = sorted(set(masks.get("train", ())) & set(masks.get("valid", ())))
    if both:
        what = f"{len(both)} demos are in both, for example {both[0]}: scores on valid are of training data"
        add("error", "mask/train, mask/valid", what, "write the masks anew")
    return found


def _open_checked(source: Path) -> Any:
    """The file, all of whose texts can be read."""
    if hdf5.is_hdf5(source):
        check_texts(source)
    return hdf5.open_file(source)


def _demo_numbers(data: Any) -> list[int]:
    return sorted(int(match[1]) for match in (_DEMO.fullmatch(name) for name in data) if match)


def _masks(file: Any) -> dict[str, list[str]]:
    """Name -> demos."""
    if "mask" not in file:
        return {}
    masks = {}
    for name, dataset in hdf5.datasets(hdf5.subgroup(file, "mask")):
        items = np.ravel(dataset[()]).tolist()
        masks[name] = [item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item) for item in items]
    return masks


class RobomimicImporter(SingleTaskImporter):
    """The importer of one file; see `format.Importer`."""

    name = "robomimic"

    def __init__(self, source: Path, *, task_id: str | None, options: Mapping[str, str]) -> None:
        self._path = source
        self._keep_model = options.get("model_file", "keep") == "keep"
        if options.get("model_file", "keep") not in ("keep", "drop"):
            raise UserError(f"option model_file {options['model_file']!r}: expected keep or drop")
        super().__init__()
        with _open_checked(source) as file:
            try:
                data = hdf5.subgroup(file, "data")
                self._numbers = _demo_numbers(data)
                self._masks = _masks(file)
                self._own = _own_task(data)
                self._env_args = _text(data.attrs.get("env_args"))
                if not self._numbers:
                    raise UserError(f"{source}: has no /data/demo_<i>: not a robomimic file")
                self._task = self._own or self._make_task(data)
            except (CorruptionError, *hdf5.DAMAGE) as error:
                raise UserError(f"{source}: cannot be read as robomimic: {one_line(error)}") from None
        if task_id:
            self._task = dataclasses.replace(self._task, task_id=task_id)

    def num_episodes(self) -> int | None:
        """The demos in the file."""
        return len(self._numbers)

    def episodes(self) -> Iterator[Episode]:
        """All demos by number."""
        self._losses, self._findings = LossLog(), []
        if self._own is None:
            add = self._losses.add
            add("bounds of observations and actions", "the file has none: taken as unbounded")
            add("truncation", "dones is all there is: taken as truncated where the last one is not set")
            add("seed, agent", "the file has no place for them: left empty")
        with _open_checked(self._path) as file:
            data = hdf5.subgroup(file, "data")
            for position, number in enumerate(self._numbers):
                where = f"{self._path.name} demo_{number}"
                try:
                    episode = self._episode(hdf5.subgroup(data, f"demo_{number}"), number, position, where)
                except (CorruptionError, *hdf5.DAMAGE) as error:
                    remedy = "mend or remove this demo, or copy the file again; the others are read"
                    finding = Finding(severity="error", where=where, what=one_line(error), remedy=remedy)
                    self._findings.append(finding)
                    continue
                yield episode

    def _make_task(self, data: Any) -> TaskSpec:
        """The task, with the fields of the first demo that can be read."""
        for number in self._numbers:
            try:
                arrays = dict(hdf5.datasets(hdf5.subgroup(data, f"demo_{number}")))
                observations = _below(arrays, "obs")
                if "actions" in arrays and observations:
                    break
            except (CorruptionError, *hdf5.DAMAGE):
                continue
        else:
            raise UserError(f"{self._path}: no demo has actions and obs: extract observations first")
        try:
            env_args = json.loads(self._env_args)
        except (ValueError, RecursionError):
            env_args = {}
        name = env_args.get("env_name") if isinstance(env_args, dict) else None
        return TaskSpec(
            task_id=task_id_from(f"robomimic/{str(name or self._path.stem).replace('/', '-')}"),
            observation_spec={name: _spec(arrays[path]) for name, path in observations.items()},
            action_spec={"action": _spec(arrays["actions"])},
            # Kept as text, for people: what it names is never made.
            env_spec_json=json.dumps({"file": self._path.name, "env_args": env_args}, sort_keys=True),
            tags=("imported:robomimic",),
        )

    def _episode(self, demo: Any, number: int, position: int, where: str) -> Episode:
        arrays = dict(hdf5.datasets(demo))
        if self._own is not None and OWN in arrays:
            return self._own_episode(demo, arrays)
        for name in _STEP_ARRAYS:
            if name not in arrays and name != "rewards":
                raise CorruptionError(f"has no {name}")
        steps = arrays["actions"].shape[0]
        rewards = self._rewards(arrays, steps)
        terminated, dones = self._end(arrays, steps)
        observations = {
            name: self._observation(arrays, path, name, steps) for name, path in _below(arrays, "obs").items()
        }
        columns = {"dones": dones} if dones is not None else {}
        for path, dataset in arrays.items():
            if path in _STEP_ARRAYS or path.startswith(("obs/", "next_obs/")):
                continue
            if dataset.ndim and dataset.shape[0] == steps and dataset.dtype.newbyteorder("<").str in STORED_DTYPES:
                columns[path] = dataset[()]
            else:
                what = f"left out: {dataset.dtype} {dataset.shape}, a step column holds T rows of numbers"
                self._losses.add(f"array {path}", what)
        return Episode(
            task_id=self._task.task_id,
            observations=observations,
            actions={"action": arrays["actions"][()]},
            rewards=rewards,
            terminated=terminated,
            truncated=not terminated,
            step_columns=columns,
            metadata=self._provenance(demo, number, position, where),
        )

    def _rewards(self, arrays: Mapping[str, Any], steps: int) -> np.ndarray:
        if "rewards" not in arrays:
            self._losses.add("rewards", "the demo has none: taken as 0 everywhere")
            return np.zeros(steps)
        rewards = arrays["rewards"][()]
        if rewards.size != steps:
            raise CorruptionError(f"{rewards.size} rewards for {steps} actions")
        return rewards.reshape(steps).astype(np.float64)

    def _end(self, arrays: Mapping[str, Any], steps: int) -> tuple[bool, np.ndarray | None]:
        """Whether the demo terminated, and dones where they say more than that."""
        dones = arrays["dones"][()]
        if dones.size != steps:
            raise CorruptionError(f"{dones.size} dones for {steps} actions")
        if not steps:
            raise CorruptionError("no steps")
        dones = dones.reshape(steps)
        if not dones[:-1].any():
            return bool(dones[-1]), None
        self._losses.add(
            "dones before the last step",
            "robomimic may set them at every state of success; the demo goes on, so they are kept as step column dones",
        )
        return bool(dones[-1]), dones

    def _observation(self, arrays: Mapping[str, Any], path: str, name: str, steps: int) -> np.ndarray:
        values = arrays[path][()]
        if len(values) != steps:
            raise CorruptionError(f"{path}: {len(values)} observations for {steps} actions")
        following = arrays.get(f"next_{path}")
        if following is None:
            self._losses.add("final observation", "no next_obs: the last observation is repeated in its place")
            return np.asarray(with_repeated_last(values))
        if following.shape != values.shape or following.dtype != values.dtype:
            raise CorruptionError(f"next_{path}: {following.dtype} {following.shape}, expected as {path}")
        following = following[()]
        if values[1:].tobytes() != following[:-1].tobytes():
            why = "next_obs differs from the obs of the next step: only its last row is kept"
            self._losses.add(f"next_obs of {name}", why)
        return np.concatenate([values, following[-1:]])

    def _provenance(self, demo: Any, number: int, position: int, where: str) -> EpisodeMetadata:
        masks = sorted(name for name, demos in self._masks.items() if f"demo_{number}" in demos)
        config: dict[str, Any] = {"source": where}
        if masks:
            config["masks"] = masks
        for name, value in demo.attrs.items():
            if name == "num_samples":
                continue
            text = _text(value) if isinstance(value, str | bytes) else None
            if text is not None and (not self._keep_model or len(text) > _MAX_MODEL_CHARACTERS):
                self._losses.add(f"attribute {name}", "left out: option model_file=drop, or too large")
            elif text is not None:
                config[name] = text
            elif np.size(value) <= 64:
                config[name] = np.asarray(value).tolist()
        # A demo of a shorter mask is the same demo: only train and valid divide.
        side = TRAIN if "train" in masks else VALIDATION if "valid" in masks else ""
        group = f"{self._path.stem}:demo_{number}"
        return EpisodeMetadata(
            agent_id=f"robomimic:{self._path.stem}",
            collection_index=position,
            split_group=f"{side}/{group}" if side else group,
            environment_config=config,
        )

    def _own_episode(self, demo: Any, arrays: Mapping[str, Any]) -> Episode:
        """A demo that this project exported."""
        assert self._own is not None
        try:
            own = json.loads(_text(arrays[OWN].asstr()[()], _MAX_OWN_CHARACTERS))
            metadata = EpisodeMetadata.from_json(own["metadata"])
            texts, keys, columns = own["texts"], own["observation_keys"], own["step_columns"]
            ends = bool(own["terminated"]), bool(own["truncated"])
            expected = own["content_hash"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptionError(f"{OWN}: cannot be understood: {one_line(error)}") from None
        steps = arrays["actions"].shape[0]
        observations: dict[str, FieldValues] = {}
        for name in self._own.observation_spec:
            if f"observations/{name}" in texts:
                observations[name] = texts[f"observations/{name}"]
            else:
                observations[name] = self._observation(arrays, f"obs/{keys[name]}", name, steps)
        episode = Episode(
            task_id=self._own.task_id,
            observations=_as_specified(observations, self._own.observation_spec),
            actions=_split_actions(arrays["actions"][()], self._own.action_spec, texts, steps),
            rewards=arrays["rewards"][()],
            terminated=ends[0],
            truncated=ends[1],
            step_columns={name: arrays[path][()] for name, path in columns.items()},
            metadata=metadata,
        )
        if episode.content_hash() != expected:
            self._losses.add("content hash", "differs from the exported episode's: the file was changed since")
        return dataclasses.replace(episode, task_id=self._task.task_id)


def _as_specified(fields: Mapping[str, FieldValues], specs: Mapping[str, ArraySpec]) -> dict[str, FieldValues]:
    return {
        name: values if isinstance(values, list) else values.astype(specs[name].dtype, copy=False)
        for name, values in fields.items()
    }


def _split_actions(
    flat: np.ndarray, specs: Mapping[str, ArraySpec], texts: Mapping[str, list[str]], steps: int
) -> dict[str, FieldValues]:
    """The fields that `robomimic_export` put side by side, by sorted name."""
    actions: dict[str, FieldValues] = {}
    start = 0
    for name, spec in specs.items():
        if spec.modality == Modality.TEXT:
            actions[name] = texts[f"actions/{name}"]
            continue
        values = flat[:, start : start + spec.size]
        actions[name] = np.ascontiguousarray(values.reshape(steps, *spec.shape).astype(spec.dtype))
        start += spec.size
    return actions


def _own_task(data: Any) -> TaskSpec | None:
    """The task of a file that this project exported."""
    text = data.attrs.get("episode_store_task")
    if text is None:
        return None
    try:
        return TaskSpec.from_json(json.loads(_text(text)))
    except (KeyError, TypeError, ValueError, UserError) as error:
        raise CorruptionError(f"episode_store_task: is not a task: {one_line(error)}") from None


def _text(value: Any, limit: int = _MAX_MODEL_CHARACTERS) -> str:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return value[:limit] if isinstance(value, str) else ""


def _below(arrays: Mapping[str, Any], group: str) -> dict[str, str]:
    """Field name -> path of the arrays of a group."""
    return {path.removeprefix(f"{group}/"): path for path in sorted(arrays) if path.startswith(f"{group}/")}


def _spec(dataset: Any) -> ArraySpec:
    shape, dtype = dataset.shape[1:], dataset.dtype
    if dtype.newbyteorder("<").str not in STORED_DTYPES:
        raise CorruptionError(f"{dataset.name}: {dtype}, expected numbers")
    if dtype == np.uint8 and len(shape) == 3 and shape[2] in (1, 3) and min(shape[:2]) >= _MIN_IMAGE_SIDE:
        return ArraySpec(modality=Modality.IMAGE, shape=shape, dtype="uint8")
    if dtype.kind == "b":
        count = (2,) * int(np.prod(shape))
        return ArraySpec(modality=Modality.DISCRETE, shape=shape, dtype="bool", num_values=count)
    return ArraySpec(modality=Modality.CONTINUOUS, shape=shape, dtype=dtype.name)
