"""What the exporters of folders and files share: a temporary name until all is whole, and the order of episodes."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from episode_store import checked_json, files
from episode_store.errors import CorruptionError, UserError
from episode_store.formats.format import LossLog, one_line
from episode_store.store import EpisodeStore
from episode_store.task import TaskSpec

# In every set we export: the task, and how fields were renamed. Other readers ignore it.
TASK_FILE = "episode_store.json"
_MAX_JSON_BYTES = 64 << 20

# A row group that says it has more numbers is refused: runs of equal ones take no room in the file, but do in memory.
_MAX_ROW_GROUP_NUMBERS = 1 << 29

StepColumns = dict[str, tuple[str, tuple[int, ...]]]


@contextlib.contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """A folder beside `target` that gets its name at the end, or goes; what killed exports left goes first."""
    remove_leftovers(target)
    folder = files.temporary_path(target)
    folder.mkdir(parents=True)
    try:
        with files.hold(folder):
            yield folder
        for path in folder.rglob("*"):
            files.sync_file(path)
        files.sync_folder(folder)
        os.rename(folder, target)
        files.sync_folder(target.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(target: Path) -> None:
    """Removes what killed exports to `target` left beside it; those of living processes stay."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.*{files.TEMPORARY_SUFFIX}"):
        process = path.name.removesuffix(files.TEMPORARY_SUFFIX).rpartition(".")[2].partition("-")[0]
        if path.is_symlink() or not process.isdecimal() or _is_running(int(process)):
            continue
        with files.hold(path) as free:
            if free and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif free:
                path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def episodes_to_export(store: EpisodeStore, task_id: str, target: Path) -> list[str]:
    """The ids of a task's episodes, in the store's order.

    Raises:
      UserError: there are none, or the target exists.
    """
    if target.exists():
        raise UserError(f"export of {task_id}: {target} exists; choose another --output or move it away")
    ids: list[str] = store.table(task_id)["episode_id"].to_pylist()
    if not ids:
        raise UserError(f"export of {task_id}: the store has no episodes of it")
    return ids


def step_column_kinds(store: EpisodeStore, ids: Sequence[str], losses: LossLog) -> StepColumns:
    """dtype and row shape of every step column of any episode; one set has one kind of each."""
    kinds: StepColumns = {}
    for episode_id in ids:
        for name, values in store.read_window(episode_id, 0, 1).step_columns.items():
            kind = (values.dtype.name, values.shape[1:])
            if kinds.setdefault(name, kind) != kind:
                losses.add(f"step column {name}", f"of {kind} here, {kinds[name]} before: one set has one kind")
    return kinds


def write_task(path: Path, task: TaskSpec, **more: Any) -> None:
    """Writes the file that makes an import of our own set exact."""
    checked_json.create_file(path, {"format": "episode-store-task", "task": task.to_json(), **more})


def read_task(path: Path) -> tuple[TaskSpec | None, Mapping[str, Any]]:
    """The task of a set of ours and the rest of the file; None and {} for a set of others.

    Raises:
      CorruptionError: damaged.
    """
    if not path.is_file():
        return None, {}
    content = checked_json.read_file(path)
    try:
        return TaskSpec.from_json(content["task"]), content
    except (KeyError, TypeError, ValueError, UserError) as error:
        raise CorruptionError(f"{path}: is not a task: {error}") from None


def check_row_group(file: pq.ParquetFile, number: int) -> None:
    """Checks that a row group of a stranger fits into memory before it is read.

    Raises:
      CorruptionError: it does not.
    """
    group = file.metadata.row_group(number)
    values = sum(group.column(column).num_values for column in range(group.num_columns))
    if not 0 <= values <= _MAX_ROW_GROUP_NUMBERS:
        raise CorruptionError(
            f"row group {number} says it has {values} values, expected at most {_MAX_ROW_GROUP_NUMBERS}"
        )


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object of a stranger, of bounded size.

    Raises:
      UserError: missing, too large, or something else.
    """
    if not path.is_file():
        raise UserError(f"{path}: missing")
    size = path.stat().st_size
    if size > _MAX_JSON_BYTES:
        raise UserError(f"{path}: {size} bytes, expected at most {_MAX_JSON_BYTES}")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file for other readers."""
    files.write_bytes(path, (json.dumps(content, indent=4) + "\n").encode())


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
