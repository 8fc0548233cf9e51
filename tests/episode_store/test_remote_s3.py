"""A store in a bucket of a real S3 server, versitygw; run by `make test-cluster`."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from episode_store import change, remote
from episode_store.errors import CorruptionError, RemoteError, StoreError
from episode_store.store import EpisodeStore
from episode_store.testing import StoreContract, assert_episodes_equal, example_tasks, random_episode
from episode_store.verify import verify_store
from episode_store.writer import EpisodeWriter

pytestmark = pytest.mark.cluster

KEYS = {"ROOT_ACCESS_KEY": "tester", "ROOT_SECRET_KEY": "tester-secret"}


class _Contract(StoreContract):
    """Only for `fill`."""

    __test__ = False


def gateway() -> str:
    """The server's program: $VERSITYGW, on PATH, or where `go install` puts it."""
    places = [os.environ.get("VERSITYGW"), shutil.which("versitygw"), str(Path.home() / "go" / "bin" / "versitygw")]
    for place in places:
        if place and Path(place).is_file():
            return place
    pytest.fail("versitygw is missing: go install github.com/versity/versitygw/cmd/versitygw@latest")


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path, subprocess.Popen[bytes]]]:
    """URL of an empty bucket, the folder behind it, and the server's process."""
    root = tmp_path / "s3"
    (root / "bucket").mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [gateway(), "--port", f"127.0.0.1:{port}", "--health", "/health", "posix", str(root)]
    server = subprocess.Popen(command, env={**os.environ, **KEYS}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    settings = {
        "endpoint_url": f"http://127.0.0.1:{port}",
        "key": KEYS["ROOT_ACCESS_KEY"],
        "secret": KEYS["ROOT_SECRET_KEY"],
        "config_kwargs": {"retries": {"max_attempts": 1}, "connect_timeout": 2, "read_timeout": 5},
    }
    monkeypatch.setitem(fsspec.config.conf, "s3", settings)
    try:
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert time.monotonic() < deadline, "versitygw did not start"
            assert server.poll() is None, "versitygw ended"
            time.sleep(0.05)
        yield "s3://bucket", root / "bucket", server
    finally:
        server.kill()
        server.wait()


Bucket = tuple[str, Path, "subprocess.Popen[bytes]"]


def test_a_store_in_a_bucket_is_the_store(bucket: Bucket, tmp_path: Path) -> None:
    """Uploaded through S3, then listed, queried, read, verified; a version too; what is added later shows."""
    url = f"{bucket[0]}/runs/store"
    episodes = _Contract().fill(tmp_path / "store")
    fsspec.filesystem("s3").put(str(tmp_path / "store") + "/", f"{url}/", recursive=True)
    ours, theirs = EpisodeStore.open(tmp_path / "store"), EpisodeStore.open(url)
    assert list(theirs.episode_ids) == list(ours.episode_ids)
    assert theirs.table().equals(ours.table())
    for episode_id, episode in episodes.items():
        assert_episodes_equal(episode, theirs.read(episode_id))
        window = theirs.read_window(episode_id, 0, 1, columns=["rewards"])
        assert window.rewards is not None
        assert window.rewards[0] == episode.rewards[0]
    assert verify_store(url) == verify_store(tmp_path / "store")
    change.delete(tmp_path / "store", where="num_steps < 20")
    with EpisodeWriter(tmp_path / "store") as writer:
        task = example_tasks()["Robot-v1"]
        writer.add_episode(random_episode(task, np.random.default_rng(77), 30))
    fsspec.filesystem("s3").put(str(tmp_path / "store") + "/", f"{url}/", recursive=True)
    again = EpisodeStore.open(url)
    assert list(again.episode_ids) == list(EpisodeStore.open(tmp_path / "store").episode_ids)
    assert len(EpisodeStore.open(url, version=0)) == len(episodes)


def test_the_command_line_reads_a_bucket(bucket: Bucket, tmp_path: Path) -> None:
    """Settings come from the environment, as docs/store.md shows."""
    url, folder, _ = bucket
    _Contract().fill(folder / "store")
    settings = fsspec.config.conf["s3"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(remote.__file__).parents[1]),
        "FSSPEC_S3_ENDPOINT_URL": settings["endpoint_url"],
        "AWS_ACCESS_KEY_ID": settings["key"],
        "AWS_SECRET_ACCESS_KEY": settings["secret"],
    }
    for verb in ("list", "verify"):
        command = [sys.executable, "-m", "episode_store", verb, "--store", f"{url}/store"]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr


def test_faults_of_a_bucket_are_told(bucket: Bucket) -> None:
    """No such bucket or store, a flipped byte, a cut object, a missing one, a server that is gone."""
    url, folder, server = bucket
    episodes = _Contract().fill(folder / "store")
    with pytest.raises(StoreError, match=r"store s3://bucket/nowhere: .*has no store.json"):
        EpisodeStore.open(f"{url}/nowhere")
    with pytest.raises(StoreError, match=r"store s3://nowhere/store"):
        EpisodeStore.open("s3://nowhere/store")
    with pytest.raises(StoreError, match="can only be read"):
        EpisodeWriter(f"{url}/store")
    store = EpisodeStore.open(f"{url}/store")
    (data,) = (folder / "store" / "segments").glob("*.data")
    row = store.table().to_pylist()[-1]
    named = rf"episode {row['episode_id']} of {row['task_id']} in s3://bucket/store"
    content = data.read_bytes()
    for cut in (row["offset"] + row["record_bytes"] - 64, row["offset"]):
        data.write_bytes(content[:cut])
        with pytest.raises(CorruptionError, match=named + ".*cut short"):
            EpisodeStore.open(f"{url}/store").read(row["episode_id"])
        assert verify_store(f"{url}/store").damages
    data.write_bytes(content)
    changed = bytearray(content)
    changed[row["offset"] + 40] ^= 1
    data.write_bytes(changed)
    with pytest.raises(CorruptionError, match=named):
        EpisodeStore.open(f"{url}/store").read(row["episode_id"])
    data.unlink()
    with pytest.raises(CorruptionError, match=named + r".*missing"):
        EpisodeStore.open(f"{url}/store").read(row["episode_id"])
    data.write_bytes(content)
    assert_episodes_equal(episodes[row["episode_id"]], EpisodeStore.open(f"{url}/store").read(row["episode_id"]))
    server.kill()
    server.wait()
    with pytest.raises(RemoteError, match=named):
        store.read(row["episode_id"])
    with pytest.raises(RemoteError, match=r"s3://bucket/store"):
        EpisodeStore.open(f"{url}/store")
