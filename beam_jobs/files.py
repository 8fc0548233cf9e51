"""Whole files or none: temporary name, sync, rename."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

TEMPORARY_SUFFIX = ".tmp"
BLOCK_BYTES = 1 << 20


def temporary_path(path: Path) -> Path:
    """A name next to `path` that no other process or try uses."""
    return path.with_name(f"{path.name}.{os.getpid()}-{uuid.uuid4().hex[:12]}{TEMPORARY_SUFFIX}")


def write_file(path: Path, data: bytes) -> None:
    """Writes a whole file: temporary name, sync, rename."""
    temporary = temporary_path(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_facts(path: Path) -> dict[str, object]:
    """`bytes`, `sha256` and `md5` (the index of the wids reader wants it) of a file, read once."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    size = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            sha256.update(block)
            md5.update(block)
            size += len(block)
    return {"bytes": size, "sha256": sha256.hexdigest(), "md5": md5.hexdigest()}


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object; None when the file is missing or not one."""
    try:
        data = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def write_json(path: Path, data: Any) -> None:
    """Writes JSON for people and programs."""
    write_file(path, (json.dumps(data, indent=1, allow_nan=False) + "\n").encode())
