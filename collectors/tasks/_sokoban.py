"""Sokoban: rooms that can be solved by construction, and the game in them.

A room is carved out of rectangles that overlap, and the boxes stand on their targets; then the game is played
backwards: a player pulls the boxes away. Every state reached like that can be pushed back, so every level has a
solution (the way of Racanière et al., 2017, arXiv 1707.06203, whose rewards these are too).
"""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

# What the observation says of a cell.
FLOOR, WALL, TARGET, BOX, BOX_ON_TARGET, PLAYER, PLAYER_ON_TARGET = range(7)
NUM_CELLS = 7
# Row and column steps of the actions up, right, down and left.
DIRECTIONS = ((-1, 0), (0, 1), (1, 0), (0, -1))

STEP_REWARD, ON_TARGET_REWARD, SOLVED_REWARD = -0.1, 1.0, 10.0
_TILE_PIXELS = 16
_COLOURS = np.array(
    [(48, 44, 40), (120, 92, 70), (180, 60, 60), (214, 160, 60), (90, 180, 90), (90, 140, 230), (170, 120, 220)],
    np.uint8,
)
_FLOOR_SHARE = 0.55
_MAX_ROOMS, _WALKS_A_ROOM = 1000, 12

Cell = tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Level:
    """A room before the first move: walls, targets and boxes are bool [height, width], player is (row, column)."""

    walls: np.ndarray
    targets: np.ndarray
    boxes: np.ndarray
    player: Cell


def generate(rng: np.random.Generator, *, height: int, width: int, num_boxes: int) -> Level:
    """A level that has a solution and in which no box stands on a target.

    Raises:
      ValueError: no room of that size seems to hold so many boxes.
    """
    for _ in range(_MAX_ROOMS):
        walls = _carve(rng, height, width)
        floor = [(int(row), int(column)) for row, column in np.argwhere(~walls)]
        if len(floor) < 3 * num_boxes + 2:
            continue
        targets = frozenset(floor[place] for place in rng.choice(len(floor), num_boxes, replace=False))
        best = max((_pull_away(rng, walls, targets) for _ in range(_WALKS_A_ROOM)), key=lambda found: found[0])
        score, boxes, reach = best
        if score > 0:
            places = sorted(reach)
            player = places[int(rng.integers(len(places)))]
            return Level(walls=walls, targets=_mask(targets, walls), boxes=_mask(boxes, walls), player=player)
    raise ValueError(f"no solvable Sokoban of {height}x{width} with {num_boxes} boxes was found")


def _carve(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Walls of a connected room: rectangles, each around a cell that is floor already."""
    walls = np.ones((height, width), bool)
    walls[rng.integers(1, height - 1), rng.integers(1, width - 1)] = False
    while (~walls).sum() < _FLOOR_SHARE * (height - 2) * (width - 2):
        floor = np.argwhere(~walls)
        row, column = floor[rng.integers(len(floor))]
        tall, wide = rng.integers(1, 4, 2)
        top, left = row - rng.integers(tall), column - rng.integers(wide)
        walls[max(1, top) : min(height - 1, top + tall), max(1, left) : min(width - 1, left + wide)] = False
    return walls


def _pull_away(
    rng: np.random.Generator, walls: np.ndarray, targets: frozenset[Cell]
) -> tuple[int, frozenset[Cell], set[Cell]]:
    """(score, boxes, where the player can be) after random pulls; the score is 0 while a box stands on a target.

    The score is the sum of the boxes' distances from their own targets, times the number of times the player turned to
    another box: what makes a level hard.
    """
    boxes: dict[Cell, Cell] = {target: target for target in targets}
    starts = [cell for cell in _floor_cells(walls) if cell not in boxes]
    player = starts[int(rng.integers(len(starts)))]
    best: tuple[int, frozenset[Cell], set[Cell]] = (0, frozenset(boxes), set())
    switches, last = 0, None
    for _ in range(10 * len(targets)):
        reach = reachable(walls, set(boxes), player)
        pulls = [
            (box, (row, column))
            for box in sorted(boxes)
            for row, column in DIRECTIONS
            if (box[0] + row, box[1] + column) in reach and (box[0] + 2 * row, box[1] + 2 * column) in reach
        ]
        if not pulls:
            break
        box, (row, column) = pulls[int(rng.integers(len(pulls)))]
        origin = boxes.pop(box)
        switches += origin != last
        last = origin
        # Pulled on for a while in one direction, as far as there is room.
        for _ in range(int(rng.integers(1, 4))):
            ahead = (box[0] + 2 * row, box[1] + 2 * column)
            if walls[ahead] or ahead in boxes:
                break
            box, player = (box[0] + row, box[1] + column), ahead
        boxes[box] = origin
        if not set(boxes) & targets:
            distance = sum(abs(at[0] - goal[0]) + abs(at[1] - goal[1]) for at, goal in boxes.items())
            if distance * switches > best[0]:
                best = (distance * switches, frozenset(boxes), reachable(walls, set(boxes), player))
    return best


def reachable(walls: np.ndarray, boxes: set[Cell], player: Cell) -> set[Cell]:
    """The cells that the player can walk to without pushing."""
    found, queue = {player}, collections.deque([player])
    while queue:
        row, column = queue.popleft()
        for down, right in DIRECTIONS:
            cell = (row + down, column + right)
            if cell not in found and not walls[cell] and cell not in boxes:
                found.add(cell)
                queue.append(cell)
    return found


def _floor_cells(walls: np.ndarray) -> list[Cell]:
    return [(int(row), int(column)) for row, column in np.argwhere(~walls)]


def _mask(cells: frozenset[Cell], walls: np.ndarray) -> np.ndarray:
    mask = np.zeros_like(walls)
    for cell in cells:
        mask[cell] = True
    return mask


class Sokoban(gymnasium.Env):
    """Push every box onto a target. Actions: up, right, down, left; a move against a wall does nothing.

    Rewards: -0.1 a step, 1 for a box onto a target, -1 for one off it, 10 for the last one, which ends the episode.

    Attributes:
      level: as it began.
      boxes: bool [height, width], where they are now.
      player: (row, column), now.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012

    def __init__(self, *, height: int, width: int, num_boxes: int, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self._shape = {"height": height, "width": width, "num_boxes": num_boxes}
        self.observation_space = spaces.MultiDiscrete(np.full((height, width), NUM_CELLS))
        self.action_space = spaces.Discrete(len(DIRECTIONS))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """A new level; the same one for the same seed."""
        super().reset(seed=seed)
        self.level = generate(self.np_random, **self._shape)
        self.boxes = self.level.boxes.copy()
        self.player = self.level.player
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        """Walks or pushes."""
        row, column = DIRECTIONS[int(action)]
        ahead = (self.player[0] + row, self.player[1] + column)
        reward = STEP_REWARD
        if self.boxes[ahead]:
            beyond = (ahead[0] + row, ahead[1] + column)
            if not self.level.walls[beyond] and not self.boxes[beyond]:
                self.boxes[ahead], self.boxes[beyond] = False, True
                gained = int(self.level.targets[beyond]) - int(self.level.targets[ahead])
                reward += ON_TARGET_REWARD * gained
                self.player = ahead
        elif not self.level.walls[ahead]:
            self.player = ahead
        solved = bool((self.boxes == self.level.targets).all())
        return self._observe(), reward + SOLVED_REWARD * solved, solved, False, {"success": solved}

    def _observe(self) -> np.ndarray:
        cells = np.where(self.level.walls, WALL, FLOOR)
        cells[self.level.targets] = TARGET
        cells[self.boxes] = np.where(self.level.targets[self.boxes], BOX_ON_TARGET, BOX)
        cells[self.player] = PLAYER_ON_TARGET if self.level.targets[self.player] else PLAYER
        return cells.astype(np.int64)

    def render(self) -> Any:
        """The room from above: one colour a kind of cell, boxes and the player a little smaller than their cell."""
        under = np.where(self.level.walls, WALL, np.where(self.level.targets, TARGET, FLOOR))
        height, width = under.shape
        tiles = _TILES[under, self._observe()]
        return tiles.transpose(0, 2, 1, 3, 4).reshape(height * _TILE_PIXELS, width * _TILE_PIXELS, 3)


def _tiles() -> np.ndarray:
    """The picture of each kind of cell on each kind of ground: uint8 [7, 7, 16, 16, 3]."""
    tiles = np.empty((NUM_CELLS, NUM_CELLS, _TILE_PIXELS, _TILE_PIXELS, 3), np.uint8)
    tiles[:] = _COLOURS[:, None, None, None]
    tiles[:, :, 2:-2, 2:-2] = _COLOURS[None, :, None, None]
    return tiles


_TILES = _tiles()


def make(env_id: str, *, render_mode: str | None = None, max_episode_steps: int, **kwargs: Any) -> gymnasium.Env:
    """A game with its limit of steps."""
    from gymnasium.wrappers import TimeLimit

    return TimeLimit(Sokoban(render_mode=render_mode, **kwargs), max_episode_steps)
