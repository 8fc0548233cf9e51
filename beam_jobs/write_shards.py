"""Writes one shard: a plain tar file in WebDataset's layout whose bytes depend on its samples alone.

The bytes are those of `webdataset.TarWriter(stream, encoder=False, mtime=0, user="", group="")`, as a test holds.
The module itself is not imported: importing webdataset imports torch, 2 s and 200 MB in every worker.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from beam_jobs.files import BLOCK_BYTES, file_facts
from episode_store.files import temporary_path

_MEMBER_MODE = 0o444


class TarShard:
    """Writes samples to a temporary file; `close` makes it the shard. Without `close` nothing stays behind."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = temporary_path(path)
        self._file = self._temporary.open("wb", buffering=BLOCK_BYTES)
        self.num_bytes = 0  # so far, without the end of the archive
        self.num_samples = 0

    def __enter__(self) -> TarShard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def write(self, key: str, members: Mapping[str, bytes]) -> None:
        """Adds a sample: one member `<key>.<name>` for each entry, in order of names."""
        for name in sorted(members):
            info = tarfile.TarInfo(f"{key}.{name}")
            info.size = len(members[name])
            info.mtime = 0
            info.mode = _MEMBER_MODE
            # `TarFile.addfile` would copy each member in many small pieces, each with all before it in the buffer.
            self._put(info.tobuf(tarfile.PAX_FORMAT))
            self._put(members[name])
            self._put(bytes(-len(members[name]) % tarfile.BLOCKSIZE))
        self.num_samples += 1

    def close(self) -> dict[str, object]:
        """Syncs and renames the shard; returns its `bytes`, `sha256` and `md5`."""
        self._put(bytes(2 * tarfile.BLOCKSIZE))
        self._put(bytes(-self.num_bytes % tarfile.RECORDSIZE))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        facts = file_facts(self._temporary)
        self._temporary.replace(self._path)
        return facts

    def _put(self, data: bytes) -> None:
        self.num_bytes += self._file.write(data)


def sample_size(members: Mapping[str, bytes]) -> int:
    """Bytes that a sample takes in a tar: a header of 512 bytes and full blocks for each member."""
    return sum(512 + -(-len(data) // 512) * 512 for data in members.values())
