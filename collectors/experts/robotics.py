"""Scripts for Gymnasium-Robotics: Fetch's arm, and points that find their way through a maze."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from collectors.task import Controller

if TYPE_CHECKING:
    import gymnasium

# An action of 1 moves Fetch's gripper by 5 cm.
_METRES_AN_ACTION = 0.05
_OPEN, _CLOSED = 1.0, -1.0
_HOVER, _PUSH_FROM = 0.08, 0.055


def _move(from_position: np.ndarray, to_position: np.ndarray, *, gripper: float, gain: float = 1.0) -> np.ndarray:
    return np.append(np.clip(gain * (to_position - from_position) / _METRES_AN_ACTION, -1, 1), gripper)


def _above(place: np.ndarray, height: float) -> np.ndarray:
    return place + np.array([0.0, 0.0, height])


def _fetch_controller(env: gymnasium.Env, choose: Any) -> Controller:
    space: Any = env.action_space

    def controller(observation: Mapping[str, Any], last_action: Any) -> np.ndarray:
        state = np.asarray(observation["observation"], np.float64)
        goal = np.asarray(observation["desired_goal"], np.float64)
        return np.clip(choose(state, goal), space.low, space.high).astype(space.dtype)

    return controller


def fetch_reach(env: gymnasium.Env, seed: int) -> Controller:
    """Straight to the goal."""
    return _fetch_controller(env, lambda state, goal: _move(state[:3], goal, gripper=0.0, gain=0.8))


def fetch_pick_and_place(env: gymnasium.Env, seed: int) -> Controller:
    """Above the block, down, close, to the goal; open again where the block was lost."""
    held = False

    def choose(state: np.ndarray, goal: np.ndarray) -> np.ndarray:
        nonlocal held
        grip, block, fingers = state[:3], state[3:6], state[9:11]
        away = block - grip
        if np.linalg.norm(away) > 0.04:
            held = False
        if not held:
            if np.linalg.norm(away[:2]) > 0.01 and abs(away[2]) < 2 * _HOVER:
                return _move(grip, _above(block, _HOVER), gripper=_OPEN)
            if np.linalg.norm(away) > 0.012:
                return _move(grip, block, gripper=_OPEN)
            if fingers.sum() > 0.055:
                return _move(grip, block, gripper=_CLOSED)
            held = True
        return _move(grip, goal - away, gripper=_CLOSED)

    return _fetch_controller(env, choose)


def fetch_push(env: gymnasium.Env, seed: int) -> Controller:
    """Behind the block as seen from the goal, then through it; round again where the block slid aside."""

    def choose(state: np.ndarray, goal: np.ndarray) -> np.ndarray:
        grip, block = state[:3], state[3:6]
        way = (goal - block)[:2]
        distance = float(np.linalg.norm(way))
        if distance < 0.02:
            return _move(grip, grip, gripper=_CLOSED)
        heading = way / distance
        sideways = np.array([-heading[1], heading[0]])
        offset = grip[:2] - block[:2]
        along, across = float(offset @ heading), float(offset @ sideways)
        table = block[2]
        if along < 0 and abs(across) < 0.015 and grip[2] < table + 0.02:
            through = grip[:2] + heading * min(0.05, distance + 0.005) - 1.5 * across * sideways
            return _move(grip, np.array([*through, table]), gripper=_CLOSED)
        behind = block[:2] - _PUSH_FROM * heading
        if np.linalg.norm(grip[:2] - behind) < 0.015:
            return _move(grip, np.array([*behind, table]), gripper=_CLOSED)
        if grip[2] < table + 0.05:
            return _move(grip, _above(grip, _HOVER), gripper=_CLOSED)
        return _move(grip, np.array([*behind, table + 0.07]), gripper=_CLOSED)

    return _fetch_controller(env, choose)


def point_maze(env: gymnasium.Env, seed: int) -> Controller:
    """Breadth-first search over the cells, then feedback from the middle of one cell to the next."""
    maze = env.unwrapped.maze  # type: ignore[attr-defined]

    def controller(observation: Mapping[str, Any], last_action: Any) -> np.ndarray:
        place, speed = observation["observation"][:2], observation["observation"][2:4]
        goal = observation["desired_goal"]
        here, there = (tuple(int(i) for i in maze.cell_xy_to_rowcol(point)) for point in (place, goal))
        cells = way_through(maze.maze_map, here, there)
        to = maze.cell_rowcol_to_xy(np.array(cells[1])) if len(cells) > 2 else goal
        return np.clip(5.0 * (to - place) - 1.0 * speed, -1, 1).astype(env.action_space.dtype)

    return controller


def way_through(cells: Any, start: tuple[int, ...], goal: tuple[int, ...]) -> list[tuple[int, ...]]:
    """A shortest list of cells from `start` to `goal`, both included; walls are 1. Only `start` where there is none."""
    came: dict[tuple[int, ...], Any] = {goal: None}
    queue = collections.deque([goal])
    while queue and start not in came:
        row, column = queue.popleft()
        for cell in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            inside = 0 <= cell[0] < len(cells) and 0 <= cell[1] < len(cells[0])
            if inside and cells[cell[0]][cell[1]] != 1 and cell not in came:
                came[cell] = (row, column)
                queue.append(cell)
    way = [start]
    while came.get(way[-1]) is not None:
        way.append(came[way[-1]])
    return way
