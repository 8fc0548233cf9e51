"""Whole files or none: a temporary name, synced, renamed. Every layer writes so, and locks what is its own."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from episode_store.errors import UserError

TEMPORARY_SUFFIX = ".tmp"
_LOCK_POLL_SECONDS = 0.1


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


def check_can_write(path: Path, *, folder: bool = False) -> None:
    """For long work, before it begins: whether its result can be written to `path` at its end.

    Args:
      path: of a file, or of a folder; it and the folders above need not exist.
      folder: which of the two.

    Raises:
      UserError: it is the other of the two, below a file, or where this user may not write.
    """
    if not folder and path.is_dir():
        raise UserError(f"{path}: is a folder, expected a file")
    place = path if folder else path.parent
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        where = "is" if place == path else f"{place} is"
        raise UserError(f"{path}: {where} a file, expected a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{path}: {place} cannot be written: permission denied")


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


@contextlib.contextmanager
def hold(path: Path, *, wait_seconds: float = 0.0) -> Iterator[bool]:
    """Holds the exclusive lock on a folder or on a file, which is made when it is missing; it ends with the process.

    Yields:
      Whether it was to be had within `wait_seconds`.
    """
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
    try:
        deadline = time.monotonic() + wait_seconds
        while not (free := _try_lock(descriptor)) and time.monotonic() < deadline:
            time.sleep(_LOCK_POLL_SECONDS)
        yield free
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
