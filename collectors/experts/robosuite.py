"""Scripted pick and place for robosuite's arms, which are moved by steps of the gripper's place and turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from collectors.task import Controller

if TYPE_CHECKING:
    import gymnasium

# What an action of 1 asks of the operational space controller.
_METRES_AN_ACTION, _RADIANS_AN_ACTION = 0.05, 0.5
_OPEN, _CLOSED = -1.0, 1.0
_HOVER, _CLEARANCE = 0.10, 0.06
_CLOSING_STEPS, _OPENING_STEPS = 12, 6


class Arm:
    """One arm with a gripper: where it is, and the action that takes it elsewhere."""

    def __init__(self, simulation: Any, *, robot: int = 0) -> None:
        self._data = simulation.sim.data
        self._site = next(iter(simulation.robots[robot].eef_site_id.values()))

    @property
    def position(self) -> np.ndarray:
        """Between the fingertips, in metres."""
        return np.array(self._data.site_xpos[self._site])

    @property
    def yaw(self) -> float:
        """Turn about the vertical, in radians."""
        return _yaw(self._data.site_xmat[self._site])

    def move(self, to: np.ndarray, *, gripper: float, yaw: float | None = None, gain: float = 0.8) -> np.ndarray:
        """[7]: a step towards `to`, and towards `yaw` or the same turn a multiple of 90 degrees away."""
        step = np.clip(gain * (to - self.position) / _METRES_AN_ACTION, -1, 1)
        turn = 0.0
        if yaw is not None:
            quarter = np.pi / 2
            turn = (yaw - self.yaw + quarter / 2) % quarter - quarter / 2
        return np.array([*step, 0.0, 0.0, np.clip(turn / _RADIANS_AN_ACTION, -1, 1), gripper])


def _yaw(matrix: np.ndarray) -> float:
    rotation = np.asarray(matrix).reshape(3, 3)
    return float(np.arctan2(rotation[1, 0], rotation[0, 0]))


class PickAndPlace:
    """Above the thing, down, close, up, above the goal, down, open, up: one object at a time.

    Args:
      arm: that does it.
      thing: gives (position, yaw) of what is to be taken.
      goal: gives the place for the thing; None where it is only to be lifted.
      offset: from the thing's place to where it is gripped.
    """

    def __init__(
        self,
        arm: Arm,
        thing: Callable[[], tuple[np.ndarray, float]],
        goal: Callable[[], np.ndarray] | None,
        offset: np.ndarray | None = None,
    ) -> None:
        self._arm, self._thing, self._goal = arm, thing, goal
        self._offset = np.zeros(3) if offset is None else offset
        self._stage, self._waited = "above", 0
        self._lift_height = 0.0

    @property
    def is_done(self) -> bool:
        """Whether the thing was let go at its goal."""
        return self._stage == "away" and self._waited > _OPENING_STEPS

    def __call__(self) -> np.ndarray:
        """[7]: the next action."""
        arm = self._arm
        place, yaw = self._thing()
        grasp = place + self._offset
        self._waited += 1
        if self._stage in ("lift", "carry", "lower") and np.linalg.norm(grasp - arm.position) > 0.05:
            self._go("above")
        if self._stage == "above":
            above = _above(grasp, _HOVER)
            if np.linalg.norm(arm.position - above) < 0.015 and self._turned(yaw):
                self._go("down")
            return arm.move(above, gripper=_OPEN, yaw=yaw)
        if self._stage == "down":
            if np.linalg.norm(arm.position - grasp) < 0.008 or self._waited > 40:
                self._go("close")
            return arm.move(grasp, gripper=_OPEN, yaw=yaw)
        if self._stage == "close":
            self._lift_height = arm.position[2] + _HOVER
            if self._waited > _CLOSING_STEPS:
                self._go("lift")
            return arm.move(arm.position, gripper=_CLOSED)
        if self._stage == "lift" or self._goal is None:
            up = np.array([*arm.position[:2], self._lift_height])
            if arm.position[2] > self._lift_height - 0.02 and self._goal is not None:
                self._go("carry")
            return arm.move(up, gripper=_CLOSED)
        goal = self._goal() + (arm.position - place)
        if self._stage == "carry":
            above = _above(goal, _CLEARANCE)
            if np.linalg.norm(arm.position - above) < 0.008:
                self._go("lower")
            return arm.move(above, gripper=_CLOSED)
        if self._stage == "lower":
            if abs(arm.position[2] - goal[2]) < 0.004 or self._waited > 40:
                self._go("open")
            return arm.move(goal, gripper=_CLOSED, gain=0.4)
        if self._stage == "open":
            if self._waited > _OPENING_STEPS:
                self._go("away")
            return arm.move(arm.position, gripper=_OPEN)
        return arm.move(_above(arm.position, _HOVER), gripper=_OPEN)

    def _go(self, stage: str) -> None:
        self._stage, self._waited = stage, 0

    def _turned(self, yaw: float) -> bool:
        quarter = np.pi / 2
        return abs((yaw - self._arm.yaw + quarter / 2) % quarter - quarter / 2) < 0.06


def _above(place: np.ndarray, height: float) -> np.ndarray:
    return place + np.array([0.0, 0.0, height])


def _simulation(env: gymnasium.Env) -> Any:
    """robosuite's own environment behind a Gymnasium one."""
    return env.unwrapped.suite  # type: ignore[attr-defined]


def _body(simulation: Any, body: int) -> tuple[np.ndarray, float]:
    data = simulation.sim.data
    return np.array(data.body_xpos[body]), _yaw(data.body_xmat[body])


def _controller(env: gymnasium.Env, act: Callable[[], np.ndarray]) -> Controller:
    space: Any = env.action_space

    def controller(observation: Mapping[str, Any], last_action: Any) -> np.ndarray:
        return np.clip(act(), space.low, space.high).astype(space.dtype)

    return controller


def lift(env: gymnasium.Env, seed: int) -> Controller:
    """The cube, off the table."""
    simulation = _simulation(env)
    thing = lambda: _body(simulation, simulation.cube_body_id)  # noqa: E731
    return _controller(env, PickAndPlace(Arm(simulation), thing, None))


def stack(env: gymnasium.Env, seed: int) -> Controller:
    """The red cube, onto the green one."""
    simulation = _simulation(env)
    height = simulation.cubeA.size[2] + simulation.cubeB.size[2]

    def thing() -> tuple[np.ndarray, float]:
        return _body(simulation, simulation.cubeA_body_id)

    def goal() -> np.ndarray:
        place, _ = _body(simulation, simulation.cubeB_body_id)
        return _above(place, height + 0.002)

    return _controller(env, PickAndPlace(Arm(simulation), thing, goal))
