"""Writing: what is refused, quarantined, unchanged; full disks; sizes and names."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from episode_store import writer as writer_module
from episode_store.episode import Episode, EpisodeMetadata
from episode_store.errors import EpisodeError, StoreError, UserError
from episode_store.spec import ArraySpec, Modality
from episode_store.store import EpisodeStore
from episode_store.task import TaskSpec
from episode_store.testing import assert_episodes_equal, example_tasks, random_episode
from episode_store.verify import verify_store
from episode_store.writer import EpisodeWriter

TASK = example_tasks()["Robot-v1"]


def episode_of(seed: int = 0, num_steps: int = 5, **changes: Any) -> Episode:
    """A valid episode of TASK, with changes."""
    return dataclasses.replace(random_episode(TASK, np.random.default_rng(seed), num_steps), **changes)


def with_observation(key: str, values: Any) -> Episode:
    """A valid episode with one observation field replaced."""
    episode = episode_of()
    return dataclasses.replace(episode, observations={**episode.observations, key: values})


def _nan(shape: tuple[int, ...], *index: int) -> np.ndarray:
    values = np.zeros(shape)
    values[index] = np.nan
    return values


INVALID = {
    "NaN": (
        lambda: with_observation("state/position", _nan((6, 3), 4, 1)),
        "episode of Robot-v1: observations/state/position: step 4, element (1,): expected a finite number, got nan",
    ),
    "wrong length": (
        lambda: with_observation("state/position", np.zeros((5, 3))),
        "episode of Robot-v1: observations/state/position: expected shape (6, 3), got (5, 3)",
    ),
    "wrong dtype": (
        lambda: with_observation("state/position", np.zeros((6, 3), np.float32)),
        "episode of Robot-v1: observations/state/position: expected dtype float64, got float32",
    ),
    "out of the space": (
        lambda: episode_of(actions={"action": np.full((5, 2), 1.5, np.float32)}),
        "episode of Robot-v1: actions/action: step 0, element (0,): expected a value not above its space's high, "
        "got 1.5",
    ),
    "missing field": (
        lambda: episode_of(actions={}),
        "episode of Robot-v1: actions: expected fields ['action'], got []",
    ),
    "no end": (
        lambda: episode_of(terminated=False, truncated=False),
        "episode of Robot-v1: expected an end: neither terminated nor truncated is set",
    ),
    "an end in the middle": (
        lambda: episode_of(terminated=np.array([False, True, False, False, True])),
        "episode of Robot-v1: terminated: expected one bool for the whole episode, got ndarray; "
        "divide what holds an end in the middle into episodes",
    ),
    "no step": (
        lambda: episode_of(rewards=np.zeros(0)),
        "episode of Robot-v1: expected at least 1 step, got 0",
    ),
    "infinite reward": (
        lambda: episode_of(rewards=np.array([0.0, np.inf, 0, 0, 0])),
        "episode of Robot-v1: rewards: step 1: expected a finite number, got inf",
    ),
    "step column of objects": (
        lambda: episode_of(step_columns={"x": np.array([None] * 5)}),
        "episode of Robot-v1: step_columns/x: expected an array of bools or numbers, got dtype object",
    ),
    "metadata that is no JSON": (
        lambda: episode_of(metadata=EpisodeMetadata(environment_config={"a": object()})),
        "episode of Robot-v1: metadata: expected values that JSON can hold",
    ),
    "seed beyond 64 bits": (
        lambda: episode_of(metadata=EpisodeMetadata(seed=1 << 70)),
        "episode of Robot-v1: metadata/seed: expected a 64-bit integer, got 1180591620717411303424",
    ),
}


@pytest.mark.parametrize("name", list(INVALID))
def test_a_bad_episode_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    """And nothing of it is written."""
    make, text = INVALID[name]
    with EpisodeWriter(tmp_path) as writer:
        writer.add_task(TASK)
        with pytest.raises(EpisodeError) as caught:
            writer.add_episode(make())
        assert str(caught.value).startswith(text)
        assert "\n" not in str(caught.value)
        good = writer.add_episode(episode_of())
    assert EpisodeStore.open(tmp_path).episode_ids == [good]


def test_bad_episodes_can_be_quarantined(tmp_path: Path) -> None:
    """`on_invalid="quarantine"` goes on and keeps the reasons."""
    with EpisodeWriter(tmp_path, on_invalid="quarantine") as writer:
        writer.add_task(TASK)
        assert [writer.add_episode(make()) for make, _ in INVALID.values()] == [""] * len(INVALID)
        writer.add_episode(episode_of())
    store = EpisodeStore.open(tmp_path)
    assert len(store) == 1
    quarantine = store.quarantine().to_pylist()
    assert [row["task_id"] for row in quarantine] == ["Robot-v1"] * len(INVALID)
    for row, (_, text) in zip(quarantine, INVALID.values(), strict=True):
        assert row["reason"].startswith(text)
    assert verify_store(tmp_path).damages == []


def test_tasks_come_first_and_never_change(tmp_path: Path) -> None:
    """Unknown task, same task again, another spec under the same id, by this writer or another."""
    with EpisodeWriter(tmp_path) as writer:
        with pytest.raises(StoreError, match=r"task 'Robot-v1' is not in store .*; call add_task first"):
            writer.add_episode(episode_of())
        writer.add_task(TASK)
        writer.add_task(TaskSpec.from_json(TASK.to_json()))
        other = dataclasses.replace(TASK, max_episode_steps=7)
        with pytest.raises(UserError, match="max_episode_steps differs from the store's: expected 50, got 7"):
            writer.add_task(other)
    with EpisodeWriter(tmp_path) as writer, pytest.raises(UserError, match="use another store or another version"):
        writer.add_task(other)


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    """A folder with something else in it never becomes a store."""
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(StoreError, match=r"is not an episode store and not empty \(it holds 'thesis.txt'\)"):
        EpisodeWriter(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(StoreError, match="is a file, expected a folder"):
        EpisodeWriter(tmp_path / "thesis.txt")


@pytest.mark.parametrize(
    "task_id", ["../evil-v0", "a/../b-v0", "/etc/passwd-v0", "a/b/c-v0", "a--b-v0", "x-v0\n", ".-v0", ""]
)
def test_a_task_id_cannot_leave_the_folder(task_id: str) -> None:
    """The grammar of ids has no path tricks, and no two ids share a file."""
    with pytest.raises(UserError, match="expected \\[namespace/\\]name-vN"):
        dataclasses.replace(TASK, task_id=task_id)


def test_hostile_field_names_are_only_names(tmp_path: Path) -> None:
    """They are stored inside files and never become paths."""
    spec = ArraySpec(modality=Modality.CONTINUOUS, dtype="float64")
    task = TaskSpec(
        task_id="Names-v0",
        observation_spec={"../../x": spec, "": spec, "a\x00b\nc": spec},
        action_spec={"/etc/passwd": spec},
    )
    episode = random_episode(task, np.random.default_rng(0), 3)
    with EpisodeWriter(tmp_path / "store") as writer:
        writer.add_task(task)
        episode_id = writer.add_episode(episode)
        long = dataclasses.replace(episode, step_columns={"x" * 2000: np.zeros(3)})
        with pytest.raises(EpisodeError, match="has more than 1000 bytes"):
            writer.add_episode(long)
    assert_episodes_equal(episode, EpisodeStore.open(tmp_path / "store").read(episode_id))
    assert [file.name for file in tmp_path.iterdir()] == ["store"]


def test_a_closed_writer_says_so(tmp_path: Path) -> None:
    """Closing twice is fine; adding afterwards is not."""
    writer = EpisodeWriter(tmp_path)
    writer.add_task(TASK)
    writer.close()
    writer.close()
    with pytest.raises(StoreError, match="this writer is closed"):
        writer.add_episode(episode_of())


def test_long_writing_makes_several_sealed_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment ends at a limit of episodes or bytes."""
    monkeypatch.setattr(writer_module, "MAX_SEGMENT_EPISODES", 4)
    with EpisodeWriter(tmp_path) as writer:
        writer.add_task(TASK)
        ids = [writer.add_episode(episode_of(seed)) for seed in range(10)]
        assert len(list((tmp_path / "segments").glob("*.seal"))) == 2
    assert len(list((tmp_path / "segments").glob("*.seal"))) == 3
    assert sorted(EpisodeStore.open(tmp_path).episode_ids) == sorted(ids)


def test_the_power_loss_setting_syncs_every_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sync=True` asks the disk before `add_episode` returns; the default does not."""
    synced = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    for sync, expected in ((False, 0), (True, 6)):
        with EpisodeWriter(tmp_path / str(sync), sync=sync) as writer:
            writer.add_task(TASK)
            for seed in range(3):
                writer.add_episode(episode_of(seed))
        assert len(synced) == expected


def test_small_episodes_are_written_and_read_fast(tmp_path: Path) -> None:
    """2,000 written and 5,000 read a second on an idle core; here only a loose floor against regressions."""
    scalar = ArraySpec(modality=Modality.DISCRETE, dtype="int64", num_values=(16,))
    task = TaskSpec(task_id="Small-v0", observation_spec={"o": scalar}, action_spec={"action": scalar})
    episodes = [random_episode(task, np.random.default_rng(seed), 5) for seed in range(1000)]
    start = time.process_time()
    with EpisodeWriter(tmp_path) as writer:
        writer.add_task(task)
        ids = [writer.add_episode(episode) for episode in episodes]
    written = time.process_time()
    store = EpisodeStore.open(tmp_path)
    for episode_id in ids:
        store.read(episode_id)
    assert 1000 / (written - start) > 1000
    assert 1000 / (time.process_time() - written) > 2000


def test_an_interrupt_leaves_no_half_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C at each of the writes of an episode: the next one lands where it should."""
    write, writev = os.write, os.writev
    with EpisodeWriter(tmp_path) as writer:
        writer.add_task(TASK)
        ids = [writer.add_episode(episode_of(0))]
        for number in (1, 2):
            calls = []

            def interrupted(descriptor: int, parts: Any, calls: list[int] = calls, number: int = number) -> int:
                calls.append(descriptor)
                if len(calls) == number:
                    data = b"".join(parts)
                    write(descriptor, data[: len(data) // 2])
                    raise KeyboardInterrupt
                return writev(descriptor, parts)

            with monkeypatch.context() as patch:
                patch.setattr(os, "writev", interrupted)
                with pytest.raises(KeyboardInterrupt):
                    writer.add_episode(episode_of(number))
            ids.append(writer.add_episode(episode_of(10 + number)))
    assert sorted(EpisodeStore.open(tmp_path).episode_ids) == sorted(ids)
    assert verify_store(tmp_path).damages == []


def test_a_kernel_that_takes_a_few_bytes_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`writev` may take less than it is given, in the middle of a buffer too."""
    write = os.write
    monkeypatch.setattr(os, "writev", lambda descriptor, parts: write(descriptor, b"".join(parts)[:7]))
    with EpisodeWriter(tmp_path) as writer:
        writer.add_task(TASK)
        episode_id = writer.add_episode(episode_of(0))
    monkeypatch.undo()
    assert verify_store(tmp_path).damages == []
    assert_episodes_equal(EpisodeStore.open(tmp_path).read(episode_id), episode_of(0))


def test_lossy_images_only_on_request_and_recorded(tmp_path: Path) -> None:
    """The record says so, its hashes are of what is read, and everything else is exact."""
    task = example_tasks()["grid/Example-v0"]
    task = dataclasses.replace(
        task,
        observation_spec={
            **task.observation_spec,
            "image": ArraySpec(modality=Modality.IMAGE, shape=(40, 30, 3), dtype="uint8"),
            "grey": ArraySpec(modality=Modality.IMAGE, shape=(9, 8, 1), dtype="uint8"),
        },
    )
    episode = random_episode(task, np.random.default_rng(0), 40)
    with EpisodeWriter(tmp_path, lossy_images=60) as writer:
        writer.add_task(task)
        episode_id = writer.add_episode(episode)
        assert writer.add_episode(episode) == episode_id
    store = EpisodeStore.open(tmp_path)
    assert len(store) == 1
    assert verify_store(tmp_path).damages == []
    found = store.read(episode_id)
    assert found.content_hash() != episode.content_hash()
    assert found.episode_id() == episode_id
    for name in ("image", "grey"):
        difference = found.observations[name].astype(float) - episode.observations[name]
        assert 0 < np.abs(difference).mean() < 90  # noise is the worst there is
        window = store.read_window(episode_id, 30, 5).observations[name]
        np.testing.assert_array_equal(window, found.observations[name][30:36])
    assert found.observations["mission"] == episode.observations["mission"]
    np.testing.assert_array_equal(found.actions["action"], episode.actions["action"])
    assert store.lossy_columns(episode_id) == {"observations/grey": 60, "observations/image": 60}
    with pytest.raises(ValueError, match="lossy_images: expected a quality from 1 to 100 or None, got 0"):
        EpisodeWriter(tmp_path, lossy_images=0)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first episode and in the middle."""

    def refuse(descriptor: int, data: Any) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with EpisodeWriter(tmp_path) as writer:
        writer.add_task(TASK)
        episode_id = writer.add_episode(episode_of(0))
        with monkeypatch.context() as patch:
            patch.setattr(os, "writev", refuse)
            with pytest.raises(StoreError, match=r"it cannot be written \(Read-only file system\)"):
                writer.add_episode(episode_of(1))
    assert EpisodeStore.open(tmp_path).episode_ids == [episode_id]


# --- full disks -------------------------------------------------------------------------------------------------


def _fill_until_refused(store: Path) -> tuple[EpisodeWriter, list[str], str]:
    writer = EpisodeWriter(store)
    writer.add_task(TASK)
    ids: list[str] = []
    while True:
        try:
            ids.append(writer.add_episode(episode_of(len(ids), num_steps=100)))
        except StoreError as error:
            return writer, ids, str(error)


def _check_full(store: Path, ids: list[str], message: str) -> None:
    if "no space left on the disk" not in message or "every episode already in the store is safe" not in message:
        raise AssertionError(message)
    reader = EpisodeStore.open(store)
    assert sorted(reader.episode_ids) == sorted(ids)
    for number, episode_id in enumerate(ids):
        assert_episodes_equal(episode_of(number, num_steps=100), reader.read(episode_id))
    assert verify_store(store).damages == []


def test_a_file_that_cannot_grow_loses_nothing(tmp_path: Path) -> None:
    """The limit on file sizes stands in for a full disk; when space is back the same writer goes on."""

    def run() -> None:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        writer, ids, message = _fill_until_refused(tmp_path / "store")
        assert len(ids) >= 5
        _check_full(tmp_path / "store", ids, message)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        ids.append(writer.add_episode(episode_of(len(ids), num_steps=100)))
        writer.close()
        reader = EpisodeStore.open(tmp_path / "store")
        assert sorted(reader.episode_ids) == sorted(ids)
        assert verify_store(tmp_path / "store").damages == []

    child = os.fork()
    if child == 0:
        code = 1
        try:
            run()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of `size` in memory; skips the test where mounting is not allowed."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """A real full disk: nothing acknowledged is lost, also when there is no room for the index at the end."""
    with small_disk(tmp_path / "disk", "1m") as disk:
        writer, ids, message = _fill_until_refused(disk / "store")
        assert len(ids) >= 50
        _check_full(disk / "store", ids, message)
        with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as filler:
            while True:
                filler.write(bytes(512))
        with pytest.raises(StoreError, match="no space left on the disk"):
            writer.close()
        _check_full(disk / "store", ids, message)
        with pytest.raises(StoreError, match="no space left on the disk"):
            EpisodeWriter(disk / "store")
        subprocess.run(["mount", "-o", "remount,size=2m", str(disk)], check=True)
        with EpisodeWriter(disk / "store") as again:
            assert len(again.recovered) == 1
        _check_full(disk / "store", ids, message)
        assert len(list((disk / "store" / "segments").glob("*.seal"))) == 1
