"""Queries by our reader, and the same by pyarrow, pandas and DuckDB without it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from episode_store import change, segment
from episode_store import store as store_module
from episode_store.episode import EpisodeMetadata
from episode_store.episode_ids import EpisodeIds, IdSet, SortedIds, format_ids, parse_ids
from episode_store.errors import CorruptionError, UserError
from episode_store.segment import INDEX_SCHEMA
from episode_store.store import EpisodeStore
from episode_store.testing import StoreContract, example_tasks, random_episode
from episode_store.writer import EpisodeWriter


class _Contract(StoreContract):
    __test__ = False


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two sealed segments of 12 and 6 episodes, some with `success`, and one that is being written."""
    _Contract().fill(tmp_path)
    task = example_tasks()["Robot-v1"]
    with EpisodeWriter(tmp_path) as writer:
        for number in range(6):
            metadata = EpisodeMetadata(agent_id="late", seed=100 + number, success=number % 2 == 0)
            writer.add_episode(random_episode(task, np.random.default_rng(number), 5, metadata=metadata))
    return tmp_path


def test_a_query_gives_rows_columns_order_and_limit(path: Path) -> None:
    """Beside the same by hand on the whole table."""
    store = EpisodeStore.open(path)
    rows = store.table().to_pylist()
    found = store.query("num_steps > 4 and agent_id != 'late'", columns=["episode_id", "num_steps"])
    assert found.schema.names == ["episode_id", "num_steps"]
    expected = {row["episode_id"] for row in rows if row["num_steps"] > 4 and row["agent_id"] != "late"}
    assert set(found["episode_id"].to_pylist()) == expected
    best = store.query(sort=["-episode_return"], limit=3, columns=["episode_return"])["episode_return"].to_pylist()
    assert best == sorted((row["episode_return"] for row in rows), reverse=True)[:3]
    by_two = store.query(sort=["task_id", "-num_steps"], columns=["num_steps", "task_id"]).to_pylist()
    assert by_two == sorted(by_two, key=lambda row: (row["task_id"], -row["num_steps"]))
    assert store.query(sort=["task_id"], limit=100).num_rows == 18
    assert store.query("num_steps < 0").num_rows == 0
    assert store.query("num_steps < 0").schema == INDEX_SCHEMA
    assert store.query(limit=0, sort=["seed"]).num_rows == 0
    assert store.query("success").num_rows == 3
    assert store.query("success is None").num_rows == 12
    written = store.query(columns=["episode_id"])["episode_id"].to_pylist()
    files = sorted((path / "segments").glob("*.parquet"))
    assert written == [episode_id for file in files for episode_id in pq.read_table(file)["episode_id"].to_pylist()]


def test_a_query_of_an_unknown_column_is_told(path: Path) -> None:
    """With the near one."""
    store = EpisodeStore.open(path)
    with pytest.raises(UserError, match=r"no column 'return'; did you mean 'episode_return'\?"):
        store.query(columns=["return"])
    with pytest.raises(UserError, match="no column 'x'"):
        store.query(sort=["-x"])
    with pytest.raises(UserError, match="columns: expected some, each once"):
        store.table(columns=["seed", "seed"])


@pytest.mark.parametrize("kept", [0, 65_536])
def test_large_stores_are_read_alike(path: Path, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above a size the table is not kept and ids are not remembered: the same rows in the same order."""
    expected = EpisodeStore.open(path).table()
    monkeypatch.setattr(store_module, "_KEPT_ROWS", kept)
    store = EpisodeStore.open(path)
    assert store.table() == expected
    assert store.table("Robot-v1") == expected.filter(pa.compute.equal(expected["task_id"], "Robot-v1"))
    assert store.table("Robot-v1", ["seed"]).schema.names == ["seed"]
    assert list(store.episode_ids) == expected["episode_id"].to_pylist()
    for episode_id in store.episode_ids:
        assert store.read(episode_id).episode_id() == episode_id


def test_plain_pyarrow_pandas_and_duckdb_query_the_tables(path: Path) -> None:
    """Returns, lengths, seeds, agents and success of sealed segments, without our code, deletions minded."""
    change.delete(path, where="num_steps > 30")
    store = EpisodeStore.open(path)
    pattern = str(path / "segments" / "*.parquet")
    files = sorted((path / "segments").glob("*.parquet"))
    table = pa.concat_tables([pq.read_table(file, page_checksum_verification=True) for file in files])
    assert table.num_rows == 18
    out = pq.read_table(path / "versions" / "000001.parquet").to_pandas()
    frame = pd.concat([pd.read_parquet(file) for file in files])
    gone = frame.set_index(["segment", "offset"]).index.isin(pd.MultiIndex.from_frame(out.astype({"segment": str})))
    frame = frame[~gone]
    assert sorted(frame["episode_id"]) == sorted(store.episode_ids)
    version = str(path / "versions" / "000001.parquet")
    visible = (
        f"read_parquet('{pattern}', union_by_name = true) "
        f"""ANTI JOIN '{version}' USING (segment, "offset")"""
    )
    rows = duckdb.sql(
        "SELECT task_id, count(*), avg(episode_return), sum(num_steps), count(seed), avg(success::INT) "
        f"FROM {visible} GROUP BY task_id ORDER BY task_id"
    ).fetchall()
    for task_id, count, mean, steps, seeds, success in rows:
        mine = store.table(task_id)
        assert count == mine.num_rows
        assert mean == pytest.approx(mine["episode_return"].to_numpy().mean())
        assert steps == sum(mine["num_steps"].to_pylist())
        assert seeds == mine.num_rows - mine["seed"].null_count
        known = [value for value in mine["success"].to_pylist() if value is not None]
        assert success == (sum(known) / len(known) if known else None)
    assert {row[0] for row in rows} == set(store.tasks)
    late = duckdb.sql(f"SELECT count(*) FROM {visible} WHERE agent_id = 'late' AND success").fetchall()
    assert late == [(3,)]


def test_an_index_from_before_success_reads_as_unknown(path: Path) -> None:
    """The column is newer than the format; without it every success is null."""
    for file in (path / "segments").glob("*.parquet"):
        files = segment.SegmentFiles(file.parent, file.stem)
        table = pq.read_table(file).drop_columns(["success"])
        segment.write_seal(files, table, files.data.stat().st_size)
        assert "success" not in pq.read_schema(file).names
    store = EpisodeStore.open(path)
    assert store.table()["success"].null_count == 18
    assert store.query("success is None", columns=["success"]).num_rows == 18


def test_success_is_part_of_an_episode_only_where_it_is_known() -> None:
    """Ids of episodes without it are what they always were."""
    metadata = EpisodeMetadata(agent_id="a")
    assert "success" not in metadata.to_json()
    assert EpisodeMetadata.from_json(metadata.to_json()) == metadata
    known = dataclasses.replace(metadata, success=False)
    assert EpisodeMetadata.from_json(known.to_json()) == known


# --- ids -----------------------------------------------------------------------------------------------------------


def test_ids_are_found_also_where_halves_are_equal() -> None:
    """By both halves; the first row of a double one; by their beginnings."""
    texts = ["00" * 16, "00" * 15 + "01", "ff" * 16, "00" * 16, "ab" + "0" * 30, "ab" + "0" * 29 + "1"]
    halves = parse_ids(pa.chunked_array([texts[:2], texts[2:]]), where="x")
    assert format_ids(halves) == texts
    ids = SortedIds(halves)
    assert len(ids) == 5
    assert [ids.find(text) for text in texts] == [0, 1, 2, 0, 4, 5]
    assert ids.find("ab" * 16) is None
    assert ids.find("AB" + "0" * 30) is None
    assert ids.find("zz") is None
    assert ids.starting_with("ab").tolist() == [4, 5]
    assert ids.starting_with("ab" + "0" * 29 + "1").tolist() == [5]
    assert ids.starting_with("").tolist() == [0, 1, 4, 5, 2]
    assert ids.starting_with("x").tolist() == []
    assert SortedIds(halves, np.array([3, 4])).find("00" * 16) == 3
    for bad in ("0" * 31, "0" * 31 + "x", "é" * 16):
        with pytest.raises(CorruptionError, match="is not 32 hex digits"):
            parse_ids(pa.chunked_array([[texts[0], bad]]), where="x")


def test_a_set_of_ids_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the size at which the recent ones are sorted in."""
    monkeypatch.setattr("episode_store.episode_ids._RECENT", 10)
    rng = np.random.default_rng(0)
    texts = [rng.bytes(16).hex() for _ in range(95)]
    ids = IdSet(parse_ids(pa.chunked_array([texts[:20]]), where="x"))
    for text in texts[20:]:
        assert text not in ids
        ids.add(text)
    assert all(text in ids for text in texts)


def test_ids_are_a_sequence() -> None:
    """Length, slices, membership, equality."""
    texts = [f"{number:032x}" for number in range(10_000)]
    ids = EpisodeIds(parse_ids(pa.chunked_array([texts]), where="x"))
    assert (len(ids), ids[3], ids[-1]) == (10_000, texts[3], texts[-1])
    assert list(ids[2:5]) == texts[2:5]
    assert ids == texts
    assert ids[:5] != ids[:6]
    assert texts[77] in ids


def test_opening_many_episodes_is_quick_and_small(tmp_path: Path) -> None:
    """200,000 episodes: a tenth of a second for each would be far off; the benchmark has a million and the clock."""
    code = """
import json, sys
from pathlib import Path
from benchmarks.store_million import make_store
print(json.dumps(make_store(Path(sys.argv[1]), 200_000)))
"""
    root = Path(store_module.__file__).parents[1]
    environment = {"PYTHONPATH": str(root), "PATH": ""}
    command = [sys.executable, "-c", code, str(tmp_path / "store")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    known = json.loads(done.stdout)
    code = """
import sys
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) // 1024
from episode_store.store import EpisodeStore
import pandas  # where it is installed, pyarrow imports it at its first conversion: 32 MB that are not ours
before = peak()
store = EpisodeStore.open(sys.argv[1])
assert len(store) == 200_000
store.read(sys.argv[2])
assert store.query("episode_return > 600", columns=["episode_id"]).num_rows > 10
print(peak() - before)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "store"), known[-1]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 60, "MB more than before"
