"""Gymnasium's classic control: small physics, trained with PPO or solved by a rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from collectors.task import Controller, Environment, Sb3Expert, ScriptedExpert, Task, seen

if TYPE_CHECKING:
    import gymnasium


def _with_the_motion(env: gymnasium.Env, seed: int) -> Controller:
    """MountainCar: push the way the car moves, which adds energy at every step."""

    def discrete(observation: Mapping[str, Any], last_action: Any) -> int:
        return 2 if observation["observation"][1] >= 0 else 0

    return discrete


def _with_the_motion_continuous(env: gymnasium.Env, seed: int) -> Controller:
    """MountainCarContinuous: the same rule with full throttle."""

    def continuous(observation: Mapping[str, Any], last_action: Any) -> np.ndarray:
        return np.array([1.0 if observation["observation"][1] >= 0 else -1.0], np.float32)

    return continuous


_STATE = (
    Task(
        task_id="CartPole-v1",
        family="classic_control",
        make_env=Environment(env_id="CartPole-v1"),
        expert=Sb3Expert(
            steps=60_000,
            hyperparameters={
                "n_steps": 32,
                "batch_size": 256,
                "n_epochs": 20,
                "gae_lambda": 0.8,
                "gamma": 0.98,
                "learning_rate": {"linear": 1e-3},
                "clip_range": {"linear": 0.2},
            },
            stop_at=495.0,
        ),
        max_episode_steps=500,
        licence="MIT",
        description="Keep a pole upright on a cart.",
    ),
    Task(
        task_id="Acrobot-v1",
        family="classic_control",
        make_env=Environment(env_id="Acrobot-v1"),
        expert=Sb3Expert(
            steps=120_000,
            hyperparameters={
                "n_steps": 128,
                "batch_size": 512,
                "n_epochs": 8,
                "gae_lambda": 0.95,
                "gamma": 0.995,
                "learning_rate": 2e-3,
                "clip_range": 0.3,
            },
            num_envs=16,
            stop_at=-82.0,
        ),
        max_episode_steps=500,
        licence="MIT",
        description="Swing a two-link arm above a line.",
    ),
    Task(
        task_id="Pendulum-v1",
        family="classic_control",
        make_env=Environment(env_id="Pendulum-v1"),
        expert=Sb3Expert(
            steps=150_000,
            hyperparameters={
                "n_steps": 512,
                "batch_size": 256,
                "n_epochs": 10,
                "gae_lambda": 0.95,
                "gamma": 0.9,
                "learning_rate": 1e-3,
                "use_sde": True,
                "sde_sample_freq": 4,
            },
            stop_at=-180.0,
        ),
        max_episode_steps=200,
        licence="MIT",
        description="Swing a pendulum up and hold it there.",
    ),
    Task(
        task_id="MountainCar-v0",
        family="classic_control",
        make_env=Environment(env_id="MountainCar-v0"),
        expert=ScriptedExpert(name="rule", script=_with_the_motion),
        max_episode_steps=200,
        licence="MIT",
        description="Rock a weak car up a hill.",
    ),
    Task(
        task_id="MountainCarContinuous-v0",
        family="classic_control",
        make_env=Environment(env_id="MountainCarContinuous-v0"),
        expert=ScriptedExpert(name="rule", script=_with_the_motion_continuous),
        max_episode_steps=999,
        licence="MIT",
        description="Rock a weak car up a hill with a throttle.",
    ),
)
TASKS = (*_STATE, *(seen(task) for task in _STATE))
