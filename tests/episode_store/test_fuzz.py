"""Index files whose checksums are right and whose content is hostile: an error, never a crash, a hang, a huge
allocation or a write outside the folder. Each is opened in a child with little memory and little time."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import resource
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from episode_store import change, checked_json
from episode_store.errors import StoreError, UserError
from episode_store.repair import repair
from episode_store.store import EpisodeStore
from episode_store.testing import StoreContract, example_tasks, random_episode
from episode_store.verify import verify_store
from episode_store.writer import EpisodeWriter

MEMORY_BYTES, SECONDS = 1 << 29, 150
NUMBERS = [-1, 0, 1 << 31, (1 << 63) - 1, 1 << 64, -(1 << 63), 1e300, None, True, "", [], {}]
NAMES = ["../../outside", "/etc/passwd", "..", ".", "a\x00b", "é" * 300]

_CALLS = re.compile(r"\bpickle\.\w|import pickle|\bmarshal\.|\beval\(|\bexec\(|allow_pickle|__import__")


class _Contract(StoreContract):
    """Only for `fill`."""

    __test__ = False


def look_at(store: Path) -> None:
    """All that a reader does; only the errors of users may come out."""
    for damaged in ("raise", "skip"):
        with contextlib.suppress(UserError):
            reader = EpisodeStore.open(store, damaged=damaged)  # type: ignore[arg-type]
            for episode_id in list(reader.episode_ids):
                with contextlib.suppress(UserError):
                    reader.read(episode_id)
                    reader.read_window(episode_id, 0, 1)
            reader.table()
            reader.quarantine()
    with contextlib.suppress(UserError):
        verify_store(store)


def guarded(action: Callable[[], None]) -> None:
    """Runs in a child: at most so much more memory, so many seconds, no crash, no other error."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES,) * 2)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(SECONDS)
            action()
            code = 0
        finally:
            traceback.print_exc()
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def write_checked(file: Path, content: dict[str, Any]) -> None:
    """A line with a right checksum, whatever is in it."""
    file.write_bytes(checked_json.encode_line({name: value for name, value in content.items() if name != "crc32c"}))


def write_index(index: Path, content: bytes) -> None:
    """An index with a seal that fits."""
    index.write_bytes(content)
    seal = index.with_suffix(".seal")
    facts = {**checked_json.read_file(seal), "index_bytes": len(content), "index_crc32c": google_crc32c.value(content)}
    write_checked(seal, facts)


def parquet(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A sealed segment, a version, a refused episode; beside it a folder that must stay as it is."""
    path = tmp_path / "folder" / "store"
    _Contract().fill(path, num_episodes=4)
    change.delete(path, where="task_id == 'Robot-v1'")
    with EpisodeWriter(path, on_invalid="quarantine") as writer:
        bad = random_episode(example_tasks()["Robot-v1"], np.random.default_rng(0), 3)
        bad.rewards[0] = np.nan
        writer.add_episode(bad)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("pattern", ["segments/*.seal", "versions/*.seal", "tasks/Robot-v1.json", "store.json"])
def test_every_fact_of_a_checked_file_can_be_anything(store: Path, pattern: str) -> None:
    """Each member is replaced by numbers, texts and lists that do not belong there, or removed."""
    (file,) = store.glob(pattern)
    content = json.loads(file.read_bytes())

    def run() -> None:
        for name in [name for name in content if name != "crc32c"]:
            for value in [*NUMBERS, *NAMES[:2], {"../../x": 1}, [["a", 1]], [[0, 1 << 62]]]:
                write_checked(file, {**content, name: value})
                look_at(store)
            write_checked(file, {key: value for key, value in content.items() if key != name})
            look_at(store)

    guarded(run)


def test_every_column_of_an_index_can_be_anything(store: Path) -> None:
    """Extreme numbers, other types, nulls, missing columns, other names, more rows; the checksum is right."""
    (index,) = store.glob("segments/*.parquet")
    table = pq.read_table(index)

    def run() -> None:
        for number, name in enumerate(table.column_names):
            values: list[pa.Array] = [
                pa.array([value] * len(table))
                for value in (
                    -1,
                    0,
                    64,
                    1 << 31,
                    (1 << 63) - 1,
                    -(1 << 63),
                    1e300,
                    "../../x",
                    "",
                    b"\xff",
                    None,
                    True,
                    [1],
                )
            ]
            values += [pa.array(list(range(len(table))), pa.int64()), pa.array([[1]] * len(table))]
            for column in values:
                write_index(index, parquet(table.set_column(number, name, column)))
                look_at(store)
            write_index(index, parquet(table.drop_columns([name])))
            look_at(store)
        for changed in (pa.concat_tables([table] * 3), table.slice(0, 0), table.append_column("more", table["offset"])):
            write_index(index, parquet(changed))
            look_at(store)

    guarded(run)


@pytest.mark.parametrize("kind", ["segments/*.parquet", "versions/*.parquet"])
def test_random_bytes_in_a_parquet_file(store: Path, kind: str) -> None:
    """Bytes of the index itself are changed, the checksums put right: what is left is Parquet's own parser."""
    (index,) = store.glob(kind)
    content = index.read_bytes()
    chance = random.Random(1)

    def run() -> None:
        for number in range(150):
            changed = bytearray(content)
            # Half of the changes hit the footer, whose sizes and counts are what a parser believes.
            low = len(content) - 600 if number % 2 else 0
            for _ in range(1 + number % 4):
                changed[chance.randrange(max(low, 0), len(content))] = chance.randrange(256)
            write_index(index, bytes(changed))
            look_at(store)

    guarded(run)


def test_a_journal_can_say_anything(store: Path) -> None:
    """Lines with right checksums: offsets outside, other types, names of other files."""
    (index,) = store.glob("segments/*.parquet")
    rows = pq.read_table(index).to_pylist()
    index.unlink()
    index.with_suffix(".seal").unlink()
    journal = index.with_suffix(".journal")

    def run() -> None:
        for name in rows[0]:
            for value in [*NUMBERS, *NAMES]:
                lines = [checked_json.encode_line({**row, name: value}) for row in rows]
                journal.write_bytes(b"".join(lines))
                look_at(store)
        for tail in (b"{", b"\n", b"\xff" * 50, b"[1]\n", b'{"a":' * 5000 + b"\n", b"x" * 100_000):
            journal.write_bytes(tail)
            look_at(store)

    guarded(run)


def test_hostile_names_stay_inside(store: Path, tmp_path: Path) -> None:
    """Names in indexes, tasks and versions are never paths; a reader, a writer, a repair touch nothing outside."""
    outside = tmp_path / "folder" / "outside"
    outside.mkdir()
    (outside / "precious.json").write_text("precious")
    before = tree(outside)
    (index,) = store.glob("segments/*.parquet")
    (seal,) = store.glob("versions/*.seal")
    table, version, task = pq.read_table(index), json.loads(seal.read_bytes()), store / "tasks" / "Robot-v1.json"
    facts = json.loads(task.read_bytes())
    for name in ("../../outside/precious", "/etc/passwd", str(outside / "precious")):
        column = pa.array([name] * len(table))
        for field in ("task_id", "segment", "agent_id"):
            place = table.column_names.index(field)
            write_index(index, parquet(table.set_column(place, field, column)))
        write_checked(seal, {**version, "hidden": [name], "extent": {name: 1}})
        write_checked(task, {**facts, "task_id": name})
        look_at(store)
        try:
            EpisodeWriter(store).close()
            repair(store)
        except StoreError:
            pass
    assert tree(outside) == before
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["outside", "store"]


def test_metadata_names_no_code(tmp_path: Path) -> None:
    """What a record, a task or a version says is text: nothing of it is imported, called or unpickled."""
    trap = tmp_path / "trap"
    call = f"__import__('os').mkdir({str(trap)!r})"
    task = example_tasks()["Robot-v1"]
    path = tmp_path / "store"
    with EpisodeWriter(path) as writer:
        writer.add_task(task)
        episode = random_episode(task, np.random.default_rng(0), 5)
        config = {"entry_point": "os:mkdir", "kwargs": {"path": str(trap)}, "call": call, "!!python/object": call}
        object.__setattr__(episode.metadata, "environment_config", config)
        writer.add_episode(episode)
    store = EpisodeStore.open(path)
    assert store.read(store.episode_ids[0]).metadata.environment_config == config
    for where in (call, f"agent_id == {call}", "().__class__", "agent_id.__class__ == 1"):
        with pytest.raises(UserError):
            store.query(where)
    assert verify_store(path).damages == []
    assert not trap.exists()
    package = Path(checked_json.__file__).parent
    for file in package.rglob("*.py"):
        calls = _CALLS.findall(file.read_text())
        assert not calls or file.name == "testing.py", file
