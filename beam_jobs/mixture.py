"""The mixture file: which sources a data set is made of, in what shares, under which licences.

stores = "stores"                # foreign sets are imported into this folder once (default: beside the file)

[[source]]
path = "runs/demo/store"         # relative to the file
kind = "store"                   # or a format of `episode_store import`; default: found out
name = "demo"                    # default: the last part of the path
weight = 3                       # share of the training tokens, relative to the others (1)
split = "by-content"             # or train, validation: all of it
licence = "MIT"                  # needed for all but stores
tasks = ["toy_text/*"]           # default: all
task_id = "text/books-v0"        # of a set of one task; default: made of the name
options = {unit = "paragraph"}   # of the format
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from beam_jobs.files import read_json
from beam_jobs.stores import BY_CONTENT, SPLITS, Source
from episode_store import layout
from episode_store.episode import Episode
from episode_store.errors import UserError
from episode_store.files import write_json
from episode_store.formats import format as formats
from episode_store.formats import transfer

MAX_FILE_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_HASHED_BYTES = 1 << 16
_KEYS = {
    "path": str,
    "kind": str,
    "name": str,
    "weight": (int, float),
    "split": str,
    "licence": str,
    "tasks": list,
    "task_id": str,
    "options": dict,
}

# Name of a source, its episodes and how many there are -> the episodes, shown as they pass.
Bar = Callable[[str, Iterable[Episode], int | None], Iterable[Episode]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One source as the file has it; see the module's text."""

    path: Path
    kind: str
    name: str
    weight: float
    split: str
    licence: str
    tasks: tuple[str, ...]
    task_id: str | None
    options: Mapping[str, str]
    store: Path


def read(path: Path) -> tuple[Entry, ...]:
    """The sources of a mixture file.

    Raises:
      UserError: no such file, or something in it is not as expected.
    """
    where = f"--mixture {path}"
    if not path.is_file():
        raise UserError(f"{where}: no such file")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise UserError(f"{where}: expected at most {MAX_FILE_BYTES} bytes, got {path.stat().st_size}")
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: is not TOML: {error}") from None
    folder = path.resolve().parent
    for key in data:
        if key not in ("stores", "source"):
            raise UserError(
                f"{where}: {key!r}: expected only stores and source{layout.near(key, ('stores', 'source'))}"
            )
    listed = data.get("source", [])
    if not isinstance(listed, list) or not listed or not all(isinstance(each, dict) for each in listed):
        raise UserError(f"{where}: expected at least one [[source]], got none")
    stores = folder / str(data.get("stores", "stores"))
    entries = [_entry(each, f"{where}: source {number}", folder, stores) for number, each in enumerate(listed, start=1)]
    names = [entry.name for entry in entries]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{where}: two sources are called {name!r}; give one another `name`")
    if not sum(entry.weight for entry in entries):
        raise UserError(f"{where}: every source has weight 0")
    return tuple(entries)


def _entry(data: Mapping[str, Any], where: str, folder: Path, stores: Path) -> Entry:
    for key, value in data.items():
        if key not in _KEYS:
            raise UserError(f"{where}: {key!r}: expected one of {', '.join(_KEYS)}{layout.near(key, _KEYS)}")
        if not isinstance(value, _KEYS[key]) or isinstance(value, bool):  # type: ignore[arg-type]
            raise UserError(f"{where}: {key}: expected {_named(_KEYS[key])}, got {value!r}")
    if not data.get("path"):
        raise UserError(f"{where}: expected a path, got none")
    path = folder / data["path"]
    if not path.exists():
        raise UserError(f"{where}: path {path}: no such file or folder")
    name = data.get("name") or re.sub(r"[^A-Za-z0-9_-]+", "_", path.name.partition(".")[0]).strip("_-")
    if not _NAME.fullmatch(name):
        raise UserError(f"{where}: name {name!r}: expected letters, digits, '_' and '-'")
    kind = data.get("kind") or ("store" if (path / layout.MARKER).exists() else formats.detect_format(path))
    if kind is None:
        raise UserError(f"{where}: {path}: no known format; say which with kind: {', '.join(formats.FORMATS)}")
    if kind != "store":
        formats.get_format(kind)
    weight = float(data.get("weight", 1))
    if not 0 <= weight < float("inf"):
        raise UserError(f"{where}: weight: expected a number of at least 0, got {weight:g}")
    split = data.get("split", BY_CONTENT)
    if split not in SPLITS:
        raise UserError(f"{where}: split {split!r}: expected one of {', '.join(SPLITS)}{layout.near(split, SPLITS)}")
    licence = data.get("licence", "")
    if kind != "store" and not licence:
        raise UserError(
            f'{where}: expected the licence of {name!r}, as SPDX names it, or licence = "unknown"; got none'
        )
    return Entry(
        path=path,
        kind=kind,
        name=name,
        weight=weight,
        split=split,
        licence=licence,
        tasks=tuple(str(each) for each in data.get("tasks", [])),
        task_id=data.get("task_id"),
        options={key: str(value) for key, value in data.get("options", {}).items()},
        store=path if kind == "store" else stores / name,
    )


def _named(types: Any) -> str:
    names = {str: "a text", list: "a list", dict: "a table", (int, float): "a number"}
    return names[types]


def prepare(entries: Iterable[Entry], *, progress: Bar | None = None) -> tuple[Source, ...]:
    """The sources as stores; foreign sets that are not imported yet are, and an import that was killed goes on.

    Raises:
      UserError: a set cannot be used, or changed since it was imported.
    """
    return tuple(_prepare(entry, progress) for entry in entries)


def _prepare(entry: Entry, progress: Bar | None) -> Source:
    facts: Mapping[str, Any] = {}
    if entry.kind != "store":
        facts = _imported(entry, progress)
    return Source(
        name=entry.name,
        store=entry.store.resolve(),
        kind=entry.kind,
        tasks=entry.tasks,
        weight=entry.weight,
        split=entry.split,
        licence=entry.licence,
        imported={name: facts[name] for name in ("fingerprint", "options", "num_refused", "losses") if name in facts},
        dead=tuple(facts.get("dead", ())),
    )


def _imported(entry: Entry, progress: Bar | None) -> Mapping[str, Any]:
    """What an import of the set did; made now unless its record, written last, says that it was."""
    record = entry.store.with_name(f"{entry.store.name}.import.json")
    fingerprint = source_fingerprint(entry.path)
    asked = {"kind": entry.kind, "task_id": entry.task_id, "options": dict(entry.options)}
    done = read_json(record)
    if done is not None:
        if done["fingerprint"] == fingerprint and done["asked"] == asked:
            return done
        raise UserError(
            f"source {entry.name!r}: {entry.path} or its settings changed since it was imported; remove {entry.store} "
            f"and {record.name} beside it to import it again, or give the source another name"
        )
    importer = formats.open_importer(entry.kind, entry.path, task_id=entry.task_id, options=entry.options)

    def bar(items: Iterable[Episode], total: int | None) -> Iterable[Episode]:
        return progress(entry.name, items, total) if progress else items

    entry.store.parent.mkdir(parents=True, exist_ok=True)
    report = transfer.import_set(importer, entry.path, entry.store, progress=bar)
    task_id = report.tasks[0] if len(report.tasks) == 1 else ""
    facts = {
        "fingerprint": fingerprint,
        "asked": asked,
        "options": dict(entry.options),
        "num_refused": report.num_refused,
        "losses": [loss.to_json() for loss in report.losses],
        "dead": [
            {"task_id": task_id, "episode_id": finding.where, "stage": "import", "reason": finding.what[:500]}
            for finding in report.findings
            if finding.severity == "error"
        ],
    }
    write_json(record, facts)
    return facts


def source_fingerprint(path: Path) -> str:
    """Of the names and sizes of a set's files, and of the beginning and the end of each."""
    digest = hashlib.blake2b(digest_size=16)
    for file in [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file()):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path).as_posix()}\0{size}\0".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_HASHED_BYTES))
            stream.seek(max(0, size - _HASHED_BYTES))
            digest.update(stream.read(_HASHED_BYTES))
    return digest.hexdigest()
