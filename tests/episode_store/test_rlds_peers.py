"""Our RLDS sets under the real tensorflow-datasets and rlds, and their sets under ours: `make test-peers`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from episode_store.episode import Episode, EpisodeMetadata
from episode_store.formats import format as formats
from episode_store.formats import transfer
from episode_store.spec import ArraySpec, Modality
from episode_store.store import EpisodeStore
from episode_store.task import TaskSpec
from episode_store.testing import assert_episodes_equal, example_tasks, random_episode
from episode_store.writer import EpisodeWriter

pytestmark = pytest.mark.peers

_FLOATS = {"dtype": "float32", "modality": Modality.CONTINUOUS}
TASK = TaskSpec(
    task_id="peers/All-v0",
    observation_spec={
        "image": ArraySpec(modality=Modality.IMAGE, shape=(7, 5, 3), dtype="uint8"),
        "gray": ArraySpec(modality=Modality.IMAGE, shape=(7, 5, 1), dtype="uint8"),
        "alpha": ArraySpec(modality=Modality.IMAGE, shape=(7, 5, 4), dtype="uint8"),
        "two_channels": ArraySpec(modality=Modality.IMAGE, shape=(7, 5, 2), dtype="uint8"),
        "mission": ArraySpec(modality=Modality.TEXT, dtype="str"),
        "nested/wide": ArraySpec(modality=Modality.CONTINUOUS, shape=(3,), dtype="float64"),
        "nested/deep/flags": ArraySpec(modality=Modality.DISCRETE, shape=(2,), dtype="bool", num_values=(2, 2)),
        "many_flags": ArraySpec(modality=Modality.DISCRETE, shape=(20,), dtype="bool", num_values=(2,) * 20),
        "empty": ArraySpec(shape=(0,), **_FLOATS),  # type: ignore[arg-type]
        "scalar": ArraySpec(**_FLOATS),  # type: ignore[arg-type]
        **{
            dtype: ArraySpec(modality=Modality.CONTINUOUS, shape=(2, 2), dtype=dtype)
            for dtype in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16")
        },
    },
    action_spec={"action": ArraySpec(modality=Modality.DISCRETE, dtype="int64", num_values=(400,))},
    licence="CC-BY-4.0",
)


@pytest.fixture(name="store", scope="module")
def _store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    path = tmp_path_factory.mktemp("peers") / "store"
    rng = np.random.default_rng(0)
    with EpisodeWriter(path) as writer:
        writer.add_task(TASK)
        for index in range(6):
            metadata = EpisodeMetadata(agent_id="a", seed=index, collection_index=index, environment_config={"k": [1]})
            writer.add_episode(random_episode(TASK, rng, 1 + index, metadata=metadata, exploratory=index % 2 == 0))
    return EpisodeStore.open(path)


def export(store: EpisodeStore, folder: Path, **options: str) -> Path:
    return formats.export_task("rlds", store, TASK.task_id, folder, options=options).destination


def assert_steps_equal(steps: Iterator[Any], episode: Episode) -> None:
    """Every step of the peers' reader against the episode, bit by bit."""
    steps = list(steps)
    assert len(steps) == episode.num_steps + 1
    for index, step in enumerate(steps):
        for name, values in episode.observations.items():
            got = step["observation"]
            for part in name.split("/"):
                got = got[part]
            if isinstance(values, list):
                assert bytes(got).decode() == values[index], name
            else:
                got = np.asarray(got)
                assert got.shape == values.shape[1:], name
                assert got.dtype == values.dtype, name
                assert got.tobytes() == values[index].tobytes(), name
        is_last = index == episode.num_steps
        assert bool(step["is_first"]) == (index == 0)
        assert bool(step["is_last"]) == is_last
        assert bool(step["is_terminal"]) == (is_last and episode.terminated)
        assert int(step["action"]) == (0 if is_last else int(episode.actions["action"][index]))
        assert float(step["reward"]) == (0.0 if is_last else episode.rewards[index])
        if not is_last and "exploratory" in episode.step_columns:
            assert bool(step["step_columns"]["exploratory"]) == episode.step_columns["exploratory"][index]


def test_tfds_reads_our_set_bit_by_bit(tfds: Any, store: EpisodeStore, tmp_path: Path) -> None:
    folder = export(store, tmp_path, shard_episodes="4")
    builder = tfds.builder_from_directory(str(folder))
    assert builder.info.splits["train"].num_examples == 6
    assert [int(length) for length in builder.info.splits["train"].shard_lengths] == [4, 2]
    assert builder.info.redistribution_info.license == "CC-BY-4.0"
    seen = set()
    for example in builder.as_dataset(split="train"):
        metadata = {key: value.numpy() for key, value in example["episode_metadata"].items()}
        episode = store.read(metadata["episode_id"].decode())
        assert_steps_equal(example["steps"].as_numpy_iterator(), episode)
        assert bool(metadata["truncated"]) == episode.truncated
        assert metadata["agent_id"] == b"a"
        seen.add(metadata["episode_id"].decode())
    assert seen == set(store.episode_ids)


def test_tfds_reads_images_whose_size_varies(tfds: Any, tmp_path: Path) -> None:
    """Album-v0: its pictures become `Image(shape=(None, None, 3))`."""
    task = example_tasks()["Album-v0"]
    with EpisodeWriter(tmp_path / "store") as writer:
        writer.add_task(task)
        for length in (3, 5):
            writer.add_episode(random_episode(task, np.random.default_rng(length), length))
    store = EpisodeStore.open(tmp_path / "store")
    builder = tfds.builder_from_directory(
        str(formats.export_task("rlds", store, task.task_id, tmp_path / "out").destination)
    )
    features = builder.info.features["steps"].feature
    assert features["observation"]["picture"].shape == (None, None, 3)
    assert features["action"]["crop"].shape == (None, None, 1)
    num_episodes = 0
    for example in builder.as_dataset(split="train"):
        episode = store.read(example["episode_metadata"]["episode_id"].numpy().decode())
        steps = list(example["steps"].as_numpy_iterator())
        pictures = episode.observations["picture"]
        assert len({picture.shape for picture in pictures}) > 1
        for step, picture in zip(steps, pictures, strict=True):
            np.testing.assert_array_equal(step["observation"]["picture"], picture)
        for step, crop in zip(steps, episode.actions["crop"], strict=False):
            np.testing.assert_array_equal(step["action"]["crop"], crop)
        num_episodes += 1
    assert num_episodes == 2


def test_as_data_source_reads_our_array_records(tfds: Any, store: EpisodeStore, tmp_path: Path) -> None:
    """Random access without TensorFlow's pipeline."""
    builder = tfds.builder_from_directory(str(export(store, tmp_path, file_format="array_record")))
    source = builder.as_data_source(split="train")
    assert len(source) == 6
    for index in (5, 0, 3):
        example = source[index]
        episode = store.read(example["episode_metadata"]["episode_id"].decode())
        assert_steps_equal(iter(example["steps"]), episode)


def test_array_records_come_back_bit_by_bit(store: EpisodeStore, tmp_path: Path) -> None:
    folder = export(store, tmp_path, file_format="array_record")
    transfer.import_set(formats.open_importer("rlds", folder), folder, tmp_path / "back")
    back = EpisodeStore.open(tmp_path / "back")
    assert sorted(back.episode_ids) == sorted(store.episode_ids)
    for episode_id in store.episode_ids:
        assert_episodes_equal(store.read(episode_id), back.read(episode_id))


def test_a_cut_array_record_is_an_error(store: EpisodeStore, tmp_path: Path) -> None:
    """What a killed writer leaves reads as an empty set elsewhere."""
    folder = export(store, tmp_path, file_format="array_record")
    (shard,) = folder.glob("*.array_record-*")
    whole = shard.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        shard.write_bytes(whole[:size])
        _, findings = transfer.examine(folder)
        assert any(finding.severity == "error" for finding in findings), size


@pytest.fixture(name="rlds", scope="module")
def _rlds(tfds: Any) -> Any:
    import rlds

    return rlds


def test_rlds_transformations_run_over_our_set(tfds: Any, rlds: Any, store: EpisodeStore, tmp_path: Path) -> None:
    """Returns, lengths, truncation, transitions and the last step as the field's own library makes them."""
    transformations = rlds.transformations
    dataset = tfds.builder_from_directory(str(export(store, tmp_path))).as_dataset(split="train")
    num_episodes = 0
    for example in dataset:
        episode = store.read(example["episode_metadata"]["episode_id"].numpy().decode())
        wide, actions = episode.observations["nested/wide"], episode.actions["action"]
        steps = example["steps"]
        total = transformations.sum_dataset(steps, lambda step: {"reward": step["reward"]})
        assert float(total["reward"]) == pytest.approx(episode.episode_return, abs=1e-12)
        assert int(transformations.episode_length(steps)) == episode.num_steps + 1
        assert bool(transformations.final_step(steps)["is_terminal"]) == episode.terminated
        cut = transformations.truncate_after_condition(steps, lambda step: step["is_first"])
        assert len(list(cut)) == 1
        pairs = list(transformations.batch(steps, size=2, shift=1, drop_remainder=True))
        assert len(pairs) == episode.num_steps
        for index, pair in enumerate(pairs):
            assert pair["observation"]["nested"]["wide"].numpy().tobytes() == wide[index : index + 2].tobytes()
            assert int(pair["action"][0]) == int(actions[index])
        num_episodes += 1
    assert num_episodes == len(store)
    # Over the whole set, steps of all episodes one after the other.
    lengths = [store.read(episode_id).num_steps + 1 for episode_id in store.episode_ids]
    steps = dataset.flat_map(lambda episode: episode[rlds.STEPS])
    assert len(list(transformations.map_steps(steps, lambda step: step["action"]))) == sum(lengths)


def robot_steps(rng: np.random.Generator, rows: int) -> list[dict[str, Any]]:
    """One episode with every kind of feature of robot sets; real last actions."""
    return [
        {
            "observation": {
                "image": rng.integers(0, 256, (8, 6, 3), dtype=np.uint8),
                "wrist": rng.integers(0, 256, (8, 6, 3), dtype=np.uint8),
                "depth": rng.normal(size=(8, 6, 1)).astype(np.float32),
                "depth16": rng.integers(0, 65536, (8, 6, 1), dtype=np.uint16),
                "state": rng.normal(size=4).astype(np.float32),
                "wide": rng.normal(size=2),
                "packed": rng.integers(-5, 5, (2, 2), dtype=np.int16),
                "large": np.uint64(2**63 + index),
                "pair": rng.normal(size=(3, 2)).astype(np.float32),
                "ragged": rng.normal(size=(index % 3, 2)).astype(np.float32),
                "any_side": rng.normal(size=(2, 3)).astype(np.float32),
            },
            "action": {"world_vector": rng.normal(size=3).astype(np.float32), "open": bool(index % 2)},
            "reward": np.float32(index == rows - 1),
            "discount": np.float32(1),
            "is_first": index == 0,
            "is_last": index == rows - 1,
            "is_terminal": index == rows - 1,
            "label": index % 5,
            "language_instruction": f"pick é {rows}",
        }
        for index in range(rows)
    ]


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_a_set_that_tfds_wrote_is_imported_as_tfds_reads_it(tfds: Any, tmp_path: Path, file_format: str) -> None:
    import tensorflow as tf

    features = tfds.features

    class Robot(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[misc, name-defined]
        """Written by the real builder, with its shuffling and sharding."""

        VERSION = tfds.core.Version("1.2.0")

        def _info(self) -> Any:
            tensor = features.Tensor
            return tfds.core.DatasetInfo(
                builder=self,
                features=features.FeaturesDict(
                    {
                        "episode_metadata": {"file_path": features.Text(), "number": np.int32},
                        "steps": features.Dataset(
                            {
                                "observation": {
                                    "image": features.Image(shape=(8, 6, 3), encoding_format="jpeg"),
                                    "wrist": features.Image(),
                                    "depth": features.Image(shape=(8, 6, 1), dtype=np.float32),
                                    "depth16": features.Image(shape=(8, 6, 1), dtype=np.uint16),
                                    "state": tensor(shape=(4,), dtype=np.float32),
                                    "wide": tensor(shape=(2,), dtype=np.float64, encoding="bytes"),
                                    "packed": tensor(shape=(2, 2), dtype=np.int16, encoding="zlib"),
                                    "large": tensor(shape=(), dtype=np.uint64, encoding="bytes"),
                                    "pair": features.Sequence(tensor(shape=(2,), dtype=np.float32)),
                                    "ragged": features.Sequence(tensor(shape=(2,), dtype=np.float32)),
                                    "any_side": tensor(shape=(None, None), dtype=np.float32, encoding="bytes"),
                                },
                                "action": {"world_vector": tensor(shape=(3,), dtype=np.float32), "open": np.bool_},
                                "reward": features.Scalar(dtype=np.float32),
                                "discount": np.float32,
                                "is_first": np.bool_,
                                "is_last": np.bool_,
                                "is_terminal": np.bool_,
                                "label": features.ClassLabel(num_classes=5),
                                "language_instruction": features.Text(),
                            }
                        ),
                    }
                ),
            )

        def _split_generators(self, manager: Any) -> Any:
            return {"train": self._generate_examples(5), "val": self._generate_examples(2)}

        def _generate_examples(self, count: int) -> Any:
            rng = np.random.default_rng(count)
            for number in range(count):
                metadata = {"file_path": f"/data/{count}/{number}", "number": number}
                yield number, {"episode_metadata": metadata, "steps": robot_steps(rng, 3 + number)}

    builder = Robot(data_dir=str(tmp_path / "tfrecord"), file_format="tfrecord")
    builder.download_and_prepare()
    if file_format != "tfrecord":
        # tfds reads these in part only (no as_dataset, no 16-bit images): the same episodes as TFRecord are the truth.
        Robot(data_dir=str(tmp_path / file_format), file_format=file_format).download_and_prepare()
    source = tmp_path / file_format
    report = transfer.import_set(formats.open_importer("rlds", source), source, tmp_path / "store")
    assert (report.num_added, report.findings) == (7, [])
    assert {"field observation/ragged", "image: JPEG"} <= {loss.what for loss in report.losses}
    store = EpisodeStore.open(tmp_path / "store")
    episodes = [store.read(i) for i in store.episode_ids]
    decoders = {"steps": {"observation": {"image": tfds.decode.SkipDecoding()}}}
    expected = {}
    for split in ("train", "val"):
        for example in builder.as_dataset(split=split, decoders=decoders):
            expected[example["episode_metadata"]["file_path"].numpy().decode()] = list(
                example["steps"].as_numpy_iterator()
            )
    assert len(expected) == len(episodes) == 7
    for episode in episodes:
        steps = expected[episode.metadata.environment_config["episode"]["episode_metadata/file_path"]]
        assert episode.num_steps == len(steps)
        for index, step in enumerate(steps):
            for name, value in step["observation"].items():
                if name == "ragged":
                    continue
                got = episode.observations[name][index]
                if name == "image":
                    # TensorFlow's own default for JPEG is a fast approximation; its exact decoder agrees.
                    value = tf.io.decode_jpeg(value, dct_method="INTEGER_ACCURATE").numpy()
                assert np.asarray(got).dtype == np.asarray(value).dtype, name
                assert np.asarray(got).tobytes() == np.asarray(value).tobytes(), name
            for name, value in step["action"].items():
                assert episode.actions[name][index].tobytes() == value.tobytes()
            assert episode.rewards[index] == step["reward"]
            assert episode.observations["language_instruction"][index] == step["language_instruction"].decode()
            assert episode.step_columns["label"][index] == step["label"]
