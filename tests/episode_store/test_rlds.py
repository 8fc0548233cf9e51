"""RLDS sets in and out, without TensorFlow. test_rlds_peers.py has the same with the real packages."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from episode_store import cli
from episode_store.episode import Episode, EpisodeMetadata
from episode_store.errors import UserError
from episode_store.formats import format as formats
from episode_store.formats import transfer
from episode_store.formats.rlds_features import Leaf, features_json, parse_features
from episode_store.formats.tf_example import decode_example, encode_example
from episode_store.formats.tfrecord import TFRecordReader, TFRecordWriter
from episode_store.spec import ArraySpec, Modality
from episode_store.store import EpisodeStore
from episode_store.task import TaskSpec
from episode_store.testing import StoreContract, assert_episodes_equal, random_episode
from episode_store.writer import EpisodeWriter


def png(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="PNG")
    return buffer.getvalue()


def leaf(key: str, dtype: str, shape: tuple[int | None, ...] = (), **kwargs: Any) -> Leaf:
    kind = kwargs.pop("kind", "text" if dtype == "str" else "tensor")
    return Leaf(path=tuple(key.split("/")), key=key, kind=kind, dtype=dtype, shape=shape, **kwargs)


ROBOT = [
    leaf("steps/observation/image", "uint8", (4, 6, 3), kind="image"),
    leaf("steps/observation/state", "float32", (2,)),
    leaf("steps/action", "float32", (3,)),
    leaf("steps/reward", "float32"),
    leaf("steps/discount", "float32"),
    leaf("steps/is_first", "bool"),
    leaf("steps/is_last", "bool"),
    leaf("steps/is_terminal", "bool"),
    leaf("steps/language_instruction", "str"),
    leaf("steps/language_embedding", "float32", (4,)),
    leaf("episode_metadata/file_path", "str"),
    leaf("episode_metadata/success", "bool"),
]


def robot_example(rng: np.random.Generator, rows: int, *, last_is_real: bool = True) -> dict[str, Any]:
    """An episode as robot sets have it: as many actions as observations."""
    actions = rng.normal(size=(rows, 3)).astype(np.float32)
    rewards = np.zeros(rows, np.float32)
    if last_is_real:
        rewards[-1] = 1
    else:
        actions[-1] = 0
    steps = np.arange(rows)
    return {
        "steps/observation/image": [png(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)) for _ in range(rows)],
        "steps/observation/state": rng.normal(size=rows * 2).astype(np.float32),
        "steps/action": actions.reshape(-1),
        "steps/reward": rewards,
        "steps/discount": np.ones(rows, np.float32),
        "steps/is_first": (steps == 0).astype(np.int64),
        "steps/is_last": (steps == rows - 1).astype(np.int64),
        "steps/is_terminal": (steps == rows - 1).astype(np.int64),
        "steps/language_instruction": ["pick up the é".encode()] * rows,
        "steps/language_embedding": rng.normal(size=rows * 4).astype(np.float32),
        "episode_metadata/file_path": [b"/data/1.npy"],
        "episode_metadata/success": np.array([1]),
    }


def write_set(
    folder: Path, leaves: list[Leaf], splits: dict[str, list[list[dict[str, Any]]]], *, info: bool = True
) -> Path:
    """A set as strangers write it: split -> shards -> examples."""
    folder.mkdir(parents=True)
    described = []
    for split, shards in splits.items():
        for index, examples in enumerate(shards):
            with TFRecordWriter(folder / f"toy-{split}.tfrecord-{index:05d}-of-{len(shards):05d}") as writer:
                for example in examples:
                    writer.write(encode_example(example))
        lengths = [str(len(examples)) for examples in shards]
        described.append({"name": split, "shardLengths": lengths, "numBytes": "1"})
    (folder / "features.json").write_text(json.dumps(features_json(leaves)))
    if info:
        content = {"name": "toy", "version": "0.1.0", "splits": described}
        (folder / "dataset_info.json").write_text(json.dumps(content))
    return folder


def read_set(source: Path, tmp_path: Path, **options: str) -> tuple[list[Episode], transfer.ImportReport]:
    importer = formats.open_importer("rlds", source, options=options)
    report = transfer.import_set(importer, source, tmp_path / "store")
    store = EpisodeStore.open(tmp_path / "store")
    return [store.read(i) for i in store.table()["episode_id"].to_pylist()], report


def told(report: transfer.ImportReport) -> dict[str, int]:
    return {loss.what: loss.count for loss in report.losses}


# --- out and in again ---


def test_a_store_comes_back_bit_by_bit(tmp_path: Path) -> None:
    """Every kind of field, step columns, provenance, both ends, the final observation: nothing is lost."""
    episodes = StoreContract().fill(tmp_path / "store", num_episodes=12)
    store = EpisodeStore.open(tmp_path / "store")
    for task_id in store.tasks:
        result = formats.export_task("rlds", store, task_id, tmp_path / "out", options={"shard_episodes": "2"})
        assert (result.num_episodes, result.format) == (3, "rlds")
        assert [loss.what for loss in result.losses] in ([], ["truncation"])
        importer = formats.open_importer("rlds", result.destination)
        assert importer.num_episodes() == 3
        report = transfer.import_set(importer, result.destination, tmp_path / "back")
        assert (report.num_added, report.losses, report.findings) == (3, [], [])
    back = EpisodeStore.open(tmp_path / "back")
    assert dict(back.tasks) == dict(store.tasks)
    assert sorted(back.episode_ids) == sorted(episodes)
    for episode_id, episode in episodes.items():
        assert_episodes_equal(episode, back.read(episode_id))


_SPECS = st.one_of(
    st.builds(
        ArraySpec,
        modality=st.just(Modality.CONTINUOUS),
        dtype=st.sampled_from(
            ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"]
        ),
        shape=st.lists(st.integers(0, 5), max_size=3).map(tuple),
    ),
    st.integers(1, 4).map(lambda c: ArraySpec(modality=Modality.IMAGE, shape=(3, 5, c), dtype="uint8")),
    st.sampled_from([1, 3, 4]).map(lambda c: ArraySpec(modality=Modality.IMAGE, shape=(-1, -1, c), dtype="uint8")),
    st.just(ArraySpec(modality=Modality.TEXT, dtype="str")),
    st.integers(1, 40).map(
        lambda n: ArraySpec(modality=Modality.DISCRETE, shape=(n,), dtype="bool", num_values=(2,) * n)
    ),
)
_FIELDS = st.one_of(
    st.just(["observation"]),
    st.just(["action"]),
    st.lists(st.sampled_from(["a", "b/c", "b/d", "é"]), unique=True, min_size=1),
)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_space_comes_back(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    tmp_path = tmp_path_factory.mktemp("any")
    task = TaskSpec(
        task_id="Any-v0",
        observation_spec={name: data.draw(_SPECS) for name in data.draw(_FIELDS)},
        action_spec={name: data.draw(_SPECS) for name in data.draw(_FIELDS)},
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    with EpisodeWriter(tmp_path / "store") as writer:
        writer.add_task(task)
        episode = random_episode(task, rng, data.draw(st.integers(1, 4)), exploratory=data.draw(st.booleans()))
        episode_id = writer.add_episode(episode)
    result = formats.export_task("rlds", EpisodeStore.open(tmp_path / "store"), "Any-v0", tmp_path / "out")
    importer = formats.open_importer("rlds", result.destination)
    transfer.import_set(importer, result.destination, tmp_path / "back")
    assert_episodes_equal(episode, EpisodeStore.open(tmp_path / "back").read(episode_id))


def cart_store(path: Path, *, terminated: bool = True) -> tuple[EpisodeStore, Episode]:
    """Two steps with literal values; float64 observations."""
    task = TaskSpec(
        task_id="Cart-v1",
        observation_spec={"observation": ArraySpec(modality=Modality.CONTINUOUS, shape=(1,), dtype="float64")},
        action_spec={"action": ArraySpec(modality=Modality.DISCRETE, dtype="int64", num_values=(300,))},
        licence="MIT",
    )
    episode = Episode(
        task_id="Cart-v1",
        observations={"observation": np.array([[0.1], [0.2], [0.3]])},
        actions={"action": np.array([1, 299])},
        rewards=np.array([0.5, 1.0]),
        terminated=terminated,
        truncated=not terminated,
        metadata=EpisodeMetadata(agent_id="ppo", seed=7),
    )
    with EpisodeWriter(path) as writer:
        writer.add_task(task)
        writer.add_episode(episode)
    return EpisodeStore.open(path), episode


def test_what_an_export_has_in_its_files(tmp_path: Path) -> None:
    """T + 1 steps: o_T with a filler action and reward, the flags and the discount of RLDS."""
    store, episode = cart_store(tmp_path / "store")
    result = formats.export_task("rlds", store, "Cart-v1", tmp_path)
    folder = tmp_path / "cart_v1" / "1.0.0"
    assert result.destination == folder
    assert sorted(file.name for file in folder.iterdir()) == [
        "cart_v1-train.tfrecord-00000-of-00001",
        "dataset_info.json",
        "episode_store.json",
        "features.json",
    ]
    assert result.num_bytes == sum(file.stat().st_size for file in folder.iterdir())
    (record,) = TFRecordReader(folder / "cart_v1-train.tfrecord-00000-of-00001")
    assert isinstance(record, memoryview)
    example = decode_example(record)
    assert [bytes(row) for row in example["steps/observation"]] == [np.float64(x).tobytes() for x in (0.1, 0.2, 0.3)]
    assert [bytes(row) for row in example["steps/reward"]] == [np.float64(x).tobytes() for x in (0.5, 1.0, 0)]
    numbers = {
        key: list(example[f"steps/{key}"]) for key in ("action", "is_first", "is_last", "is_terminal", "discount")
    }
    assert numbers == {
        "action": [1, 299, 0],
        "is_first": [1, 0, 0],
        "is_last": [0, 0, 1],
        "is_terminal": [0, 0, 1],
        "discount": [1.0, 0.0, 0.0],
    }
    assert bytes(example["episode_metadata/episode_id"][0]).decode() == episode.episode_id()
    assert json.loads((folder / "dataset_info.json").read_text()) == {
        "description": "Episodes of Cart-v1.",
        "fileFormat": "tfrecord",
        "name": "cart_v1",
        "redistributionInfo": {"license": "MIT"},
        "splits": [
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": "train",
                "numBytes": str(len(record)),
                "shardLengths": ["1"],
            }
        ],
        "version": "1.0.0",
    }
    features = json.loads((folder / "features.json").read_text())["featuresDict"]["features"]
    assert features["steps"]["sequence"]["length"] == "-1"
    steps = features["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    assert steps["observation"] == {
        "pythonClassName": "tensorflow_datasets.core.features.tensor_feature.Tensor",
        "tensor": {"dtype": "float64", "encoding": "bytes", "shape": {"dimensions": ["1"]}},
    }


def test_losses_of_float32_are_told_and_noticed(tmp_path: Path) -> None:
    store, _ = cart_store(tmp_path / "store", terminated=False)
    result = formats.export_task("rlds", store, "Cart-v1", tmp_path, options={"float64": "float32"})
    assert {loss.what: loss.count for loss in result.losses} == {"observation: float64": 1, "truncation": 1}
    episodes, report = read_set(result.destination, tmp_path / "back")
    assert told(report) == {"content hash": 1}
    assert episodes[0].observations["observation"][0, 0] == np.float64(np.float32(0.1))
    assert (episodes[0].terminated, episodes[0].truncated) == (False, True)


def test_declared_splits_become_splits(tmp_path: Path) -> None:
    store, episode = cart_store(tmp_path / "one")
    task = dataclasses.replace(store.tasks["Cart-v1"], tags=("corpus",))
    with EpisodeWriter(tmp_path / "store") as writer:
        writer.add_task(task)
        for index, group in enumerate(("train/a", "validation/b", "train/c")):
            metadata = EpisodeMetadata(collection_index=index, split_group=group)
            writer.add_episode(dataclasses.replace(episode, metadata=metadata))
    store = EpisodeStore.open(tmp_path / "store")
    result = formats.export_task("rlds", store, "Cart-v1", tmp_path, options={"shard_episodes": "1"})
    names = sorted(file.name for file in result.destination.glob("*.tfrecord*"))
    assert names == [
        "cart_v1-train.tfrecord-00000-of-00002",
        "cart_v1-train.tfrecord-00001-of-00002",
        "cart_v1-validation.tfrecord-00000-of-00001",
    ]
    assert len(read_set(result.destination, tmp_path / "back", split="validation")[0]) == 1


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"file_format": "parquet"}, "option file_format 'parquet': expected tfrecord or array_record"),
        ({"version": "1"}, "option version '1': expected x.y.z"),
        ({"version": "../.."}, "expected x.y.z"),
        ({"shard_episodes": "0"}, "expected a whole number of at least 1"),
        ({"float": "1"}, "export --to rlds: no option 'float'.*did you mean 'float64'"),
    ],
)
def test_mistakes_in_options(tmp_path: Path, options: dict[str, str], problem: str) -> None:
    store, _ = cart_store(tmp_path / "store")
    with pytest.raises(UserError, match=problem):
        formats.export_task("rlds", store, "Cart-v1", tmp_path / "out", options=options)


def test_an_export_never_replaces_and_leaves_nothing_half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = cart_store(tmp_path / "store")
    formats.export_task("rlds", store, "Cart-v1", tmp_path / "out")
    with pytest.raises(UserError, match="exists; choose another --output"):
        formats.export_task("rlds", store, "Cart-v1", tmp_path / "out")

    def fail(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(EpisodeStore, "read", fail)
    with pytest.raises(KeyboardInterrupt):
        formats.export_task("rlds", store, "Cart-v1", tmp_path / "other")
    assert [file for file in (tmp_path / "other").rglob("*") if file.is_file()] == []


# --- sets of strangers ---


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress])
def test_a_compressed_shard_is_called_so(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    rng = np.random.default_rng(0)
    source = write_set(tmp_path / "set", ROBOT, {"train": [[robot_example(rng, 3)], [robot_example(rng, 4)]]})
    shard = min(source.glob("*.tfrecord-*"))
    shard.write_bytes(compress(shard.read_bytes()))
    episodes, report = read_set(source, tmp_path)
    assert len(episodes) == 1
    assert any("a compressed file" in finding.what for finding in report.findings)


def test_a_robot_set_is_imported_step_by_step(tmp_path: Path) -> None:
    """Open X-Embodiment style: images, language, real last actions, no final observation."""
    rng = np.random.default_rng(0)
    examples = [robot_example(rng, rows) for rows in (3, 5, 1)]
    source = write_set(tmp_path / "toy" / "0.1.0", ROBOT, {"train": [examples[:2]], "val": [examples[2:]]})
    episodes, report = read_set(tmp_path / "toy", tmp_path)
    assert (report.num_added, report.findings, report.tasks) == (3, [], ["rlds/toy-v0"])
    assert told(report) == {
        "bounds of observations and actions": 1,
        "seed, agent, environment": 1,
        "truncation": 3,
        "final observation": 3,
    }
    task = EpisodeStore.open(tmp_path / "store").tasks["rlds/toy-v0"]
    assert {name: str(spec.modality) for name, spec in task.observation_spec.items()} == {
        "image": "image",
        "state": "continuous",
        "language_instruction": "text",
    }
    for example, episode in zip(examples, episodes, strict=True):
        rows = len(example["steps/reward"])
        assert episode.num_steps == rows
        assert episode.actions["action"].tobytes() == example["steps/action"].tobytes()
        assert episode.rewards.tolist() == example["steps/reward"].tolist()
        state = episode.observations["state"]
        assert state[:rows].tobytes() == example["steps/observation/state"].tobytes()
        assert (state[rows] == state[rows - 1]).all()
        for step in range(rows):
            with Image.open(io.BytesIO(example["steps/observation/image"][step])) as image:
                assert (episode.observations["image"][step] == np.asarray(image)).all()
        assert episode.observations["language_instruction"] == ["pick up the é"] * (rows + 1)
        assert episode.step_columns["language_embedding"].tobytes() == example["steps/language_embedding"].tobytes()
        assert (episode.terminated, episode.truncated) == (True, False)
        config = episode.metadata.environment_config
        assert config["episode"] == {"episode_metadata/file_path": "/data/1.npy", "episode_metadata/success": True}
    assert [e.metadata.environment_config["source"] for e in episodes] == [
        "toy-train.tfrecord-00000-of-00001 record 0",
        "toy-train.tfrecord-00000-of-00001 record 1",
        "toy-val.tfrecord-00000-of-00001 record 0",
    ]
    assert [e.metadata.split_group.split("/")[0] for e in episodes] == ["train", "train", "validation"]
    assert source.exists()


def test_padding_in_the_last_step_is_dropped_and_nothing_else(tmp_path: Path) -> None:
    """RLDS by the book: the last step is o_T. One episode with a real last action keeps it all the same."""
    rng = np.random.default_rng(0)
    padded = [robot_example(rng, 4, last_is_real=False) for _ in range(33)]
    source = write_set(tmp_path / "set", ROBOT, {"train": [[*padded, robot_example(rng, 4)]]})
    episodes, report = read_set(source, tmp_path)
    assert [episode.num_steps for episode in episodes] == [3] * 33 + [4]
    assert told(report)["action and reward of the last step"] == 33
    # A step column has no row for the final observation.
    embedding = padded[0]["steps/language_embedding"].reshape(4, -1)
    assert episodes[0].step_columns["language_embedding"].tobytes() == embedding[:3].tobytes()
    kept = episodes[0].metadata.environment_config["last_step_columns"]["language_embedding"]
    assert np.array(kept, np.float32).tobytes() == embedding[3].tobytes()
    assert told(report)["final observation"] == 1
    assert episodes[0].observations["state"].tobytes() == padded[0]["steps/observation/state"].tobytes()
    assert episodes[0].actions["action"].tobytes() == padded[0]["steps/action"][:9].tobytes()


@pytest.mark.parametrize(("choice", "num_steps"), [("auto", 4), ("real", 4), ("padding", 3)])
def test_the_user_can_say_what_the_last_step_is(tmp_path: Path, choice: str, num_steps: int) -> None:
    source = write_set(tmp_path / "set", ROBOT, {"train": [[robot_example(np.random.default_rng(0), 4)]]})
    (episode,), _ = read_set(source, tmp_path, last_step=choice)
    assert episode.num_steps == num_steps


def test_an_action_of_several_tensors_and_missing_fields(tmp_path: Path) -> None:
    """No reward, discount or flags; a dict of actions; integers that are choices; names with a namespace."""
    leaves = [
        leaf("steps/observation", "uint8", (3,)),
        leaf("steps/action/gripper", "int32"),
        leaf("steps/action/world_vector", "float64", (2,)),
    ]
    example = {
        "steps/observation": np.arange(6),
        "steps/action/gripper": np.array([1, 2]),
        "steps/action/world_vector": np.array([1, 2, 3, 4], np.float32),
    }
    source = write_set(tmp_path / "set", leaves, {"train": [[example]]})
    (episode,), report = read_set(source, tmp_path, discrete="gripper:3")
    assert episode.actions["gripper"].tolist() == [1, 2]
    assert episode.actions["world_vector"].dtype == np.float64
    assert episode.rewards.tolist() == [0, 0]
    assert (episode.terminated, episode.truncated) == (False, True)
    assert set(told(report)) == {
        "reward",
        "is_last",
        "is_terminal",
        "world_vector: float64",
        "observation: number of values",
        "bounds of observations and actions",
        "seed, agent, environment",
        "final observation",
    }
    spec = EpisodeStore.open(tmp_path / "store").tasks["rlds/toy-v0"].action_spec["gripper"]
    assert (spec.modality, spec.num_values) == (Modality.DISCRETE, (3,))


def test_images_of_varying_size(tmp_path: Path) -> None:
    """A set whose images have several sizes inside an episode: each stays as it is."""
    rng = np.random.default_rng(0)
    leaves = [leaf("steps/observation/image", "uint8", (None, None, 3), kind="image"), *ROBOT[1:]]
    example = robot_example(rng, 3)
    frames = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((4, 6), (5, 2), (4, 6))]
    example["steps/observation/image"] = [png(frame) for frame in frames]
    source = write_set(tmp_path / "toy", leaves, {"train": [[robot_example(rng, 2), example]]})
    episodes, report = read_set(source, tmp_path)
    assert (len(episodes), report.findings) == (2, [])
    (task,) = EpisodeStore.open(tmp_path / "store").tasks.values()
    assert task.observation_spec["image"] == ArraySpec(modality=Modality.IMAGE, shape=(-1, -1, 3), dtype="uint8")
    (episode,) = (episode for episode in episodes if episode.num_steps == 3)
    for found, frame in zip(episode.observations["image"], [*frames, frames[-1]], strict=True):
        np.testing.assert_array_equal(found, frame)


@pytest.mark.parametrize("name", ["minari", "lerobot", "robomimic", "rlds"])
def test_formats_without_images_of_varying_size_say_so(name: str, tmp_path: Path) -> None:
    """Before anything is written."""
    two = ArraySpec(modality=Modality.IMAGE, shape=(-1, -1, 2), dtype="uint8")
    task = TaskSpec(task_id="Album-v0", observation_spec={"picture": two}, action_spec={})
    with EpisodeWriter(tmp_path / "store") as writer:
        writer.add_task(task)
        writer.add_episode(random_episode(task, np.random.default_rng(0), 3))
    with pytest.raises(UserError, match=r"export of Album-v0: observations?/picture: .* vary in size") as told:
        formats.export_task(name, EpisodeStore.open(tmp_path / "store"), "Album-v0", tmp_path / "out")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "out").exists()


def test_sequences_inside_steps(tmp_path: Path) -> None:
    """Of one length they are an axis; of many they cannot be held, and that is told."""
    tree = features_json([leaf("steps/action", "float32"), leaf("steps/observation/fixed", "float32", (2,))])
    inner = tree["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    fields = inner["observation"]["featuresDict"]["features"]
    fields["ragged"] = {"sequence": {"feature": fields["fixed"], "length": "-1"}}
    fields["fixed"] = {"sequence": {"feature": fields["fixed"], "length": "-1"}}
    example = {
        "steps/action": np.array([1, 2], np.float32),
        "steps/observation/fixed/ragged_flat_values": np.arange(12, dtype=np.float32),
        "steps/observation/fixed/ragged_row_lengths_0": np.array([3, 3]),
        "steps/observation/ragged/ragged_flat_values": np.arange(6, dtype=np.float32),
        "steps/observation/ragged/ragged_row_lengths_0": np.array([1, 2]),
    }
    source = write_set(tmp_path / "set", [leaf("steps/action", "float32")], {"train": [[example]]})
    (source / "features.json").write_text(json.dumps(tree))
    (episode,), report = read_set(source, tmp_path)
    assert episode.observations["fixed"][:2].tolist() == np.arange(12).reshape(2, 3, 2).tolist()
    assert list(episode.observations) == ["fixed"]
    assert told(report)["field observation/ragged"] == 1


def test_the_form_of_old_features_files(tmp_path: Path) -> None:
    """TFDS before 4.5: type and content in place of a class name and a named part."""
    prefix = "tensorflow_datasets.core.features"

    def node(kind: str, content: Any) -> dict[str, Any]:
        return {"type": f"{prefix}.{kind}", "content": content}

    tensor = node("feature.Tensor", {"shape": [2], "dtype": "float32", "encoding": "none"})
    image = node("image_feature.Image", {"shape": [None, None, 3], "dtype": "uint8", "encoding_format": "png"})
    inner = node("features_dict.FeaturesDict", {"observation": image, "action": tensor})
    steps = node("dataset_feature.Dataset", {"feature": inner, "length": None})
    features = parse_features(node("features_dict.FeaturesDict", {"steps": steps, "id": node("text_feature.Text", {})}))
    assert [(item.key, item.kind, item.shape) for item in features.steps] == [
        ("steps/observation", "image", (None, None, 3)),
        ("steps/action", "tensor", (2,)),
    ]
    assert [item.key for item in features.episode] == ["id"]


def test_the_form_of_features_files_between(tmp_path: Path) -> None:
    """TFDS 4.5: the name of a message, its JSON as a string."""
    content = json.dumps(features_json(ROBOT)["featuresDict"])
    tree = {"type": "x.features_dict.FeaturesDict", "proto_cls": "tensorflow_datasets.FeaturesDict", "content": content}
    assert sorted(item.key for item in parse_features(tree).steps) == sorted(item.key for item in ROBOT[:10])


def test_a_video_in_every_step(tmp_path: Path) -> None:
    """An inner sequence of pictures is one more axis."""
    leaves = [leaf("steps/action", "float32"), leaf("steps/observation", "float32")]
    tree = features_json(leaves)
    steps = tree["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    shape = {"dimensions": ["-1", "4", "6", "3"]}
    steps["observation"] = {"pythonClassName": "x.video_feature.Video", "video": {"shape": shape, "dtype": "uint8"}}
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 6, 3), dtype=np.uint8)
    example = {
        "steps/action": np.array([1, 2], np.float32),
        "steps/observation/ragged_flat_values": [png(frame) for frame in frames.reshape(6, 4, 6, 3)],
        "steps/observation/ragged_row_lengths_0": np.array([3, 3]),
    }
    source = write_set(tmp_path / "set", leaves, {"train": [[example]]})
    (source / "features.json").write_text(json.dumps(tree))
    (episode,), _ = read_set(source, tmp_path)
    assert (episode.observations["observation"][:2] == frames).all()


def test_bytes_that_are_not_text_are_told(tmp_path: Path) -> None:
    example = robot_example(np.random.default_rng(0), 2) | {"steps/language_instruction": [b"a\xff", "\ufffd".encode()]}
    source = write_set(tmp_path / "set", ROBOT, {"train": [[example]]})
    (episode,), report = read_set(source, tmp_path)
    assert episode.observations["language_instruction"] == ["a\ufffd", "\ufffd", "\ufffd"]
    assert told(report)["language_instruction: text"] == 1


# --- damage ---


@pytest.fixture(name="robots")
def _robots(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    shards = [[robot_example(rng, 3) for _ in range(2)] for _ in range(2)]
    return write_set(tmp_path / "set", ROBOT, {"train": shards})


FIRST, SECOND = "toy-train.tfrecord-00000-of-00002", "toy-train.tfrecord-00001-of-00002"


def errors(source: Path) -> list[tuple[str, str]]:
    _, findings = transfer.examine(source)
    return [(finding.where, finding.what) for finding in findings if finding.severity == "error"]


def test_a_whole_set_has_no_errors(robots: Path) -> None:
    assert errors(robots) == []


def test_a_flipped_bit_is_named_and_the_rest_is_imported(robots: Path, tmp_path: Path) -> None:
    data = bytearray((robots / FIRST).read_bytes())
    data[100] ^= 1
    (robots / FIRST).write_bytes(data)
    expected = [(f"{FIRST} record 0 (byte 0)", "the checksum of the record does not match: a byte was changed")]
    assert errors(robots) == expected
    episodes, report = read_set(robots, tmp_path)
    assert len(episodes) == 3
    assert not report.ok
    assert [(finding.where, finding.what) for finding in report.findings] == expected


def test_a_cut_shard_is_named_and_the_rest_is_imported(robots: Path, tmp_path: Path) -> None:
    data = (robots / FIRST).read_bytes()
    (robots / FIRST).write_bytes(data[:-5])
    (place, what), (file, count) = errors(robots)
    assert place.startswith(f"{FIRST} record 1 (byte ")
    assert what.startswith("the file ends inside the record: ")
    assert (file, count) == (FIRST, "dataset_info.json says 2 records, 1 were found")
    assert len(read_set(robots, tmp_path)[0]) == 3


def test_a_cut_between_records_and_a_lost_shard_are_noticed(robots: Path) -> None:
    """Framing alone cannot see either; dataset_info.json can."""
    first = next(iter(TFRecordReader(robots / FIRST)))
    assert isinstance(first, memoryview)
    size = len(first) + 16
    del first
    (robots / FIRST).write_bytes((robots / FIRST).read_bytes()[:size])
    (robots / SECOND).unlink()
    assert errors(robots) == [
        (SECOND, "missing: 2 episodes of split train are lost"),
        (FIRST, "dataset_info.json says 2 records, 1 were found"),
    ]


def test_a_part_of_a_large_set_is_told_in_one_line(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    source = write_set(tmp_path / "set", ROBOT, {"train": [[robot_example(rng, 3)] for _ in range(12)]})
    shards = sorted(source.glob("*.tfrecord-*"))
    for shard in shards[2:]:
        shard.unlink()
    what = "missing, and 9 more of 12 shards: 10 episodes of split train are lost"
    assert errors(source) == [(shards[2].name, what)]
    assert len(read_set(source, tmp_path)[0]) == 2


def test_no_changed_bit_of_a_shard_goes_unnoticed(robots: Path, tmp_path: Path) -> None:
    """Nor does any changed byte of the other files crash, hang or leave the folder."""
    rng = np.random.default_rng(0)
    for file in sorted(robots.iterdir()):
        good = file.read_bytes()
        for _ in range(60):
            changed = bytearray(good)
            changed[rng.integers(len(changed))] ^= 1 << rng.integers(8)
            file.write_bytes(changed)
            found = errors(robots)
            assert found or file.suffix == ".json"
        for size in rng.integers(0, len(good), 20):
            file.write_bytes(good[:size])
            found = errors(robots)
            assert found or file.suffix == ".json"
        file.write_bytes(good)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"steps/action": np.zeros(7, np.float32)}, "steps/action: 7 numbers, expected 3 steps of shape (3,)"),
        ({"steps/action": np.zeros(9, np.int64)}, "steps/action: declared as float32, stored as int64"),
        ({"steps/action": [b"1"] * 9}, "steps/action: expected numbers, got byte strings"),
        ({"steps/reward": np.zeros(2, np.float32)}, "fields of different numbers of steps: "),
        ({"steps/is_last": np.array([1, 0, 1])}, "is_last is set at step 0 of 3: several episodes in one record"),
        ({"steps/is_first": np.array([1, 1, 0])}, "is_first is set at step 1 of 3: several episodes in one record"),
        ({"steps/is_first": np.array([2, 0, 0])}, "steps/is_first: a number that bool cannot hold"),
        ({"steps/observation/image": [b"no"] * 3}, "steps/observation/image: step 0: the image cannot be decoded"),
        (
            {"steps/observation/image": [png(np.zeros((4, 7, 3), np.uint8))] * 3},
            "steps/observation/image: step 0: an image of (4, 7), expected (4, 6)",
        ),
        (
            {"steps/observation/state": np.array([0, 1, np.nan, 0, 0, 0], np.float32)},
            "refused: episode of rlds/toy-v0: observations/state: step 1, element (0,): expected a finite number",
        ),
    ],
)
def test_bad_records_are_named(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    rng = np.random.default_rng(0)
    examples = [robot_example(rng, 3), robot_example(rng, 3) | change, robot_example(rng, 3)]
    source = write_set(tmp_path / "set", ROBOT, {"train": [examples]})
    (finding,) = errors(source)
    assert finding[0] == "toy-train.tfrecord-00000-of-00001 record 1"
    assert finding[1].startswith(problem)
    episodes, report = read_set(source, tmp_path)
    assert len(episodes) == 2
    assert len(report.findings) == 1


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    examples = [robot_example(rng, 3), robot_example(rng, 3)]
    del examples[1]["steps/observation/state"]
    source = write_set(tmp_path / "set", ROBOT, {"train": [examples]})
    assert errors(source) == [("toy-train.tfrecord-00000-of-00001 record 1", "steps/observation/state: missing")]


def test_an_enormous_image_or_tensor_is_not_decoded(tmp_path: Path) -> None:
    """Sizes are compared before anything is allocated: 30,000 x 30,000 pixels in a few bytes; zlib bombs."""
    header = b"IHDR" + (30_000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    bomb = b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0d" + header + zlib.crc32(header).to_bytes(4, "big")
    body = b"IDAT" + zlib.compress(b"")
    bomb += (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    leaves = [*ROBOT[1:], leaf("steps/observation/zipped", "float32", (2,), encoding="zlib")]
    example = robot_example(np.random.default_rng(0), 2) | {"steps/observation/zipped": [zlib.compress(bytes(8))] * 2}
    bad = example | {"steps/observation/zipped": [zlib.compress(bytes(1 << 24))] * 2}
    source = write_set(tmp_path / "zip", leaves, {"train": [[example, bad]]})
    assert errors(source)[0][1].startswith("steps/observation/zipped: more than 8 bytes in a step")
    leaves = [leaf("steps/observation", "uint8", (None, None, 3), kind="image"), leaf("steps/action", "float32")]
    example = {"steps/observation": [bomb], "steps/action": np.ones(1, np.float32)}
    source = write_set(tmp_path / "png", leaves, {"train": [[example]]})
    assert "step 0: the image cannot be decoded: Image size (900000000 pixels) exceeds limit" in errors(source)[0][1]


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("features.json", "{", "is not JSON"),
        ("features.json", "[" * 100_000, "is not JSON"),
        ("features.json", "{}", "expected a FeaturesDict at the top"),
        ("features.json", '{"featuresDict": {"features": {"a": {"text": {}}}}}', "has no 'steps'"),
        ("features.json", '{"featuresDict": {"features": {"steps": 3}}}', "expected an object"),
        ("dataset_info.json", "[1]", "expected a JSON object"),
        ("dataset_info.json", '{"name": "x", "splits": [{"shardLengths": ["a"]}]}', "splits: cannot be understood"),
        (
            "dataset_info.json",
            '{"name": "../x", "splits": [{"name": "s", "shardLengths": ["1"]}]}',
            "leaves the folder",
        ),
        ("dataset_info.json", '{"fileFormat": "riegeli", "splits": [1]}', "file format 'riegeli'"),
        (FIRST, "", "no record can be read"),
    ],
)
def test_files_that_cannot_be_understood(robots: Path, file: str, text: str, problem: str) -> None:
    (robots / SECOND).unlink()
    (robots / file).write_text(text)
    with pytest.raises(UserError, match=problem):
        formats.open_importer("rlds", robots)
    assert problem in errors(robots)[0][1]


def test_without_dataset_info_the_shards_are_found(robots: Path, tmp_path: Path) -> None:
    (robots / "dataset_info.json").unlink()
    episodes, report = read_set(robots, tmp_path)
    assert len(episodes) == 4
    assert report.ok
    assert [finding.severity for finding in report.findings] == ["warning"]
    assert "lost shards or records go unnoticed" in report.findings[0].what


def test_several_versions_must_be_told_apart(tmp_path: Path) -> None:
    for version in ("0.1.0", "0.2.0"):
        write_set(tmp_path / "toy" / version, ROBOT, {"train": [[robot_example(np.random.default_rng(0), 3)]]})
    with pytest.raises(UserError, match=r"holds 2 sets or versions \(0.1.0, 0.2.0\); give one of them"):
        formats.open_importer("rlds", tmp_path / "toy")


# --- the command line ---


def test_import_export_doctor(robots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "s"
    assert (
        cli.main(["import", "--source", str(robots), "--store", str(store), "--task-id", "arm/Pick-v2", "--json"]) == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert (report["num_added"], report["num_known"], report["tasks"], report["ok"]) == (4, 0, ["arm/Pick-v2"], True)
    assert {"what", "why", "count"} == set(report["losses"][0])
    assert cli.main(["import", "--from", "rlds", "--source", str(robots), "--store", str(store)]) == 0
    out = capsys.readouterr().out
    assert "the set lacked: final observation (4): the last step has a real action" in out
    assert cli.main(["import", "--source", str(robots), "--store", str(store), "--task-id", "arm/Pick-v2"]) == 0
    assert "0 episodes added, 4 there already, 0 refused" in capsys.readouterr().out
    arguments = ["export", "--to", "rlds", "--store", str(store), "--tasks", "arm/*", "--output", str(tmp_path / "out")]
    assert cli.main([*arguments, "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["exports"]
    assert result["destination"] == str(tmp_path / "out" / "arm_pick_v2" / "1.0.0")
    assert cli.main(arguments) == 2
    assert "exists; choose another --output" in capsys.readouterr().err
    assert cli.main(["doctor", "--source", str(tmp_path / "out")]) == 0
    assert "rlds: 0 errors, 0 warnings, 1 notes" in capsys.readouterr().out
    assert cli.main(["doctor", "--store", str(store), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "store"
    (robots / SECOND).unlink()
    assert cli.main(["doctor", "--source", str(robots)]) == 1
    assert f"ERROR {SECOND}: missing: 2 episodes of split train are lost; copy the set again" in capsys.readouterr().out
    assert cli.main(["import", "--source", str(robots), "--store", str(tmp_path / "t")]) == 1


def test_an_export_of_a_damaged_episode_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cart_store(tmp_path / "s")
    (data,) = (tmp_path / "s" / "segments").glob("*.data")
    content = bytearray(data.read_bytes())
    content[content.index(np.float64(0.2).tobytes())] ^= 1
    data.write_bytes(content)
    assert cli.main(["export", "--to", "rlds", "--store", str(tmp_path / "s"), "--output", str(tmp_path / "o")]) == 1
    assert "ERROR Cart-v1: episode " in capsys.readouterr().out
    assert [file for file in (tmp_path / "o").rglob("*") if file.is_file()] == []


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["import", "--source", "nowhere", "--store", "s"], "source nowhere: no such folder or file"),
        (["import", "--from", "rdls", "--source", ".", "--store", "s"], "did you mean 'rlds'?"),
        (["import", "--source", ".", "--store", "s"], "source .: no known format; say which with --from"),
        (["import", "--from", "rlds", "--source", ".", "--store", "s"], "source .: has no features.json"),
        (["export", "--to", "jat", "--store", "s", "--output", "o"], "format 'jat' can only be read"),
        (["doctor", "--source", "."], "source .: no known format"),
    ],
)
def test_mistakes_of_the_user(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    problem: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    cart_store(tmp_path / "s")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    os.symlink(tmp_path / "s", tmp_path / "empty" / "s")
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert problem in error
    assert error.count("\n") == 1


def test_an_unknown_task_pattern(robots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["import", "--source", str(robots), "--store", str(tmp_path / "s"), "--tasks", "rlds/tox-v0"]) == 2
    assert (
        "no task 'rlds/tox-v0' in the set; it has rlds/toy-v0; did you mean 'rlds/toy-v0'?" in capsys.readouterr().err
    )


@pytest.mark.slow
def test_an_import_that_is_killed_goes_on(tmp_path: Path) -> None:
    """kill -9 in the middle; run again, the store is what one run makes."""
    rng = np.random.default_rng(0)
    examples = [robot_example(rng, 20) for _ in range(400)]
    source = write_set(tmp_path / "set", ROBOT, {"train": [examples[:200], examples[200:]]})
    arguments = [sys.executable, "-m", "episode_store", "import", "--source", str(source), "--json", "--store"]
    store = tmp_path / "store"
    process = subprocess.Popen([*arguments, str(store)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    count = 0
    deadline = time.monotonic() + 60
    while count < 50 and process.poll() is None and time.monotonic() < deadline:
        journals = list((store / "segments").glob("*.journal"))
        count = journals[0].read_bytes().count(b"\n") if journals else 0
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = len(EpisodeStore.open(store))
    assert 50 <= first < 400
    again = subprocess.run([*arguments, str(store)], capture_output=True, check=True)
    report = json.loads(again.stdout)
    assert (report["num_added"], report["num_known"]) == (400 - first, first)
    subprocess.run([*arguments, str(tmp_path / "whole")], capture_output=True, check=True)
    assert sorted(EpisodeStore.open(store).episode_ids) == sorted(EpisodeStore.open(tmp_path / "whole").episode_ids)
