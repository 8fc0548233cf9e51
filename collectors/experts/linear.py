"""Linear control of MuJoCo models: what a model does around a resting point, and the best feedback there."""

from __future__ import annotations

import mujoco
import numpy as np

_NUDGE = 1e-5


def linearize(model: mujoco.MjModel, qpos: np.ndarray, *, num_substeps: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """x' = A x + B u around rest at `qpos`, over one step of control.

    Args:
      model: of the simulation, as it is now.
      qpos: [nq], where the model rests; no quaternions in it.
      num_substeps: of physics in one step of control.

    Returns:
      A [2 nv, 2 nv] and B [2 nv, nu], for x = (qpos - rest, qvel).
    """
    data = mujoco.MjData(model)

    def after_step(state: np.ndarray, ctrl: np.ndarray) -> np.ndarray:
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.qvel[:], data.ctrl[:] = qpos + state[: model.nv], state[model.nv :], ctrl
        mujoco.mj_step(model, data, num_substeps)
        return np.concatenate([data.qpos - qpos, data.qvel])

    # Not mjd_transitionFD, which knows no Runge-Kutta.
    rest, idle = np.zeros(2 * model.nv), np.zeros(model.nu)
    nudges = _NUDGE * np.eye(2 * model.nv), _NUDGE * np.eye(model.nu)
    A = [(after_step(nudge, idle) - after_step(-nudge, idle)) / (2 * _NUDGE) for nudge in nudges[0]]
    B = [(after_step(rest, nudge) - after_step(rest, -nudge)) / (2 * _NUDGE) for nudge in nudges[1]]
    return np.array(A).T, np.array(B).T


def lqr_gain(dynamics: tuple[np.ndarray, np.ndarray], *, state_cost: np.ndarray, action_cost: np.ndarray) -> np.ndarray:
    """K of the feedback u = -K x that minimises the sum of x'Qx + u'Ru (the discrete algebraic Riccati equation).

    Args:
      dynamics: A and B, as `linearize` gives them.
      state_cost: Q.
      action_cost: R.
    """
    from scipy.linalg import solve_discrete_are

    A, B = dynamics
    P = solve_discrete_are(A, B, state_cost, action_cost)
    return np.linalg.solve(action_cost + B.T @ P @ B, B.T @ P @ A)


def accelerate(model: mujoco.MjModel, qpos: np.ndarray, *, num_substeps: int = 1) -> np.ndarray:
    """[nu, nv]: the controls that give the joints one unit of acceleration, around rest at `qpos`."""
    _, B = linearize(model, qpos, num_substeps=num_substeps)
    return np.linalg.pinv(B[model.nv :]) * (model.opt.timestep * num_substeps)
