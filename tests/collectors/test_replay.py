"""Episodes of every family happen again from their seeds; nothing that a file says is made or called."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from collectors import policies, registry
from collectors.recording import RecordingEnv
from collectors.replay import Simulator
from collectors.rollout import rollout
from collectors.task import ScriptedExpert
from episode_store.cli import main
from episode_store.episode import Episode, EpisodeMetadata
from episode_store.replay import ReplayResult, replay
from episode_store.store import EpisodeStore
from episode_store.task import TaskSpec
from episode_store.writer import EpisodeWriter

TASKS = [
    *("CartPole-v1", "Pendulum-v1", "MountainCar-v0"),
    *("FrozenLake-v1", "Taxi-v4", "Blackjack-v1"),
    *("LunarLander-v3", "Reacher-v5"),
    *("minigrid/Empty-Random-5x5-rgb-v0", "babyai/GoToLocal-v0", "metaworld/button-press-v3"),
]


def collected(task_id: str, *, count: int = 3) -> list[Episode]:
    """Disturbed demonstrations where there is a script, else random actions; one environment for all of them."""
    task = registry.get(task_id)
    scripted = isinstance(task.expert, ScriptedExpert)
    policy = policies.scripted_policy(task) if scripted else policies.random_policy(task)
    disturbance = task.disturbance if scripted else None
    return list(rollout(task, policy, seeds=range(11, 11 + count), disturbance=disturbance))


def stored(path: Path, episodes: list[Episode], task: TaskSpec) -> EpisodeStore:
    with EpisodeWriter(path) as writer:
        writer.add_task(task)
        for episode in episodes:
            writer.add_episode(episode)
    return EpisodeStore.open(path)


def replayed(store: EpisodeStore, *, backwards: bool = False) -> list[ReplayResult]:
    ids = list(store.episode_ids)
    with contextlib.closing(Simulator()) as simulator:
        return list(replay(store, ids[::-1] if backwards else ids, simulator))


@pytest.mark.parametrize("task_id", TASKS)
def test_episodes_happen_again_and_a_flipped_action_is_noticed(task_id: str, tmp_path: Path) -> None:
    """Also in another order than they were collected in, so nothing is left over from the episode before."""
    task = registry.get(task_id)
    episodes = collected(task_id)
    store = stored(tmp_path / "store", episodes, task.spec())
    results = replayed(store, backwards=True)
    assert [result.status for result in results] == ["match"] * 3, results
    assert all(not result.warnings for result in results)
    tampered = stored(tmp_path / "tampered", [flipped(episode, task.spec()) for episode in episodes], task.spec())
    assert {result.status for result in replayed(tampered)} == {"differs"}


def flipped(episode: Episode, task: TaskSpec) -> Episode:
    """With other actions: one alone may make no difference in a lake of ice or against a wall."""
    ((key, spec),) = task.action_spec.items()
    actions = np.array(episode.actions[key])
    if spec.num_values:
        actions = (actions + 1) % spec.num_values[0]
    else:
        actions[0] = np.where(actions[0] > 0, actions[0] / 2 - 0.1, actions[0] / 2 + 0.1)
    return dataclasses.replace(episode, actions={key: actions})


def test_one_flipped_action_is_named_by_its_step(tmp_path: Path) -> None:
    task = registry.get("LunarLander-v3")
    (episode,) = collected(task.task_id, count=1)
    actions = np.array(episode.actions["action"])
    actions[20] = 2 if actions[20] != 2 else 0
    store = stored(tmp_path / "store", [dataclasses.replace(episode, actions={"action": actions})], task.spec())
    (result,) = replayed(store)
    assert result.difference is not None
    assert result.difference.step in (20, 21)
    assert result.difference.field in ("rewards", "observations/observation")


def test_what_a_learner_records_happens_again(tmp_path: Path) -> None:
    """Episodes recorded while somebody else steps, as stable-baselines3 does in training."""
    task = registry.get("Pendulum-v1")
    assert task.make_env is not None
    episodes: list[Episode] = []
    indices = itertools.count()
    env: gymnasium.Env = RecordingEnv(
        task.environment(),
        spec=task.spec(),
        seeds=itertools.count(100),
        next_index=lambda: next(indices),
        metadata=EpisodeMetadata(agent_id="learner", environment_config=task.make_env.config()),
        on_episode=episodes.append,
    )
    rng = np.random.default_rng(0)
    for _ in range(2):
        env.reset()
        while not any(env.step(rng.uniform(-2, 2, 1).astype(np.float32))[2:4]):
            pass
    env.close()
    assert [result.status for result in replayed(stored(tmp_path / "store", episodes, task.spec()))] == ["match"] * 2


def with_config(episode: Episode, **facts: Any) -> Episode:
    config = {**episode.metadata.environment_config, **facts}
    return dataclasses.replace(episode, metadata=dataclasses.replace(episode.metadata, environment_config=config))


def test_what_cannot_be_replayed_is_said(tmp_path: Path) -> None:
    task = registry.get("CartPole-v1")
    (episode,) = collected(task.task_id, count=1)
    no_seed = dataclasses.replace(episode, metadata=dataclasses.replace(episode.metadata, seed=None))
    hostile = with_config(episode, id="os:system", kwargs={"command": f"touch {tmp_path}/owned"})
    other_kwargs = with_config(episode, kwargs={"sutton_barto_reward": True})
    silent = dataclasses.replace(episode, metadata=EpisodeMetadata(seed=episode.metadata.seed))
    versions = {**episode.metadata.environment_config["versions"], "gymnasium": "0.26.3"}
    older = with_config(episode, versions=versions)
    results = {}
    for name, one in {
        "no_seed": no_seed, "hostile": hostile, "other_kwargs": other_kwargs, "silent": silent, "older": older,
    }.items():  # fmt: skip
        (results[name],) = replayed(stored(tmp_path / name, [one], task.spec()))
    assert results["no_seed"].status == "skipped"
    assert "it has no seed" in results["no_seed"].reason
    assert results["hostile"].reason == "its environment's id was 'os:system', in the catalogue it is 'CartPole-v1'"
    assert not (tmp_path / "owned").exists()
    assert results["other_kwargs"].status == "skipped"
    assert "kwargs was {'sutton_barto_reward': True}" in results["other_kwargs"].reason
    assert (results["silent"].status, results["silent"].warnings) == (
        "match",
        ["the versions of its libraries were not recorded"],
    )
    assert results["older"].status == "match"
    assert results["older"].warnings == [f"gymnasium was 0.26.3, here it is {gymnasium.__version__}"]


def test_a_missing_package_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the end of the command: the other tasks are replayed."""
    task = registry.get("CartPole-v1")
    assert task.make_env is not None
    store = stored(tmp_path / "store", collected(task.task_id, count=1), task.spec())
    without = dataclasses.replace(task, make_env=dataclasses.replace(task.make_env, module="no_such_module"))
    monkeypatch.setattr(registry, "get", lambda task_id: without)
    (result,) = replayed(store)
    assert result.status == "skipped"
    assert result.reason == (
        "environment CartPole-v1: no_such_module is not installed: pip install 'generalist-agent[collect]'"
    )


def test_an_action_that_the_environment_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer holds episodes against the task, but anybody can make a file."""
    task = registry.get("CartPole-v1")
    (episode,) = collected(task.task_id, count=1)
    actions = np.array(episode.actions["action"])
    actions[0] = 7
    monkeypatch.setattr(Episode, "validate", lambda self, task: None)
    store = stored(tmp_path / "store", [dataclasses.replace(episode, actions={"action": actions})], task.spec())
    (result,) = replayed(store)
    assert result.status == "differs"
    assert result.reason == (
        "its environment refuses what was recorded: action: expected a whole number from 0 to 1, got 7"
    )


def test_tasks_that_are_not_the_catalogues(tmp_path: Path) -> None:
    (episode,) = collected("CartPole-v1", count=1)
    spec = registry.get("CartPole-v1").spec()
    unknown = dataclasses.replace(spec, task_id="mine/CartPole-v9")
    (result,) = replayed(stored(tmp_path / "unknown", [dataclasses.replace(episode, task_id=unknown.task_id)], unknown))
    assert result.status == "skipped"
    assert "unknown task 'mine/CartPole-v9'" in result.reason
    changed = dataclasses.replace(spec, env_spec_json='{"id": "CartPole-v1", "kwargs": {"x": 1}, "wrappers": []}')
    (result,) = replayed(stored(tmp_path / "changed", [episode], changed))
    assert "the store's task CartPole-v1 is not the catalogue's" in result.reason


def test_the_command_finds_the_environments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`episode_store`, which knows no environment, through the entry point."""
    store = stored(tmp_path / "store", collected("FrozenLake-v1"), registry.get("FrozenLake-v1").spec())
    assert main(["replay", "--store", str(store.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["match"] == 3
