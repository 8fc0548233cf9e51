"""Sokoban by search: A* over pushes, with the player's walks between them."""

from __future__ import annotations

import collections
import functools
import heapq
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from collectors.task import Controller

if TYPE_CHECKING:
    import gymnasium

_MAX_EXPANSIONS = 15_000
_NO_WAY = 1e6
# The estimate counts this many times: solutions are found sooner and may be a little longer than the shortest.
_GREED = 3.0
# Row and column of the actions up, right, down, left.
_STEPS = ((-1, 0), (0, 1), (1, 0), (0, -1))
Cell = tuple[int, int]
State = tuple[frozenset[Cell], Cell]  # boxes, player


def solve(env: gymnasium.Env, seed: int) -> Controller:
    """Plans once for the episode, and again where the room is not as the plan left it; stands still without a plan."""
    game: Any = env.unwrapped
    plan: collections.deque[int] = collections.deque()
    expected: Any = None
    gave_up = False

    def state() -> State:
        boxes = frozenset((int(row), int(column)) for row, column in np.argwhere(game.boxes))
        return boxes, (int(game.player[0]), int(game.player[1]))

    def controller(observation: Mapping[str, Any], last_action: Any) -> int:
        nonlocal expected, gave_up
        now = state()
        if not plan or now != expected:
            targets = frozenset((int(row), int(column)) for row, column in np.argwhere(game.level.targets))
            plan.clear()
            plan.extend([] if gave_up else solution(game.level.walls, targets, *now) or [])
            gave_up = gave_up or not plan
        if gave_up:
            return 0
        action = plan.popleft()
        expected = _after(now, action)
        return action

    return controller


def solution(walls: np.ndarray, targets: frozenset[Cell], boxes: frozenset[Cell], player: Cell) -> list[int] | None:
    """Actions that bring every box onto a target; None where the search gives up or there is no way.

    Args:
      walls: bool [height, width], closed all around.
      targets, boxes: as many of the one as of the other.
      player: (row, column).
    """
    distances = [_push_distances(walls, target) for target in sorted(targets)]
    alive = set().union(*distances)

    @functools.cache
    def estimate(boxes: frozenset[Cell]) -> float:
        """Pushes that the cheapest pairing of boxes and targets takes, were each box alone."""
        costs = np.array([[distance.get(box, _NO_WAY) for distance in distances] for box in sorted(boxes)])
        return float(costs[linear_sum_assignment(costs)].sum())

    count = itertools.count()
    start = (boxes, player)
    frontier = [(_GREED * estimate(boxes), next(count), 0, start)]
    # Fewest steps to a state after a push (boxes, player), and how it was reached; regions that are done with.
    steps: dict[State, int] = {start: 0}
    came: dict[State, tuple[State | None, list[int]]] = {start: (None, [])}
    done: set[State] = set()
    for _ in range(_MAX_EXPANSIONS):
        if not frontier:
            return None
        _, _, cost, state = heapq.heappop(frontier)
        boxes, player = state
        if boxes == targets:
            return _unwind(came, state)
        walks = _walks(walls, boxes, player)
        # Wherever the player stands, it is the same room with the same cells to walk on.
        if (boxes, min(walks)) in done:
            continue
        done.add((boxes, min(walks)))
        for box in boxes:
            for action, (down, right) in enumerate(_STEPS):
                stand, beyond = (box[0] - down, box[1] - right), (box[0] + down, box[1] + right)
                if stand not in walks or walls[beyond] or beyond in boxes or beyond not in alive:
                    continue
                pushed = boxes - {box} | {beyond}
                if _is_stuck(walls, pushed, targets, beyond) or estimate(pushed) >= _NO_WAY:
                    continue
                walk = _walk_back(walks, stand)
                length = cost + len(walk) + 1
                if length < steps.get((pushed, box), length + 1):
                    steps[pushed, box] = length
                    came[pushed, box] = (state, [*walk, action])
                    heapq.heappush(frontier, (length + _GREED * estimate(pushed), next(count), length, (pushed, box)))
    return None


def _push_distances(walls: np.ndarray, target: Cell) -> dict[Cell, int]:
    """Pushes that bring a lone box from a cell onto the target; cells from which none does are missing."""
    distances = {target: 0}
    queue = collections.deque([target])
    while queue:
        box = queue.popleft()
        for down, right in _STEPS:
            before, stand = (box[0] - down, box[1] - right), (box[0] - 2 * down, box[1] - 2 * right)
            inside = 0 <= stand[0] < walls.shape[0] and 0 <= stand[1] < walls.shape[1]
            if inside and not walls[before] and not walls[stand] and before not in distances:
                distances[before] = distances[box] + 1
                queue.append(before)
    return distances


def _is_stuck(walls: np.ndarray, boxes: frozenset[Cell], targets: frozenset[Cell], pushed: Cell) -> bool:
    """Whether the box just pushed is part of a square of boxes and walls, in which nothing moves any more."""
    row, column = pushed
    for top, left in ((row - 1, column - 1), (row - 1, column), (row, column - 1), (row, column)):
        square = [(top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)]
        filled = all(cell in boxes or walls[cell] for cell in square)
        if filled and any(cell in boxes and cell not in targets for cell in square):
            return True
    return False


def _walks(walls: np.ndarray, boxes: frozenset[Cell], player: Cell) -> dict[Cell, tuple[Cell, int]]:
    """Every cell the player can walk to -> (the cell before it, the action that led on)."""
    found = {player: (player, -1)}
    queue = collections.deque([player])
    while queue:
        cell = queue.popleft()
        for action, (down, right) in enumerate(_STEPS):
            ahead = (cell[0] + down, cell[1] + right)
            if ahead not in found and not walls[ahead] and ahead not in boxes:
                found[ahead] = (cell, action)
                queue.append(ahead)
    return found


def _walk_back(walks: Mapping[Cell, tuple[Cell, int]], cell: Cell) -> list[int]:
    actions = []
    while walks[cell][1] >= 0:
        cell, action = walks[cell]
        actions.append(action)
    return actions[::-1]


def _unwind(came: Mapping[State, tuple[State | None, list[int]]], state: State) -> list[int]:
    legs = []
    before: State | None = state
    while before is not None:
        before, leg = came[before]
        legs.append(leg)
    return [action for leg in reversed(legs) for action in leg]


def _after(state: State, action: int) -> State:
    """The state after an action of a plan, which never runs into a wall."""
    boxes, (row, column) = state
    down, right = _STEPS[action]
    ahead = (row + down, column + right)
    if ahead in boxes:
        boxes = boxes - {ahead} | {(ahead[0] + down, ahead[1] + right)}
    return boxes, ahead
