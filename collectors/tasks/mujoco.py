"""Gymnasium's MuJoCo tasks, version 5; those that are no family of modular bodies also with bodies drawn anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from collectors.experts import program
from collectors.task import Controller, Disturbance, Environment, ExpertRecipe, Sb3Expert, ScriptedExpert, Task, seen

if TYPE_CHECKING:
    import gymnasium

# Reacher: link lengths in metres, the fingertip 0.11 m along the second (reacher.xml); gains found by a grid search.
_UPPER_ARM, _FOREARM = 0.1, 0.11
_REACH_STIFFNESS, _REACH_DAMPING = 0.2, 0.04


def _reach(env: gymnasium.Env, seed: int) -> Controller:
    """Inverse kinematics of the two links, then torque = stiffness * angle to turn - damping * joint speed."""

    def controller(observation: Mapping[str, Any], last_action: Any) -> np.ndarray:
        # cos q1, cos q2, sin q1, sin q2, target (2), joint speed (2), fingertip - target (2)
        cos1, cos2, sin1, sin2, target_x, target_y, speed1, speed2, _, _ = observation["observation"]
        angles = np.array([np.arctan2(sin1, cos1), np.arctan2(sin2, cos2)])
        turn = min((goal - angles for goal in _joint_angles(target_x, target_y)), key=_largest_turn)
        torque = _REACH_STIFFNESS * _wrapped(turn) - _REACH_DAMPING * np.array([speed1, speed2])
        return np.clip(torque, -1.0, 1.0).astype(np.float32)

    return controller


def _joint_angles(x: float, y: float) -> list[np.ndarray]:
    """The two elbow positions that put the fingertip at (x, y), or as near as the arm reaches."""
    cosine = (x * x + y * y - _UPPER_ARM**2 - _FOREARM**2) / (2 * _UPPER_ARM * _FOREARM)
    elbow = np.arccos(np.clip(cosine, -1.0, 1.0))
    return [
        np.array([np.arctan2(y, x) - np.arctan2(_FOREARM * np.sin(bend), _UPPER_ARM + _FOREARM * np.cos(bend)), bend])
        for bend in (elbow, -elbow)
    ]


def _wrapped(turn: np.ndarray) -> np.ndarray:
    """The shoulder takes the shorter way round; the elbow stops at 3 radians and cannot."""
    return np.array([(turn[0] + np.pi) % (2 * np.pi) - np.pi, turn[1]])


def _largest_turn(turn: np.ndarray) -> float:
    return float(np.abs(_wrapped(turn)).max())


def _ppo(steps: int, **hyperparameters: Any) -> Sb3Expert:
    """Settings near those of rl-baselines3-zoo for MuJoCo."""
    defaults = {
        "n_steps": 512,
        "batch_size": 64,
        "n_epochs": 10,
        "gamma": 0.99,
        "gae_lambda": 0.95,
        "learning_rate": 3e-4,
    }
    return Sb3Expert(steps=steps, hyperparameters=defaults | hyperparameters, normalize=True)


_BALANCE = Sb3Expert(
    steps=100_000,
    hyperparameters={
        "n_steps": 256,
        "batch_size": 256,
        "n_epochs": 10,
        "gamma": 0.98,
        "gae_lambda": 0.9,
        "learning_rate": 1e-3,
    },
    stop_at=995.0,
    stop_window=16,
)


def _make_randomised(env_id: str, **kwargs: Any) -> gymnasium.Env:
    from collectors.tasks import _randomised

    return _randomised.make(env_id, **kwargs)


def _task(
    task_id: str, description: str, expert: ExpertRecipe, steps: int = 1000, disturbance: Disturbance | None = None
) -> Task:
    return Task(
        task_id=task_id,
        family="mujoco",
        make_env=Environment(env_id=task_id, module="mujoco", extra="mujoco"),
        expert=expert,
        max_episode_steps=steps,
        disturbance=disturbance or Disturbance(),
        licence="MIT",
        description=description,
    )


_STATE = (
    # A random push ends every episode of a pole; a small one does not.
    _task("InvertedPendulum-v5", "Balance a pole on a cart.", _BALANCE, disturbance=Disturbance(noise=0.1)),
    _task(
        "Reacher-v5", "Reach a point with a two-link arm.", ScriptedExpert(name="inverse-kinematics", script=_reach), 50
    ),
    _task(
        "InvertedDoublePendulum-v5",
        "Balance two linked poles on a cart.",
        program("lqr", "mujoco.balance"),
        disturbance=Disturbance(noise=0.05),
    ),
    _task("Pusher-v5", "Push a cylinder to a goal with a seven-joint arm.", _ppo(1_000_000), 100),
    _task("HalfCheetah-v5", "Run forward on two legs in the plane.", _ppo(1_000_000)),
    _task("Hopper-v5", "Hop forward on one leg.", _ppo(1_000_000, gamma=0.999)),
    _task("Swimmer-v5", "Swim forward with three links.", program("oscillator", "mujoco.swim")),
    _task("Walker2d-v5", "Walk forward on two legs in the plane.", _ppo(1_000_000)),
    _task("Ant-v5", "Walk forward on four legs.", _ppo(2_000_000)),
    _task("Humanoid-v5", "Walk forward on two legs.", _ppo(10_000_000)),
    _task("HumanoidStandup-v5", "Stand up from lying on the back.", _ppo(10_000_000)),
)
# The double pole's expert is made for each body; the others know one body.
_RANDOMISED = "InvertedPendulum InvertedDoublePendulum Reacher Pusher HumanoidStandup"


def _randomised(task: Task, physics: str) -> Task:
    assert task.make_env is not None
    name, _, version = task.task_id.rpartition("-v")
    return dataclasses.replace(
        task,
        task_id=f"mujoco/{name}-{physics}-v{version}",
        make_env=dataclasses.replace(task.make_env, kwargs={"physics": physics}, maker=_make_randomised),
        expert=task.expert if name == "InvertedDoublePendulum" else None,
        tags=("randomised",),
        description=f"{task.description.rstrip('.')}, with {physics} changes of the body from episode to episode.",
    )


TASKS = (
    *_STATE,
    *(
        _randomised(task, physics)
        for physics in ("small", "large")
        for task in _STATE
        if task.task_id.partition("-")[0] in _RANDOMISED.split()
    ),
    *(seen(task, width=64, height=64) for task in _STATE),
)
