"""A folder or file in an object store, such as s3://bucket/folder: what the job needs of `pathlib.Path`.

An object appears whole or not at all, under its own name at once: there is no rename, and none is needed. Settings such
as an S3 endpoint come from the environment, as fsspec and the store's client read it, so that workers have them too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import importlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import IO, Any

from episode_store.errors import UserError

_USER_INFO = re.compile(r"//[^/@]*@")


@dataclasses.dataclass(frozen=True, order=True)
class ObjectPath:
    """A place in an object store. Each method raises UserError when the store cannot be reached or refuses."""

    url: str

    def __str__(self) -> str:
        """The URL without a password."""
        return _USER_INFO.sub("//", self.url)

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(f"{self.url}/{name}")

    @property
    def name(self) -> str:
        """The last part."""
        return self.url.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The end of the name, from its last dot on."""
        return PurePosixPath(self.name).suffix

    def match(self, pattern: str) -> bool:
        """Whether the name is of a pattern."""
        return fnmatch.fnmatchcase(self.name, pattern)

    def is_file(self) -> bool:
        """Whether there is such an object."""
        with self._told() as (system, path):
            return system.isfile(path)

    def is_dir(self) -> bool:
        """A folder is nothing but the beginning of names: always there, empty or not."""
        return not self.is_file()

    def exists(self) -> bool:
        """Whether there is such an object or anything in such a folder."""
        with self._told() as (system, path):
            return system.exists(path)

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing to do, see `is_dir`."""

    def stat(self) -> SimpleNamespace:
        """`st_size`. Raises FileNotFoundError."""
        with self._told() as (system, path):
            return SimpleNamespace(st_size=int(system.size(path)))

    def iterdir(self) -> Iterator[ObjectPath]:
        """What lies in the folder."""
        with self._told() as (system, path):
            try:
                names = [entry.rstrip("/").rpartition("/")[2] for entry in system.ls(path, detail=False)]
            except FileNotFoundError:
                names = []
        return iter([self / name for name in names if name])

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
        with self._told() as (system, path):
            system.pipe_file(path, data)

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Removes the object."""
        with self._told() as (system, path):
            try:
                system.rm_file(path)
            except FileNotFoundError:
                if not missing_ok:
                    raise

    @contextlib.contextmanager
    def filled_from_file(self) -> Iterator[Path]:
        """A local file to write; it is the object when the block ends without an error."""
        with tempfile.TemporaryDirectory(prefix="beam-jobs-") as folder:
            local = Path(folder) / self.name
            yield local
            with self._told() as (system, path):
                system.put_file(str(local), path)

    @contextlib.contextmanager
    def _told(self) -> Iterator[tuple[Any, str]]:
        """The file system and the path in it; its errors in one line."""
        system, path = self._file_system()
        try:
            yield system, path
        except FileNotFoundError:
            raise
        except _errors() as error:
            text = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(
                f"{self}: {_USER_INFO.sub('//', text)}; check the address, and the access of this machine"
            ) from error

    def _file_system(self) -> tuple[Any, str]:
        try:
            core = importlib.import_module("fsspec.core")
            return core.url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            raise UserError(
                f"{self}: fsspec and the package of this kind of store are needed ({error}); for S3 install the extra "
                "s3, pip install 'generalist-agent[s3]'"
            ) from None
        except ValueError as error:
            raise UserError(f"{self}: cannot be opened: {error}") from None


def _errors() -> tuple[type[Exception], ...]:
    """What clients of object stores raise, where they are installed."""
    found: list[type[Exception]] = [OSError]
    for module, name in (("botocore.exceptions", "BotoCoreError"), ("botocore.exceptions", "ClientError")):
        with contextlib.suppress(ImportError):
            found.append(getattr(importlib.import_module(module), name))
    return tuple(found)
