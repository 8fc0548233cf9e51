"""HDF5 files of strangers: opened so that nothing outside the file is read and no size is believed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from episode_store.errors import CorruptionError, UserError
from episode_store.formats.format import need, one_line

_MAGIC = b"\x89HDF\r\n\x1a\n"
# No filter of HDF5 packs more tightly than deflate's 1032:1; a dataset that claims more is made of nothing.
_MAX_RATIO = 1100
_MAX_DEPTH = 16
# What h5py raises for files that were cut or changed.
DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError)


def is_hdf5(path: Path) -> bool:
    """Whether the file begins like HDF5."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def open_file(path: Path) -> Any:
    """An `h5py.File`, read-only.

    Raises:
      UserError: h5py is missing, or the file cannot be opened.
    """
    h5py = need("h5py", "hdf5", "reading HDF5 files")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path}: cannot be opened as HDF5: {one_line(error)}") from None


def datasets(group: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """All datasets below a group as (path joined with '/', dataset), each checked.

    Raises:
      CorruptionError: a link that leaves the file, or a size that the file cannot hold.
    """
    h5py = need("h5py", "hdf5", "reading HDF5 files")
    if depth > _MAX_DEPTH:
        raise CorruptionError(f"{group.file.filename}: {prefix}: nested more than {_MAX_DEPTH} deep")
    for name in _names(group, prefix):
        path = f"{prefix}{name}"
        try:
            link, item = group.get(name, getlink=True), None
            if isinstance(link, h5py.HardLink):
                item = group[name]
        except DAMAGE as error:
            raise _damaged(group, path, error) from None
        if item is None:
            raise CorruptionError(
                f"{group.file.filename}: {path}: a link, which may lead out of the file; not followed"
            )
        if isinstance(item, h5py.Group):
            yield from datasets(item, f"{path}/", depth + 1)
        elif isinstance(item, h5py.Dataset):
            try:
                check_dataset(item, path)
            except DAMAGE as error:
                raise _damaged(group, path, error) from None
            yield path, item


def subgroup(group: Any, name: str) -> Any:
    """A group inside another one.

    Raises:
      CorruptionError: there is none, or it is reached by a link that may leave the file.
    """
    h5py = need("h5py", "hdf5", "reading HDF5 files")
    link = group.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink) or not isinstance(group[name], h5py.Group):
        raise CorruptionError(f"{group.file.filename}: {name}: expected a group inside the file")
    return group[name]


def _names(group: Any, prefix: str) -> list[str]:
    try:
        return sorted(group)
    except DAMAGE as error:
        raise _damaged(group, prefix, error) from None


def _damaged(group: Any, path: str, error: Exception) -> CorruptionError:
    return CorruptionError(f"{group.file.filename}: {path}: {one_line(error)}")


def is_fixed(dataset: Any) -> bool:
    """Whether every element has the same size. Reading elements of variable length from a damaged file can make the
    HDF5 library run for ever and take memory without end, which nothing in this process could stop."""
    return bool(dataset.dtype.kind in "biufSV" and not dataset.dtype.hasobject)


def check_dataset(dataset: Any, path: str) -> None:
    """Checks that a dataset lies in its file and is not larger than the file can hold.

    Raises:
      CorruptionError: it does not, or is.
    """
    file = dataset.file.filename
    if dataset.is_virtual or dataset.external:
        raise CorruptionError(f"{file}: {path}: its data lies in other files; not followed")
    limit = _MAX_RATIO * Path(file).stat().st_size
    if dataset.size and dataset.dtype.itemsize * dataset.size > limit:
        raise CorruptionError(f"{file}: {path}: shape {dataset.shape} is more than the file can hold")
