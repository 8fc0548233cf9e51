"""Comparing an episode with what its environment does again; the environments here are lists of moments."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from episode_store import extensions
from episode_store.cli import main
from episode_store.cli_choice import choose_episodes
from episode_store.episode import Episode, EpisodeMetadata
from episode_store.errors import UserError
from episode_store.replay import CannotReplayError, Difference, Moment, first_difference
from episode_store.spec import FieldValues
from episode_store.store import EpisodeStore
from episode_store.task import TaskSpec
from episode_store.testing import example_tasks, random_episode
from episode_store.writer import EpisodeWriter

ROBOT = example_tasks()["Robot-v1"]
GRID = example_tasks()["grid/Example-v0"]


def episode_of(task: TaskSpec, seed: int = 0, num_steps: int = 5) -> Episode:
    made = random_episode(task, np.random.default_rng(seed), num_steps=num_steps)
    return Episode(
        task_id=made.task_id,
        observations=made.observations,
        actions=made.actions,
        rewards=made.rewards,
        terminated=True,
        truncated=False,
        metadata=EpisodeMetadata(agent_id="a", seed=seed),
    )


def moments_of(episode: Episode) -> list[Moment]:
    last = episode.num_steps
    return [
        Moment(
            observation={key: values[step] for key, values in episode.observations.items()},
            reward=float(episode.rewards[step - 1]) if step else None,
            terminated=step == last and episode.terminated,
            truncated=step == last and episode.truncated,
        )
        for step in range(last + 1)
    ]


def changed(moment: Moment, **facts: Any) -> Moment:
    return Moment(
        **{
            "observation": moment.observation,
            "reward": moment.reward,
            "terminated": moment.terminated,
            "truncated": moment.truncated,
        }
        | facts
    )


@pytest.mark.parametrize("task", [ROBOT, GRID], ids=lambda task: task.task_id)
def test_equal_bits_are_no_difference(task: TaskSpec) -> None:
    episode = episode_of(task)
    assert first_difference(episode, moments_of(episode)) is None


def test_one_bit_of_an_observation_is_named() -> None:
    episode = episode_of(ROBOT)
    moments = moments_of(episode)
    position = np.array(moments[3].observation["state/position"])
    position[1] = np.nextafter(position[1], np.inf)
    moments[3] = changed(moments[3], observation={**moments[3].observation, "state/position": position})
    expected, got = float(episode.observations["state/position"][3, 1]), float(position[1])
    assert first_difference(episode, moments) == Difference(
        step=3, field="observations/state/position", element=(1,), expected=repr(expected), got=repr(got)
    )


def test_the_sign_of_zero_is_a_difference() -> None:
    episode = episode_of(ROBOT)
    rewards = np.zeros(5)
    episode = Episode(**{**vars(episode), "rewards": rewards})
    moments = moments_of(episode)
    moments[2] = changed(moments[2], reward=-0.0)
    difference = first_difference(episode, moments)
    assert difference is not None
    assert difference.describe() == "step 1: rewards: expected 0.0, got -0.0"


def test_texts_and_pictures_are_compared() -> None:
    episode = episode_of(GRID)
    moments = moments_of(episode)
    moments[2] = changed(moments[2], observation={**moments[2].observation, "mission": "another"})
    difference = first_difference(episode, moments)
    assert difference is not None
    assert (difference.step, difference.field, difference.got) == (2, "observations/mission", "'another'")
    image = np.array(moments[1].observation["image"])
    image[6, 4, 2] ^= 1
    moments[1] = changed(moments[1], observation={**moments[1].observation, "image": image})
    difference = first_difference(episode, moments)
    assert difference is not None
    assert (difference.step, difference.field, difference.element) == (1, "observations/image", (6, 4, 2))


def test_another_end_is_a_difference() -> None:
    episode = episode_of(ROBOT)
    moments = moments_of(episode)
    early = [*moments[:3], changed(moments[3], terminated=True)]
    assert "step 2: terminated: expected False, got True" in describe(episode, early)
    late = [*moments[:-1], changed(moments[-1], terminated=False)]
    assert "step 4: terminated: expected True, got False" in describe(episode, late)
    cut = [*moments[:-1], changed(moments[-1], truncated=True)]
    assert "step 4: truncated: expected False, got True" in describe(episode, cut)
    assert "expected 5 steps, got an end after 2" in describe(episode, moments[:3])


def describe(episode: Episode, moments: list[Moment]) -> str:
    difference = first_difference(episode, moments)
    assert difference is not None
    return difference.describe()


def test_no_more_is_simulated_after_a_difference() -> None:
    episode = episode_of(ROBOT)
    moments = moments_of(episode)
    asked = []

    def simulate() -> Iterator[Moment]:
        for number, moment in enumerate(moments):
            asked.append(number)
            yield changed(moment, reward=9.0) if number == 2 else moment

    assert first_difference(episode, simulate()) is not None
    assert asked == [0, 1, 2]


class FakeSimulator:
    """Knows the robot only, whose episodes happen again unless their seed is 3."""

    episodes: dict[int, Episode] = {}  # noqa: RUF012

    def check(self, task: TaskSpec, metadata: EpisodeMetadata) -> list[str]:
        if task.task_id != ROBOT.task_id:
            raise CannotReplayError(f"unknown task {task.task_id!r}")
        return ["numpy was 1, here it is 2"] if metadata.seed == 2 else []

    def run(self, task: TaskSpec, seed: int, actions: Mapping[str, FieldValues], num_steps: int) -> Iterator[Moment]:
        for moment in moments_of(self.episodes[seed]):
            yield changed(moment, reward=7.0) if seed == 3 and moment.reward is not None else moment

    def close(self) -> None:
        pass


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four episodes of a robot, one of a grid; a simulator that is lent by an entry point."""
    FakeSimulator.episodes = {seed: episode_of(ROBOT, seed) for seed in range(4)}
    with EpisodeWriter(tmp_path / "store") as writer:
        for task in (ROBOT, GRID):
            writer.add_task(task)
        for episode in FakeSimulator.episodes.values():
            writer.add_episode(episode)
        writer.add_episode(episode_of(GRID))
    monkeypatch.setattr(extensions, "load", lambda name, remedy: FakeSimulator)
    return tmp_path / "store"


def test_the_command_names_what_differs(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "--store", str(path)]) == 1
    text = capsys.readouterr().out
    assert "of Robot-v1: step 0: rewards: expected " in text
    assert "cannot be replayed: 1 episodes of grid/Example-v0: unknown task 'grid/Example-v0'" in text
    assert "note: 1 episodes of Robot-v1 match although numpy was 1, here it is 2" in text
    assert text.splitlines()[-1] == "3 of 5 episodes happen again, bit by bit; 1 differ, 1 cannot be replayed"


def test_the_command_as_json(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "--store", str(path), "--tasks", "Robot-v1", "--where", "seed < 3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["match"], result["differs"], result["damaged"], result["skipped"]) == (3, 0, 0, 0)
    assert {one["status"] for one in result["episodes"]} == {"match"}
    assert main(["replay", "--store", str(path), "--where", "seed == 3", "--json"]) == 1
    (one,) = json.loads(capsys.readouterr().out)["episodes"]
    assert (one["status"], one["difference"]["step"], one["difference"]["got"]) == ("differs", 0, "7.0")


def test_nothing_replayed_is_no_success(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "--store", str(path), "--tasks", "grid/*"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "0 of 1 episodes happen again, bit by bit; 1 cannot be replayed"


def test_a_damaged_episode_is_named(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = EpisodeStore.open(path)
    episode_id = store.query("seed == 1 and task_id == 'Robot-v1'")["episode_id"][0].as_py()
    facts = store.facts(episode_id)
    file = path / "segments" / f"{facts['segment']}.data"
    content = bytearray(file.read_bytes())
    content[facts["offset"] + store.columns(episode_id)[0].offset] ^= 1
    file.write_bytes(content)
    assert main(["replay", "--store", str(path), "--where", "seed < 3 and task_id == 'Robot-v1'"]) == 1
    text = capsys.readouterr().out
    assert f"DAMAGED episode {episode_id} of Robot-v1" in text
    assert text.splitlines()[-1] == "2 of 3 episodes happen again, bit by bit; 1 are damaged"


def test_choosing(path: Path) -> None:
    store = EpisodeStore.open(path)

    def choose(**flags: Any) -> list[str]:
        return choose_episodes(
            store, argparse.Namespace(**{"tasks": None, "where": None, "episode": None, "episodes": None} | flags)
        )

    assert choose() == list(store.episode_ids)
    assert len(choose(episodes=1)) == 2
    one = store.episode_ids[2]
    assert choose(episode=one[:12]) == [one]
    with pytest.raises(UserError, match="no episode is chosen"):
        choose(where="seed == 77")


def test_what_nobody_lends(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: [])
    assert main(["replay", "--store", str(path)]) == 2
    error = capsys.readouterr().err
    assert (
        "no installed package lends episode_store.extensions 'simulator': pip install 'generalist-agent[collect]'"
        in error
    )


def test_what_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def points(*values: str) -> None:
        found = [importlib.metadata.EntryPoint("x", value, extensions.GROUP) for value in values]
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: found)

    points("no_such_module_at_all:thing")
    with pytest.raises(extensions.ExtensionMissingError, match="x: no_such_module_at_all is not installed: do this"):
        extensions.load("x", remedy="do this")
    points("json:loads", "json:dumps")
    with pytest.raises(UserError, match="expected one installed package to lend it, got json:dumps, json:loads"):
        extensions.load("x", remedy="")
    points("json:loads", "json:loads")
    assert extensions.load("x", remedy="") is json.loads


def test_this_project_lends_both() -> None:
    names = {point.name: point.value for point in importlib.metadata.entry_points(group=extensions.GROUP)}
    assert names == {
        "simulator": "collectors.replay:Simulator",
        "token_view": "tokenization.token_view:TokenView",
    }
