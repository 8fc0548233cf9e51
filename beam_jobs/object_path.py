"""A folder or file in an object store, such as s3://bucket/folder: what the job needs of `pathlib.Path`.

An object appears whole or not at all, under its own name at once: there is no rename, and none is needed. How it is
reached is the business of `episode_store/remote.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import IO

from episode_store.remote import RemotePath


@dataclasses.dataclass(frozen=True)
class ObjectPath(RemotePath):
    """A place to write. Each method raises RemoteError when the store cannot be reached, or refuses."""

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(f"{self.url}/{name}")

    @property
    def suffix(self) -> str:
        """The end of the name, from its last dot on."""
        return PurePosixPath(self.name).suffix

    def match(self, pattern: str) -> bool:
        """Whether the name is of a pattern."""
        return fnmatch.fnmatchcase(self.name, pattern)

    def exists(self) -> bool:
        """Whether there is such an object, or anything in such a folder."""
        with self._told() as (system, path):
            return system.exists(path)

    def is_file(self) -> bool:
        """Whether there is such an object."""
        with self._told() as (system, path):
            return system.isfile(path)

    def is_dir(self) -> bool:
        """A folder is nothing but the beginning of names: always there, unless an object has its name."""
        return not self.is_file()

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing to do, see `is_dir`."""

    def stat(self) -> SimpleNamespace:
        """`st_size`. Raises FileNotFoundError."""
        return SimpleNamespace(st_size=self.size())

    def iterdir(self) -> Iterator[ObjectPath]:
        """What lies in the folder."""
        try:
            names = self.names()
        except FileNotFoundError:
            names = []
        return (self / name for name in names)

    def read_bytes(self) -> bytes:
        """The whole object. Raises FileNotFoundError."""
        with self._told() as (system, path):
            return system.cat_file(path)

    def open(self, mode: str = "rb") -> IO[bytes]:
        """The object as a file to read. Raises FileNotFoundError."""
        with self._told() as (system, path):
            return system.open(path, mode)

    def write_bytes(self, data: bytes) -> None:
        """Writes the whole object."""
        with self._told("cannot be written") as (system, path):
            system.pipe_file(path, data)

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Removes the object. Raises FileNotFoundError, unless `missing_ok`."""
        endured = (FileNotFoundError,) if missing_ok else ()
        with contextlib.suppress(*endured), self._told("cannot be removed") as (system, path):
            system.rm_file(path)

    @contextlib.contextmanager
    def filled_from_file(self) -> Iterator[Path]:
        """A local file to write; it is the object when the block ends without an error."""
        with tempfile.TemporaryDirectory(prefix="beam-jobs-") as folder:
            local = Path(folder) / self.name
            yield local
            with self._told("cannot be written") as (system, path):
                system.put_file(str(local), path)
