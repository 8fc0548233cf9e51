"""Random valid episodes, and the contract of a store as a test class to inherit from."""

from __future__ import annotations

import numpy as np

from episode_store.episode import EXPLORATORY, Episode, EpisodeMetadata
from episode_store.spec import FieldValues
from episode_store.task import TaskSpec


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
    if isinstance(left, list) or isinstance(right, list):
        assert left == right, where
        return
    assert left.dtype == right.dtype, f"{where}: {left.dtype} != {right.dtype}"
    assert left.shape == right.shape, f"{where}: {left.shape} != {right.shape}"
    assert left.tobytes() == right.tobytes(), where
