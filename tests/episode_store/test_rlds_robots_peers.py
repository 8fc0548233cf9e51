"""Robot sets as they are published, written by the real tensorflow-datasets and compared step by step with what it
reads: `make test-peers`."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from episode_store.episode import Episode
from episode_store.formats import format as formats
from episode_store.formats import transfer
from episode_store.store import EpisodeStore

pytestmark = pytest.mark.peers

Steps = list[dict[str, Any]]
FLAGS = {"is_first": np.bool_, "is_last": np.bool_, "is_terminal": np.bool_}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RobotSet:
    """A set to be written.

    Attributes:
      features: of an episode, given the module of features.
      episode: one of so many steps.
      splits: name -> lengths of its episodes.
      file_format, config, num_shards: as the builder is told.
      last_is_real: whether each last step has an action.
    """

    features: Callable[[Any], Any]
    episode: Callable[[np.random.Generator, int], dict[str, Any]]
    splits: Mapping[str, Sequence[int]]
    file_format: str = "tfrecord"
    config: str = ""
    num_shards: int | None = None
    last_is_real: bool = True


def flags(step: int, rows: int) -> dict[str, bool]:
    return {"is_first": step == 0, "is_last": step == rows - 1, "is_terminal": step == rows - 1}


def image(rng: np.random.Generator, height: int = 8, width: int = 6, channels: int = 3) -> np.ndarray:
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


# Many facts of the episode beside the steps, an action of several tensors, an embedding among the observations.
MANIPULATION = RobotSet(
    features=lambda f: f.FeaturesDict(
        {
            "attributes": {"collection_mode": np.int64, "verified": np.bool_, "notes": f.Text()},
            "steps": f.Dataset(
                {
                    "observation": {
                        "image": f.Image(shape=(8, 6, 3), encoding_format="png"),
                        "natural_language_instruction": f.Tensor(shape=(), dtype=np.str_),
                        "natural_language_embedding": f.Tensor(shape=(512,), dtype=np.float32),
                        "gripper_closed": f.Tensor(shape=(1,), dtype=np.float32),
                        "gripper_commanded": np.float32,
                        "orientation_box": f.Tensor(shape=(2, 3), dtype=np.float32),
                        "joints": {"left": {"position": f.Tensor(shape=(7,), dtype=np.float32)}},
                    },
                    "action": {
                        "world_vector": f.Tensor(shape=(3,), dtype=np.float32),
                        "terminate_episode": f.Tensor(shape=(3,), dtype=np.int32),
                    },
                    "reward": f.Scalar(dtype=np.float32),
                    **FLAGS,
                }
            ),
        }
    ),
    episode=lambda rng, rows: {
        "attributes": {"collection_mode": rows % 3, "verified": bool(rows % 2), "notes": "é" * (rows % 3)},
        "steps": [
            {
                "observation": {
                    "image": image(rng),
                    "natural_language_instruction": "pick the ✓",
                    "natural_language_embedding": floats(rng, 512),
                    "gripper_closed": floats(rng, 1),
                    "gripper_commanded": floats(rng, 1)[0],
                    "orientation_box": floats(rng, 2, 3),
                    "joints": {"left": {"position": floats(rng, 7)}},
                },
                "action": {"world_vector": floats(rng, 3), "terminate_episode": np.array([0, 0, 1], np.int32)},
                "reward": np.float32(step == rows - 1),
                **flags(step, rows),
            }
            for step in range(rows)
        ],
    },
    splits={"train": (4, 5, 6, 7, 2), "val": (3, 4), "test": (5, 1, 2)},
    num_shards=2,
)

# No action in the last step, no is_terminal; facts of each step beside the observation; a folder of a configuration.
TELEOPERATION = RobotSet(
    features=lambda f: f.FeaturesDict(
        {
            "episode_metadata": {
                "file_path": f.Text(),
                "has_image": np.bool_,
                "episode_id": np.int32,
                "nested": {"tags": f.Sequence(f.Text()), "start": f.Tensor(shape=(6,), dtype=np.float32)},
            },
            "steps": f.Dataset(
                {
                    "observation": {
                        "image": f.Image(shape=(8, 6, 3), encoding_format="png"),
                        "wrist": f.Image(shape=(None, None, 3)),
                        "depth": f.Image(shape=(8, 6, 1), dtype=np.uint16, encoding_format="png"),
                        "state": f.Tensor(shape=(7,), dtype=np.float32),
                    },
                    "action": f.Tensor(shape=(7,), dtype=np.float32),
                    "discount": f.Scalar(dtype=np.float32),
                    "reward": f.Scalar(dtype=np.float32),
                    "is_first": f.Scalar(dtype=np.bool_),
                    "is_last": f.Scalar(dtype=np.bool_),
                    "language_instruction": f.Text(),
                    "language_embedding": f.Tensor(shape=(512,), dtype=np.float32),
                    "timestamp": f.Scalar(dtype=np.int64),
                    "info": {"success": f.Scalar(dtype=np.bool_), "distance": f.Scalar(dtype=np.float32)},
                }
            ),
        }
    ),
    episode=lambda rng, rows: {
        "episode_metadata": {
            "file_path": f"/data/{rows}.npy",
            "has_image": bool(rows % 2),
            "episode_id": rows,
            "nested": {"tags": ["a", "bb"], "start": floats(rng, 6)},
        },
        "steps": [
            {
                "observation": {
                    "image": image(rng),
                    "wrist": image(rng, 4, 5),
                    "depth": rng.integers(0, 1 << 16, (8, 6, 1)).astype(np.uint16),
                    "state": floats(rng, 7),
                },
                "action": floats(rng, 7) * (step < rows - 1),
                "discount": np.float32(1),
                "reward": np.float32(0),
                "is_first": step == 0,
                "is_last": step == rows - 1,
                "language_instruction": "" if rows == 4 else "put ✓",
                "language_embedding": floats(rng, 512),
                "timestamp": np.int64(step * 10**9 + 1),
                "info": {"success": step == rows - 1, "distance": floats(rng, 1)[0]},
            }
            for step in range(rows)
        ],
    },
    splits={"train": (4, 5, 6), "val": (3,)},
    config="small",
    last_is_real=False,
)

# Steps as a Sequence, which tensorflow-datasets reads as stacked arrays.
STACKED = RobotSet(
    features=lambda f: f.FeaturesDict(
        {
            "steps": f.Sequence(
                {
                    "observation": {
                        "image": f.Image(shape=(8, 6, 3), encoding_format="png"),
                        "state": f.Tensor(shape=(2,), dtype=np.float32),
                    },
                    "action": f.Tensor(shape=(2,), dtype=np.float32),
                    "reward": np.float32,
                    "language_instruction": f.Text(),
                    **FLAGS,
                }
            )
        }
    ),
    episode=lambda rng, rows: {
        "steps": [
            {
                "observation": {"image": image(rng), "state": floats(rng, 2)},
                "action": floats(rng, 2),
                "reward": floats(rng, 1)[0],
                "language_instruction": "go",
                **flags(step, rows),
            }
            for step in range(rows)
        ]
    },
    splits={"train": (4, 6)},
)

# A picture as the whole observation, of a size that changes; a choice as the whole action; a reward of shape (1,).
ARCADE = RobotSet(
    features=lambda f: f.FeaturesDict(
        {
            "steps": f.Dataset(
                {
                    "observation": f.Image(shape=(None, None, 1), encoding_format="png"),
                    "action": f.ClassLabel(num_classes=6),
                    "reward": f.Tensor(shape=(1,), dtype=np.float32),
                    **FLAGS,
                }
            )
        }
    ),
    episode=lambda rng, rows: {
        "steps": [
            {
                "observation": image(rng, 4 + rows % 3, 6, 1),
                "action": int(rng.integers(6)),
                "reward": floats(rng, 1),
                **flags(step, rows),
            }
            for step in range(rows)
        ]
    },
    splits={"train": (4, 5, 6)},
)

# Every width of numbers, plain and packed, and neither rewards nor flags.
NUMBERS = RobotSet(
    features=lambda f: f.FeaturesDict(
        {
            "episode_id": f.Text(),
            "steps": f.Dataset(
                {
                    "observation": {
                        **{
                            name: f.Tensor(shape=(2, 3), dtype=np.dtype(name))
                            for name in ("int8", "int16", "uint8", "uint16", "uint32", "float16", "bool")
                        },
                        "depth": f.Tensor(shape=(5, 4), dtype=np.float32, encoding="zlib"),
                        "picture": f.Tensor(shape=(8, 6, 3), dtype=np.uint8),
                        "points": f.Tensor(shape=(None, 3), dtype=np.float32, encoding="zlib"),
                    },
                    "action": {
                        "arm": {"joints": f.Tensor(shape=(2,), dtype=np.float64, encoding="bytes")},
                        "open": np.bool_,
                    },
                }
            ),
        }
    ),
    episode=lambda rng, rows: {
        "episode_id": f"{rows}",
        "steps": [
            {
                "observation": {
                    **{
                        name: rng.integers(0, 2 if name == "bool" else 100, (2, 3)).astype(name)
                        for name in ("int8", "int16", "uint8", "uint16", "uint32", "float16", "bool")
                    },
                    "depth": floats(rng, 5, 4),
                    "picture": image(rng),
                    "points": floats(rng, 5, 3),
                },
                "action": {"arm": {"joints": rng.normal(size=2)}, "open": True},
            }
            for step in range(rows)
        ],
    },
    splits={"train": (2, 3)},
)

SETS = {
    "manipulation": MANIPULATION,
    "teleoperation": TELEOPERATION,
    "stacked": STACKED,
    "arcade": ARCADE,
    "numbers": NUMBERS,
}


def write(tfds: Any, name: str, robots: RobotSet, folder: Path) -> Any:
    """The builder that has written a set, with its own shuffling and sharding."""
    rng = np.random.default_rng(0)

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[misc, name-defined]
        """The set."""

        VERSION = tfds.core.Version("0.1.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=robots.config)] if robots.config else []

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(builder=self, features=robots.features(tfds.features))

        def _split_generators(self, _: Any) -> Any:
            return {split: self._generate_examples(lengths) for split, lengths in robots.splits.items()}

        def _generate_examples(self, lengths: Sequence[int]) -> Any:
            for number, rows in enumerate(lengths):
                yield number, robots.episode(rng, rows)

    Builder.name = name
    builder = Builder(data_dir=str(folder), file_format=robots.file_format)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=robots.num_shards))
    return builder


def flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves by their path joined with '/'."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{above}{name}/")
        else:
            yield f"{above}{name}", value


def read(tfds: Any, builder: Any, split: str) -> Iterator[tuple[dict[str, Any], Steps]]:
    """The facts and the steps of each episode as the real package reads them, in the order of the shards."""
    # Otherwise it reads several shards in turn.
    config = tfds.ReadConfig(interleave_cycle_length=1)
    for example in tfds.as_numpy(builder.as_dataset(split=split, read_config=config)):
        steps = example.pop("steps")
        if isinstance(steps, dict):
            columns = dict(flat(steps))
            rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        else:
            rows = [dict(flat(step)) for step in steps]
        yield dict(flat(example)), rows


def assert_equal(got: Any, expected: Any, where: str) -> None:
    """One value of one step, bit by bit."""
    if isinstance(expected, bytes):
        assert got == expected.decode(), where
    else:
        got, expected = np.asarray(got), np.asarray(expected)
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape), where
        assert got.tobytes() == expected.tobytes(), where


def assert_episode_equal(episode: Episode, facts: Mapping[str, Any], steps: Steps, robots: RobotSet) -> None:
    """Everything that the real package reads is in the episode, and nothing is moved by a step."""
    num_steps = len(steps) if robots.last_is_real else len(steps) - 1
    assert episode.num_steps == num_steps
    config = episode.metadata.environment_config
    for index, step in enumerate(steps):
        for path, expected in step.items():
            top, _, name = path.partition("/")
            where = f"step {index}: {path}"
            if top == "observation":
                assert_equal(episode.observations[name or "observation"][index], expected, where)
            elif top in ("action", "reward") and index == num_steps:
                assert not np.asarray(expected).any(), where
            elif top == "action":
                assert_equal(episode.actions[name or "action"][index], expected, where)
            elif path == "reward":
                assert episode.rewards[index] == np.asarray(expected).item(), where
            elif path in episode.observations:
                assert_equal(episode.observations[path][index], expected, where)
            elif path in (*FLAGS, "discount"):
                continue
            elif index < num_steps:
                assert_equal(episode.step_columns[path][index], expected, where)
            else:
                # A column has no row for the final observation; zeros are not kept.
                kept = config.get("last_step_columns", {}).get(path, np.zeros_like(expected))
                assert_equal(np.array(kept, expected.dtype), expected, where)
    assert episode.terminated == bool(steps[-1].get("is_terminal", False))
    for path, expected in facts.items():
        got = config["episode"][path]
        if isinstance(expected, bytes):
            assert got == expected.decode(), path
        elif np.asarray(expected).dtype.kind == "O":
            assert got == [text.decode() for text in expected], path
        else:
            np.testing.assert_array_equal(np.asarray(got, np.asarray(expected).dtype), expected, err_msg=path)


def check(tfds: Any, name: str, robots: RobotSet, folder: Path) -> None:
    """Writes a set, imports it, and compares."""
    builder = write(tfds, name, robots, folder / "set")
    report = transfer.import_set(formats.open_importer("rlds", folder / "set"), folder / "set", folder / "store")
    assert (report.num_added, report.findings) == (sum(map(len, robots.splits.values())), [])
    store = EpisodeStore.open(folder / "store")
    imported = sorted(map(store.read, store.episode_ids), key=lambda one: one.metadata.collection_index or 0)
    for split, group in itertools.groupby(imported, lambda one: one.metadata.environment_config["split"]):
        episodes = list(group)
        assert len(episodes) == len(robots.splits[split])
        for episode, (facts, steps) in zip(episodes, read(tfds, builder, split), strict=True):
            assert_episode_equal(episode, facts, steps, robots)


@pytest.mark.parametrize("name", SETS)
def test_a_robot_set_is_imported_as_tfds_reads_it(tfds: Any, tmp_path: Path, name: str) -> None:
    check(tfds, name, SETS[name], tmp_path)


# Sets whose features tensorflow-datasets itself declares, without a download.
PUBLISHED = (
    "d4rl_adroit_door",
    "d4rl_mujoco_halfcheetah",
    "mt_opt",
    "rlu_atari",
    "rlu_control_suite",
    "rlu_dmlab_explore_object_rewards_few",
    "rlu_locomotion",
    "robomimic_ph",
    "robosuite_panda_pick_place_can",
)


def random_value(tfds: Any, feature: Any, rng: np.random.Generator, rows: int) -> Any:
    """Something that a feature can hold; `rows` steps."""
    kinds = tfds.features
    if isinstance(feature, kinds.Dataset):
        steps = [random_value(tfds, feature.feature, rng, rows) for _ in range(rows)]
        known = set(feature.feature)
        return [
            {**step, **{name: value for name, value in flags(index, rows).items() if name in known}}
            for index, step in enumerate(steps)
        ]
    if isinstance(feature, kinds.FeaturesDict):
        return {name: random_value(tfds, feature[name], rng, rows) for name in feature}
    if isinstance(feature, kinds.Text):
        return "é"
    shape, dtype = tuple(4 if side is None else side for side in feature.shape), np.dtype(feature.np_dtype)
    if dtype.kind in "OSU":
        return "✓"
    values = rng.normal(size=shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
    return values.astype(dtype) if shape else dtype.type(values)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_set_of_published_features_is_imported_as_tfds_reads_it(tfds: Any, tmp_path: Path, name: str) -> None:
    features = tfds.builder(name, data_dir=str(tmp_path / "none")).info.features
    robots = RobotSet(
        features=lambda _: features,
        episode=lambda rng, rows: random_value(tfds, features, rng, rows),
        splits={"train": (3, 5)},
    )
    check(tfds, name, robots, tmp_path)
