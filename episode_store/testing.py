"""Random valid episodes, and the contract of a store as a test class to inherit from."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

from episode_store.episode import EXPLORATORY, Episode, EpisodeMetadata
from episode_store.spec import ArraySpec, FieldValues, Modality, is_text
from episode_store.store import EpisodeStore
from episode_store.task import TaskSpec
from episode_store.writer import EpisodeWriter


def random_episode(
    task: TaskSpec,
    rng: np.random.Generator,
    num_steps: int,
    *,
    metadata: EpisodeMetadata | None = None,
    exploratory: bool = False,
) -> Episode:
    """A random valid episode.

    Args:
      task: whose specs it follows.
      rng: source of every choice.
      num_steps: T.
      metadata: where it pretends to come from; by default a random seed of agent "random".
      exploratory: whether to add the step column `EXPLORATORY`.
    """
    terminated = bool(rng.integers(2))
    return Episode(
        task_id=task.task_id,
        observations={
            key: spec.generate_value(rng, length=num_steps + 1) for key, spec in task.observation_spec.items()
        },
        actions={key: spec.generate_value(rng, length=num_steps) for key, spec in task.action_spec.items()},
        rewards=rng.normal(size=num_steps),
        terminated=terminated,
        truncated=not terminated or bool(rng.integers(2)),
        step_columns={EXPLORATORY: rng.random(num_steps) < 0.2} if exploratory else {},
        metadata=metadata or EpisodeMetadata(agent_id="random", seed=int(rng.integers(1 << 31))),
    )


def assert_episodes_equal(left: Episode, right: Episode) -> None:
    """Asserts that two episodes are equal bit by bit, provenance included."""
    assert left.task_id == right.task_id
    assert (left.terminated, left.truncated) == (right.terminated, right.truncated)
    assert left.metadata.to_json() == right.metadata.to_json()
    for name in ("observations", "actions", "step_columns"):
        ours, theirs = getattr(left, name), getattr(right, name)
        assert sorted(ours) == sorted(theirs), name
        for key in ours:
            assert_values_equal(ours[key], theirs[key], f"{name}/{key}")
    assert_values_equal(left.rewards, right.rewards, "rewards")


def assert_values_equal(left: FieldValues, right: FieldValues, where: str) -> None:
    """Asserts that two fields are equal bit by bit (the sign of zero and the kind of NaN included)."""
    if is_text(left) or is_text(right):
        assert left == right, where
        return
    if isinstance(left, list) or isinstance(right, list):
        assert (type(left), len(left)) == (type(right), len(right)), where
        for step, images in enumerate(zip(left, right, strict=True)):
            assert_values_equal(*images, f"{where}: step {step}")
        return
    assert left.dtype == right.dtype, f"{where}: {left.dtype} != {right.dtype}"
    assert left.shape == right.shape, f"{where}: {left.shape} != {right.shape}"
    assert left.tobytes() == right.tobytes(), where


def example_tasks() -> dict[str, TaskSpec]:
    """Tasks that between them have every kind of field."""
    scalar = ArraySpec(modality=Modality.DISCRETE, dtype="int64", num_values=(4,))
    tasks = [
        TaskSpec(
            task_id="grid/Example-v0",
            observation_spec={
                "image": ArraySpec(modality=Modality.IMAGE, shape=(7, 5, 3), dtype="uint8"),
                "mission": ArraySpec(modality=Modality.TEXT, dtype="str"),
            },
            action_spec={"action": scalar},
            tags=("family:grid",),
        ),
        TaskSpec(
            task_id="Robot-v1",
            observation_spec={
                "state/position": ArraySpec(modality=Modality.CONTINUOUS, shape=(3,), dtype="float64"),
                "state/flags": ArraySpec(modality=Modality.DISCRETE, shape=(2,), dtype="bool", num_values=(2, 2)),
                "state/counts": ArraySpec(modality=Modality.CONTINUOUS, shape=(2, 2), dtype="int16"),
            },
            action_spec={
                "action": ArraySpec(modality=Modality.CONTINUOUS, shape=(2,), low=(-1.0, -2.0), high=(1.0, 2.0)),
            },
            max_episode_steps=50,
            env_spec_json='{"id": "Robot-v1"}',
        ),
        TaskSpec(
            task_id="caption/example-v0",
            observation_spec={"image": ArraySpec(modality=Modality.IMAGE, shape=(4, 4, 1), dtype="uint8")},
            action_spec={"text": ArraySpec(modality=Modality.TEXT, dtype="str")},
            tags=("corpus",),
            licence="CC-BY-4.0",
        ),
        TaskSpec(
            task_id="Album-v0",
            observation_spec={"picture": ArraySpec(modality=Modality.IMAGE, shape=(-1, -1, 3), dtype="uint8")},
            action_spec={"crop": ArraySpec(modality=Modality.IMAGE, shape=(-1, -1, 1), dtype="uint8")},
        ),
    ]
    return {task.task_id: task for task in tasks}


class StoreContract:
    """The contract of a store. Inherit, name the class `Test...`, and override the two methods if yours differ."""

    def open_writer(self, path: Path) -> EpisodeWriter:
        """A writer of the store under test."""
        return EpisodeWriter(path)

    def open_reader(self, path: Path) -> EpisodeStore:
        """A reader of the store under test."""
        return EpisodeStore.open(path)

    def fill(self, path: Path, *, num_episodes: int = 12, seed: int = 0) -> dict[str, Episode]:
        """Writes random episodes of every example task; returns them by id."""
        tasks = example_tasks()
        rng = np.random.default_rng(seed)
        episodes = {}
        with self.open_writer(path) as writer:
            for task in tasks.values():
                writer.add_task(task)
            for index in range(num_episodes):
                turn, place = divmod(index, len(tasks))
                task = list(tasks.values())[place]
                metadata = EpisodeMetadata(
                    agent_id=f"agent{turn % 2}",
                    seed=None if index == 3 else index,
                    collection_index=num_episodes - index,
                    environment_config={"id": task.task_id, "versions": {"numpy": "2"}, "wrappers": ["a", "b"]},
                    split_group=f"group{index // 4}",
                    attribution="someone é",
                )
                num_steps = int(rng.integers(1, 40))
                episode = random_episode(task, rng, num_steps, metadata=metadata, exploratory=turn % 2 == 0)
                episodes[writer.add_episode(episode)] = episode
        return episodes

    def test_what_is_written_is_read(self, tmp_path: Path) -> None:
        """Whole episodes come back bit by bit, the last observation and the step columns too."""
        episodes = self.fill(tmp_path)
        store = self.open_reader(tmp_path)
        assert sorted(store.episode_ids) == sorted(episodes)
        assert len(store) == len(episodes)
        assert dict(store.tasks) == example_tasks()
        for episode_id, episode in episodes.items():
            assert episode_id == episode.episode_id()
            assert_episodes_equal(episode, store.read(episode_id))

    def test_windows_equal_slices(self, tmp_path: Path) -> None:
        """Every window is the slice of the whole."""
        episodes = self.fill(tmp_path)
        store = self.open_reader(tmp_path)
        rng = np.random.default_rng(1)
        for episode_id, episode in episodes.items():
            for _ in range(5):
                start = int(rng.integers(0, episode.num_steps))
                length = int(rng.integers(1, episode.num_steps - start + 1))
                window = store.read_window(episode_id, start, length)
                assert (window.start, window.num_steps, window.task_id) == (start, length, episode.task_id)
                for key, values in episode.observations.items():
                    assert_values_equal(window.observations[key], values[start : start + length + 1], key)
                for key, values in episode.actions.items():
                    assert_values_equal(window.actions[key], values[start : start + length], key)
                for key, values in episode.step_columns.items():
                    assert_values_equal(window.step_columns[key], values[start : start + length], key)
                assert window.rewards is not None
                assert_values_equal(window.rewards, episode.rewards[start : start + length], "rewards")
                at_end = start + length == episode.num_steps
                assert window.terminated == (episode.terminated and at_end)
                assert window.truncated == (episode.truncated and at_end)

    def test_a_window_has_only_the_columns_asked_for(self, tmp_path: Path) -> None:
        """Column projection."""
        self.fill(tmp_path)
        store = self.open_reader(tmp_path)
        episode_id = store.table("Robot-v1")["episode_id"][0].as_py()
        window = store.read_window(episode_id, 0, 1, columns=["observations/state/flags", "actions/action"])
        assert sorted(window.observations) == ["state/flags"]
        assert sorted(window.actions) == ["action"]
        assert window.rewards is None

    def test_the_table_tells_facts_in_order(self, tmp_path: Path) -> None:
        """One row an episode, sorted, with its facts."""
        episodes = self.fill(tmp_path)
        rows = self.open_reader(tmp_path).table().to_pylist()
        order = [(row["task_id"], row["agent_id"], row["collection_index"], row["episode_id"]) for row in rows]
        assert order == sorted(order)
        for row in rows:
            episode = episodes[row["episode_id"]]
            assert row["num_steps"] == episode.num_steps
            assert row["episode_return"] == episode.episode_return
            assert (row["terminated"], row["truncated"]) == (episode.terminated, episode.truncated)
            assert row["content_hash"] == episode.content_hash()
            for name in ("agent_id", "seed", "collection_index", "split_group", "attribution"):
                assert row[name] == getattr(episode.metadata, name)

    def test_an_id_is_stored_once(self, tmp_path: Path) -> None:
        """Adding an episode again, by the same writer or by a later one, changes nothing."""
        task = example_tasks()["Robot-v1"]
        episode = random_episode(task, np.random.default_rng(0), 5)
        for _ in range(2):
            with self.open_writer(tmp_path) as writer:
                writer.add_task(task)
                assert writer.add_episode(episode) == writer.add_episode(episode)
        assert len(self.open_reader(tmp_path)) == 1

    def test_an_episode_is_readable_before_the_writer_closes(self, tmp_path: Path) -> None:
        """A reader opened while a writer is at work sees what was acknowledged."""
        task = example_tasks()["grid/Example-v0"]
        rng = np.random.default_rng(0)
        with self.open_writer(tmp_path) as writer:
            writer.add_task(task)
            for count in range(1, 4):
                episode = random_episode(task, rng, 20)
                episode_id = writer.add_episode(episode)
                store = self.open_reader(tmp_path)
                assert len(store) == count
                assert_episodes_equal(episode, store.read(episode_id))

    def test_a_reader_pickles_as_what_it_has_seen(self, tmp_path: Path) -> None:
        """A copy in a worker process sees the same episodes, though a writer has added more since."""
        first = self.fill(tmp_path)
        store = self.open_reader(tmp_path)
        packed = pickle.dumps(store)
        assert len(packed) < 1000
        self.fill(tmp_path, seed=1)
        copy = pickle.loads(packed)  # noqa: S301 - made two lines above
        assert list(copy.episode_ids) == list(store.episode_ids)
        assert sorted(copy.episode_ids) == sorted(first)
        assert len(self.open_reader(tmp_path)) == 2 * len(first)
