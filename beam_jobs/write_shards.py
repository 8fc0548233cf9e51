"""Writes one shard: a plain tar file in WebDataset's layout whose bytes depend on its samples alone.

The bytes are those of `webdataset.TarWriter(stream, encoder=False, mtime=0, user="", group="")`, as a test holds.
The module itself is not imported: importing webdataset imports torch, 2 s and 200 MB in every worker.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

TEMPORARY_SUFFIX = ".tmp"
_MEMBER_MODE = 0o444
_COPY_BYTES = 1 << 20


class TarShard:
    """Writes samples to a temporary file; `close` makes it the shard. Without `close` nothing stays behind."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = temporary_path(path)
        self._file = self._temporary.open("wb", buffering=_COPY_BYTES)
        self._tar = tarfile.open(fileobj=self._file, mode="w|", format=tarfile.PAX_FORMAT, bufsize=_COPY_BYTES)
        self.num_samples = 0

    def __enter__(self) -> TarShard:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    @property
    def num_bytes(self) -> int:
        """Size so far, without the end of the archive."""
        return self._tar.offset

    def write(self, key: str, members: Mapping[str, bytes]) -> None:
        """Adds a sample: one member `<key>.<name>` for each entry, in order of names."""
        for name in sorted(members):
            info = tarfile.TarInfo(f"{key}.{name}")
            info.size = len(members[name])
            info.mtime = 0
            info.mode = _MEMBER_MODE
            self._tar.addfile(info, io.BytesIO(members[name]))
        self.num_samples += 1

    def close(self) -> dict[str, object]:
        """Syncs and renames the shard; returns its `bytes`, `sha256` and `md5`."""
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        facts = file_facts(self._temporary)
        self._temporary.replace(self._path)
        return facts


def sample_size(key: str, members: Mapping[str, bytes]) -> int:
    """Bytes that a sample takes in a tar: a header of 512 bytes and full blocks for each member."""
    return sum(512 + -(-len(data) // 512) * 512 for data in members.values())


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
        while block := file.read(_COPY_BYTES):
            sha256.update(block)
            md5.update(block)
            size += len(block)
    return {"bytes": size, "sha256": sha256.hexdigest(), "md5": md5.hexdigest()}
