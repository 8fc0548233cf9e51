"""Files behind a URL, read through fsspec (extra remote): http, s3, gs, memory and whatever else fsspec knows.

Settings of a file system, such as an S3 endpoint, are fsspec's own: the environment (`FSSPEC_S3_ENDPOINT_URL`) or
~/.config/fsspec. So worker processes have them too, and no secret is kept in a reader or its pickle.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import unquote

import numpy as np

from episode_store.errors import CorruptionError, RemoteError, UserError

# Seconds without a connection, or without a byte, after which a server counts as gone.
CONNECT_SECONDS, SILENCE_SECONDS = 20.0, 60.0
# Fetched with the first bytes of a record: nearly always its whole header.
_HEAD_BYTES = 1 << 14
# Ranges nearer to each other than this are fetched as one.
_JOIN_BYTES = 1 << 14
# Arrays of fetched bytes begin where the file has a multiple of this.
_ALIGNMENT = 64
# What the libraries below fsspec raise besides OSError; looked up where they are loaded.
_ERRORS = (
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("azure.core.exceptions", "AzureError"),
)
_HTTP = ("http://", "https://")
_USER_INFO = re.compile(r"//[^/@]*@")


@dataclasses.dataclass(frozen=True)
class RemotePath:
    """A file or folder behind a URL; the few methods of `pathlib.Path` that readers of a store use."""

    url: str

    def __str__(self) -> str:
        """The URL without a password."""
        return _USER_INFO.sub("//", self.url)

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self.url}/{name}")

    @property
    def name(self) -> str:
        """The last part."""
        return self.url.rpartition("/")[2]

    def exists(self) -> bool:
        """Whether there is such a file."""
        try:
            self.size()
        except FileNotFoundError:
            return False
        return True

    def size(self) -> int:
        """Bytes of the file.

        Raises:
          FileNotFoundError: there is none.
          RemoteError: the place cannot be reached, or does not tell.
        """
        with self._told() as (system, path):
            size = system.info(path)["size"]
        if size is None:
            raise RemoteError(f"{self}: the server does not tell its size")
        return int(size)

    def names(self) -> list[str]:
        """The names in the folder.

        Raises:
          FileNotFoundError: there is none.
          RemoteError: the place cannot be reached, or does not list.
        """
        with self._told("cannot be listed") as (system, path):
            found = system.ls(f"{path.rstrip('/')}/", detail=False)
        parts = (unquote(entry.rstrip("/").rpartition("/")[2]) for entry in found if "?" not in entry)
        return [name for name in dict.fromkeys(parts) if name and name != self.name]

    def read_range(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of the file, fewer at its end.

        Raises:
          FileNotFoundError: there is none.
          RemoteError: the place cannot be reached.
        """
        try:
            with self._told() as (system, path):
                return system.cat_file(path, start=start, end=stop)[: stop - start]
        except RemoteError:
            # An empty file has no range at all, which servers call an error.
            if start or self.size():
                raise
            return b""

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Several byte ranges, fetched at once.

        Raises:
          CorruptionError: the file ends before.
          RemoteError: the place cannot be reached.
        """
        starts, stops = zip(*ranges, strict=True)
        try:
            with self._told() as (system, path):
                contents = system.cat_ranges([path] * len(ranges), list(starts), list(stops), on_error="return")
                for content in contents:
                    if isinstance(content, BaseException):
                        raise content
        except RemoteError:
            # Servers call a range behind the end an error.
            with contextlib.suppress(RemoteError):
                if (size := self.size()) < max(stops):
                    raise CorruptionError(f"the file is cut short, {size} of {max(stops)} bytes are left") from None
            raise
        for content, start, stop in zip(contents, starts, stops, strict=True):
            if len(content) > stop - start:
                raise RemoteError(f"{self}: the server sent {len(content)} bytes for a range of {stop - start}")
            if len(content) < stop - start:
                raise CorruptionError(f"the file is cut short, {len(content)} of {stop - start} bytes are left")
        return contents

    def check_ranges(self) -> None:
        """Checks that parts of the file can be fetched, before a server that ignores ranges sends all of it.

        Raises:
          FileNotFoundError: there is no such file.
          RemoteError: the server hands out whole files only.
        """
        if not self.url.startswith(_HTTP):
            return
        try:
            # A file object looks at the answer before it takes the body.
            with self._told() as (system, path), system.open(path, "rb", size=1 << 40, cache_type="none") as file:
                file.seek(1)
                file.read(1)
        except RemoteError as error:
            if "range" not in str(error):
                raise
            raise RemoteError(
                f"{self}: the server hands out whole files only; use one that serves parts of files (HTTP Range), "
                "such as nginx, Caddy or S3"
            ) from None

    @contextlib.contextmanager
    def _told(self, problem: str = "cannot be read") -> Iterator[tuple[Any, str]]:
        """The file system and the path in it; its errors in one line."""
        system, path = _open_file_system(self.url, str(self))
        try:
            yield system, path
        except _errors() as error:
            if _is_missing(error):
                raise FileNotFoundError(errno.ENOENT, "no such file", str(self)) from None
            cause = error.__cause__ or error
            text = " ".join(str(cause).split())[:200] or type(cause).__name__
            raise RemoteError(f"{self}: {problem}: {_USER_INFO.sub('//', text)}") from None


class RemoteData:
    """A data file; slices of it are records that are fetched when they are looked at."""

    def __init__(self, path: RemotePath) -> None:
        self._path = path
        path.check_ranges()
        # What an index claims is bounded by it before anything is allocated.
        self._size = path.size()

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> RemoteRecord:
        start, stop, _ = part.indices(self._size)
        return RemoteRecord(self._path, start, max(start, stop))


class RemoteRecord:
    """Bytes [start, stop) of a data file; a slice is uint8 [n], fetched unless it is held already.

    Holds the first bytes and what `fetch` was asked for; lives as long as one read.
    """

    def __init__(self, path: RemotePath, start: int, stop: int) -> None:
        self._path = path
        self._start = start
        self._size = stop - start
        self._held: list[tuple[int, int, np.ndarray]] = []

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> np.ndarray:
        start, stop, _ = part.indices(self._size)
        for first, last, content in self._held:
            if first <= start and stop <= last:
                return content[start - first : stop - first]
        self._hold([(start, stop if start else max(stop, _HEAD_BYTES))])
        first, _, content = self._held[-1]
        return content[start - first : stop - first]

    def tobytes(self) -> bytes:
        """All of it."""
        return self.fetch(None).tobytes()

    def fetch(self, ranges: Sequence[tuple[int, int]] | None) -> np.ndarray:
        """The record with these ranges of it, near ones joined, and zeros elsewhere; all of it by default."""
        if ranges is None:
            return self[0 : self._size]
        held = max((last for first, last, _ in self._held if first == 0), default=0)
        joined: list[tuple[int, int]] = []
        for start, stop in sorted(ranges):
            if stop <= held or start == stop:
                continue
            if joined and start - joined[-1][1] <= _JOIN_BYTES:
                joined[-1] = (joined[-1][0], max(joined[-1][1], stop))
            else:
                joined.append((start, stop))
        if joined:
            self._hold(joined)
        # Pages that nothing is copied to take no memory.
        record = np.zeros(self._size, np.uint8)
        for start, stop, content in self._held:
            record[start:stop] = content
        record.flags.writeable = False
        return record

    def _hold(self, ranges: Sequence[tuple[int, int]]) -> None:
        places = [(start // _ALIGNMENT * _ALIGNMENT, min(stop, self._size)) for start, stop in ranges]
        contents = self._path.read_ranges([(self._start + start, self._start + stop) for start, stop in places])
        for (start, stop), content in zip(places, contents, strict=True):
            self._held.append((start, stop, np.frombuffer(content, np.uint8)))


def _open_file_system(url: str, shown: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, which fsspec keeps for each process, and the path in it."""
    try:
        core = importlib.import_module("fsspec.core")
        # Listings are never kept: a store that is opened again shows what was added.
        options: dict[str, Any] = {"use_listings_cache": False} if "::" not in url else {}
        if url.startswith(_HTTP):
            aiohttp = importlib.import_module("aiohttp")
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
            options["client_kwargs"] = {"timeout": timeout}
        return core.url_to_fs(url, **options)
    except ImportError as error:
        raise UserError(
            f"store {shown}: reading from a URL needs fsspec and the package of its kind ({error}): install the extra "
            "remote, pip install 'generalist-agent[remote]'"
        ) from None
    except ValueError as error:
        raise UserError(f"store {shown}: cannot be opened: {error}") from None


def _errors() -> tuple[type[BaseException], ...]:
    """What a file system may raise."""
    found: list[type[BaseException]] = [OSError, ValueError, TimeoutError, EOFError]
    for module, name in _ERRORS:
        error = getattr(sys.modules.get(module), name, None)
        if error is not None:
            found.append(error)
    return tuple(found)


def _is_missing(error: BaseException) -> bool:
    """Whether a file is not there. fsspec's http says so of every failure; the cause tells them apart."""
    cause = error.__cause__ or error
    if getattr(cause, "status", None) in (404, 410):
        return True
    failure = getattr(sys.modules.get("aiohttp"), "ClientError", TimeoutError)
    return isinstance(error, FileNotFoundError) and not isinstance(error.__cause__, failure | OSError)
