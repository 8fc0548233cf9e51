"""Stores behind URLs: a local HTTP server that serves ranges, one that does not, one that fails, fsspec's memory."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from episode_store import change, cli, remote
from episode_store.compact import compact
from episode_store.episode import Episode, EpisodeMetadata
from episode_store.errors import CorruptionError, RemoteError, StoreError, UserError
from episode_store.merge import merge
from episode_store.repair import repair
from episode_store.spec import ArraySpec, Modality
from episode_store.store import EpisodeStore
from episode_store.task import TaskSpec
from episode_store.testing import StoreContract, assert_episodes_equal, example_tasks, random_episode
from episode_store.verify import verify_store
from episode_store.writer import EpisodeWriter

# What a server does to the body of an answer: (path, bytes) -> bytes, or None to break the connection.
Mischief = Callable[[str, bytes], bytes | None]


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Python's own static server and, when the server wants it, ranges, counts and mischief."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        """One file or a part of it."""
        path = Path(self.translate_path(self.path))
        self.server.requests.append(self.path)
        if self.server.broken:
            self.close_connection = True
            return
        if not path.is_file():
            super().do_GET()
            return
        wanted, status, size = self.headers.get("Range"), 200, path.stat().st_size
        start, stop = 0, size
        if wanted and self.server.ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1 if last else size, size)
            status = 206
            if start >= size:
                self.send_error(416)
                return
        with open(path, "rb") as file:
            file.seek(start)
            body = file.read(stop - start)
        changed = self.server.mischief(self.path, body)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.end_headers()
        if changed is None:
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        else:
            with contextlib.suppress(ConnectionError):
                self.wfile.write(changed)
                self.server.sent += len(changed)


class Server(http.server.ThreadingHTTPServer):
    """A static server of one folder."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), lambda *rest: _Handler(*rest, directory=str(folder)))
        self.ranges = True
        self.broken = False
        self.mischief: Mischief = lambda path, body: body
        self.requests: list[str] = []
        self.sent = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}/store"

    def handle_error(self, *_: object) -> None:
        """Clients that go away are no news."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Serves `tmp_path`."""
    running = Server(tmp_path)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


class _Contract(StoreContract):
    """Only for `fill`."""

    __test__ = False


def big_task() -> TaskSpec:
    """Float states: many raw blocks."""
    state = ArraySpec(modality=Modality.CONTINUOUS, shape=(64,), dtype="float64")
    frame = ArraySpec(modality=Modality.IMAGE, shape=(32, 32, 3), dtype="uint8")
    action = ArraySpec(modality=Modality.DISCRETE, dtype="int64", num_values=(4,))
    return TaskSpec(task_id="Big-v0", observation_spec={"state": state, "frame": frame}, action_spec={"action": action})


def write_big(store: Path, num_steps: int = 2000) -> tuple[str, Episode]:
    """One episode of 1 MB of states and 6 MB of noise frames."""
    episode = random_episode(big_task(), np.random.default_rng(0), num_steps)
    with EpisodeWriter(store) as writer:
        writer.add_task(big_task())
        return writer.add_episode(episode), episode


def test_a_store_over_http_is_the_store(server: Server, tmp_path: Path) -> None:
    """List, query, read, windows, metadata, verify: all as from the folder."""
    episodes = _Contract().fill(tmp_path / "store")
    ours, theirs = EpisodeStore.open(tmp_path / "store"), EpisodeStore.open(server.url)
    assert list(theirs.episode_ids) == list(ours.episode_ids)
    assert dict(theirs.tasks) == dict(ours.tasks)
    assert theirs.table().equals(ours.table())
    assert theirs.query("num_steps > 10", sort=["-num_steps"]).equals(ours.query("num_steps > 10", sort=["-num_steps"]))
    for episode_id, episode in episodes.items():
        assert_episodes_equal(episode, theirs.read(episode_id))
        window = theirs.read_window(episode_id, episode.num_steps - 1, 1)
        assert window.rewards is not None
        assert window.rewards.tolist() == episode.rewards[-1:].tolist()
        assert theirs.read_metadata(episode_id).to_json() == episode.metadata.to_json()
    report = verify_store(server.url)
    assert report.damages == []
    assert report == verify_store(tmp_path / "store")


def test_a_store_in_memory_and_in_a_file_url(tmp_path: Path) -> None:
    """Any file system of fsspec; `file://` is the folder itself."""
    episodes = _Contract().fill(tmp_path / "store")
    fsspec.filesystem("memory").put(str(tmp_path / "store"), "/copied/store", recursive=True)
    store = EpisodeStore.open("memory://copied/store")
    for episode_id, episode in episodes.items():
        assert_episodes_equal(episode, store.read(episode_id))
    assert verify_store("memory://copied/store").damages == []
    assert EpisodeStore.open(f"file://{tmp_path / 'store'}").path == tmp_path / "store"


def test_a_window_fetches_only_its_blocks(server: Server, tmp_path: Path) -> None:
    """Bytes that left the server, and how many requests that took."""
    episode_id, episode = write_big(tmp_path / "store")
    store = EpisodeStore.open(server.url)
    store.read_window(episode_id, 0, 1)
    server.sent, server.requests[:] = 0, []
    window = store.read_window(episode_id, 1000, 32, columns=["observations/state"])
    assert window.observations["state"].tobytes() == episode.observations["state"][1000:1033].tobytes()
    # 33 rows of 512 bytes lie in at most three blocks of 16 KiB.
    assert len(server.requests) == 1
    assert server.sent <= 3 * 16_384
    server.sent, server.requests[:] = 0, []
    whole = store.read_window(episode_id, 1000, 32)
    assert whole.observations["frame"].tobytes() == episode.observations["frame"][1000:1033].tobytes()
    assert len(server.requests) <= 4
    assert server.sent <= 3 * 16_384 + 4 * 16 * 3_072 + 4 * 16_384
    assert_episodes_equal(episode, store.read(episode_id))


def test_versions_and_quarantine_are_read(server: Server, tmp_path: Path) -> None:
    """What a version leaves out is left out from afar too."""
    _Contract().fill(tmp_path / "store")
    change.delete(tmp_path / "store", where="num_steps < 20")
    ours = EpisodeStore.open(tmp_path / "store")
    assert list(EpisodeStore.open(server.url).episode_ids) == list(ours.episode_ids)
    assert len(EpisodeStore.open(server.url, version=0)) == 12
    assert EpisodeStore.open(server.url).quarantine().num_rows == 0


def test_an_open_segment_shows_what_was_acknowledged(server: Server, tmp_path: Path) -> None:
    """Locks are not seen from afar: the whole lines of a journal count."""
    task = example_tasks()["Robot-v1"]
    with EpisodeWriter(tmp_path / "store") as writer:
        writer.add_task(task)
        episode_id = writer.add_episode(random_episode(task, np.random.default_rng(0), 5))
        (journal,) = (tmp_path / "store" / "segments").glob("*.journal")
        with open(journal, "ab") as file:
            file.write(b'{"task_id":"Rob')
        store = EpisodeStore.open(server.url)
        assert list(store.episode_ids) == [episode_id]
        assert store.read(episode_id).episode_id() == episode_id


def test_it_pickles_cheaply_and_forks(server: Server, tmp_path: Path) -> None:
    """As workers get it: a copy by pickle, and a forked process."""
    episode_id, episode = write_big(tmp_path / "store", 50)
    store = EpisodeStore.open(server.url)
    store.read(episode_id)
    packed = pickle.dumps(store)
    assert len(packed) < 1000
    assert_episodes_equal(episode, pickle.loads(packed).read(episode_id))  # noqa: S301 - made two lines above
    child = os.fork()
    if child == 0:
        code = 1
        try:
            assert_episodes_equal(episode, store.read(episode_id))
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_server_without_ranges_is_told_before_it_sends_everything(server: Server, tmp_path: Path) -> None:
    """Python's http.server is such a one: the table is read, episodes are refused in one line."""
    episode_id, _ = write_big(tmp_path / "store")
    server.ranges = False
    store = EpisodeStore.open(server.url)
    assert store.query("num_steps == 2000").num_rows == 1
    with pytest.raises(RemoteError, match=r"episode .* hands out whole files only; use one that serves parts of files"):
        store.read_window(episode_id, 0, 1)


def test_damage_on_the_way_is_never_data(server: Server, tmp_path: Path) -> None:
    """A flipped byte, a cut body, a missing file, a broken connection, a server that is gone."""
    episode_id, _ = write_big(tmp_path / "store", 200)
    (data,) = (tmp_path / "store" / "segments").glob("*.data")

    def flip(path: str, body: bytes) -> bytes:
        middle = len(body) // 2
        return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :] if path.endswith(".data") else body

    named = rf"episode {episode_id} of Big-v0 in http://127"
    store = EpisodeStore.open(server.url)
    store.read_window(episode_id, 0, 1)
    server.mischief = flip
    with pytest.raises(CorruptionError, match=named):
        store.read(episode_id)
    with pytest.raises(CorruptionError, match=named):
        EpisodeStore.open(server.url).read(episode_id)
    server.mischief = lambda path, body: None if path.endswith(".data") else body
    with pytest.raises(RemoteError, match=named):
        store.read_window(episode_id, 100, 10)
    server.mischief = lambda path, body: body
    os.truncate(data, data.stat().st_size - 4096)
    with pytest.raises(CorruptionError, match=named + r".*cut short"):
        store.read(episode_id)
    assert "bytes, expected" in verify_store(server.url).damages[0].problem
    data.unlink()
    with pytest.raises(CorruptionError, match=named + r".*missing, the episodes in it are lost"):
        EpisodeStore.open(server.url).read(episode_id)
    server.broken = True
    with pytest.raises(RemoteError, match=named):
        store.read(episode_id)
    with pytest.raises(RemoteError, match=r"http://127.*cannot be"):
        EpisodeStore.open(server.url)


def test_indexes_changed_on_the_way_are_told(server: Server, tmp_path: Path) -> None:
    """The small files have checksums as well."""
    _Contract().fill(tmp_path / "store", num_episodes=3)
    for suffix in (".seal", ".parquet", "store.json", "Robot-v1.json"):

        def flip(path: str, body: bytes, suffix: str = suffix) -> bytes:
            return body[:9] + bytes([body[9] ^ 4]) + body[10:] if path.endswith(suffix) else body

        server.mischief = flip
        with pytest.raises(CorruptionError, match=suffix):
            EpisodeStore.open(server.url)
    server.mischief = lambda path, body: body
    (index,) = (tmp_path / "store" / "segments").glob("*.parquet")
    index.unlink()
    with pytest.raises(CorruptionError, match=r"parquet: missing"):
        EpisodeStore.open(server.url)


def test_a_silent_server_is_no_hang(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers nothing: given up after a while."""
    _Contract().fill(tmp_path / "store", num_episodes=1)
    monkeypatch.setattr(remote, "SILENCE_SECONDS", 0.3)
    release = threading.Event()

    def wait(path: str, body: bytes) -> bytes:
        release.wait(20)
        return body

    server.mischief = wait
    with pytest.raises(RemoteError, match=r"http://127.*cannot be read"):
        EpisodeStore.open(server.url)
    release.set()


def test_what_is_no_store_is_one_line(server: Server, tmp_path: Path) -> None:
    """A server that is not there, a folder that is no store, an unknown kind of URL, no listing."""
    with pytest.raises(RemoteError, match=r"http://127.0.0.1:9/store: cannot be listed"):
        EpisodeStore.open("http://127.0.0.1:9/store")
    with pytest.raises(StoreError, match=r"it has no store.json"):
        EpisodeStore.open(server.url)
    with pytest.raises(UserError, match=r"store what://ever: cannot be opened: Protocol not known: what"):
        EpisodeStore.open("what://ever")
    with pytest.raises(RemoteError) as error:
        EpisodeStore.open("http://someone:secret@127.0.0.1:9/store")
    assert "secret" not in str(error.value)


def test_writing_to_a_url_is_refused(tmp_path: Path) -> None:
    """In one line, by everything that writes; no folder `http:` appears."""
    url = "http://127.0.0.1:9/store"
    actions: list[Callable[[], object]] = [
        lambda: EpisodeWriter(url),
        lambda: change.delete(url, where="num_steps < 3"),
        lambda: change.filter_store(url, where="num_steps < 3"),
        lambda: change.restore(url, 0),
        lambda: change.split(url, {"a": 0.5, "b": 0.5}),
        lambda: repair(url),
        lambda: compact(url),
        lambda: merge(url, [(tmp_path, None)]),
        lambda: merge(tmp_path / "new", [(url, None)]),
    ]
    with contextlib.chdir(tmp_path):
        for action in actions:
            with pytest.raises(StoreError, match=r"store http://127.0.0.1:9/store: a store at a URL can only be read"):
                action()
        assert list(tmp_path.iterdir()) == []


def test_the_reading_verbs_take_urls(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """list, show, stats, query, verify, doctor, export."""
    _Contract().fill(tmp_path / "store")
    for verb, *more in (
        ("list",),
        ("show", "--tasks", "Robot-v1"),
        ("stats",),
        ("query", "--where", "num_steps > 3"),
        ("verify",),
        ("doctor",),
        ("export", "--to", "robomimic", "--tasks", "Robot-v1", "--output", str(tmp_path / "out")),
    ):
        assert cli.main([verb, "--store", server.url, *more, "--json"]) == 0, verb
        json.loads(capsys.readouterr().out)
    assert cli.main(["delete", "--store", server.url, "--where", "num_steps < 3"]) == 2
    assert "can only be read" in capsys.readouterr().err


def test_memory_stays_small(server: Server, tmp_path: Path) -> None:
    """Windows of an episode of 100 MB: a reader holds what it is asked for."""
    state = ArraySpec(modality=Modality.CONTINUOUS, shape=(5000,), dtype="float64")
    task = TaskSpec(task_id="Wide-v0", observation_spec={"state": state}, action_spec={"action": state})
    num_steps = 1200
    with EpisodeWriter(tmp_path / "store") as writer:
        writer.add_task(task)
        episode_id = writer.add_episode(
            Episode(
                task_id="Wide-v0",
                observations={"state": np.zeros((num_steps + 1, 5000))},
                actions={"action": np.zeros((num_steps, 5000))},
                rewards=np.zeros(num_steps),
                terminated=True,
                truncated=False,
                metadata=EpisodeMetadata(agent_id="none"),
            )
        )
    code = (
        "import resource\nfrom episode_store.store import EpisodeStore\n"
        f"store = EpisodeStore.open({server.url!r})\n"
        f"store.read_window({episode_id!r}, 0, 2)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"for start in range(0, 1190, 10): store.read_window({episode_id!r}, start, 10)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(remote.__file__).parents[1])}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert int(run.stdout) < 30_000  # KiB; the windows are 0.8 MB each, the file 96 MB


def test_local_stores_do_without_fsspec(tmp_path: Path) -> None:
    """A folder is read without importing it."""
    _Contract().fill(tmp_path / "store", num_episodes=3)
    code = (
        "import sys; from episode_store.store import EpisodeStore\n"
        f"store = EpisodeStore.open({str(tmp_path / 'store')!r}); store.read(store.episode_ids[0])\n"
        "assert 'aiohttp' not in sys.modules and 'fsspec' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(remote.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
