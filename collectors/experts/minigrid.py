"""A planner for MiniGrid's missions: doors, keys, boxes, things in the way. It sees the whole grid.

At every step it looks for the cheapest way to what is wanted, where a locked door or a thing in the way costs extra.
The first of those on the way becomes what is wanted instead: the key, or the thing's removal.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from collectors.task import Controller

if TYPE_CHECKING:
    import gymnasium

LEFT, RIGHT, FORWARD, PICK_UP, DROP, TOGGLE, DONE = range(7)
_DIRECTIONS = ((1, 0), (0, 1), (-1, 0), (0, -1))
_MOVABLE = ("ball", "box", "key")
# Steps that a detour may cost before a door is unlocked or a thing moved.
_LOCKED_COST, _MOVING_COST = 30, 15
_MAX_DEPTH = 12

Cell = tuple[int, int]
State = tuple[int, int, int]  # column, row, direction
Reached = Callable[[State], bool]


def plan(env: gymnasium.Env, seed: int) -> Controller:
    """The planner as a controller of one episode."""
    planner = _Planner(env)
    return lambda observation, last_action: planner.act()


class _Planner:
    def __init__(self, env: gymnasium.Env) -> None:
        self._world: Any = env.unwrapped
        self._num_actions = int(env.action_space.n)  # type: ignore[attr-defined]
        # In these missions the wrong thing in the hand ends the episode.
        self._may_move = not hasattr(self._world, "targetType") and not hasattr(self._world, "move_type")
        self._turns_to_drop: int | None = None

    def act(self) -> int:
        """The next action."""
        if self._turns_to_drop is not None and self._world.carrying is not None:
            return self._put_down()
        self._turns_to_drop = None
        action = self._pursue()
        # Levels with three actions have no "done": turning on the spot waits.
        return action if action < self._num_actions else LEFT

    def _pursue(self) -> int:
        world = self._world
        if hasattr(world, "success_pos"):
            return self._go(_on(world.success_pos), DONE)
        if hasattr(world, "red_door"):
            door = world.blue_door if world.red_door.is_open else world.red_door
            return self._go(_on(self._find(lambda thing: thing is door)), DONE)
        if hasattr(world, "move_type"):
            return self._put_near()
        if hasattr(world, "targetType") and not hasattr(world, "target_pos"):
            wanted = (world.targetType, world.targetColor)
            return self._take(self._find(lambda thing: (thing.type, thing.color) == wanted))
        if hasattr(world, "target_pos"):
            return self._go(_facing(world.target_pos), DONE)
        if hasattr(world, "obj"):
            return self._take(self._find(lambda thing: thing is world.obj))
        if hasattr(world, "door") and not world.door.is_open:
            return self._go(_on(self._find(lambda thing: thing is world.door)), DONE)
        return self._go(_on(self._find(lambda thing: thing.type == "goal")), DONE)

    def _put_near(self) -> int:
        world = self._world
        if world.carrying is None:
            wanted = (world.move_type, world.moveColor)
            return self._take(self._find(lambda thing: (thing.type, thing.color) == wanted))
        column, row = world.target_pos

        def at_a_free_place(state: State) -> bool:
            ahead = _ahead(state)
            near = abs(ahead[0] - column) <= 1 and abs(ahead[1] - row) <= 1
            return near and world.grid.get(*ahead) is None

        return self._go(at_a_free_place, DROP)

    def _take(self, cell: Cell | None, depth: int = 0) -> int:
        state = self._state()
        if cell is not None and _ahead(state) == cell and self._world.carrying is not None:
            self._turns_to_drop = 0
            return self._put_down()
        return self._go(_facing(cell), PICK_UP, depth)

    def _put_down(self) -> int:
        assert self._turns_to_drop is not None
        ahead = _ahead(self._state())
        free = self._world.grid.get(*ahead) is None
        # Not into a doorway, unless there is nowhere else.
        if free and (self._turns_to_drop >= 4 or not any(thing.type == "door" for thing in self._around(ahead))):
            self._turns_to_drop = None
            return DROP
        if self._turns_to_drop >= 8:
            self._turns_to_drop = None
            return FORWARD
        self._turns_to_drop += 1
        return RIGHT

    def _go(self, reached: Reached, at_the_end: int, depth: int = 0) -> int:
        way = self._way(reached)
        if way is None or depth > _MAX_DEPTH:
            return DONE
        for state, successor in itertools.pairwise(way):
            if successor[:2] == state[:2]:
                continue
            thing = self._world.grid.get(*successor[:2])
            if thing is None:
                continue
            if thing.type == "door" and thing.is_locked and not self._has_key(thing.color):
                return self._fetch_key(thing.color, depth + 1)
            if thing.type in _MOVABLE:
                return self._take(successor[:2], depth + 1)
        if len(way) == 1:
            return at_the_end
        state, successor = way[0], way[1]
        if successor[:2] == state[:2]:
            return RIGHT if successor[2] == (state[2] + 1) % 4 else LEFT
        thing = self._world.grid.get(*successor[:2])
        closed = thing is not None and thing.type == "door" and not thing.is_open
        return TOGGLE if closed else FORWARD

    def _fetch_key(self, colour: str, depth: int) -> int:
        key = self._find(lambda thing: thing.type == "key" and thing.color == colour)
        if key is not None:
            return self._take(key, depth)
        box = self._find(lambda thing: thing.type == "box" and getattr(thing.contains, "color", None) == colour)
        return self._go(_facing(box), TOGGLE, depth)

    def _way(self, reached: Reached) -> list[State] | None:
        """The cheapest way (Dijkstra) from where the agent is, both ends included."""
        start = self._state()
        came: dict[State, State | None] = {}
        frontier: list[tuple[float, int, State, State | None]] = [(0, 0, start, None)]
        count = itertools.count(1)
        while frontier:
            cost, _, state, before = heapq.heappop(frontier)
            if state in came:
                continue
            came[state] = before
            if reached(state):
                way = [state]
                while (before := came[way[-1]]) is not None:
                    way.append(before)
                return way[::-1]
            column, row, direction = state
            for turned in ((direction + 1) % 4, (direction - 1) % 4):
                heapq.heappush(frontier, (cost + 1, next(count), (column, row, turned), state))
            ahead = _ahead(state)
            step = self._cost(ahead)
            if step is not None:
                heapq.heappush(frontier, (cost + step, next(count), (*ahead, direction), state))
        return None

    def _cost(self, cell: Cell) -> float | None:
        """Steps that entering a cell takes; None where nobody can."""
        grid = self._world.grid
        if not (0 <= cell[0] < grid.width and 0 <= cell[1] < grid.height):
            return None
        thing = grid.get(*cell)
        if thing is None:
            return 1
        if thing.type == "door":
            if thing.is_open:
                return 1
            return 2 if not thing.is_locked or self._has_key(thing.color) else _LOCKED_COST
        if thing.type in _MOVABLE:
            return _MOVING_COST if self._may_move and self._num_actions > FORWARD + 1 else None
        return 1 if thing.can_overlap() and thing.type != "lava" else None

    def _has_key(self, colour: str) -> bool:
        held = self._world.carrying
        return held is not None and held.type == "key" and held.color == colour

    def _state(self) -> State:
        column, row = self._world.agent_pos
        return int(column), int(row), int(self._world.agent_dir)

    def _find(self, is_wanted: Callable[[Any], bool]) -> Cell | None:
        for cell, thing in self._things():
            if is_wanted(thing):
                return cell
        return None

    def _things(self) -> Iterator[tuple[Cell, Any]]:
        grid = self._world.grid
        for place, thing in enumerate(grid.grid):
            if thing is not None:
                yield (place % grid.width, place // grid.width), thing

    def _around(self, cell: Cell) -> list[Any]:
        grid = self._world.grid
        cells = [(cell[0] + column, cell[1] + row) for column, row in _DIRECTIONS]
        inside = [at for at in cells if 0 <= at[0] < grid.width and 0 <= at[1] < grid.height]
        return [thing for at in inside if (thing := grid.get(*at)) is not None]


def _ahead(state: State) -> Cell:
    column, row = _DIRECTIONS[state[2]]
    return state[0] + column, state[1] + row


def _on(cell: Any) -> Reached:
    """Standing on a cell."""
    return lambda state: cell is not None and state[:2] == (int(cell[0]), int(cell[1]))


def _facing(cell: Any) -> Reached:
    """Standing before a cell and looking at it."""
    return lambda state: cell is not None and _ahead(state) == (int(cell[0]), int(cell[1]))
