"""The real Minari reads what we export, and we read what it wrote: HDF5, Arrow, Parquet, JPEG and raw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from episode_store.formats import format as formats
from episode_store.formats import transfer
from episode_store.spec import ArraySpec, Modality
from episode_store.store import EpisodeStore
from episode_store.task import TaskSpec
from episode_store.testing import StoreContract, example_tasks, random_episode
from episode_store.writer import EpisodeWriter

pytestmark = pytest.mark.peers


class _Contract(StoreContract):
    __test__ = False


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Minari looks for sets."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Minari's nested values by names joined with '/'."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, tuple) else None
    if items is None:
        return {prefix: value}
    return {k: v for key, member in items for k, v in _flat(member, f"{prefix}/{key}" if prefix else str(key)).items()}


def test_minari_reads_our_export(datasets: Path, tmp_path: Path) -> None:
    """Every array of every episode, through minari.load_dataset."""
    import minari

    _Contract().fill(tmp_path / "store")
    store = EpisodeStore.open(tmp_path / "store")
    task_ids = sorted(set(example_tasks()) - {"Album-v0"})
    for task_id in task_ids:
        formats.export_task("minari", store, task_id, datasets)
    assert sorted(minari.list_local_datasets()) == task_ids
    for task_id in task_ids:
        dataset = minari.load_dataset(task_id)
        ids = store.table(task_id)["episode_id"].to_pylist()
        assert (dataset.total_episodes, len(dataset)) == (len(ids), len(ids))
        for episode_id, theirs in zip(ids, dataset, strict=True):
            ours = store.read(episode_id)
            for mine, other, role in (
                (ours.observations, theirs.observations, "observation"),
                (ours.actions, theirs.actions, "action"),
            ):
                values = {name or role: value for name, value in _flat(other).items()}
                assert sorted(values) == sorted(mine)
                for name, value in mine.items():
                    if isinstance(value, list):
                        assert value == values[name]
                    else:
                        np.testing.assert_array_equal(values[name], value)
            np.testing.assert_array_equal(theirs.rewards, ours.rewards)
            assert theirs.rewards.dtype == np.float64
            assert theirs.terminations.tolist() == [False] * (ours.num_steps - 1) + [ours.terminated]
            assert theirs.truncations.tolist() == [False] * (ours.num_steps - 1) + [ours.truncated]
            if "exploratory" in ours.step_columns:
                np.testing.assert_array_equal(theirs.infos["exploratory"][1:], ours.step_columns["exploratory"])
            (facts,) = dataset.storage.get_episode_metadata([theirs.id])
            assert facts.get("seed") == ours.metadata.seed
            space = dataset.observation_space
            assert all(space.contains(_step(theirs.observations, step, space)) for step in range(ours.num_steps + 1))


def _step(value: Any, step: int, space: Any) -> Any:
    if isinstance(value, dict):
        return {key: _step(member, step, space[key]) for key, member in value.items()}
    return value[step]


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int64", "uint64", "float16", "float64"])
def test_minari_knows_our_spaces(datasets: Path, tmp_path: Path, dtype: str) -> None:
    """Boxes of every width, and choices that do not start at zero."""
    import minari

    task = TaskSpec(
        task_id="Widths-v3",
        observation_spec={"observation": ArraySpec(modality=Modality.CONTINUOUS, shape=(2, 3), dtype=dtype)},
        action_spec={
            "one": ArraySpec(modality=Modality.DISCRETE, dtype="int64", low=(-2.0,), num_values=(5,)),
            "many": ArraySpec(modality=Modality.DISCRETE, shape=(2,), dtype="int32", low=(1.0, 0.0), num_values=(3, 4)),
        },
    )
    with EpisodeWriter(tmp_path / "store") as writer:
        writer.add_task(task)
        episode = random_episode(task, np.random.default_rng(0), 7)
        writer.add_episode(episode)
    result = formats.export_task("minari", EpisodeStore.open(tmp_path / "store"), task.task_id, datasets)
    dataset = minari.load_dataset("Widths-v3")
    (theirs,) = list(dataset)
    assert dataset.observation_space.dtype == np.dtype(dtype)
    assert theirs.observations.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(theirs.observations, episode.observations["observation"])
    assert (dataset.action_space["one"].start, dataset.action_space["one"].n) == (-2, 5)
    assert dataset.action_space["many"].nvec.tolist() == [3, 4]
    assert dataset.action_space["many"].start.tolist() == [1, 0]
    importer = formats.open_importer("minari", result.destination)
    (again,) = list(importer.episodes())
    assert again.episode_id() == episode.episode_id()


@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
@pytest.mark.parametrize("jpeg", [True, False])
def test_we_read_what_minari_wrote(datasets: Path, tmp_path: Path, data_format: str, jpeg: bool) -> None:
    """Nested Dict, Tuple, Text, pictures, infos, seeds: written by Minari, read by us, compared with the buffers."""
    import minari
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer

    observation_space = spaces.Dict(
        {
            "camera": spaces.Box(0, 255, (40, 36, 3), np.uint8),
            "pair": spaces.Tuple((spaces.Discrete(5), spaces.Box(-1, 1, (2, 2), np.float32))),
            "words": spaces.Text(20),
            "flags": spaces.MultiBinary(3),
        }
    )
    action_space = spaces.Box(-1, 1, (2,), np.float32)
    rng = np.random.default_rng(0)
    buffers = []
    for index, steps in enumerate((5, 1, 9)):
        rows = steps + 1
        ramp = np.add.outer(np.arange(40), np.arange(36))[None, :, :, None] + rng.integers(0, 90, (rows, 1, 1, 3))
        buffers.append(
            EpisodeBuffer(
                id=index,
                seed=100 + index,
                observations={
                    "camera": ramp.astype(np.uint8),
                    "pair": (rng.integers(0, 5, rows), rng.uniform(-1, 1, (rows, 2, 2)).astype(np.float32)),
                    "words": [f"wörd{step}" for step in range(rows)],
                    "flags": rng.integers(0, 2, (rows, 3)).astype(np.int8),
                },
                actions=rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
                rewards=rng.normal(size=steps).tolist(),
                terminations=[False] * (steps - 1) + [index != 2],
                truncations=[False] * (steps - 1) + [index == 2],
                infos={"speed": rng.normal(size=(rows, 2)), "lives": np.arange(rows)},
            )
        )
    minari.create_dataset_from_buffers(
        "lab/mixed-v1",
        buffers,
        observation_space=observation_space,
        action_space=action_space,
        algorithm_name="scripted",
        author="someone",
        data_format=data_format,
        jpeg_encoding=jpeg,
    )
    source = datasets / "lab" / "mixed-v1"
    assert formats.detect_format(source) == "minari"
    report = transfer.import_set(formats.open_importer("minari", source), source, tmp_path / "store")
    assert report.ok
    assert (report.num_added, list(report.tasks)) == (3, ["minari/lab-mixed-v1"])
    store = EpisodeStore.open(tmp_path / "store")
    task = store.tasks["minari/lab-mixed-v1"]
    assert task.observation_spec["camera"].modality == Modality.IMAGE
    assert task.observation_spec["pair/0"].num_values == (5,)
    assert task.observation_spec["words"].modality == Modality.TEXT
    assert task.action_spec["action"].low == (-1.0, -1.0)
    for index, episode_id in enumerate(store.table()["episode_id"].to_pylist()):
        episode, buffer = store.read(episode_id), buffers[index]
        camera, expected = episode.observations["camera"], buffer.observations["camera"]
        if jpeg:
            assert np.abs(camera.astype(int) - expected).mean() < 4
        else:
            np.testing.assert_array_equal(camera, expected)
        np.testing.assert_array_equal(episode.observations["pair/0"], buffer.observations["pair"][0])
        np.testing.assert_array_equal(episode.observations["pair/1"], buffer.observations["pair"][1])
        np.testing.assert_array_equal(episode.observations["flags"], buffer.observations["flags"])
        assert episode.observations["words"] == buffer.observations["words"]
        np.testing.assert_array_equal(episode.actions["action"], buffer.actions)
        np.testing.assert_array_equal(episode.rewards, buffer.rewards)
        assert (episode.terminated, episode.truncated) == (index != 2, index == 2)
        np.testing.assert_array_equal(episode.step_columns["infos/speed"], buffer.infos["speed"][1:])
        np.testing.assert_array_equal(episode.step_columns["infos/lives"], np.arange(1, episode.num_steps + 1))
        assert episode.metadata.environment_config["infos_at_reset"]["lives"] == 0
        assert (episode.metadata.seed, episode.metadata.agent_id) == (100 + index, "scripted")
        assert (episode.metadata.collection_index, episode.metadata.attribution) == (index, "someone")
    lost = {loss.what for loss in report.losses}
    assert ("camera: pixels" in lost) == jpeg
    assert {"Tuple", "Text: length and characters"} <= lost
    assert [finding for finding in transfer.examine(source)[1] if finding.severity == "error"] == []


def test_we_read_what_its_collector_wrote(datasets: Path, tmp_path: Path) -> None:
    """DataCollector on a real environment; env_spec stays text."""
    import gymnasium
    import minari

    env = minari.DataCollector(gymnasium.make("CartPole-v1", max_episode_steps=30), record_infos=True)
    for seed in range(4):
        env.reset(seed=seed)
        done = False
        while not done:
            *_, terminated, truncated, _ = env.step(seed % 2)
            done = terminated or truncated
    dataset = env.create_dataset("cartpole/test-v0", algorithm_name="constant")
    source = datasets / "cartpole" / "test-v0"
    report = transfer.import_set(formats.open_importer("minari", source), source, tmp_path / "store")
    assert report.ok
    assert report.num_added == 4
    store = EpisodeStore.open(tmp_path / "store")
    (task,) = store.tasks.values()
    assert task.max_episode_steps == 30
    assert json.loads(json.loads(task.env_spec_json)["minari"]["env_spec"])["id"] == "CartPole-v1"
    for episode_id, theirs in zip(store.table()["episode_id"].to_pylist(), dataset, strict=True):
        ours = store.read(episode_id)
        np.testing.assert_array_equal(ours.observations["observation"], theirs.observations)
        np.testing.assert_array_equal(ours.actions["action"], theirs.actions)
        np.testing.assert_array_equal(ours.rewards, theirs.rewards)
        assert ours.terminated == bool(theirs.terminations[-1])
    notes = [finding.what for finding in transfer.examine(source)[1] if finding.severity == "note"]
    assert any("gymnasium.envs.classic_control.cartpole:CartPoleEnv" in note for note in notes)
