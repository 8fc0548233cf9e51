"""Episodes: hashes and provenance. What `validate` refuses is in test_writer.py."""

from __future__ import annotations

import dataclasses

import numpy as np

from episode_store.episode import Episode, EpisodeMetadata
from episode_store.testing import example_tasks, random_episode


def _episode() -> Episode:
    return Episode(
        task_id="T-v0",
        observations={"o": np.array([0, 1, 2])},
        actions={"text": ["a", "b"]},
        rewards=np.array([1.0, 0.5]),
        terminated=True,
        truncated=False,
    )


def test_facts() -> None:
    """T and the undiscounted return."""
    assert _episode().num_steps == 2
    assert _episode().episode_return == 1.5


def test_equal_content_has_an_equal_hash_whoever_recorded_it() -> None:
    """The id tells who; the hash does not."""
    first = _episode()
    second = dataclasses.replace(first, metadata=EpisodeMetadata(agent_id="someone else"))
    assert first.content_hash() == second.content_hash()
    assert first.episode_id() != second.episode_id()
    assert len(first.episode_id()) == 32


def test_every_change_of_content_changes_the_hash() -> None:
    """Values, dtypes, names, ends, step columns."""
    base = _episode()
    changed = [
        dataclasses.replace(base, observations={"o": np.array([0, 1, 3])}),
        dataclasses.replace(base, observations={"o": np.array([0, 1, 2], np.int32)}),
        dataclasses.replace(base, observations={"p": np.array([0, 1, 2])}),
        dataclasses.replace(base, actions={"text": ["ab", ""]}),
        dataclasses.replace(base, truncated=True),
        dataclasses.replace(base, rewards=np.array([1.0, -0.5])),
        dataclasses.replace(base, step_columns={"exploratory": np.array([False, False])}),
        dataclasses.replace(base, task_id="T-v1"),
    ]
    hashes = {episode.content_hash() for episode in [base, *changed]}
    assert len(hashes) == 1 + len(changed)


def test_metadata_round_trip_ignores_unknown_keys() -> None:
    """A newer version may add facts."""
    metadata = EpisodeMetadata(agent_id="a", seed=3, environment_config={"id": "x"})
    assert EpisodeMetadata.from_json({**metadata.to_json(), "new": 1}) == metadata
    names = [field.name for field in dataclasses.fields(EpisodeMetadata)]
    assert [*metadata.to_json(), "success"] == names
    assert list(dataclasses.replace(metadata, success=False).to_json()) == names


def test_the_same_seed_gives_the_same_random_episode() -> None:
    """And another seed another one."""
    task = example_tasks()["Robot-v1"]
    ids = [random_episode(task, np.random.default_rng(seed), 5).episode_id() for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]
