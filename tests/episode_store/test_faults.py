"""What a store survives: killed writers, flipped bits, cut and missing files, several writers at once.

Fast counts here; the `slow` marker runs the same with many more.
"""

from __future__ import annotations

import dataclasses
import fcntl
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from episode_store import change
from episode_store import writer as writer_module
from episode_store.episode import Episode, EpisodeMetadata
from episode_store.errors import StoreError
from episode_store.record_format import parse_header
from episode_store.repair import repair
from episode_store.store import EpisodeStore
from episode_store.testing import StoreContract, assert_episodes_equal, example_tasks, random_episode
from episode_store.verify import verify_store
from episode_store.writer import EpisodeWriter, recover


def numbered_episode(stream: int, number: int) -> Episode:
    """The same episode in every process."""
    rng = np.random.default_rng([stream, number])
    task = list(example_tasks().values())[number % 4]
    metadata = EpisodeMetadata(agent_id=f"stream{stream}", seed=number, collection_index=number)
    return random_episode(task, rng, int(rng.integers(1, 60)), metadata=metadata)


def write_and_acknowledge(store: Path, stream: int, pipe: int, count: int) -> None:
    """Writes numbered episodes; tells the pipe each number after its `add_episode` returned."""
    with EpisodeWriter(store) as writer:
        for task in example_tasks().values():
            writer.add_task(task)
        for number in range(count):
            writer.add_episode(numbered_episode(stream, number))
            os.write(pipe, number.to_bytes(4, "little"))


def forked(action: Callable[[], None]) -> int:
    """Runs `action` in a child process that ends without running anything of pytest's."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return child


def killed_writers(store: Path, kills: int, seed: int) -> None:
    """Kills `kills` writers at random instants and checks the store after each."""
    chance = random.Random(seed)
    expected: dict[str, Episode] = {}
    for stream in range(kills):
        read_end, write_end = os.pipe()
        child = forked(lambda stream=stream, pipe=write_end: write_and_acknowledge(store, stream, pipe, 100_000))
        os.close(write_end)
        acknowledged = 0
        for _ in range(chance.randrange(1, 60)):
            acknowledged += len(os.read(read_end, 4)) == 4
        time.sleep(chance.random() * 0.003)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while os.read(read_end, 4):
            acknowledged += 1
        os.close(read_end)
        # One more than acknowledged may be there: the writer died between storing it and telling us.
        for number in range(acknowledged):
            episode = numbered_episode(stream, number)
            expected[episode.episode_id()] = episode
        last = numbered_episode(stream, acknowledged)
        reader = EpisodeStore.open(store)
        found = set(reader.episode_ids)
        if last.episode_id() in found:
            expected[last.episode_id()] = last
        assert found == set(expected)
        for episode_id in list(expected)[-acknowledged:]:
            assert_episodes_equal(expected[episode_id], reader.read(episode_id))
    recover(store)
    assert not list((store / "segments").glob("*.journal"))
    assert set(EpisodeStore.open(store).episode_ids) == set(expected)
    assert verify_store(store).damages == []


@pytest.fixture
def _small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments end every few episodes, so that a kill also meets sealing."""
    monkeypatch.setattr(writer_module, "MAX_SEGMENT_EPISODES", 7)


def test_killed_writers_lose_nothing_acknowledged(tmp_path: Path) -> None:
    """SIGKILL at random instants of writing."""
    killed_writers(tmp_path / "store", 12, seed=0)


@pytest.mark.usefixtures("_small_segments")
def test_killed_writers_lose_nothing_while_sealing(tmp_path: Path) -> None:
    """SIGKILL at random instants, sealing among them."""
    killed_writers(tmp_path / "store", 12, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_killed_writers_lose_nothing_200_times(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL, 200 times in all."""
    monkeypatch.setattr(writer_module, "MAX_SEGMENT_EPISODES", [7, 1000][seed % 2])
    killed_writers(tmp_path / "store", 20, seed=100 + seed)


def test_a_killed_interpreter_is_recovered_and_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The same with a whole Python process of its own, and what the log says."""
    code = (
        "import numpy as np; from episode_store.testing import *; from episode_store.writer import EpisodeWriter\n"
        f"w = EpisodeWriter({str(tmp_path / 'store')!r}); t = example_tasks()['Robot-v1']; w.add_task(t)\n"
        "for n in range(10**6): w.add_episode(random_episode(t, np.random.default_rng(n), 20)); print(n, flush=True)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(writer_module.__file__).parents[1])}
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
    assert child.stdout is not None
    for _ in range(20):
        child.stdout.readline()
    child.kill()
    acknowledged = 20 + len(child.stdout.read().splitlines())
    child.wait()
    child.stdout.close()
    with caplog.at_level(logging.WARNING), EpisodeWriter(tmp_path / "store") as writer:
        assert len(writer.recovered) == 1
    assert "its writer ended without closing it" in caplog.text
    assert "episodes kept" in caplog.text
    assert len(EpisodeStore.open(tmp_path / "store")) in (acknowledged, acknowledged + 1)
    assert recover(tmp_path / "store") == []


def test_two_writers_and_a_reader(tmp_path: Path) -> None:
    """Readers never see a half episode; writers do not disturb each other; no living writer is "recovered"."""
    store = tmp_path / "store"
    EpisodeWriter(store).close()
    sink = os.open(os.devnull, os.O_WRONLY)
    children = {forked(lambda stream=stream: write_and_acknowledge(store, stream, sink, 150)) for stream in (1, 2)}
    seen = 0
    while children:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child in children:
            children.remove(child)
            assert os.waitstatus_to_exitcode(status) == 0
        assert recover(store) == []
        reader = EpisodeStore.open(store)
        assert len(reader) >= seen
        seen = len(reader)
        for episode_id in reader.episode_ids[::7]:
            assert reader.read(episode_id).episode_id() == episode_id
    reader = EpisodeStore.open(store)
    expected = {numbered_episode(stream, number).episode_id() for stream in (1, 2) for number in range(150)}
    assert set(reader.episode_ids) == expected
    assert verify_store(store).damages == []
    assert len(reader.segments()) == 2


def test_the_same_episodes_from_two_writers_are_one(tmp_path: Path) -> None:
    """Two writers that do not know of each other's episodes: the reader lists each id once."""
    task = example_tasks()["Robot-v1"]
    episode = random_episode(task, np.random.default_rng(0), 5)
    with EpisodeWriter(tmp_path) as first, EpisodeWriter(tmp_path) as second:
        for writer in (first, second):
            writer.add_task(task)
            writer.add_episode(episode)
    store = EpisodeStore.open(tmp_path)
    assert len(store) == 1
    assert_episodes_equal(episode, store.read(store.episode_ids[0]))


def test_a_forked_process_cannot_use_the_writer(tmp_path: Path) -> None:
    """It would write into its parent's segment."""
    task = example_tasks()["Robot-v1"]
    with EpisodeWriter(tmp_path) as writer:
        writer.add_task(task)

        def use() -> None:
            with pytest.raises(StoreError, match="cannot be used in a forked process"):
                writer.add_episode(random_episode(task, np.random.default_rng(0), 5))

        assert os.waitstatus_to_exitcode(os.waitpid(forked(use), 0)[1]) == 0


# --- damage -----------------------------------------------------------------------------------------------------


class _Contract(StoreContract):
    """Only for `fill`."""

    __test__ = False


@pytest.fixture(params=["sealed", "left by a killed writer"])
def filled(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Episode]]:
    """A small store, sealed or as a killed writer leaves it, and what is in it."""
    store = tmp_path / "store"
    if request.param == "sealed":
        episodes = _Contract().fill(store, num_episodes=6)
    else:
        read_end, write_end = os.pipe()
        child = forked(lambda: _write_and_wait(store, write_end))
        os.read(read_end, 1)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read_end)
        os.close(write_end)
        episodes = {(episode := numbered_episode(0, number)).episode_id(): episode for number in range(6)}
    return store, episodes


def _write_and_wait(store: Path, pipe: int) -> None:
    writer = EpisodeWriter(store)
    for task in example_tasks().values():
        writer.add_task(task)
    for number in range(6):
        writer.add_episode(numbered_episode(0, number))
    os.write(pipe, b"!")
    signal.pause()


def read_all(store: Path, episodes: dict[str, Episode]) -> int:
    """Reads what can be read, which must be right; returns how many episodes were refused or could not be found."""
    try:
        reader = EpisodeStore.open(store)
    except StoreError:
        return len(episodes)
    refused = 0
    for episode_id in reader.episode_ids:
        try:
            episode = reader.read(episode_id)
        except StoreError as error:
            if episode_id not in str(error) or ".data" not in str(error):
                raise
            refused += 1
        else:
            assert_episodes_equal(episodes[episode_id], episode)
    return refused + len(episodes) - len(reader)


def flip_every_region(store: Path, episodes: dict[str, Episode], positions: Callable[[int], Iterator[int]]) -> int:
    """Flips one bit at a time; each must be told by `verify`, and no read may be wrong. Returns how many."""
    chance = random.Random(0)
    flips = 0
    gaps = {index.files.data.name: index.gaps for index in EpisodeStore.open(store).segments().values()}
    for file in store_files(store):
        content = file.read_bytes()
        for position in positions(len(content)):
            changed = bytearray(content)
            changed[position] ^= 1 << chance.randrange(8)
            file.write_bytes(changed)
            report = verify_store(store)
            # Bytes that `repair` left out are damaged already, and no read touches them.
            known = any(start <= position < end for start, end in gaps.get(file.name, ()))
            assert report.damages or known, f"{file.name}: a flip at {position} of {len(content)} is silent"
            read_all(store, episodes)
            flips += 1
        file.write_bytes(content)
    assert verify_store(store).damages == []
    return flips


@pytest.mark.filterwarnings("ignore")
def test_no_flipped_bit_is_silent(filled: tuple[Path, dict[str, Episode]]) -> None:
    """Single bits over every region of every file: about 60 a file, its first and last bytes among them."""
    store, episodes = filled

    def positions(size: int) -> Iterator[int]:
        step = max(1, size // 50)
        yield from sorted({*range(0, size, step), *range(min(4, size)), *range(max(0, size - 6), size)})

    assert flip_every_region(store, episodes, positions) > 150


@pytest.mark.slow
def test_no_flipped_bit_anywhere_is_silent(filled: tuple[Path, dict[str, Episode]]) -> None:
    """One bit of every third byte of every file, more than 2,000 in all."""
    store, episodes = filled
    assert flip_every_region(store, episodes, lambda size: iter(range(size % 3, size, 3))) > 2000


@pytest.fixture
def everything(tmp_path: Path) -> tuple[Path, dict[str, Episode]]:
    """A store with every kind of file, and what its newest version shows: a sealed segment, one that was repaired, one
    that a killed writer left, a version, a view, refused episodes."""
    store = tmp_path / "everything"
    _Contract().fill(store, num_episodes=6)
    (data,) = (store / "segments").glob("*.data")
    row = EpisodeStore.open(store).table().sort_by("offset").to_pylist()[2]
    content = bytearray(data.read_bytes())
    content[row["offset"] + row["record_bytes"] // 2] ^= 0xFF
    data.write_bytes(content)
    assert repair(store).lost
    _Contract().fill(store, num_episodes=4, seed=1)
    change.delete(store, where="num_steps < 8")
    change.filter_store(store, where="task_id == 'Robot-v1'", name="robots")
    with EpisodeWriter(store, on_invalid="quarantine") as writer:
        for _ in range(2):
            bad = dataclasses.replace(numbered_episode(9, 1), rewards=np.array([np.nan]))
            assert writer.add_episode(bad) == ""
    read_end, write_end = os.pipe()
    child = forked(lambda: _write_and_wait(store, write_end))
    os.read(read_end, 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(read_end)
    os.close(write_end)
    reader = EpisodeStore.open(store)
    kinds = {file.suffix for file in store_files(store)}
    assert kinds == {".json", ".data", ".parquet", ".seal", ".journal", ".jsonl"}
    assert any(".r1." in file.name for file in store_files(store))
    return store, {episode_id: reader.read(episode_id) for episode_id in reader.episode_ids}


# Files of lines that are appended to.
_LINES = (".journal", ".jsonl")


def store_files(store: Path) -> list[Path]:
    """All files but the bytes that `repair` set aside, which no one reads."""
    return [file for file in sorted(store.rglob("*")) if file.is_file() and file.parent.name != "damaged"]


@pytest.mark.filterwarnings("ignore")
def test_no_flipped_bit_of_any_kind_of_file_is_silent(everything: tuple[Path, dict[str, Episode]]) -> None:
    """Versions, views, repaired indexes and the quarantine too."""
    store, episodes = everything

    def positions(size: int) -> Iterator[int]:
        yield from range(7 % size, size - 1, max(1, size // 9))
        yield size - 1

    assert flip_every_region(store, episodes, positions) > 150


@pytest.mark.slow
def test_no_flipped_bit_of_any_kind_of_file_is_silent_2000_times(everything: tuple[Path, dict[str, Episode]]) -> None:
    """The same with 2,000 and more, over every file."""
    store, episodes = everything
    assert flip_every_region(store, episodes, lambda size: iter(range(size % 5, size, max(1, size // 110)))) > 2000


def test_no_cut_of_any_kind_of_file_is_silent(everything: tuple[Path, dict[str, Episode]]) -> None:
    """Cut to nothing, inside the header, at lines' edges, in the middle, one byte short."""
    store, episodes = everything
    for file in store_files(store):
        content = file.read_bytes()
        lines = [position + 1 for position, byte in enumerate(content) if byte == 10 and file.suffix in _LINES]
        cuts = {0, 1, 64, 80, len(content) // 2, len(content) - 1, *lines[:2], *lines[-2:]}
        for cut in sorted(cut for cut in cuts if cut < len(content)):
            file.write_bytes(content[:cut])
            report = verify_store(store)
            # Whole lines are missing from the end of a quarantine file: nothing tells how many there were.
            if not (file.suffix == ".jsonl" and (cut == 0 or cut in lines)):
                assert report.damages or report.notes, f"{file.name} cut at {cut} of {len(content)} is silent"
            read_all(store, episodes)
        file.write_bytes(content)
    assert verify_store(store).damages == []


@pytest.mark.parametrize("part", ["block", "header", "column"])
def test_no_cut_inside_a_record_is_silent(tmp_path: Path, part: str) -> None:
    """The data file of a sealed segment ends at a block's edge, after the header, at a column's edge."""
    episodes = _Contract().fill(tmp_path, num_episodes=6)
    (data,) = (tmp_path / "segments").glob("*.data")
    content = data.read_bytes()
    store = EpisodeStore.open(tmp_path)
    row = store.table().sort_by("offset").to_pylist()[-1]
    header = parse_header(np.frombuffer(content[row["offset"] :], np.uint8))
    for column in header.columns:
        block = column.offset + (column.block_bytes[0] if column.block_bytes else 0)
        edge = {"block": block, "header": header.header_bytes, "column": column.offset}[part]
        data.write_bytes(content[: row["offset"] + edge])
        report = verify_store(tmp_path)
        assert any("bytes, expected" in damage.problem for damage in report.damages)
        assert any(damage.episode_id == row["episode_id"] for damage in report.damages)
        assert read_all(tmp_path, episodes) == 1


def test_no_cut_file_is_silent(filled: tuple[Path, dict[str, Episode]]) -> None:
    """Every file cut at the start, the middle, records' and lines' edges, one byte short."""
    store, episodes = filled
    index = next(iter(EpisodeStore.open(store).segments().values()))
    edges = [0, 64, *(index.table["offset"].to_numpy() + index.table["record_bytes"].to_numpy()).tolist()]
    for file in [file for file in sorted(store.rglob("*")) if file.is_file()]:
        content = file.read_bytes()
        lines = [position + 1 for position, byte in enumerate(content) if byte == 10]
        cuts = {0, 1, len(content) // 2, len(content) - 1}
        cuts |= set(edges) | {edge + 100 for edge in edges} if file.suffix == ".data" else set()
        cuts |= set(lines) if file.suffix == ".journal" else set()
        for cut in sorted(cut for cut in cuts if cut < len(content)):
            file.write_bytes(content[:cut])
            report = verify_store(store)
            assert report.damages or report.notes, f"{file.name} cut at {cut} of {len(content)} is silent"
            lost = read_all(store, episodes)
            if file.suffix == ".journal":
                # Records tell for themselves: cutting the journal loses nothing.
                assert lost == 0
            elif file.suffix == ".data":
                assert lost >= 1
        file.write_bytes(content)
    assert verify_store(store).damages == []


def test_no_missing_file_is_silent(filled: tuple[Path, dict[str, Episode]]) -> None:
    """Each file taken away in turn."""
    store, episodes = filled
    for file in [file for file in sorted(store.rglob("*")) if file.is_file()]:
        content = file.read_bytes()
        file.unlink()
        try:
            report = verify_store(store)
        except StoreError as error:
            if "has no store.json" not in str(error):
                raise
        else:
            assert report.damages, file.name
            read_all(store, episodes)
            if file.suffix in (".data", ".seal"):
                EpisodeWriter(store).close()
        file.write_bytes(content)


def test_damage_can_be_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`damaged="skip"` reads the rest and says what it left out; a writer goes on as well."""
    episodes = _Contract().fill(tmp_path, num_episodes=3)
    more = _Contract().fill(tmp_path, num_episodes=3, seed=1)
    index = sorted((tmp_path / "segments").glob("*.parquet"))[0]
    index.write_bytes(index.read_bytes()[:-1])
    with pytest.raises(StoreError, match=r"run `python -m episode_store verify --store"):
        EpisodeStore.open(tmp_path)
    store = EpisodeStore.open(tmp_path, damaged="skip")
    assert set(store.episode_ids) == set(more)
    assert "bytes, expected" in store.damage[0]
    assert "left out" in caplog.text
    with EpisodeWriter(tmp_path) as writer:
        for episode in episodes.values():
            writer.add_episode(episode)
    assert set(EpisodeStore.open(tmp_path, damaged="skip").episode_ids) == set(more) | set(episodes)


def test_a_journal_line_torn_by_hand_is_left_out_when_its_writer_lives(tmp_path: Path) -> None:
    """A reader that looks between two writes of a living writer sees whole lines only."""
    task = example_tasks()["Robot-v1"]
    with EpisodeWriter(tmp_path) as writer:
        writer.add_task(task)
        writer.add_episode(random_episode(task, np.random.default_rng(0), 5))
        (journal,) = (tmp_path / "segments").glob("*.journal")
        with open(journal, "ab") as file:
            file.write(b'{"task_id":"Rob')
        store = EpisodeStore.open(tmp_path)
        assert len(store) == 1
        (index,) = store.segments().values()
        assert index.alive
        assert index.notes == []
        with open(journal, "rb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_a_link_out_of_the_store_is_never_cut(tmp_path: Path) -> None:
    """Recovery cuts torn data files; not what a link in their place points to."""
    task = example_tasks()["Robot-v1"]
    store = tmp_path / "store"
    child = os.fork()
    if child == 0:
        writer = EpisodeWriter(store)
        writer.add_task(task)
        writer.add_episode(random_episode(task, np.random.default_rng(0), 5))
        os._exit(0)
    os.waitpid(child, 0)
    (data,) = (store / "segments").glob("*.data")
    outside = tmp_path / "precious"
    data.rename(outside)
    content = outside.read_bytes() + b"precious" * 20
    outside.write_bytes(content)
    data.symlink_to(outside)
    (sentence,) = recover(store)
    assert "is a link or a folder, expected the data file itself" in sentence
    assert outside.read_bytes() == content


# --- a folder that becomes read-only ----------------------------------------------------------------------------


def _write_until_refused(store: Path, forbid: Callable[[], None]) -> None:
    """Writes, loses the right to write, is told so, and finds all that was acknowledged readable."""
    task = example_tasks()["Robot-v1"]
    writer = EpisodeWriter(store)
    writer.add_task(task)
    ids = {writer.add_episode(numbered_episode(0, 4 * number + 1)) for number in range(5)}
    forbid()
    with pytest.raises(StoreError, match=r"it cannot be written .*every episode already in the store is safe"):
        # The open segment may still grow; its index cannot be made.
        writer.close()
    with pytest.raises(StoreError, match=r"it cannot be written"):
        EpisodeWriter(store)
    reader = EpisodeStore.open(store)
    assert set(reader.episode_ids) == ids
    for episode_id in ids:
        assert reader.read(episode_id).episode_id() == episode_id
    assert verify_store(store).damages == []
    with pytest.raises((StoreError, PermissionError, OSError)) as error:
        change.delete(store, where="num_steps < 100")
    assert not isinstance(error.value, FileNotFoundError)


def test_a_folder_that_becomes_read_only_loses_nothing(tmp_path: Path) -> None:
    """Without root's rights, which no mode stops; afterwards the next writer seals what there is."""
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.getuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o011)

    def run() -> None:
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        store = tmp_path / "store"

        def forbid() -> None:
            for folder in (store / "segments", store / "tasks", store):
                folder.chmod(0o555)

        _write_until_refused(store, forbid)

    assert os.waitstatus_to_exitcode(os.waitpid(forked(run), 0)[1]) == 0
    for folder in ("store", "store/segments", "store/tasks"):
        (tmp_path / folder).chmod(0o777)
    with EpisodeWriter(tmp_path / "store") as writer:
        assert len(writer.recovered) == 1
    assert len(EpisodeStore.open(tmp_path / "store")) == 5
    assert verify_store(tmp_path / "store").damages == []
