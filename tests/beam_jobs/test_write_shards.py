"""A tar's bytes depend on its samples alone, and a shard is there whole or not at all."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
from pathlib import Path

import pytest

from beam_jobs.files import file_facts, read_json
from beam_jobs.write_shards import TarShard, sample_size
from episode_store.files import temporary_path, write_bytes, write_json

SAMPLES = [
    ("task-v0-train-000000-000000", {"tokens.npy": b"abc", "episodes.json": b"[]"}),
    ("task-v0-train-000000-000001", {"tokens.npy": b"x" * 1300, "episodes.json": b""}),
    (f"{'long' * 40}-000002", {"tokens.npy": b"y" * 512}),
]


def _write(path: Path) -> dict[str, object]:
    with TarShard(path) as tar:
        for key, members in SAMPLES:
            before = tar.num_bytes
            tar.write(key, members)
            if len(key) < 90:
                assert tar.num_bytes - before == sample_size(members)
        return tar.close()


def test_bytes_are_those_of_webdatasets_own_writer(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    facts = _write(tmp_path / "a.tar")
    stream = io.BytesIO()
    writer = webdataset.TarWriter(stream, encoder=False, mtime=0, user="", group="")
    for key, members in SAMPLES:
        writer.write({"__key__": key, **members})
    writer.close()
    assert (tmp_path / "a.tar").read_bytes() == stream.getvalue()
    assert facts == {
        "bytes": len(stream.getvalue()),
        "sha256": hashlib.sha256(stream.getvalue()).hexdigest(),
        "md5": hashlib.md5(stream.getvalue()).hexdigest(),
    }


def test_nothing_stays_of_an_interrupted_shard(tmp_path: Path) -> None:
    def interrupted() -> None:
        with TarShard(tmp_path / "a.tar") as tar:
            tar.write(*SAMPLES[0])
            assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_an_old_shard_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"old")
    with TarShard(path) as tar:
        tar.write(*SAMPLES[0])
        assert path.read_bytes() == b"old"
        tar.close()
    assert path.stat().st_size == 10_240
    assert list(tmp_path.iterdir()) == [path]


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"b": 1})
    assert read_json(path) == {"b": 1}
    write_bytes(path, b"[1]")
    assert read_json(path) is None
    assert read_json(tmp_path / "none.json") is None
    assert file_facts(path)["bytes"] == 3
    names = {temporary_path(path).name for _ in range(10)}
    assert len(names) == 10
    assert all(name.startswith(f".a.json.{os.getpid()}-") for name in names)
    assert list(tmp_path.iterdir()) == [path]


def test_plain_tar_lists_and_unpacks_a_shard(tmp_path: Path) -> None:
    members = {"tokens.npy": b"1" * 700, "crc32c.json": b"{}"}
    with TarShard(tmp_path / "a.tar") as tar:
        tar.write("a-000000", members)
        tar.write("b" * 120, members)  # a name too long for ustar
        size = tar.num_bytes
        facts = tar.close()
    assert size < int(str(facts["bytes"])) == (tmp_path / "a.tar").stat().st_size
    listed = subprocess.run(["tar", "-tf", "a.tar"], cwd=tmp_path, capture_output=True, text=True, check=True)
    names = [f"{key}.{name}" for key in ("a-000000", "b" * 120) for name in sorted(members)]
    assert listed.stdout.split() == names
    subprocess.run(["tar", "-xf", "a.tar"], cwd=tmp_path, check=True)
    assert [(tmp_path / name).read_bytes() for name in names] == 2 * [b"{}", b"1" * 700]
