"""Where a store lies: a folder of this machine, or a URL that fsspec opens, which can be read only.

This is the whole seam between the two. A `StorePath` is a `pathlib.Path` or a `RemotePath`; both have `/`, `name` and
`exists`. Whoever reads a store lists, reads and opens files with the functions below; whoever writes one asks for
`local` first.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from episode_store.errors import CorruptionError, StoreError
from episode_store.remote import RemoteData, RemotePath, RemoteRecord

StorePath = Path | RemotePath
# The same, where what is returned is of the kind that was given.
Place = TypeVar("Place", Path, RemotePath, Path | RemotePath)
# A data file, and one record of it: mapped, or fetched piece by piece. Both are sliced like uint8 arrays.
Data = np.ndarray | RemoteData
Record = np.ndarray | RemoteRecord

# Smaller files are read instead of mapped: each map costs a file descriptor.
_MAPPED_BYTES = 1 << 20
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]+://")


def locate(path: str | StorePath) -> StorePath:
    """The place that a path or a URL names; `file://` is a path."""
    if isinstance(path, RemotePath):
        return path
    text = os.fspath(path)
    if not _URL.match(text):
        return Path(path)
    if text.startswith(("file://", "local://")):
        return Path(text.partition("://")[2])
    return RemotePath(text.rstrip("/"))


def local(path: str | StorePath) -> Path:
    """The folder that a path names, for those who write.

    Raises:
      StoreError: it is a URL.
    """
    place = locate(path)
    if isinstance(place, RemotePath):
        raise StoreError(
            f"store {place}: a store at a URL can only be read (list, show, stats, query, verify, export); copy it to "
            "this machine for anything else"
        )
    return place


def names(folder: StorePath) -> list[str]:
    """The names in a folder, sorted, without hidden ones; none when it is missing.

    Raises:
      RemoteError: the place cannot be reached, or does not list its folders.
    """
    try:
        found = folder.names() if isinstance(folder, RemotePath) else os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(name for name in found if not name.startswith("."))


def read_bytes(path: StorePath, limit: int) -> bytes:
    """The content of a file, of which no more than `limit` + 1 bytes are read: compare the length.

    Raises:
      FileNotFoundError: there is none.
      RemoteError: the place cannot be reached.
    """
    if isinstance(path, RemotePath):
        return path.read_range(0, limit + 1)
    with open(path, "rb") as file:
        # The size first: `read` would set aside as much as it is asked for.
        return file.read(min(limit + 1, os.fstat(file.fileno()).st_size + 1))


def read_exactly(path: StorePath, size: int) -> np.ndarray:
    """A file of a known size, uint8 [size], which stays readable when the file goes; large local ones are mapped.

    Raises:
      CorruptionError: missing, or of another size.
      RemoteError: the place cannot be reached.
    """
    if size < 0:
        raise CorruptionError(f"{path}: expected {size} bytes")
    try:
        if size >= _MAPPED_BYTES and not isinstance(path, RemotePath):
            content = _map(path)
        else:
            content = np.frombuffer(read_bytes(path, size), np.uint8)
    except FileNotFoundError:
        raise CorruptionError(f"{path}: missing") from None
    if len(content) != size:
        found = len(content) if len(content) < size else f"more than {size}"
        raise CorruptionError(f"{path}: {found} bytes, expected {size}")
    return content


def open_data(path: StorePath) -> Data:
    """A data file, from which only what is looked at is read.

    Raises:
      FileNotFoundError: there is none.
      RemoteError: the place cannot be reached, or hands out whole files only.
    """
    return RemoteData(path) if isinstance(path, RemotePath) else _map(path)


def fetch(record: Record, ranges: Sequence[tuple[int, int]] | None = None) -> np.ndarray:
    """The record, uint8 [n], with these byte ranges of it in memory, all by default; what is mapped is already."""
    return record if isinstance(record, np.ndarray) else record.fetch(ranges)


def _map(path: Path) -> np.ndarray:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        return np.frombuffer(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b"", np.uint8)
