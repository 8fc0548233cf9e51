"""Sokoban with levels that are generated for each seed, in several sizes; 10x10 with four boxes is the paper's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from collectors.experts import program
from collectors.task import Environment, Task, seen

if TYPE_CHECKING:
    import gymnasium

# (side of the room, boxes)
_SIZES = ((7, 1), (7, 2), (8, 1), (8, 2), (8, 3), (10, 1), (10, 2), (10, 3), (10, 4), (12, 4), (12, 5))


def _make(env_id: str, **kwargs: Any) -> gymnasium.Env:
    from collectors.tasks import _sokoban

    return _sokoban.make(env_id, **kwargs)


def _room(side: int, num_boxes: int) -> Task:
    steps = 120 if side <= 10 else 200
    return Task(
        task_id=f"sokoban/{side}x{side}-{num_boxes}-v0",
        family="sokoban",
        make_env=Environment(
            env_id="Sokoban",
            kwargs={"height": side, "width": side, "num_boxes": num_boxes, "max_episode_steps": steps},
            maker=_make,
        ),
        expert=program("search", "sokoban.solve"),
        disturbance=None,
        max_episode_steps=steps,
        licence="Apache-2.0",
        description=f"Push {num_boxes} box{'es' * (num_boxes > 1)} onto targets in a room of {side}x{side}.",
    )


_ROOMS = tuple(_room(*size) for size in _SIZES)
TASKS = (*_ROOMS, *(seen(room, height=96, width=96) for room in _ROOMS))
