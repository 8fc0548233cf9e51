"""Whole files or none: a temporary name, synced, renamed. Every layer writes so."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

TEMPORARY_SUFFIX = ".tmp"


def temporary_path(path: Path) -> Path:
    """A hidden name beside `path` that no other process or try uses."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")


def write_temporary(path: Path, data: bytes | memoryview) -> Path:
    """Writes `data` under a temporary name beside `path`, synced, and returns that name."""
    temporary = temporary_path(path)
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Writes a whole file and makes it durable."""
    temporary = write_temporary(path, data)
    try:
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, data: Any) -> None:
    """Writes JSON for people and programs."""
    write_bytes(path, (json.dumps(data, indent=1, allow_nan=False) + "\n").encode())


def sync_folder(folder: Path) -> None:
    """Makes renames inside `folder` survive a power loss."""
    sync_file(folder)


def sync_file(path: Path) -> None:
    """Brings what is written to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
