"""Controllers of Gymnasium's MuJoCo bodies: linear feedback for poles, oscillators for what crawls and runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from collectors.experts.linear import linearize, lqr_gain
from collectors.task import Controller

if TYPE_CHECKING:
    import gymnasium


_SWIM_PERIOD = 1.176  # seconds
_SWIM_AMPLITUDES, _SWIM_OFFSETS = np.array([0.875, 0.229]), np.array([0.036, -0.054])  # radians
_SWIM_PHASES = np.array([-0.845, 0.525]) * np.pi
_SWIM_STIFFNESS, _SWIM_DAMPING = 3.64, 0.06


def balance(env: gymnasium.Env, seed: int) -> Controller:
    """Poles on a cart: the linear-quadratic feedback around upright, which is where every episode begins."""
    world: Any = env.unwrapped
    model, data = world.model, world.data
    dynamics = linearize(model, np.zeros(model.nq), num_substeps=world.frame_skip)
    state_cost = np.diag([1.0] + [10.0] * (model.nq - 1) + [0.1] * model.nv)
    gain = lqr_gain(dynamics, state_cost=state_cost, action_cost=0.1 * np.eye(model.nu))
    return _controller(env, lambda: -gain @ np.concatenate([data.qpos, data.qvel]))


def swim(env: gymnasium.Env, seed: int) -> Controller:
    """Each joint follows a sine of its own, held there by a spring and a damper (Raffin et al., 2023).

    The numbers were found by the cross-entropy method on other seeds.
    """
    world: Any = env.unwrapped
    data = world.data
    clock = 0

    def feedback() -> np.ndarray:
        nonlocal clock
        clock += 1
        turn = 2 * np.pi * clock * world.dt / _SWIM_PERIOD
        wanted = _SWIM_OFFSETS + _SWIM_AMPLITUDES * np.sin(turn + _SWIM_PHASES)
        return _SWIM_STIFFNESS * (wanted - data.qpos[-2:]) - _SWIM_DAMPING * data.qvel[-2:]

    return _controller(env, feedback)


def _controller(env: gymnasium.Env, feedback: Callable[[], np.ndarray]) -> Controller:
    space: Any = env.action_space

    def controller(observation: Mapping[str, Any], last_action: Any) -> np.ndarray:
        return np.clip(feedback(), space.low, space.high).astype(space.dtype)

    return controller
