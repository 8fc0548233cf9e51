"""Controllers of DM Control's small bodies: feedback from the model itself, so they fit every variant of a body."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import mujoco
import numpy as np

from collectors.experts.linear import accelerate, linearize, lqr_gain
from collectors.task import Controller

if TYPE_CHECKING:
    import gymnasium

# Radians from upright within which linear feedback takes over from the swing.
_CATCH_ANGLE = 0.45
_SWIM_PERIOD, _SWIM_BEND = 1.2, 0.5


def _physics(env: gymnasium.Env) -> Any:
    """dm_control's Physics behind a Gymnasium environment."""
    return env.unwrapped.suite.physics  # type: ignore[attr-defined]


def _num_substeps(env: gymnasium.Env) -> int:
    return int(env.unwrapped.suite._n_sub_steps)  # type: ignore[attr-defined]


def _controller(env: gymnasium.Env, feedback: Callable[[], np.ndarray]) -> Controller:
    """Feedback from the physics, clipped into the action space."""
    space: Any = env.action_space

    def controller(observation: Mapping[str, Any], last_action: Any) -> np.ndarray:
        return np.clip(feedback(), space.low, space.high).astype(space.dtype)

    return controller


def _state(physics: Any) -> np.ndarray:
    return np.concatenate([physics.data.qpos, physics.data.qvel])


def lqr(env: gymnasium.Env, seed: int) -> Controller:
    """The chain of masses on springs: the optimal feedback for its own quadratic reward."""
    physics = _physics(env)
    model = physics.model.ptr
    dynamics = linearize(model, np.zeros(model.nq), num_substeps=_num_substeps(env))
    coefficient = env.unwrapped.suite.task._control_cost_coef  # type: ignore[attr-defined]
    state_cost = np.diag([0.5] * model.nv + [1e-6] * model.nv)
    gain = lqr_gain(dynamics, state_cost=state_cost, action_cost=0.5 * coefficient * np.eye(model.nu))
    return _controller(env, lambda: -gain @ _state(physics))


def cartpole(env: gymnasium.Env, seed: int) -> Controller:
    """Pumps energy into the pole (Astrom and Furuta 2000) until linear feedback can hold it upright."""
    physics = _physics(env)
    model = physics.model.ptr
    dynamics = linearize(model, np.zeros(model.nq), num_substeps=_num_substeps(env))
    gain = lqr_gain(dynamics, state_cost=np.diag([1.0, 10.0, 0.1, 0.1]), action_cost=np.eye(1))
    pole = model.nbody - 1
    mass, reach = float(model.body_mass[pole]), float(model.body_ipos[pole, 2])
    inertia = float(model.body_inertia[pole, 1]) + mass * reach**2
    gravity = -float(model.opt.gravity[2])
    weight = float(model.body_mass.sum()) / float(model.actuator_gear[0, 0])

    def feedback() -> np.ndarray:
        place, angle, speed, spin = _state(physics)
        angle = (angle + np.pi) % (2 * np.pi) - np.pi
        if abs(angle) < _CATCH_ANGLE and abs(angle + 0.3 * spin) < 2 * _CATCH_ANGLE:
            return -gain @ np.array([place, angle, speed, spin])
        energy = 0.5 * inertia * spin**2 + mass * gravity * reach * (np.cos(angle) - 1)
        pump = energy / (mass * gravity * reach) * spin * np.cos(angle)
        return np.array([weight * (8.0 * pump - 1.5 * place - 1.0 * speed)])

    return _controller(env, feedback)


def pendulum(env: gymnasium.Env, seed: int) -> Controller:
    """Torque with the motion while energy is missing; linear feedback at the top."""
    physics = _physics(env)
    model = physics.model.ptr
    dynamics = linearize(model, np.zeros(model.nq), num_substeps=_num_substeps(env))
    gain = lqr_gain(dynamics, state_cost=np.diag([10.0, 1.0]), action_cost=np.eye(1))
    pole = model.nbody - 1
    mass, reach = float(model.body_mass[pole]), float(model.body_ipos[pole, 2])
    inertia = float(model.body_inertia[pole, 1]) + mass * reach**2
    gravity = -float(model.opt.gravity[2])

    def feedback() -> np.ndarray:
        angle, spin = _state(physics)
        angle = (angle + np.pi) % (2 * np.pi) - np.pi
        hold = -gain @ np.array([angle, spin])
        if abs(angle) < _CATCH_ANGLE and abs(hold[0]) < 2.0:
            return hold
        energy = 0.5 * inertia * spin**2 + mass * gravity * reach * (np.cos(angle) - 1)
        return np.array([-np.sign(energy - 0.02 * mass * gravity * reach) * (np.sign(spin) or 1.0)])

    return _controller(env, feedback)


def point_mass(env: gymnasium.Env, seed: int) -> Controller:
    """Proportional and derivative feedback to the middle, through whatever mixes the two motors."""
    physics = _physics(env)
    to_controls = accelerate(physics.model.ptr, np.zeros(2), num_substeps=_num_substeps(env))

    def feedback() -> np.ndarray:
        return to_controls @ (-4.0 * physics.data.qpos - 4.0 * physics.data.qvel)

    return _controller(env, feedback)


def reacher(env: gymnasium.Env, seed: int) -> Controller:
    """Inverse kinematics of the two links, then acceleration towards the nearer of the two elbows."""
    physics = _physics(env)
    model = physics.model.ptr
    upper, fore = float(physics.named.model.body_pos["hand", "x"]), float(physics.named.model.body_pos["finger", "x"])
    inertia = np.zeros((model.nv, model.nv))

    def feedback() -> np.ndarray:
        x, y = physics.named.data.geom_xpos["target", :2]
        angles = np.array(physics.data.qpos)
        cosine = np.clip((x * x + y * y - upper**2 - fore**2) / (2 * upper * fore), -1.0, 1.0)
        turns = []
        for bend in (np.arccos(cosine), -np.arccos(cosine)):
            shoulder = np.arctan2(y, x) - np.arctan2(fore * np.sin(bend), upper + fore * np.cos(bend))
            turn = np.array([shoulder, bend]) - angles
            turn[0] = (turn[0] + np.pi) % (2 * np.pi) - np.pi
            turns.append(turn)
        turn = min(turns, key=lambda candidate: float(np.abs(candidate).max()))
        mujoco.mj_fullM(model, inertia, physics.data.qM)
        data = physics.data
        torque = inertia @ (80.0 * turn - 18.0 * np.array(data.qvel)) + data.qfrc_bias - data.qfrc_passive
        return torque / model.actuator_gear[:, 0]

    return _controller(env, feedback)


def swimmer(env: gymnasium.Env, seed: int) -> Controller:
    """A wave that travels along the body, bent towards the target."""
    physics = _physics(env)
    num_joints = physics.model.nu
    step = float(env.unwrapped.suite.control_timestep())  # type: ignore[attr-defined]
    clock = 0

    def feedback() -> np.ndarray:
        nonlocal clock
        clock += 1
        side, ahead = physics.nose_to_target()
        bend = -_SWIM_BEND * np.clip(np.arctan2(side, -ahead), -1, 1)
        phase = 2 * np.pi * (clock * step / _SWIM_PERIOD - np.arange(num_joints) / num_joints)
        return np.sin(phase) + bend

    return _controller(env, feedback)
