"""Gymnasium's Box2D: a lander with a shipped heuristic, a walker and a racing car to train."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from collectors.task import Controller, Disturbance, Environment, Sb3Expert, ScriptedExpert, Task, seen

if TYPE_CHECKING:
    import gymnasium


def _land(env: gymnasium.Env, seed: int) -> Controller:
    """The heuristic that Gymnasium ships for both landers."""
    from gymnasium.envs.box2d.lunar_lander import heuristic

    def controller(observation: Mapping[str, Any], last_action: Any) -> Any:
        return heuristic(env, observation["observation"])

    return controller


_LANDER = ScriptedExpert(name="heuristic", script=_land)
_WALKER = Sb3Expert(
    steps=5_000_000,
    hyperparameters={
        "n_steps": 2048,
        "batch_size": 64,
        "gae_lambda": 0.95,
        "gamma": 0.999,
        "n_epochs": 10,
        "learning_rate": 3e-4,
        "clip_range": 0.18,
    },
    num_envs=16,
    normalize=True,
    stop_at=300.0,
)
_RACER = Sb3Expert(
    steps=4_000_000,
    hyperparameters={"n_steps": 512, "batch_size": 128, "n_epochs": 10, "gamma": 0.99, "learning_rate": 1e-4},
)


def _task(task_id: str, description: str, max_episode_steps: int, expert: ScriptedExpert | Sb3Expert) -> Task:
    return Task(
        task_id=task_id,
        family="box2d",
        make_env=Environment(env_id=task_id, extra="box2d"),
        expert=expert,
        disturbance=Disturbance(burst_probability=0.02),
        max_episode_steps=max_episode_steps,
        licence="MIT",
        description=description,
    )


_STATE = (
    _task("LunarLander-v3", "Land between the flags with three engines, on or off.", 1000, _LANDER),
    _task("LunarLanderContinuous-v3", "Land between the flags with throttled engines.", 1000, _LANDER),
    _task("BipedalWalker-v3", "Walk on two legs over slightly uneven ground.", 1600, _WALKER),
    _task("BipedalWalkerHardcore-v3", "Walk on two legs over stumps, pits and stairs.", 2000, _WALKER),
    _task("CarRacing-v3", "Drive around a track, seen from above.", 1000, _RACER),
)
# A racing car is seen as pixels anyway.
TASKS = (*_STATE, *(seen(task, height=64, width=96) for task in _STATE if not task.task_id.startswith("CarRacing")))
