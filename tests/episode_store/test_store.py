"""Reading a store: the contract, errors, and hypothesis round trips of every kind of field."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from episode_store import checked_json, column_codecs, window_table
from episode_store.errors import CorruptionError, StoreError
from episode_store.spec import ArraySpec, Modality
from episode_store.store import EpisodeStore
from episode_store.task import TaskSpec
from episode_store.testing import (
    StoreContract,
    assert_episodes_equal,
    assert_values_equal,
    example_tasks,
    random_episode,
)
from episode_store.writer import EpisodeWriter


class TestEpisodeStore(StoreContract):
    """Our store keeps the contract."""


_NUMERIC = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16"]
_CONTINUOUS = [*_NUMERIC, "float32", "float64"]


@st.composite
def array_specs(draw: st.DrawFn) -> ArraySpec:
    """Any spec of a small field."""
    modality = draw(st.sampled_from(list(Modality)))
    if modality == Modality.TEXT:
        return ArraySpec(modality=modality, dtype="str")
    if modality == Modality.IMAGE and draw(st.booleans()):
        return ArraySpec(modality=modality, dtype="uint8", shape=(-1, -1, draw(st.integers(1, 5))))
    if modality == Modality.IMAGE:
        shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3, 4])))
        return ArraySpec(modality=modality, dtype="uint8", shape=shape)
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    size = int(np.prod(shape))
    if modality == Modality.DISCRETE:
        counts = draw(st.lists(st.integers(1, 100), min_size=size, max_size=size))
        start = draw(st.sampled_from([(), (1,) * size]))
        return ArraySpec(
            modality=modality,
            dtype=draw(st.sampled_from(["int64", "uint8"])),
            shape=shape,
            num_values=tuple(counts),
            low=start,
        )
    low, high = draw(st.sampled_from([((), ()), ((0.0,) * size, (1.0,) * size), ((0.0,) * size, (np.inf,) * size)]))
    return ArraySpec(modality=modality, dtype=draw(st.sampled_from(_CONTINUOUS)), shape=shape, low=low, high=high)


_FIELDS = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), array_specs(), max_size=3)


@given(observations=_FIELDS, actions=_FIELDS, num_steps=st.integers(1, 70), seed=st.integers(0, 1000), data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_kind_of_field_survives(
    observations: dict[str, ArraySpec], actions: dict[str, ArraySpec], num_steps: int, seed: int, data: st.DataObject
) -> None:
    """Write, read and window of random tasks."""
    task = TaskSpec(task_id="any/Task-v0", observation_spec=observations, action_spec=actions)
    episode = random_episode(task, np.random.default_rng(seed), num_steps, exploratory=seed % 2 == 0)
    with tempfile.TemporaryDirectory() as folder:
        with EpisodeWriter(folder) as writer:
            writer.add_task(task)
            episode_id = writer.add_episode(episode)
        store = EpisodeStore.open(folder)
        assert store.tasks["any/Task-v0"] == task
        assert_episodes_equal(episode, store.read(episode_id))
        start = data.draw(st.integers(0, num_steps - 1))
        length = data.draw(st.integers(1, num_steps - start))
        window = store.read_window(episode_id, start, length)
        for key, values in episode.observations.items():
            assert_values_equal(window.observations[key], values[start : start + length + 1], key)
        for key, values in episode.actions.items():
            assert_values_equal(window.actions[key], values[start : start + length], key)


@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=300), min_size=2, max_size=600),
)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_text_survives(texts: list[str]) -> None:
    """Ragged, empty, multi-byte texts, over several blocks."""
    task = example_tasks()["caption/example-v0"]
    episode = random_episode(task, np.random.default_rng(0), len(texts))
    episode = dataclasses.replace(episode, actions={"text": texts})
    with tempfile.TemporaryDirectory() as folder:
        with EpisodeWriter(folder) as writer:
            writer.add_task(task)
            episode_id = writer.add_episode(episode)
        assert EpisodeStore.open(folder).read(episode_id).actions["text"] == texts


def test_floats_keep_every_bit(tmp_path: Path) -> None:
    """Negative zero, denormals, the largest float64."""
    task = TaskSpec(
        task_id="Bits-v0",
        observation_spec={"x": ArraySpec(modality=Modality.CONTINUOUS, dtype="float64")},
        action_spec={"u": ArraySpec(modality=Modality.CONTINUOUS, dtype="uint64")},
    )
    episode = dataclasses.replace(
        random_episode(task, np.random.default_rng(0), 2),
        observations={"x": np.array([-0.0, 5e-324, np.finfo(np.float64).max])},
        actions={"u": np.array([0, 2**64 - 1], dtype=np.uint64)},
    )
    with EpisodeWriter(tmp_path) as writer:
        writer.add_task(task)
        episode_id = writer.add_episode(episode)
    assert_episodes_equal(episode, EpisodeStore.open(tmp_path).read(episode_id))


def test_numbers_are_aligned_views_of_the_mapped_file(tmp_path: Path) -> None:
    """Raw columns are read without a copy, at multiples of 64 bytes, read-only."""
    TestEpisodeStore().fill(tmp_path)
    store = EpisodeStore.open(tmp_path)
    episode = store.read(store.table("Robot-v1")["episode_id"][0].as_py())
    values = episode.observations["state/position"]
    assert isinstance(values, np.ndarray)
    assert not values.flags.owndata
    assert not values.flags.writeable
    assert values.ctypes.data % 64 == 0


def test_the_index_is_plain_parquet(tmp_path: Path) -> None:
    """Anyone can query returns without our code."""
    TestEpisodeStore().fill(tmp_path)
    (index,) = (tmp_path / "segments").glob("*.parquet")
    table = pq.read_table(index, page_checksum_verification=True)
    assert table.num_rows == 12
    assert {"task_id", "episode_return", "num_steps", "seed", "agent_id"} <= set(table.schema.names)


def _fails(path: Path, text: str) -> None:
    with pytest.raises(StoreError) as caught:
        EpisodeStore.open(path)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_a_store_is_refused_in_one_line(tmp_path: Path) -> None:
    """Missing, a file, another folder, a newer version."""
    _fails(tmp_path / "missing", "no such folder")
    (tmp_path / "file").write_text("x")
    _fails(tmp_path / "file", "is a file")
    (tmp_path / "other").mkdir()
    _fails(tmp_path / "other", "is not an episode store: it has no store.json")
    checked_json.write_file(tmp_path / "other" / "store.json", {"format": "episode-store", "version": 99})
    _fails(tmp_path / "other", "has format version 99, this program reads version 2; install a newer one")
    checked_json.write_file(tmp_path / "other" / "store.json", {"format": "episode-store", "version": 1})
    _fails(tmp_path / "other", "has format version 1, this program reads version 2; collect it again")
    checked_json.write_file(tmp_path / "other" / "store.json", {"format": "zarr"})
    _fails(tmp_path / "other", "its format is 'zarr'")
    (tmp_path / "other" / "store.json").write_text(json.dumps({"format": "episode-store", "version": 1}))
    _fails(tmp_path / "other", "checksum does not match")


def test_unknown_names_get_near_ones(tmp_path: Path) -> None:
    """Tasks, columns, episodes, windows."""
    TestEpisodeStore().fill(tmp_path)
    store = EpisodeStore.open(tmp_path)
    with pytest.raises(StoreError, match=r"no task 'Robot-v2'; did you mean 'Robot-v1'\?"):
        store.table("Robot-v2")
    with pytest.raises(StoreError, match="no episode 'abc'"):
        store.read("abc")
    assert store.find_tasks(["*/*", "Robot-v1"]) == ["Robot-v1", "caption/example-v0", "grid/Example-v0"]
    with pytest.raises(StoreError, match="no task 'x/\\*'"):
        store.find_tasks(["x/*"])
    row = store.table("Robot-v1").to_pylist()[0]
    with pytest.raises(StoreError, match=r"no column 'actions/acton'; did you mean 'actions/action'\?"):
        store.read_window(row["episode_id"], 0, 1, columns=["actions/acton"])
    for start, length in ((-1, 1), (0, 0), (0, row["num_steps"] + 1), (row["num_steps"], 1)):
        with pytest.raises(StoreError, match=f"expected a window inside its {row['num_steps']} steps"):
            store.read_window(row["episode_id"], start, length)
    assert store.find_episode(row["episode_id"][:12]) == row["episode_id"]
    with pytest.raises(StoreError, match="12 episodes have ids that begin with ''"):
        store.find_episode("")


def test_an_empty_store_reads_as_empty(tmp_path: Path) -> None:
    """A writer that wrote nothing leaves a valid store and no segment."""
    EpisodeWriter(tmp_path / "new" / "store").close()
    store = EpisodeStore.open(tmp_path / "new" / "store")
    assert len(store) == 0
    assert store.table().num_rows == 0
    assert not list((tmp_path / "new" / "store" / "segments").iterdir())


def test_reading_into_given_arrays(tmp_path: Path) -> None:
    """`out=`: the same values, in the caller's memory; what does not fit is refused."""
    for episode_id, episode in TestEpisodeStore().fill(tmp_path).items():
        store = EpisodeStore.open(tmp_path)
        columns = {f"observations/{name}": values for name, values in episode.observations.items()}
        columns |= {f"actions/{name}": values for name, values in episode.actions.items()}
        columns["rewards"] = episode.rewards
        arrays = {path: values for path, values in columns.items() if not isinstance(values, list)}
        out = {path: np.zeros((len(values) + 2, *values.shape[1:]), values.dtype) for path, values in arrays.items()}
        found = store.read(episode_id, out=out)
        assert_episodes_equal(found, episode)
        assert np.shares_memory(found.rewards, out["rewards"])
        for values in out.values():
            values[...] = 0
        assert store.read_into(episode_id, out) == episode.num_steps
        for path, values in arrays.items():
            np.testing.assert_array_equal(out[path][: len(values)], values)
        start, length = episode.num_steps // 2, 1
        batch = {
            path: np.zeros((2, length + (len(values) > episode.num_steps), *values.shape[1:]), values.dtype)
            for path, values in arrays.items()
        }
        store.read_windows([(episode_id, start), (episode_id, 0)], length, batch)
        window = store.read_window(
            episode_id, start, length, out={path: rows[1].copy() for path, rows in batch.items()}
        )
        for path, values in arrays.items():
            rows = batch[path].shape[1]
            np.testing.assert_array_equal(batch[path][0], values[start : start + rows])
            np.testing.assert_array_equal(batch[path][1], values[:rows])
        np.testing.assert_array_equal(window.rewards, episode.rewards[start : start + length])
        short = np.zeros(0)
        frozen = np.zeros(episode.num_steps)
        frozen.flags.writeable = False
        for bad in (short, frozen, np.zeros(episode.num_steps, np.float32), np.zeros((episode.num_steps, 1))):
            with pytest.raises(StoreError, match=r"out\['rewards'\]: expected a writeable contiguous float64 array"):
                store.read(episode_id, out={"rewards": bad})
            with pytest.raises(StoreError, match=r"out\['rewards'\]: expected"):
                store.read_into(episode_id, {"rewards": bad})
        with pytest.raises(StoreError, match="out: no column 'reward'; did you mean 'rewards'"):
            store.read(episode_id, out={"reward": short})
        with pytest.raises(StoreError, match="out: no column 'reward'; did you mean 'rewards'"):
            store.read_into(episode_id, {"reward": short})
        with pytest.raises(StoreError, match="out: no column 'reward'"):
            store.read_windows([(episode_id, 0)], 1, {"reward": np.zeros((1, 1))})
        with pytest.raises(StoreError, match="expected an array for 1 windows, got 2"):
            store.read_windows([(episode_id, 0)], 1, {"rewards": np.zeros((2, 1))})
        with pytest.raises(StoreError, match="expected a window inside"):
            store.read_windows([(episode_id, 1)], episode.num_steps, {"rewards": np.zeros((1, episode.num_steps))})


def test_a_large_batch_of_windows(tmp_path: Path) -> None:
    """Of several segments, tasks whose columns have equal names, and columns that must be decoded: as one by one."""
    tasks = example_tasks()
    for segment in range(2):
        with EpisodeWriter(tmp_path) as writer:
            for task in tasks.values():
                writer.add_task(task)
                writer.add_episode(random_episode(task, np.random.default_rng(segment), num_steps=700))
                writer.add_episode(random_episode(task, np.random.default_rng(9 + segment), num_steps=40))
    store = EpisodeStore.open(tmp_path)
    rng = np.random.default_rng(0)
    for task_id, task in tasks.items():
        ids = store.table(task_id, columns=["episode_id", "num_steps"]).to_pylist()
        places = [(row["episode_id"], int(rng.integers(row["num_steps"] - 32 + 1))) for row in ids for _ in range(12)]
        window = store.read_window(*places[0], 32)
        columns = {f"observations/{name}": values for name, values in window.observations.items()}
        columns |= {f"actions/{name}": values for name, values in window.actions.items()} | {"rewards": window.rewards}
        batch = {
            path: np.zeros((len(places), *values.shape), values.dtype)
            for path, values in columns.items()
            if isinstance(values, np.ndarray)
        }
        store.read_windows(places, 32, batch)
        for number, (episode_id, start) in enumerate(places):
            window = store.read_window(episode_id, start, 32)
            np.testing.assert_array_equal(batch["rewards"][number], window.rewards)
            for name in task.observation_spec:
                if f"observations/{name}" in batch:
                    np.testing.assert_array_equal(batch[f"observations/{name}"][number], window.observations[name])
            for name in task.action_spec:
                if f"actions/{name}" in batch:
                    np.testing.assert_array_equal(batch[f"actions/{name}"][number], window.actions[name])
        short = next(row["episode_id"] for row in ids if row["num_steps"] == 40)
        with pytest.raises(StoreError, match="expected a window inside its 40 steps, got \\[9, 41\\)"):
            store.read_windows([*places, (short, 9)], 32, {"rewards": np.zeros((len(places) + 1, 32))})
        with pytest.raises(StoreError, match=r"out\['rewards'\]: expected a writeable float64 array"):
            store.read_windows(places, 32, {"rewards": np.zeros((len(places), 31))})


def test_a_changed_bit_in_a_large_batch(tmp_path: Path) -> None:
    """The windows that hold it are refused with the episode's name, the others are read."""
    task = example_tasks()["Robot-v1"]
    with EpisodeWriter(tmp_path) as writer:
        writer.add_task(task)
        episodes = [random_episode(task, np.random.default_rng(seed), num_steps=900) for seed in range(3)]
        ids = [writer.add_episode(episode) for episode in episodes]
    (file,) = (tmp_path / "segments").glob("*.data")
    store = EpisodeStore.open(tmp_path)
    (rewards,) = [column for column in store.columns(ids[1]) if column.path == "rewards"]
    damaged = bytearray(file.read_bytes())
    record = damaged.index(bytes.fromhex(ids[1])) - 32
    damaged[record + rewards.offset + 8 * 600] ^= 1
    file.write_bytes(damaged)
    store = EpisodeStore.open(tmp_path)
    batch = {"rewards": np.zeros((40, 8))}
    store.read_windows([(ids[number % 3], 10 + number) for number in range(40)], 8, batch)
    np.testing.assert_array_equal(batch["rewards"][1], episodes[1].rewards[11:19])
    with pytest.raises(CorruptionError, match=f"episode {ids[1]} of Robot-v1.*rewards: the checksum of block 2 does"):
        store.read_windows([(ids[number % 3], 580) for number in range(40)], 32, {"rewards": np.zeros((40, 32))})


def test_blocks_are_compared_again_once_their_file_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at every read of an unchanged file; even if who changed it put the time of modification back."""
    task = example_tasks()["Robot-v1"]
    with EpisodeWriter(tmp_path) as writer:
        writer.add_task(task)
        ids = [writer.add_episode(random_episode(task, np.random.default_rng(seed), 900)) for seed in range(3)]
    (file,) = (tmp_path / "segments").glob("*.data")
    compared = []
    checksum = column_codecs.checksum
    monkeypatch.setattr(column_codecs, "checksum", lambda data: compared.append(1) or checksum(data))
    store = EpisodeStore.open(tmp_path)
    places = [(ids[number % 3], 10 * number) for number in range(40)]
    batch = {"rewards": np.zeros((40, 32))}

    def num_compared() -> int:
        compared.clear()
        store.read_windows(places, 32, batch)
        return len(compared)

    # A file that was written a moment ago: a second change of the same moment might not show.
    assert num_compared() == num_compared() > 0
    monkeypatch.setattr(window_table, "_SETTLED_SECONDS", -1.0)
    assert num_compared() > num_compared() == 0
    store.read_windows([(ids[0], 880)] * 40, 8, {"rewards": np.zeros((40, 8))})
    assert len(compared) > 0, "a block that no window needed before"

    time.sleep(0.05)
    before = file.stat()
    (rewards,) = [column for column in store.columns(ids[1]) if column.path == "rewards"]
    content = file.read_bytes()
    position = content.index(bytes.fromhex(ids[1])) - 32 + rewards.offset + 8 * 300
    with file.open("r+b") as damaged:
        damaged.seek(position)
        damaged.write(bytes([content[position] ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(CorruptionError, match=f"episode {ids[1]} of Robot-v1.*rewards: the checksum of block 1 does"):
        num_compared()


def test_views_stay_when_files_are_unmapped(tmp_path: Path) -> None:
    task = example_tasks()["Robot-v1"]
    with EpisodeWriter(tmp_path) as writer:
        writer.add_task(task)
        episode = random_episode(task, np.random.default_rng(0), 20)
        episode_id = writer.add_episode(episode)
    store = EpisodeStore.open(tmp_path)
    before = store.read(episode_id)
    mapped = Path("/proc/self/maps").read_text().count(str(tmp_path))
    store.unmap()
    assert_episodes_equal(before, episode)
    assert_episodes_equal(store.read(episode_id), episode)
    del before
    store.unmap()
    assert Path("/proc/self/maps").read_text().count(str(tmp_path)) < mapped


def test_images_of_varying_size(tmp_path: Path) -> None:
    """A window reads its own blocks only, and gives a list: no array takes it."""
    task = example_tasks()["Album-v0"]
    episode = random_episode(task, np.random.default_rng(0), 100)
    with EpisodeWriter(tmp_path) as writer:
        writer.add_task(task)
        episode_id = writer.add_episode(episode)
    store = EpisodeStore.open(tmp_path)
    out = {"observations/picture": np.empty((9, 12, 12, 3), np.uint8)}
    with pytest.raises(StoreError, match="images whose size varies cannot be read into an array"):
        store.read_window(episode_id, 0, 8, columns=list(out), out=out)
    (column,) = (column for column in store.columns(episode_id) if column.path == "observations/picture")
    assert (column.shape, column.block_rows, len(column.block_bytes)) == ((-1, -1, 3), 32, 4)
    (file,) = (tmp_path / "segments").glob("*.data")
    damaged = bytearray(file.read_bytes())
    damaged[64 + column.offset + column.block_bytes[0]] ^= 1  # the second block, rows 32 to 63
    file.write_bytes(damaged)
    store = EpisodeStore.open(tmp_path)
    pictures = episode.observations["picture"]
    window = store.read_window(episode_id, 70, 20, columns=["observations/picture"])
    assert_values_equal(window.observations["picture"], pictures[70:91], "picture")
    assert all(image.flags.writeable for image in window.observations["picture"])
    with pytest.raises(CorruptionError, match="observations/picture: the checksum of block 1 does not match"):
        store.read_window(episode_id, 20, 20)
