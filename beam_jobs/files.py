"""Files of a job, in a folder or in an object store: written whole, known by their hashes."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from beam_jobs.object_path import ObjectPath
from episode_store import files
from episode_store.storage import locate

BLOCK_BYTES = 1 << 20

# Where a job writes.
AnyPath = Path | ObjectPath


def output_path(text: str) -> AnyPath:
    """An absolute path, or a place in an object store when `text` is a URL."""
    place = locate(text)
    return place.resolve() if isinstance(place, Path) else ObjectPath(place.url)


def write_bytes(path: AnyPath, data: bytes) -> None:
    """Writes a whole file and makes it durable."""
    if isinstance(path, ObjectPath):
        path.write_bytes(data)
    else:
        files.write_bytes(path, data)


def write_json(path: AnyPath, data: Any) -> None:
    """Writes JSON for people and programs; equal data give equal bytes everywhere."""
    write_bytes(path, (json.dumps(data, indent=1, allow_nan=False) + "\n").encode())


def sync_folder(folder: AnyPath) -> None:
    """Makes renames inside `folder` survive a power loss; objects are durable when they are written."""
    if isinstance(folder, Path):
        files.sync_folder(folder)


@contextlib.contextmanager
def new_file(path: AnyPath) -> Iterator[Path]:
    """Where to write a file, which lies at `path` when the block ends without an error."""
    if isinstance(path, ObjectPath):
        with path.filled_from_file() as local:
            yield local
    else:
        yield path


@contextlib.contextmanager
def hold(path: AnyPath) -> Iterator[bool]:
    """Holds the lock on a file and tells whether it was to be had; object stores have none."""
    if isinstance(path, ObjectPath):
        yield True
    else:
        with files.hold(path) as free:
            yield free


def file_facts(path: AnyPath) -> dict[str, object]:
    """`bytes`, `sha256` and `md5` (the index of the wids reader wants it) of a file, read once."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    size = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            sha256.update(block)
            md5.update(block)
            size += len(block)
    return {"bytes": size, "sha256": sha256.hexdigest(), "md5": md5.hexdigest()}


def read_json(path: AnyPath) -> dict[str, Any] | None:
    """A JSON object; None when the file is missing or not one."""
    try:
        data = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return data if isinstance(data, dict) else None
