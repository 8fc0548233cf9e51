"""Specialists of every algorithm: trained, killed, resumed, loaded, without a pickle."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

from collectors import registry, specialist_file, specialists
from collectors.rollout import rollout
from collectors.task import Environment, Sb3Expert, Task
from episode_store.episode import Episode
from episode_store.errors import UserError

PICTURES = "minigrid/Empty-Random-5x5-rgb-v0"
SMALL = {"policy_kwargs": {"net_arch": [8]}}
OFF_POLICY = {**SMALL, "buffer_size": 1000, "learning_starts": 50, "train_freq": 1, "gradient_steps": 1}
HINDSIGHT = {"replay_buffer_class": "HerReplayBuffer", "replay_buffer_kwargs": {"n_sampled_goal": 2}}
ALGORITHMS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "PPO": ("CartPole-v1", {**SMALL, "n_steps": 32, "batch_size": 32}),
    "RecurrentPPO": (
        "CartPole-v1",
        {"n_steps": 32, "batch_size": 32, "policy_kwargs": {"lstm_hidden_size": 8, "net_arch": [8]}},
    ),
    "QRDQN": ("CartPole-v1", {**OFF_POLICY, "policy_kwargs": {"net_arch": [8], "n_quantiles": 5}}),
    "SAC": ("Pendulum-v1", OFF_POLICY),
    "TQC": ("Pendulum-v1", OFF_POLICY),
    "TD3": ("Pendulum-v1", OFF_POLICY),
    "HER": ("reach", {**OFF_POLICY, **HINDSIGHT, "learning_starts": 120}),
    "pictures": (PICTURES, {"n_steps": 32, "batch_size": 32, "policy_kwargs": {"net_arch": [8]}}),
    "small pictures": (
        PICTURES,
        {"n_steps": 32, "batch_size": 32, "policy_kwargs": {"features_extractor_class": "SmallCombinedExtractor"}},
    ),
}


def a_task(algorithm: str, steps: int = 300) -> Task:
    name, hyperparameters = ALGORITHMS[algorithm]
    recipe = Sb3Expert(
        algorithm={"HER": "SAC", "pictures": "PPO", "small pictures": "PPO"}.get(algorithm, algorithm), steps=steps,
        hyperparameters=hyperparameters, num_envs=2,
    )  # fmt: skip
    if name == PICTURES:
        recipe = dataclasses.replace(recipe, frame_stack=3, normalize=True)
    if name == "reach":
        return Task(
            task_id="Reach-v0", family="test", make_env=Environment(env_id="Reach-v0", maker=_reach), expert=recipe
        )
    return dataclasses.replace(registry.get(name), expert=recipe)


def _reach(env_id: str, render_mode: str | None = None) -> Any:
    import gymnasium
    from gymnasium import spaces

    class Reach(gymnasium.Env):
        """A number to be brought to another one."""

        def __init__(self) -> None:
            place = spaces.Box(-10, 10, (1,), np.float32)
            self.observation_space = spaces.Dict({"observation": place, "achieved_goal": place, "desired_goal": place})
            self.action_space = spaces.Box(-1, 1, (1,), np.float32)

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            self.place, self.goal = np.zeros(1, np.float32), self.np_random.uniform(-1, 1, 1).astype(np.float32)
            self.steps = 0
            return self._see(), {}

        def step(self, action: Any) -> Any:
            self.place, self.steps = np.clip(self.place + action, -10, 10).astype(np.float32), self.steps + 1
            return self._see(), float(self.compute_reward(self.place, self.goal, {})), False, self.steps == 10, {}

        def compute_reward(self, achieved: Any, desired: Any, info: Any) -> Any:
            return -(np.abs(achieved - desired).max(axis=-1) > 0.1).astype(np.float32)

        def _see(self) -> Any:
            return {"observation": self.place, "achieved_goal": self.place, "desired_goal": self.goal}

    return Reach()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_specialist_is_trained_recorded_and_loaded(
    algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing that is read back may be unpickled")

    task, path = a_task(algorithm), tmp_path / "agent.safetensors"
    episodes: list[Episode] = []
    progress = specialists.train_specialist(task, episodes.append, path=path, tensorboard=str(tmp_path / "curves"))
    assert progress.finished
    assert progress.num_steps >= 300
    assert [episode.metadata.collection_index for episode in episodes] == list(range(len(episodes)))
    assert list((tmp_path / "curves").rglob("events.out.tfevents*"))
    assert not specialist_file.replay_path(path).exists()
    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    policy = specialists.load_specialist(task, path)
    assert policy.train_steps == progress.num_steps
    together = {e.metadata.seed: e.content_hash() for e in rollout(task, policy, seeds=[1, 2, 3], num_envs=3)}
    alone = {e.metadata.seed: e.content_hash() for e in rollout(task, policy, seeds=[3, 1, 2])}
    assert together == alone


def test_a_specialist_that_draws_repeats_itself_with_the_seed(tmp_path: Path) -> None:
    task, path = a_task("PPO"), tmp_path / "agent.safetensors"
    specialists.train_specialist(task, lambda episode: None, path=path)
    assert isinstance(task.expert, Sb3Expert)
    drawing = dataclasses.replace(task, expert=dataclasses.replace(task.expert, draws=True))
    played = {
        seeds: list(rollout(drawing, specialists.load_specialist(drawing, path), seeds=seeds, num_envs=2))
        for seeds in ((1, 2), (2, 1), (3, 4))
    }
    actions = {
        episode.metadata.seed: episode.actions["action"].tolist()
        for episodes in played.values()
        for episode in episodes
    }
    for episode in [*played[1, 2], *played[2, 1]]:
        assert episode.actions["action"].tolist() == actions[episode.metadata.seed]
    likely = rollout(task, specialists.load_specialist(task, path), seeds=(1, 2))
    assert [episode.actions["action"].tolist() for episode in likely] != [actions[1], actions[2]]


def test_pictures_are_seen_one_behind_the_other_as_in_training(tmp_path: Path) -> None:
    task, path = a_task("pictures"), tmp_path / "agent.safetensors"
    specialists.train_specialist(task, lambda episode: None, path=path)
    policy = specialists.load_specialist(task, path)
    stacked = VecFrameStack(DummyVecEnv([task.environment]), 3)
    stacked.seed(5)
    env = task.environment()
    observation, _ = env.reset(seed=5)
    expected = stacked.reset()
    assert isinstance(expected, dict)
    assert not expected["image"][0, ..., :-3].any()
    for _ in range(4):
        np.testing.assert_array_equal(policy._stacked(0, observation)["image"], expected["image"][0])
        observation, *_ = env.step(1)
        expected, *_ = stacked.step(np.array([1]))
    policy.begin_episode(0, env, 0)
    assert not policy._stacked(0, observation)["image"][..., :-3].any()


@pytest.mark.parametrize("algorithm", ["QRDQN", "SAC", "HER"])
def test_what_an_off_policy_agent_remembers_comes_back(algorithm: str, tmp_path: Path) -> None:
    task, path = a_task(algorithm), tmp_path / "agent.safetensors"
    recipe = task.expert
    assert isinstance(recipe, Sb3Expert)

    def build() -> Any:
        recorder = specialists._Recorder(task, lambda episode: None, seed=0, first_index=0, experiment_id="")
        return specialists._build(recipe, recorder.vec_env(recipe, first_seed=0), seed=0)

    model, again = build(), build()
    model.learn(200)
    specialist_file.save(path, model, {"format": specialist_file.FORMAT})
    specialist_file.save_replay(path, model)
    specialist_file.restore(again, specialist_file.load(path, {}))
    specialist_file.restore_replay(path, again)
    assert again.replay_buffer.pos == model.replay_buffer.pos == 100
    for (name, one), two in zip(
        specialist_file._replay_arrays(model.replay_buffer).items(),
        specialist_file._replay_arrays(again.replay_buffer).values(),
        strict=True,
    ):
        np.testing.assert_array_equal(one[:100], two[:100], err_msg=name)
    for name in again._get_torch_save_params()[1]:
        assert getattr(again, name).item() == getattr(model, name).item()
    replay = specialist_file.replay_path(path)
    replay.write_bytes(replay.read_bytes()[:-8])
    with pytest.raises(UserError, match="damaged"):
        specialist_file.restore_replay(path, again)


TRAIN = """
import sys; sys.path.insert(0, {tests!r})
from pathlib import Path
import test_specialist_file as here
from collectors import specialists
specialists._SECONDS_BETWEEN_CHECKPOINTS = specialists._SECONDS_BETWEEN_REPLAYS = 0.0
specialists.train_specialist(here.a_task("SAC", steps={steps}), lambda episode: None, path=Path({path!r}))
"""


@pytest.mark.slow
def test_an_off_policy_agent_goes_on_after_kill(tmp_path: Path) -> None:
    path, steps = tmp_path / "agent.safetensors", 2_000
    script = TRAIN.format(tests=str(Path(__file__).parent), path=str(path), steps=steps)
    process = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
    try:
        deadline = time.monotonic() + 600
        while not path.exists() or _header(path)["num_timesteps"] < 300:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    reached = _header(path)["num_timesteps"]
    assert 300 <= reached < steps
    assert specialist_file.replay_path(path).exists()
    progress = specialists.train_specialist(a_task("SAC", steps=steps), lambda episode: None, path=path)
    assert (progress.finished, progress.num_steps) == (True, steps)
    assert not specialist_file.replay_path(path).exists()


def _header(path: Path) -> Any:
    # Read at once: the file may be replaced between two looks.
    data = path.read_bytes()
    facts = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return json.loads(facts["__metadata__"]["specialist"])
