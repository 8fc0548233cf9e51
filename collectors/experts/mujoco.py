"""Controllers of Gymnasium's MuJoCo bodies: linear feedback for poles, oscillators for what crawls and runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from collectors.experts.linear import linearize, lqr_gain
from collectors.task import Controller

if TYPE_CHECKING:
    import gymnasium


def balance(env: gymnasium.Env, seed: int) -> Controller:
    """Poles on a cart: the linear-quadratic feedback around upright, which is where every episode begins."""
    world: Any = env.unwrapped
    model, data = world.model, world.data
    A, B = linearize(model, np.zeros(model.nq), num_substeps=world.frame_skip)
    gain = lqr_gain(A, B, np.diag([1.0] + [10.0] * (model.nq - 1) + [0.1] * model.nv), 0.1 * np.eye(model.nu))
    return _controller(env, lambda: -gain @ np.concatenate([data.qpos, data.qvel]))


def oscillator(
    env: gymnasium.Env,
    *,
    joints: slice,
    period: float,
    amplitudes: tuple[float, ...],
    phases: tuple[float, ...],
    offsets: tuple[float, ...],
    stiffness: float,
    damping: float,
) -> Controller:
    """Each joint follows a sine of its own phase, held there by a spring and a damper (Raffin et al., 2023)."""
    world: Any = env.unwrapped
    data = world.data
    clock = 0

    def feedback() -> np.ndarray:
        nonlocal clock
        clock += 1
        turn = 2 * np.pi * clock * world.dt / period
        wanted = np.array(offsets) + np.array(amplitudes) * np.sin(turn + np.array(phases))
        return stiffness * (wanted - data.qpos[joints]) - damping * data.qvel[joints]

    return _controller(env, feedback)


def _controller(env: gymnasium.Env, feedback: Callable[[], np.ndarray]) -> Controller:
    space: Any = env.action_space

    def controller(observation: Mapping[str, Any], last_action: Any) -> np.ndarray:
        return np.clip(feedback(), space.low, space.high).astype(space.dtype)

    return controller
