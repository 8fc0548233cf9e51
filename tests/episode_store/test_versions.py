"""Versions: what each shows, while writers append, and when a command is killed at any instant."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from episode_store import change, checked_json, segment, versions
from episode_store.compact import compact
from episode_store.episode import Episode, EpisodeMetadata
from episode_store.errors import CorruptionError, StoreError, UserError
from episode_store.merge import merge
from episode_store.record_format import padding_of, parse_header
from episode_store.repair import repair
from episode_store.store import EpisodeStore
from episode_store.testing import StoreContract, assert_episodes_equal, example_tasks, random_episode
from episode_store.verify import verify_store
from episode_store.writer import EpisodeWriter


class _Contract(StoreContract):
    __test__ = False


def fill(path: Path, seed: int = 0, num_episodes: int = 12) -> dict[str, Episode]:
    """Random episodes of three tasks in one segment, by id."""
    return _Contract().fill(path, num_episodes=num_episodes, seed=seed)


def ids(path: Path, version: int | str | None = None) -> set[str]:
    """What a version shows."""
    return set(EpisodeStore.open(path, version=version).episode_ids)


def robots(episodes: dict[str, Episode]) -> set[str]:
    """Ids of one task's episodes."""
    return {episode_id for episode_id, episode in episodes.items() if episode.task_id == "Robot-v1"}


def add_one(writer: EpisodeWriter, seed: int) -> str:
    """One more episode of Robot-v1."""
    task = example_tasks()["Robot-v1"]
    writer.add_task(task)
    return writer.add_episode(random_episode(task, np.random.default_rng(seed), 5))


def test_delete_makes_a_version_and_touches_no_data(tmp_path: Path) -> None:
    """The old one stays readable, episode by episode."""
    episodes = fill(tmp_path)
    before = {file: file.read_bytes() for file in (tmp_path / "segments").iterdir()}
    result = change.delete(tmp_path, where="task_id == 'Robot-v1'", note="broken gripper")
    assert (result.version, result.removed, result.kept) == (1, 4, 8)
    assert result.tasks == {"Robot-v1": 4}
    assert {file: file.read_bytes() for file in (tmp_path / "segments").iterdir()} == before
    assert ids(tmp_path) == ids(tmp_path, 1) == set(episodes) - robots(episodes)
    old = EpisodeStore.open(tmp_path, version=0)
    assert set(old.episode_ids) == set(episodes)
    for episode_id in robots(episodes):
        assert_episodes_equal(episodes[episode_id], old.read(episode_id))
        with pytest.raises(StoreError, match="no episode"):
            EpisodeStore.open(tmp_path).read(episode_id)
    assert EpisodeStore.open(tmp_path).table("Robot-v1").num_rows == 0
    (version,) = versions.read_versions(tmp_path)
    assert version.to_json() | {"created": ""} == {
        "version": 1,
        "name": "",
        "operation": "delete",
        "created": "",
        "detail": {"where": "task_id == 'Robot-v1'", "note": "broken gripper"},
        "left_out": 4,
    }
    assert verify_store(tmp_path).damages == []


def test_a_dry_run_changes_nothing(tmp_path: Path) -> None:
    """It tells the same numbers."""
    episodes = fill(tmp_path)
    result = change.delete(tmp_path, where="num_steps > 0", dry_run=True)
    assert (result.version, result.removed, result.kept) == (None, 12, 0)
    assert not (tmp_path / "versions").exists()
    assert change.filter_store(tmp_path, where="num_steps > 0").version is None
    assert compact(tmp_path, dry_run=True).version is None
    assert ids(tmp_path) == set(episodes)


def test_nothing_is_deleted_without_a_condition(tmp_path: Path) -> None:
    """Nor by an id that is not there, nor half of what was asked."""
    episodes = fill(tmp_path)
    with pytest.raises(UserError, match="nothing is deleted without one"):
        change.delete(tmp_path)
    with pytest.raises(StoreError, match="0 episodes have ids that begin with 'zz'"):
        change.delete(tmp_path, episode_ids=[next(iter(episodes)), "zz"])
    with pytest.raises(UserError, match=r"no such column; did you mean 'episode_return'\?"):
        change.delete(tmp_path, where="episode_returns > 3")
    assert ids(tmp_path) == set(episodes)


def test_episodes_added_after_a_version_are_shown(tmp_path: Path) -> None:
    """By the head, whether their segment was there or not; older versions and views do not change."""
    episodes = fill(tmp_path)
    with EpisodeWriter(tmp_path) as writer:
        first = add_one(writer, 1)
        change.delete(tmp_path, where="task_id != 'Robot-v1'")
        change.filter_store(tmp_path, where="num_steps == 5", name="five")
        second = add_one(writer, 2)
        assert ids(tmp_path) == robots(episodes) | {first, second}
        assert ids(tmp_path, 0) == set(episodes) | {first}
        five = ids(tmp_path, "five")
        assert first in five
        assert second not in five
    assert ids(tmp_path) == robots(episodes) | {first, second}
    assert ids(tmp_path, 0) == set(episodes) | {first}
    assert ids(tmp_path, "five") == five
    change.delete(tmp_path, episode_ids=[second[:12]])
    assert ids(tmp_path) == robots(episodes) | {first}
    assert ids(tmp_path, 1) == robots(episodes) | {first, second}


def test_a_deleted_episode_can_be_added_again(tmp_path: Path) -> None:
    """And a copy of it in another segment does not come up when it is deleted."""
    task = example_tasks()["Robot-v1"]
    episode = random_episode(task, np.random.default_rng(0), 5)
    with EpisodeWriter(tmp_path) as one, EpisodeWriter(tmp_path) as other:
        for writer in (one, other):
            writer.add_task(task)
            episode_id = writer.add_episode(episode)
    change.delete(tmp_path, episode_ids=[episode_id])
    assert ids(tmp_path) == set()
    with EpisodeWriter(tmp_path) as writer:
        writer.add_episode(episode)
    assert ids(tmp_path) == {episode_id}


def test_restore_shows_again_what_an_older_version_shows(tmp_path: Path) -> None:
    """And keeps what came since."""
    episodes = fill(tmp_path)
    change.delete(tmp_path, where="task_id == 'Robot-v1'")
    change.delete(tmp_path, where="task_id == 'grid/Example-v0'")
    with EpisodeWriter(tmp_path) as writer:
        more = add_one(writer, 1)
    assert change.restore(tmp_path, 1).version == 3
    assert ids(tmp_path) == set(episodes) - robots(episodes) | {more}
    change.restore(tmp_path, 0)
    assert ids(tmp_path) == set(episodes) | {more}
    assert change.restore(tmp_path, 0).version is None


def test_versions_that_are_not_there_are_told(tmp_path: Path) -> None:
    """Numbers, names, and what was compacted away."""
    fill(tmp_path)
    change.filter_store(tmp_path, where="truncated", name="good")
    with pytest.raises(StoreError, match="no version 7; there are 0, 1"):
        EpisodeStore.open(tmp_path, version=7)
    with pytest.raises(StoreError, match=r"no version named 'godo'; did you mean 'good'\?"):
        EpisodeStore.open(tmp_path, version="godo")
    with pytest.raises(UserError, match=r"version name '\.\./x': expected a letter"):
        change.filter_store(tmp_path, where="truncated", name="../x")
    change.delete(tmp_path, where="num_steps < 20")
    assert compact(tmp_path).gone == ["0", "good", "2"]
    for version in (0, 1, 2):
        with pytest.raises(StoreError, match=rf"version {version} went when the store was compacted \(version 3\)"):
            EpisodeStore.open(tmp_path, version=version)


def test_a_pickled_reader_keeps_its_version(tmp_path: Path) -> None:
    """Also when the head moves on; after `compact` it says what happened."""
    fill(tmp_path)
    store = EpisodeStore.open(tmp_path)
    packed = pickle.dumps(store)
    change.delete(tmp_path, where="task_id == 'Robot-v1'")
    assert list(pickle.loads(packed).episode_ids) == list(store.episode_ids)  # noqa: S301
    compact(tmp_path)
    with pytest.raises(StoreError, match="compacted"):
        pickle.loads(packed)  # noqa: S301
    with pytest.raises(StoreError, match="is gone: the store was compacted since it was opened; open it again"):
        store.read(store.episode_ids[0])


def test_two_commands_do_not_change_a_store_at_once(tmp_path: Path) -> None:
    """The second is told; readers and writers are not in the way."""
    fill(tmp_path)
    with versions.changing(tmp_path):
        with pytest.raises(StoreError, match="another command is changing its versions"):
            change.delete(tmp_path, where="truncated")
        with EpisodeWriter(tmp_path) as writer:
            add_one(writer, 1)


# --- split ---------------------------------------------------------------------------------------------------------


def test_split_divides_no_seed_content_or_group(tmp_path: Path) -> None:
    """Shares are about right, parts are disjoint and complete, and run again they are the same."""
    task = example_tasks()["Robot-v1"]
    rng = np.random.default_rng(0)
    with EpisodeWriter(tmp_path / "a") as writer:
        writer.add_task(task)
        for seed in range(150):
            for agent in ("x", "y"):
                metadata = EpisodeMetadata(agent_id=agent, seed=seed)
                writer.add_episode(random_episode(task, rng, 2, metadata=metadata))
        for number in range(60):
            episode = random_episode(task, rng, 2, metadata=EpisodeMetadata(split_group=f"g{number % 20}"))
            writer.add_episode(episode)
        for number in range(30):
            for agent in ("x", "y"):  # equal content, two ids
                episode = random_episode(
                    task, np.random.default_rng(number), 3, metadata=EpisodeMetadata(agent_id=agent)
                )
                writer.add_episode(episode)
    results = change.split(tmp_path / "a", {"train": 0.7, "validation": 0.3})
    assert [result.name for result in results] == ["train", "validation"]
    tables = [EpisodeStore.open(tmp_path / "a", version=name).table() for name in ("train", "validation")]
    assert sum(table.num_rows for table in tables) == 420
    assert 0.2 < tables[1].num_rows / 420 < 0.4
    for column in ("episode_id", "content_hash", "seed", "split_group"):
        left, right = (set(table[column].to_pylist()) - {None, ""} for table in tables)
        assert not left & right, column
    assert ids(tmp_path / "a") == ids(tmp_path / "a", "train") | ids(tmp_path / "a", "validation")
    merge(tmp_path / "b", [(tmp_path / "a", None)])
    with EpisodeWriter(tmp_path / "b") as writer:
        for seed in range(1_000, 1_020):
            writer.add_episode(random_episode(task, rng, 2, metadata=EpisodeMetadata(seed=seed)))
    change.split(tmp_path / "b", {"train": 0.7, "validation": 0.3})
    assert ids(tmp_path / "a", "train") < ids(tmp_path / "b", "train")
    assert ids(tmp_path / "a", "validation") < ids(tmp_path / "b", "validation")


def test_a_family_that_declares_two_parts_is_refused(tmp_path: Path) -> None:
    """A leak that the data asks for; a declared part is kept to."""
    task = example_tasks()["Robot-v1"]
    with EpisodeWriter(tmp_path) as writer:
        writer.add_task(task)
        for number, group in enumerate(["train/a", "validation/b", "validation/c"]):
            metadata = EpisodeMetadata(split_group=group, seed=number)
            writer.add_episode(random_episode(task, np.random.default_rng(number), 2, metadata=metadata))
    parts = {"train": 0.5, "validation": 0.5}
    assert [result.kept for result in change.split(tmp_path, parts)] == [1, 2]
    with EpisodeWriter(tmp_path) as writer:
        metadata = EpisodeMetadata(split_group="validation/d", seed=0)
        writer.add_episode(random_episode(task, np.random.default_rng(9), 2, metadata=metadata))
    with pytest.raises(UserError, match="a family of 2 episodes declares parts train, validation"):
        change.split(tmp_path, parts)
    with pytest.raises(UserError, match=r"shares that sum to 1, got train=0\.5, test=0\.2"):
        change.split(tmp_path, {"train": 0.5, "test": 0.2})


# --- merge ---------------------------------------------------------------------------------------------------------


def test_merge_shares_whole_segments(tmp_path: Path) -> None:
    """Hard links, duplicates dropped, what the source left out stays out, one version for all."""
    first, second = fill(tmp_path / "a"), fill(tmp_path / "b", seed=1)
    both = {**first, **fill(tmp_path / "c"), **second}
    assert len(both) == 24
    change.delete(tmp_path / "b", where="task_id == 'Robot-v1'")
    report = merge(tmp_path / "a", [(tmp_path / "b", None), (tmp_path / "c", None)])
    assert (report.episodes, report.duplicates, report.segments, report.linked) == (8, 12, 1, 1)
    assert ids(tmp_path / "a") == set(first) | (set(second) - robots(second))
    store = EpisodeStore.open(tmp_path / "a")
    for episode_id in store.episode_ids:
        assert_episodes_equal(both[episode_id], store.read(episode_id))
    (shared,) = (tmp_path / "b" / "segments").glob("*.data")
    assert (tmp_path / "a" / "segments" / shared.name).stat().st_ino == shared.stat().st_ino
    assert verify_store(tmp_path / "a").damages == []
    assert ids(tmp_path / "a", 0) == set(first)
    again = merge(tmp_path / "a", [(tmp_path / "b", 0), (tmp_path / "c", None)])
    assert (again.episodes, again.duplicates) == (4, 20)
    assert ids(tmp_path / "a") == set(both)
    assert len(list((tmp_path / "a" / "segments").glob("*.data"))) == 2
    assert merge(tmp_path / "a", [(tmp_path / "b", None)]).version is None


@pytest.mark.parametrize("copy", [False, True])
def test_merge_makes_a_store_and_takes_what_a_writer_has_so_far(tmp_path: Path, copy: bool) -> None:
    """The source's writer lives on; the target is new."""
    episodes = fill(tmp_path / "a")
    with EpisodeWriter(tmp_path / "a") as writer:
        more = add_one(writer, 1)
        report = merge(tmp_path / "new" / "b", [(tmp_path / "a", None)], copy=copy)
        add_one(writer, 2)
    assert (report.episodes, report.segments, report.linked) == (13, 2, 0 if copy else 1)
    assert ids(tmp_path / "new" / "b") == set(episodes) | {more}
    assert verify_store(tmp_path / "new" / "b").damages == []


def test_merge_refuses_another_task_of_the_same_id(tmp_path: Path) -> None:
    """Before anything is made."""
    fill(tmp_path / "a")
    task = example_tasks()["grid/Example-v0"]
    other = type(task)(task_id="Robot-v1", observation_spec=task.observation_spec, action_spec=task.action_spec)
    with EpisodeWriter(tmp_path / "b") as writer:
        writer.add_task(other)
        writer.add_episode(random_episode(other, np.random.default_rng(0), 3))
    before = sorted((tmp_path / "a").rglob("*"))
    with pytest.raises(UserError, match=r"merge: task Robot-v1: observation_spec of store .* differs: expected"):
        merge(tmp_path / "a", [(tmp_path / "b", None)])
    assert sorted((tmp_path / "a").rglob("*")) == before
    with pytest.raises(UserError, match="is both source and target"):
        merge(tmp_path / "a", [(tmp_path / "b" / ".." / "a", None)])


# --- compact -------------------------------------------------------------------------------------------------------


def test_compact_frees_and_keeps_what_is_shown(tmp_path: Path) -> None:
    """Deleted records are gone from the disk, small segments are one, every byte of the rest is right."""
    episodes = fill(tmp_path) | fill(tmp_path, seed=1) | fill(tmp_path, seed=2)
    change.delete(tmp_path, where="task_id == 'Robot-v1'")
    size = sum(file.stat().st_size for file in (tmp_path / "segments").glob("*.data"))
    told = compact(tmp_path, dry_run=True)
    report = compact(tmp_path)
    assert (report.episodes, report.removed, report.rewritten, report.dropped) == (24, 12, 3, 0)
    assert (told.freed_bytes, told.removed, told.gone) == (report.freed_bytes, 12, ["0", "1"])
    (data,) = (tmp_path / "segments").glob("*.data")
    assert size - data.stat().st_size >= report.freed_bytes - 64 * 3 > 0
    store = EpisodeStore.open(tmp_path)
    assert set(store.episode_ids) == set(episodes) - robots(episodes)
    for episode_id in store.episode_ids:
        assert_episodes_equal(episodes[episode_id], store.read(episode_id))
    assert verify_store(tmp_path).damages == []
    assert compact(tmp_path).version is None


def test_compact_works_beside_a_writer(tmp_path: Path) -> None:
    """Its segment waits; what was deleted in it stays out."""
    fill(tmp_path)
    with EpisodeWriter(tmp_path) as writer:
        first = add_one(writer, 1)
        change.delete(tmp_path, where=f"episode_id == '{first}' or task_id != 'Robot-v1'")
        report = compact(tmp_path)
        assert (report.removed, len(report.waiting)) == (8, 1)
        second = add_one(writer, 2)
    shown = ids(tmp_path)
    assert len(shown) == 5
    assert second in shown
    assert first not in shown
    assert compact(tmp_path).removed == 1
    assert ids(tmp_path) == shown


def test_compact_refuses_to_copy_a_damaged_record(tmp_path: Path) -> None:
    """And removes nothing."""
    episodes = fill(tmp_path)
    (data,) = (tmp_path / "segments").glob("*.data")
    row = EpisodeStore.open(tmp_path).table("Robot-v1").to_pylist()[0]
    flip_content(data, row)
    change.delete(tmp_path, where="task_id == 'grid/Example-v0'")
    before = sorted((tmp_path / "segments").iterdir())
    with pytest.raises(CorruptionError, match=rf"episode {row['episode_id']}: .*nothing was removed; run .* repair"):
        compact(tmp_path)
    assert sorted((tmp_path / "segments").iterdir()) == before
    assert len(ids(tmp_path, 0)) == len(episodes)


# --- damage --------------------------------------------------------------------------------------------------------


def flip(file: Path, position: int) -> None:
    """Changes one bit."""
    content = bytearray(file.read_bytes())
    content[position] ^= 4
    file.unlink()  # not through a hard link
    file.write_bytes(content)


def flip_content(file: Path, row: dict[str, Any]) -> None:
    """Changes one bit of what an episode holds."""
    header = parse_header(np.frombuffer(file.read_bytes(), np.uint8)[row["offset"] :])
    flip(file, row["offset"] + header.columns[0].offset)


def flip_padding(file: Path, row: dict[str, Any]) -> None:
    """Changes one bit between an episode's columns."""
    header = parse_header(np.frombuffer(file.read_bytes(), np.uint8)[row["offset"] :])
    flip(file, row["offset"] + next(start for start, end in padding_of(header) if start < end))


def test_no_flipped_bit_of_a_version_is_silent(tmp_path: Path) -> None:
    """Every 7th byte of both files; with `damaged="skip"` all there is shows, and it is said."""
    episodes = fill(tmp_path)
    change.delete(tmp_path, where="task_id == 'Robot-v1'")
    for file in (tmp_path / "versions").iterdir():
        content = file.read_bytes()
        for position in range(0, len(content), 7):
            changed = bytearray(content)
            changed[position] ^= 1
            file.write_bytes(changed)
            assert verify_store(tmp_path).damages
            with pytest.raises(CorruptionError, match="run `python -m episode_store verify"):
                EpisodeStore.open(tmp_path)
        for cut in (0, 1, len(content) - 1):
            file.write_bytes(content[:cut])
            assert verify_store(tmp_path).damages
        store = EpisodeStore.open(tmp_path, damaged="skip")
        assert len(store) == len(episodes)
        assert "versions/000001" in store.damage[0]
        file.unlink()
        assert verify_store(tmp_path).damages, f"{file.name} is missing"
        file.write_bytes(content)
    assert verify_store(tmp_path).damages == []


def test_repair_sets_a_damaged_version_aside(tmp_path: Path) -> None:
    """The one before it shows again, and no number is given twice."""
    episodes = fill(tmp_path)
    change.delete(tmp_path, where="task_id == 'Robot-v1'")
    change.delete(tmp_path, where="task_id == 'grid/Example-v0'")
    flip(tmp_path / "versions" / "000002.seal", 30)
    report = repair(tmp_path)
    assert "version 2 is set aside; what it left out shows again" in report.lost[0]
    assert ids(tmp_path) == set(episodes) - robots(episodes)
    assert EpisodeStore.open(tmp_path).view.number == 3
    assert verify_store(tmp_path).damages == []
    assert len(list((tmp_path / "quarantine" / "damaged").iterdir())) == 2


def test_repair_leaves_a_damaged_record_out_and_keeps_its_bytes(tmp_path: Path) -> None:
    """The rest reads, deletions hold, the reason is in the quarantine table, and a second run finds nothing."""
    episodes = fill(tmp_path)
    rows = EpisodeStore.open(tmp_path).table().to_pylist()
    change.delete(tmp_path, episode_ids=[rows[5]["episode_id"]])
    (data,) = (tmp_path / "segments").glob("*.data")
    bad = rows[2]
    flip_content(data, bad)
    content = data.read_bytes()
    told = repair(tmp_path, dry_run=True)
    assert verify_store(tmp_path).damages
    report = repair(tmp_path)
    assert told.lost == report.lost
    assert len(report.lost) == 1
    assert bad["episode_id"] in report.lost[0]
    assert data.read_bytes() == content
    kept = tmp_path / "quarantine" / "damaged" / f"{data.stem}-{bad['offset']}.record"
    assert kept.read_bytes() == content[bad["offset"] :][: bad["record_bytes"]]
    store = EpisodeStore.open(tmp_path)
    assert set(store.episode_ids) == set(episodes) - {bad["episode_id"], rows[5]["episode_id"]}
    for episode_id in store.episode_ids:
        assert_episodes_equal(episodes[episode_id], store.read(episode_id))
    (line,) = store.quarantine().to_pylist()
    assert line["task_id"] == bad["task_id"]
    assert bad["episode_id"] in line["reason"]
    verified = verify_store(tmp_path)
    assert verified.damages == []
    assert any("are damaged and left out" in note for note in verified.notes)
    again = repair(tmp_path)
    assert (again.repaired, again.lost, again.moved) == ([], [], [])
    compact(tmp_path)
    assert set(EpisodeStore.open(tmp_path).episode_ids) == set(store.episode_ids)
    assert verify_store(tmp_path).notes == []


@pytest.mark.parametrize("damage", ["seal gone", "index gone", "index cut", "seal flipped", "both gone"])
def test_repair_makes_an_index_again(tmp_path: Path, damage: str) -> None:
    """From the records alone: the same table as before, and the same versions."""
    fill(tmp_path)
    change.delete(tmp_path, where="task_id == 'Robot-v1'")
    before, old = (EpisodeStore.open(tmp_path, version=version).table() for version in (None, 0))
    (seal,), (index,) = (list((tmp_path / "segments").glob(f"*.{suffix}")) for suffix in ("seal", "parquet"))
    if damage in ("seal gone", "both gone"):
        seal.unlink()
    if damage in ("index gone", "both gone"):
        index.unlink()
    if damage == "index cut":
        index.write_bytes(index.read_bytes()[:-9])
    if damage == "seal flipped":
        flip(seal, 20)
    with pytest.raises(CorruptionError):
        EpisodeStore.open(tmp_path)
    report = repair(tmp_path)
    assert report.lost == []
    assert "index made again from the data, 12 episodes" in report.repaired[0]
    assert EpisodeStore.open(tmp_path).table() == before
    assert EpisodeStore.open(tmp_path, version=0).table() == old
    assert verify_store(tmp_path).damages == []
    assert len(list((tmp_path / "segments").glob("*.parquet"))) == 1


def test_repair_finds_records_behind_a_damaged_header_without_an_index(tmp_path: Path) -> None:
    """The search goes on at the next whole header; a changed file header and changed padding lose no episode."""
    episodes = fill(tmp_path)
    rows = sorted(EpisodeStore.open(tmp_path).table().to_pylist(), key=lambda row: row["offset"])
    (data,) = (tmp_path / "segments").glob("*.data")
    flip(data, 3)
    flip(data, rows[4]["offset"] + 20)
    padded = rows[8]
    flip_padding(data, padded)
    for suffix in ("seal", "parquet"):
        next((tmp_path / "segments").glob(f"*.{suffix}")).unlink()
    report = repair(tmp_path)
    assert len(report.lost) == 1
    assert f"bytes {rows[4]['offset']} to {rows[5]['offset']}, no known episode" in report.lost[0]
    store = EpisodeStore.open(tmp_path)
    assert set(store.episode_ids) == set(episodes) - {rows[4]["episode_id"]}
    for episode_id in store.episode_ids:
        assert_episodes_equal(episodes[episode_id], store.read(episode_id))
    assert verify_store(tmp_path).damages == []


def test_repair_of_every_cut_data_file(tmp_path: Path) -> None:
    """Cut anywhere: what is whole before the cut is kept, the rest is named, the store opens and verifies."""
    episodes = fill(tmp_path / "whole", num_episodes=6)
    rows = sorted(EpisodeStore.open(tmp_path / "whole").table().to_pylist(), key=lambda row: row["offset"])
    (data,) = (tmp_path / "whole" / "segments").glob("*.data")
    size = data.stat().st_size
    for cut in (0, 30, 64, 100, rows[3]["offset"], rows[3]["offset"] + 64, size // 2, size - 1):
        shutil.rmtree(tmp_path / "cut", ignore_errors=True)
        shutil.copytree(tmp_path / "whole", tmp_path / "cut")
        with open(tmp_path / "cut" / "segments" / data.name, "r+b") as file:
            file.truncate(cut)
        report = repair(tmp_path / "cut")
        whole = {row["episode_id"] for row in rows if row["offset"] + row["record_bytes"] <= cut}
        assert ids(tmp_path / "cut") == whole
        assert report.lost
        named = " ".join(line["reason"] for line in EpisodeStore.open(tmp_path / "cut").quarantine().to_pylist())
        assert all(episode_id in named for episode_id in set(episodes) - whole)
        assert verify_store(tmp_path / "cut").damages == []
        assert repair(tmp_path / "cut").lost == []


def test_repair_of_the_small_files(tmp_path: Path) -> None:
    """The marker is written again; a task is set aside and comes back with `merge`; a torn quarantine keeps lines."""
    episodes = fill(tmp_path / "a")
    fill(tmp_path / "b")
    flip(tmp_path / "a" / "store.json", 12)
    flip(tmp_path / "a" / "tasks" / "Robot-v1.json", 40)
    report = repair(tmp_path / "a")
    assert "store.json" in report.repaired[0]
    assert "added again" in report.lost[0]
    store = EpisodeStore.open(tmp_path / "a")
    assert sorted(store.tasks) == ["caption/example-v0", "grid/Example-v0"]
    merge(tmp_path / "a", [(tmp_path / "b", None)])
    store = EpisodeStore.open(tmp_path / "a")
    for episode_id in robots(episodes):
        assert_episodes_equal(episodes[episode_id], store.read(episode_id))
    assert verify_store(tmp_path / "a").damages == []


# --- killed at every instant ---------------------------------------------------------------------------------------

_TOUCHES = ("replace", "link", "unlink", "open", "fsync", "mkdir", "truncate", "ftruncate")


def killed_at(action: Callable[[], object], step: int) -> bool:
    """Runs `action` in a child that is killed with SIGKILL before its call number `step` that touches the disk.

    Returns:
      Whether it was killed; False when it came to its end.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            calls = [0]

            def counted(function: Callable[..., object]) -> Callable[..., object]:
                def call(*arguments: object, **keywords: object) -> object:
                    calls[0] += 1
                    if calls[0] > step:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return function(*arguments, **keywords)

                return call

            for name in _TOUCHES:
                setattr(os, name, counted(getattr(os, name)))
            action()
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


def killed_everywhere(
    make: Callable[[], Path], action: Callable[[Path], object], *, before: set[str], after: set[str]
) -> int:
    """Kills `action` at each of its steps on a fresh store; the store shows `before` or `after`, never else."""
    step = 0
    while True:
        path = make()
        killed = killed_at(lambda path=path: action(path), step)
        shown = ids(path)
        assert shown in (before, after), f"step {step}: {len(shown)} episodes"
        with EpisodeWriter(path) as writer:
            more = add_one(writer, 1_000)
        if killed:
            action(path)
        assert ids(path) == after | {more}, f"step {step}"
        report = verify_store(path)
        assert report.damages == [], f"step {step}"
        store = EpisodeStore.open(path)
        for episode_id in store.episode_ids:
            assert store.read(episode_id).episode_id() == episode_id
        if not killed:
            assert report.notes == []
            return step
        step += 1


@pytest.fixture
def maker(tmp_path: Path) -> Callable[[Callable[[Path], None]], Callable[[], Path]]:
    """Makes copies of one store: `maker(fill)()`."""

    def prepare(filler: Callable[[Path], None]) -> Callable[[], Path]:
        filler(tmp_path / "original")
        number = iter(range(100_000))

        def make() -> Path:
            shutil.rmtree(tmp_path / "copies", ignore_errors=True)
            return Path(shutil.copytree(tmp_path / "original", tmp_path / "copies" / str(next(number))))

        return make

    return prepare


Maker = Callable[[Callable[[Path], None]], Callable[[], Path]]


def test_delete_killed_at_every_step(maker: Maker, tmp_path: Path) -> None:
    """All or nothing."""
    episodes: dict[str, Episode] = {}
    make = maker(lambda path: episodes.update(fill(path, num_episodes=6)))
    before, after = set(episodes), set(episodes) - robots(episodes)
    # A second condition, so that the episode that is added in between is not deleted by the second run.
    where = "task_id == 'Robot-v1' and agent_id != 'random'"
    action = lambda path: change.delete(path, where=where)  # noqa: E731
    assert killed_everywhere(make, action, before=before, after=after) >= 4


def test_compact_killed_at_every_step(maker: Maker) -> None:
    """Nothing that is shown is lost, nothing deleted comes back, and a second run ends the work."""
    episodes: dict[str, Episode] = {}

    def filler(path: Path) -> None:
        for seed in range(3):
            episodes.update(fill(path, seed=seed, num_episodes=4))
        change.delete(path, where="task_id == 'Robot-v1'")

    make = maker(filler)
    shown = set(episodes) - robots(episodes)
    steps = killed_everywhere(make, compact, before=shown, after=shown)
    assert steps > 20


def test_merge_killed_at_every_step(maker: Maker, tmp_path: Path) -> None:
    """All of the other store is shown or none of it; whole segments, one that is being written, links."""
    episodes: dict[str, Episode] = {}
    make = maker(lambda path: episodes.update(fill(path, num_episodes=3)))
    other = fill(tmp_path / "other", seed=1, num_episodes=3) | fill(tmp_path / "other", seed=2, num_episodes=3)
    with EpisodeWriter(tmp_path / "other") as writer:
        live = add_one(writer, 5)
        steps = killed_everywhere(
            make,
            lambda path: merge(path, [(tmp_path / "other", None)]),
            before=set(episodes),
            after={*episodes, *other, live},
        )
    assert steps > 20


def test_repair_killed_at_every_step(maker: Maker, tmp_path: Path) -> None:
    """A damaged record, changed padding, a changed file header: what is whole is shown at each step, or told."""
    episodes: dict[str, Episode] = {}

    def filler(path: Path) -> None:
        episodes.update(fill(path, num_episodes=6))
        rows = sorted(EpisodeStore.open(path).table().to_pylist(), key=lambda row: row["offset"])
        (data,) = (path / "segments").glob("*.data")
        flip_content(data, rows[2])
        flip_padding(data, rows[5])
        lost.add(rows[2]["episode_id"])

    lost: set[str] = set()
    make = maker(filler)
    step = 0
    while True:
        path = make()
        killed = killed_at(lambda path=path: repair(path), step)
        assert set(episodes) - lost <= ids(path), f"step {step}"
        repair(path)
        assert ids(path) == set(episodes) - lost
        assert verify_store(path).damages == []
        assert len(list((path / "quarantine" / "damaged").glob("*.record"))) == 2
        if not killed:
            break
        step += 1
    assert step > 10


@pytest.mark.slow
def test_commands_killed_at_random_beside_a_writer(tmp_path: Path) -> None:
    """SIGKILL by the clock, 60 times, while a writer appends: nothing acknowledged and shown is lost."""
    chance = random.Random(0)
    path = tmp_path / "store"
    fill(path)
    kept: set[str] = set(ids(path))
    with EpisodeWriter(path) as writer:
        for number in range(60):
            kept |= {add_one(writer, 10_000 + number * 10 + k) for k in range(3)}
            if number % 5 == 4:
                writer._seal()
            victim = sorted(kept)[0]
            action = [
                lambda: compact(path),
                lambda victim=victim: change.delete(path, episode_ids=[victim]),
                lambda: repair(path),
            ][number % 3]
            child = os.fork()
            if child == 0:
                try:
                    action()
                finally:
                    os._exit(0)
            time.sleep(chance.random() * 0.05)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            shown = ids(path)
            assert kept - {victim} <= shown <= kept
            kept = shown
    compact(path)
    assert ids(path) == kept
    assert verify_store(path).damages == []


# --- the files -----------------------------------------------------------------------------------------------------


def test_a_version_file_is_plain_parquet_and_checked_json(tmp_path: Path) -> None:
    """Anyone can tell what is visible: the rows of the segments that are not in the version's file."""
    fill(tmp_path)
    change.delete(tmp_path, where="task_id == 'Robot-v1'")
    table = pq.read_table(tmp_path / "versions" / "000001.parquet", page_checksum_verification=True)
    assert table.schema.names == ["segment", "offset"]
    rows = pq.read_table(list((tmp_path / "segments").glob("*.parquet"))).to_pylist()
    out = {(row["segment"], row["offset"]) for row in table.to_pylist()}
    visible = {row["episode_id"] for row in rows if (row["segment"], row["offset"]) not in out}
    assert visible == ids(tmp_path)
    line = (tmp_path / "versions" / "000001.seal").read_bytes()
    assert line.startswith(b'{"format":"episode-version","version":2,"number":1,"operation":"delete","name":"",')
    assert b'"hidden":[],"oldest":0,"num_excluded":4,' in line


def test_names_of_segments_in_a_version_cannot_leave_the_folder(tmp_path: Path) -> None:
    """A seal that names other files, with a right checksum."""
    fill(tmp_path)
    with pytest.raises(ValueError, match=r"not the name of a segment: '\.\./\.\./x'"):
        versions.commit(tmp_path, operation="x", detail={}, extent={}, excluded={}, hidden=["../../x"])
    assert segment.SEGMENT_NAME.fullmatch("../../x") is None


@pytest.mark.parametrize(
    ("facts", "problem"),
    [
        ({"oldest": 9}, "oldest version 9"),
        ({"num_excluded": -1}, "-1 records left out"),
        ({"num_excluded": 1 << 40}, "4 rows, expected 1099511627776"),
        ({"extent": [1]}, "lacks a fact"),
        ({"hidden": 3}, "lacks a fact"),
        ({"name": 3}, "of another type"),
        ({"number": 2}, "is not the seal of version 1"),
        ({"index_bytes": 1 << 60}, "bytes, expected"),
    ],
)
def test_a_hostile_seal_is_refused(tmp_path: Path, facts: dict[str, Any], problem: str) -> None:
    """Its checksum is right, its facts are not."""
    fill(tmp_path)
    change.delete(tmp_path, where="task_id == 'Robot-v1'")
    file = tmp_path / "versions" / "000001.seal"
    content = checked_json.read_file(file)
    content.pop("crc32c", None)
    checked_json.write_file(file, {**content, **facts})
    with pytest.raises(CorruptionError, match=problem):
        EpisodeStore.open(tmp_path)
    assert verify_store(tmp_path).damages
    repair(tmp_path)
    assert len(EpisodeStore.open(tmp_path)) == 12
