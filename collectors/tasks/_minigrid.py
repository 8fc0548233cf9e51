"""What the MiniGrid and BabyAI families share: observations, the bot, breadth-first search, random bursts."""

from __future__ import annotations

import collections
import string
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium import spaces

from collectors.task import Controller

if TYPE_CHECKING:
    from minigrid.minigrid_env import MiniGridEnv

# Objects, colours and states of a cell, as minigrid.core.constants numbers them.
NUM_OBJECTS, NUM_COLOURS, NUM_STATES = 11, 6, 3
NUM_CELLS = NUM_OBJECTS * NUM_COLOURS * NUM_STATES
LEFT, RIGHT, FORWARD, DONE = 0, 1, 2, 6
_MAX_PLAN_STEPS = 1000

_MISSION = spaces.Text(max_length=512, charset=string.ascii_letters + string.digits + " ,.'-")


def pack_cells(image: np.ndarray) -> np.ndarray:
    """(object * 6 + colour) * 3 + state of each cell: uint8 [W, H, 3] -> int64 [W, H] below 198, without loss."""
    cells = image.astype(np.int64)
    return (cells[..., 0] * NUM_COLOURS + cells[..., 1]) * NUM_STATES + cells[..., 2]


def unpack_cells(cells: np.ndarray) -> np.ndarray:
    """The inverse of `pack_cells`."""
    colours, state = np.divmod(cells, NUM_STATES)
    return np.stack([*np.divmod(colours, NUM_COLOURS), state], axis=-1).astype(np.uint8)


class PackedCells(gymnasium.ObservationWrapper):
    """The 7x7 view with one number a cell, the direction, and the mission in words."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        width, height, _ = env.observation_space["image"].shape  # type: ignore[index]
        self.observation_space = spaces.Dict(
            {
                "cells": spaces.MultiDiscrete(np.full((width, height), NUM_CELLS)),
                "direction": spaces.Discrete(4),
                "mission": _MISSION,
            }
        )

    def observation(self, observation: Any) -> Any:
        """One observation of the environment with its cells packed."""
        return {
            "cells": pack_cells(observation["image"]),
            "direction": np.int64(observation["direction"]),
            "mission": observation["mission"],
        }


class _PlanTooLongError(Exception):
    """The bot's plan does not converge."""


class _BoundedStack(list):
    """The bot's stack of subgoals, which it reads once for each round of planning: counts the rounds."""

    rounds = 0

    def __getitem__(self, index: Any) -> Any:
        self.rounds += 1
        if self.rounds > _MAX_PLAN_STEPS:
            raise _PlanTooLongError
        return super().__getitem__(index)


def bot(env: gymnasium.Env, seed: int) -> Controller:
    """BabyAI's own planner. Where it fails or plans for ever, the episode goes on with "done" until its time is up."""
    from minigrid.utils.baby_ai_bot import BabyAIBot, DisappearedBoxError

    planner = BabyAIBot(env)
    stack = planner.stack = _BoundedStack(planner.stack)
    failures = (
        _PlanTooLongError,
        DisappearedBoxError,
        AssertionError,
        AttributeError,
        IndexError,
        TypeError,
        ValueError,
    )
    failed = False

    def controller(observation: Mapping[str, Any], last_action: Any) -> int:
        nonlocal failed
        if failed:
            return DONE
        stack.rounds = 0
        try:
            return int(planner.replan(None if last_action is None else int(last_action)))
        except failures:
            failed = True
            return DONE

    return controller


def shortest_path(env: gymnasium.Env, seed: int) -> Controller:
    """Breadth-first search over (place, direction) to the goal tile, around walls and lava, at every step."""
    grid: MiniGridEnv = env.unwrapped  # type: ignore[assignment]

    def controller(observation: Mapping[str, Any], last_action: Any) -> int:
        return plan_to(grid, lambda cell: cell is not None and cell.type == "goal")

    return controller


def plan_to(grid: MiniGridEnv, is_goal: Callable[[Any], bool]) -> int:
    """The first action of a shortest way onto a cell that `is_goal`, or DONE where there is none."""
    from minigrid.core.constants import DIR_TO_VEC

    start = (*(int(side) for side in grid.agent_pos), int(grid.agent_dir))
    first_action = {start: DONE}
    queue = collections.deque([start])
    while queue:
        state = queue.popleft()
        column, row, direction = state
        if is_goal(grid.grid.get(column, row)):
            return first_action[state]
        ahead = (column + int(DIR_TO_VEC[direction][0]), row + int(DIR_TO_VEC[direction][1]))
        cell = grid.grid.get(*ahead)
        free = cell is None or (cell.can_overlap() and cell.type != "lava")
        for action, successor in (
            (FORWARD, (*ahead, direction) if free else state),
            (LEFT, (column, row, (direction - 1) % 4)),
            (RIGHT, (column, row, (direction + 1) % 4)),
        ):
            if successor not in first_action:
                first_action[successor] = action if state == start else first_action[state]
                queue.append(successor)
    return DONE
