"""Minari sets (0.5: HDF5, Arrow, Parquet), read and written without Minari: the functions that the registry calls."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from episode_store.errors import UserError
from episode_store.formats import minari_files as files
from episode_store.formats.folders import read_json_object
from episode_store.formats.format import ExportResult, Finding, Progress, one_line
from episode_store.formats.minari_export import export_minari
from episode_store.formats.minari_import import MinariImporter
from episode_store.formats.transfer import Bar, examine_importer, no_bar
from episode_store.store import EpisodeStore


def detect(source: Path) -> bool:
    """Whether the folder has Minari's metadata.json."""
    folder = files.find_folder(source)
    if folder is None:
        return False
    try:
        metadata = read_json_object(folder / files.METADATA_FILE)
    except UserError:
        return (folder / files.HDF5_FILE).is_file()
    return "minari_version" in metadata or "total_episodes" in metadata


def open_importer(source: Path, *, task_id: str | None = None, options: Mapping[str, str]) -> MinariImporter:
    """Opens a set; see `MinariImporter`."""
    return MinariImporter(source, task_id=task_id, options=options)


def export(
    store: EpisodeStore, task_id: str, destination: Path, *, options: Mapping[str, str], progress: Progress
) -> ExportResult:
    """Writes one task; see `export_minari`."""
    return export_minari(store, task_id, destination, options=options, progress=progress)


def doctor(source: Path, progress: Bar = no_bar) -> list[Finding]:
    """Reads the whole set, holds every episode against the contract, and looks at metadata.json."""
    findings = examine_importer(lambda: MinariImporter(source, task_id=None, options={}), source, progress)
    folder = files.find_folder(source)
    if folder is None:
        return findings
    try:
        metadata = read_json_object(folder / files.METADATA_FILE)
    except UserError:
        return findings
    return [*_metadata_findings(folder, metadata, findings), *findings]


def _metadata_findings(folder: Path, metadata: Mapping[str, Any], findings: list[Finding]) -> Iterator[Finding]:
    where = files.METADATA_FILE
    for name in ("dataset_id", "minari_version", "total_steps"):
        if name not in metadata:
            yield Finding(
                severity="warning",
                where=where,
                what=f"has no {name}: Minari's load_dataset fails without it",
                remedy="the set was not finished, or is a temporary folder of a killed writer",
            )
    own_name = metadata.get("dataset_id")
    if isinstance(own_name, str) and not folder.parent.resolve().as_posix().endswith(f"/{own_name}"):
        yield Finding(
            severity="warning",
            where=where,
            what=f"dataset_id {own_name!r} is not the folder {folder.parent.name!r}: Minari does not list the set",
            remedy="rename the folder",
        )
    yield from _step_findings(folder, metadata)
    for key in ("env_spec", "eval_env_spec"):
        code = _code_names(metadata.get(key))
        if code:
            yield Finding(
                severity="note",
                where=where,
                what=f"{key} names code that Minari imports when the environment is recovered: {', '.join(code)}",
                remedy="recover environments only of sets that you trust; an import into a store runs nothing",
            )


def _step_findings(folder: Path, metadata: Mapping[str, Any]) -> Iterator[Finding]:
    said = metadata.get("total_steps")
    if not isinstance(said, int):
        return
    try:
        episodes = files.open_episodes(folder, str(metadata.get("data_format", "hdf5")))
    except (UserError, OSError):
        return
    found = 0
    try:
        for index in episodes.indices:
            try:
                raw = episodes.read(index)
            except (*files.DAMAGE, UserError):
                return
            found += len(raw.rewards)
            steps = raw.facts.get("total_steps")
            if steps is not None and int(steps) != len(raw.rewards):
                yield Finding(
                    severity="error",
                    where=raw.where,
                    what=f"says total_steps {int(steps)}, it has {len(raw.rewards)} rewards",
                    remedy="steps were lost or appended: copy the episode again",
                )
    finally:
        episodes.close()
    if found != said:
        yield Finding(
            severity="error",
            where=files.METADATA_FILE,
            what=f"says total_steps {said}, the data has {found}",
            remedy="the set is not whole, or was changed without Minari",
        )


def _code_names(env_spec: Any) -> list[str]:
    """The names of code in an env_spec, as text."""
    try:
        spec = json.loads(env_spec)
        wrappers = [wrapper.get("entry_point") for wrapper in spec.get("additional_wrappers") or []]
        names = [spec.get("entry_point"), spec.get("vector_entry_point"), *wrappers]
    except (TypeError, ValueError, AttributeError, RecursionError):
        return []
    return [one_line(name) for name in names if isinstance(name, str)]
