"""Procgen's sixteen games, easy and hard, through EnvPool, which keeps them alive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from collectors.task import Environment, Task

if TYPE_CHECKING:
    import gymnasium

_GAMES = """
Bigfish Bossfight Caveflyer Chaser Climber Coinrun Dodgeball Fruitbot Heist Jumper Leaper Maze Miner Ninja Plunder
Starpilot
"""


def _make(env_id: str, **kwargs: Any) -> gymnasium.Env:
    from collectors.tasks import _procgen

    return _procgen.make(env_id, **kwargs)


TASKS = tuple(
    Task(
        task_id=f"procgen/{game}-{levels}-v0",
        family="procgen",
        make_env=Environment(
            env_id=f"{game}{levels.capitalize()}-v0",
            package="envpool",
            module="collectors.tasks._procgen",
            extra="procgen",
            maker=_make,
        ),
        tags=("pixels",),
        licence="Apache-2.0 AND MIT",
        description=f"Play {game} on a new {levels} level in each episode.",
    )
    for levels in ("easy", "hard")
    for game in _GAMES.split()
)
