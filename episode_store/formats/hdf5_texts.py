"""Texts of variable length in HDF5 files of strangers, tried in a process of their own before anyone reads them.

In a damaged file, reading such a text can make the HDF5 library run for ever, take memory without end, or crash;
nothing in the reading process could stop it. A forked child reads all of them once, under limits. What it got through
can be read.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import os
import resource
import select
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from episode_store.errors import CorruptionError, UserError
from episode_store.formats import hdf5
from episode_store.formats.format import need

# A text, or a part of a column of them, that takes longer or needs more memory than this is damaged.
SECONDS = 20.0
_MEMORY_BYTES = 4 << 30
_ROWS = 4096
_MAX_DEPTH = 16


def check_texts(path: Path) -> None:
    """Tries every attribute and every column of variable length in a file.

    Raises:
      CorruptionError: one of them cannot be read; names the place.
    """
    facts = path.stat()
    problem = _try_file(path, facts.st_size, facts.st_mtime_ns)
    if problem:
        raise CorruptionError(f"{path}: {problem}: the file is damaged, copy it again")


@functools.lru_cache(maxsize=64)
def _try_file(path: Path, size: int, changed: int) -> str:
    """What is wrong, or ""; the same file is tried once."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _child(path, write_end)
    os.close(write_end)
    try:
        place, code = _watch(child, read_end)
    finally:
        os.close(read_end)
    if code is None:
        return f"{place}: reading the text there does not end"
    return f"{place}: reading the text there breaks the HDF5 library" if code else ""


def _watch(child: int, pipe: int) -> tuple[str, int | None]:
    """The last place that the child told, and its exit code; None when it had to be stopped."""
    said = b""
    while select.select([pipe], [], [], SECONDS)[0]:
        part = os.read(pipe, 1 << 16)
        if not part:
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            return _last(said), code
        said = (said + part)[-(1 << 16) :]
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return _last(said), None


def _last(said: bytes) -> str:
    return said.rstrip(b"\n").rpartition(b"\n")[2].decode("utf-8", "replace")[:200] or "/"


def _child(path: Path, pipe: int) -> None:
    """Reads all there is and ends; errors are left to the reader, which meets them again."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        faulthandler.disable()
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = used + _MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        with hdf5.open_file(path) as file:
            for place, read in _texts(file, 0):
                os.write(pipe, place.encode("utf-8", "replace").replace(b"\n", b" ") + b"\n")
                with contextlib.suppress(*hdf5.DAMAGE):
                    read()
        code = 0
    except (*hdf5.DAMAGE, UserError):
        code = 0
    finally:
        os._exit(code)


def _texts(item: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """Places of a group and below that have elements of variable length, and what reads them."""
    h5py = need("h5py", "hdf5", "reading HDF5 files")
    for name in _names(item.attrs):
        yield f"{item.name} attribute {name}", functools.partial(item.attrs.get, name)
    if isinstance(item, h5py.Dataset):
        if not hdf5.is_fixed(item):
            for start in range(0, item.shape[0] if item.ndim else 1, _ROWS):
                yield f"{item.name} from {start}", functools.partial(_read_rows, item, start)
    elif depth < _MAX_DEPTH:
        for name in _names(item):
            with contextlib.suppress(*hdf5.DAMAGE):
                if isinstance(item.get(name, getlink=True), h5py.HardLink):
                    yield from _texts(item[name], depth + 1)


def _read_rows(dataset: Any, start: int) -> Any:
    return dataset[start : start + _ROWS] if dataset.ndim else dataset[()]


def _names(group: Any) -> list[str]:
    try:
        return list(group)
    except hdf5.DAMAGE:
        return []
