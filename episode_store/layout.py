"""The top of a store's folder: its marker file, its tasks, its quarantine.

store.json                       checked JSON: what this folder is, and the format's version
tasks/<task>.json                checked JSON: one `TaskSpec`; '/' in the task id becomes '--'
segments/                        see segment.py
versions/                        see versions.py
quarantine/<segment>.jsonl       one checked JSON line a refused or damaged episode
quarantine/damaged/              what `repair` set aside
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from episode_store import checked_json, storage
from episode_store.errors import CorruptionError, StoreError, UserError
from episode_store.segment import FORMAT_VERSION, SEGMENT_FOLDER
from episode_store.storage import Place, StorePath
from episode_store.task import TaskSpec, task_file_name

MARKER = "store.json"
TASK_FOLDER = "tasks"
QUARANTINE_FOLDER = "quarantine"
MAX_QUARANTINE_BYTES = 1 << 30


def check_store(path: StorePath) -> None:
    """Checks that `path` is a store this version can read.

    Raises:
      StoreError: missing, something else, or of a newer format.
    """
    if isinstance(path, Path) and not path.exists():
        raise StoreError(f"store {path}: no such folder; check --store, or collect some episodes first")
    if isinstance(path, Path) and not path.is_dir():
        raise StoreError(f"store {path}: is a file, expected the folder of an episode store")
    if MARKER not in storage.names(path):
        raise StoreError(f"store {path}: is not an episode store: it has no {MARKER}")
    marker = checked_json.read_file(path / MARKER)
    if marker.get("format") != "episode-store":
        raise StoreError(f"store {path}: is not an episode store: its format is {marker.get('format')!r}")
    if marker.get("version") != FORMAT_VERSION:
        raise StoreError(
            f"store {path}: has format version {marker.get('version')}, this program reads version {FORMAT_VERSION}; "
            + ("collect it again" if marker.get("version") in range(FORMAT_VERSION) else "install a newer one")
        )


def create_store(path: Path) -> None:
    """Makes an empty store, or checks the one that is there; several processes may do so at once.

    Raises:
      StoreError: the folder holds something else.
    """
    if path.exists() and not path.is_dir():
        raise StoreError(f"store {path}: is a file, expected a folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (NotADirectoryError, FileExistsError):
        raise StoreError(f"store {path}: what should be a folder of this path is a file") from None
    if not (path / MARKER).exists():
        foreign = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
        # Looked at again: another process may have made the store in between.
        if foreign and not (path / MARKER).exists():
            raise StoreError(f"store {path}: is not an episode store and not empty (it holds {foreign[0]!r})")
        checked_json.create_file(path / MARKER, {"format": "episode-store", "version": FORMAT_VERSION})
    check_store(path)
    for folder in (TASK_FOLDER, SEGMENT_FOLDER):
        (path / folder).mkdir(exist_ok=True)


def create_store_marker(path: Path) -> None:
    """Writes the marker of a store again; for `repair`."""
    checked_json.write_file(path / MARKER, {"format": "episode-store", "version": FORMAT_VERSION})


def task_path(path: Path, task_id: str) -> Path:
    """The file of a task."""
    return path / TASK_FOLDER / f"{task_file_name(task_id)}.json"


def read_task(file: StorePath) -> TaskSpec:
    """The task of one file.

    Raises:
      CorruptionError: damaged, or not the task that its name says.
    """
    content = checked_json.read_file(file)
    try:
        task = TaskSpec.from_json(content)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, UserError) as error:
        raise CorruptionError(f"{file}: is not a task: {error}") from None
    if f"{task_file_name(task.task_id)}.json" != file.name:
        raise CorruptionError(f"{file}: holds task {task.task_id}")
    return task


def task_files(path: Place) -> list[Place]:
    """All task files, sorted."""
    return [path / TASK_FOLDER / name for name in storage.names(path / TASK_FOLDER) if name.endswith(".json")]


def quarantine_files(path: Place) -> list[Place]:
    """All files of the table of refused and damaged episodes, sorted."""
    folder = path / QUARANTINE_FOLDER
    return [folder / name for name in storage.names(folder) if name.endswith(".jsonl")]


def create_task(path: Path, task: TaskSpec) -> None:
    """Adds a task to the store; the same task again is no change.

    Raises:
      UserError: the store has another task of this id.
    """
    file = task_path(path, task.task_id)
    if file.exists() or not checked_json.create_file(file, task.to_json()):
        old, new = read_task(file).to_json(), task.to_json()
        for name in new:
            if new[name] != old[name]:
                raise UserError(
                    f"task {task.task_id}: {name} differs from the store's: expected {shorten(old[name])}, got "
                    f"{shorten(new[name])}; use another store or another version number"
                )


def shorten(value: Any, length: int = 120) -> str:
    """A value for an error text."""
    text = str(value)
    return text if len(text) <= length else f"{text[:length]}..."


def near(name: str, names: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or nothing when no name is near."""
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""
