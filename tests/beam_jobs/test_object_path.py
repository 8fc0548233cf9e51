"""Shards in an object store: the bytes of a folder, repaired and finished alike. `tests/cluster` does it on S3."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from beam_jobs import commit, shard_builder
from beam_jobs.build_shards import build_locally, build_shards
from beam_jobs.files import output_path, read_json
from beam_jobs.object_path import ObjectPath
from beam_jobs.plan import BuildConfig
from episode_store.errors import RemoteError, UserError
from episode_store.store import EpisodeStore

MakeConfig = Callable[..., BuildConfig]


@pytest.fixture
def bucket() -> Iterator[ObjectPath]:
    """An empty place in memory."""
    yield ObjectPath("memory://bucket")
    fsspec.filesystem("memory").store.clear()


def _objects() -> dict[str, str]:
    system = fsspec.filesystem("memory")
    found = {path.removeprefix("/bucket/shards/"): system.cat_file(path) for path in system.find("/bucket/shards")}
    return {name: hashlib.sha256(data).hexdigest() for name, data in found.items() if name != ".records/job"}


def _files(folder: Path) -> dict[str, str]:
    paths = [
        path for path in folder.rglob("*") if path.is_file() and path.suffix in (".tar", ".json", ".jsonl", ".model")
    ]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_which_text_is_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert output_path("shards") == tmp_path / "shards"
    assert output_path(f"file://{tmp_path}/shards") == tmp_path / "shards"
    assert output_path("s3://bucket/shards/") == ObjectPath("s3://bucket/shards")


def test_it_looks_like_a_path(bucket: ObjectPath) -> None:
    folder = bucket / "a"
    place = folder / "b-train.tar"
    assert (place.name, place.suffix, str(place)) == ("b-train.tar", ".tar", "memory://bucket/a/b-train.tar")
    assert str(ObjectPath("s3://me:secret@host/x")) == "s3://host/x"
    assert place.match("b-*.tar")
    assert not place.match("*.json")
    assert not place.exists()
    assert not folder.exists()
    assert list(folder.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        place.read_bytes()
    with pytest.raises(FileNotFoundError):
        place.unlink()
    place.unlink(missing_ok=True)
    place.write_bytes(b"12345")
    assert place.is_file()
    assert not place.is_dir()
    assert folder.is_dir()
    assert folder.exists()
    assert place.stat().st_size == 5
    assert list(folder.iterdir()) == [place]
    with place.open() as file:
        assert file.read(2) == b"12"
    place.unlink()
    assert not place.exists()


def test_a_file_that_failed_does_not_appear(bucket: ObjectPath) -> None:
    def fail() -> None:
        with (bucket / "x").filled_from_file() as local:
            local.write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert not (bucket / "x").exists()
    with (bucket / "x").filled_from_file() as local:
        local.write_bytes(b"whole")
    assert (bucket / "x").read_bytes() == b"whole"


def test_shards_are_those_of_a_folder(make_config: MakeConfig, bucket: ObjectPath, tmp_path: Path) -> None:
    expected, _ = build_locally(make_config(output=tmp_path / "plain"))
    config = make_config(output=bucket / "shards")
    assert build_shards(config) == (expected, True)
    assert _objects() == _files(tmp_path / "plain")
    assert build_shards(config) == (expected, False)
    # One cut, one lost, one that nothing names: the next run sees to all of them.
    first, second = (config.output / shard["file"] for shard in expected["shards"][:2])
    first.write_bytes(first.read_bytes()[:-10])
    second.unlink()
    (config.output / "Swing-v1-train-000099.tar").write_bytes(b"orphan")
    assert build_shards(config) == (expected, True)
    assert _objects() == _files(tmp_path / "plain")


def test_other_content_is_not_touched(make_config: MakeConfig, bucket: ObjectPath) -> None:
    (bucket / "mine" / "thesis.tex").write_bytes(b"do not lose me")
    with pytest.raises(UserError, match=r"expected an empty folder or one with shards, got thesis.tex in it"):
        build_shards(make_config(output=bucket / "mine"))


def test_a_store_that_is_gone_is_told_in_one_line(make_config: MakeConfig) -> None:
    with pytest.raises(UserError, match=r"nosuch://bucket/x"):
        build_shards(make_config(output=ObjectPath("nosuch://bucket/x")))


def test_an_outage_rejects_no_episode(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not answer says nothing about the episodes behind it."""

    def down(*_: Any, **__: Any) -> None:
        raise RemoteError("s3://bucket/data: cannot be read: timed out")

    monkeypatch.setattr(EpisodeStore, "read", down)
    config = make_config(max_dead_share=1.0)
    with pytest.raises(UserError, match="cannot be read: timed out"):
        build_shards(config)
    assert read_json(config.output / commit.DATASET_FILE) is None


def test_a_later_job_ends_an_earlier_one(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster goes on with the job of a dead driver; here the later driver comes after its second shard."""
    config = make_config()
    build, built = shard_builder.ShardBuilder.build, []

    def overtaken(self: shard_builder.ShardBuilder, plan: Any) -> dict[str, Any]:
        built.append(plan.name)
        if len(built) == 2:
            commit.take_over(config.output)
        return build(self, plan)

    with monkeypatch.context() as patch:
        patch.setattr(shard_builder.ShardBuilder, "build", overtaken)
        with pytest.raises(UserError, match="run the same command again"):
            build_shards(config)
    assert len(built) == 2
    assert not (config.output / "dataset.json").exists()
    other = dataclasses.replace(config, output=tmp_path / "fresh")
    assert build_shards(config) == (build_locally(other)[0], True)
    assert json.loads((config.output / "dataset.json").read_text())["shards"]
