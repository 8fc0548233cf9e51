"""DM Control: the suite, the suite with randomised bodies as in the paper, and manipulation with a Jaco arm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from collectors.action_guard import ActionGuard
from collectors.experts import program
from collectors.task import Environment, Task, seen

if TYPE_CHECKING:
    import gymnasium

# Domain -> its tasks.
_SUITE = {
    "acrobot": "swingup swingup_sparse",
    "ball_in_cup": "catch",
    "cartpole": "balance balance_sparse swingup swingup_sparse two_poles three_poles",
    "cheetah": "run",
    "dog": "stand walk trot run fetch",
    "finger": "spin turn_easy turn_hard",
    "fish": "upright swim",
    "hopper": "stand hop",
    "humanoid": "stand walk run run_pure_state",
    "humanoid_CMU": "stand walk run",
    "lqr": "lqr_2_1 lqr_6_2",
    "manipulator": "bring_ball bring_peg insert_ball insert_peg",
    "pendulum": "swingup",
    "point_mass": "easy hard",
    "quadruped": "walk run escape fetch",
    "reacher": "easy hard",
    "stacker": "stack_2 stack_4",
    "swimmer": "swimmer6 swimmer15",
    "walker": "stand walk run",
}
# A domain, or a domain with one of its tasks -> who is good at it, whatever the body's sizes and strengths.
_EXPERTS = {
    "cartpole/balance": program("lqr", "dm_control.cartpole"),
    "cartpole/balance_sparse": program("lqr", "dm_control.cartpole"),
    "cartpole/swingup": program("energy", "dm_control.cartpole"),
    "cartpole/swingup_sparse": program("energy", "dm_control.cartpole"),
    "lqr": program("lqr", "dm_control.lqr"),
    "pendulum": program("energy", "dm_control.pendulum"),
    "point_mass": program("feedback", "dm_control.point_mass"),
    "reacher": program("inverse-kinematics", "dm_control.reacher"),
    "swimmer": program("oscillator", "dm_control.swimmer"),
}
_MANIPULATION = """
stack_2_bricks stack_2_bricks_moveable_base stack_3_bricks stack_3_bricks_random_order
stack_2_of_3_bricks_random_order reassemble_3_bricks_fixed_order reassemble_5_bricks_random_order lift_brick
lift_large_box place_brick place_cradle reach_duplo reach_site
"""
_SUITE_STEPS, _MANIPULATION_STEPS = 1000, 250
# Random actions, which are speeds of joints, stay within 0.5 m of the base, below 0.6 m/s and 1.5 kN.
_JACO_GUARD = ActionGuard(
    site="jaco_arm/jaco_hand/gripsite",
    low=(-0.8, -0.8, -0.05),
    high=(0.8, 0.8, 1.0),
    max_speed=1.5,
    max_force=5_000.0,
    max_change=0.75,
)


def _make_suite(env_id: str, **kwargs: Any) -> gymnasium.Env:
    from collectors.tasks import _dm_control

    return _dm_control.make_suite(env_id, **kwargs)


def _make_manipulation(env_id: str, **kwargs: Any) -> gymnasium.Env:
    from collectors.tasks import _dm_control

    return _dm_control.make_manipulation(env_id, **kwargs)


def _task(
    name: str, env_id: str, description: str, steps: int, maker: Any, tags: tuple[str, ...], **kwargs: Any
) -> Task:
    # The same physics, rewarded or observed in another way.
    same = name.replace("_sparse", "").replace("_pure_state", "")
    return Task(
        task_id=f"dm_control/{name}-v0",
        variant_of=f"dm_control/{same}-v0" * (same != name),
        family="dm_control",
        make_env=Environment(
            env_id=env_id, kwargs=kwargs, package="dm-control", module="dm_control", extra="dmc", maker=maker
        ),
        expert=_EXPERTS.get(env_id) or _EXPERTS.get(env_id.partition("/")[0]),
        max_episode_steps=steps,
        guard=_JACO_GUARD if "robot-arm" in tags else None,
        tags=tags,
        licence="Apache-2.0",
        description=description,
    )


def _suite(domain: str, task: str, physics: str = "") -> Task:
    name = f"{domain}-{task}" + f"-{physics}" * bool(physics)
    words = f"{domain.replace('_', ' ').capitalize()}: {task.replace('_', ' ')}"
    words += f", with {physics} changes of the body from episode to episode." if physics else "."
    # The linear tasks have no end of their own.
    kwargs: dict[str, Any] = {"physics": physics} if physics else {}
    kwargs |= {"limit": _SUITE_STEPS} if domain == "lqr" else {}
    tags = ("randomised",) if physics else ()
    return _task(name, f"{domain}/{task}", words, _SUITE_STEPS, _make_suite, tags, **kwargs)


def _manipulation(name: str) -> Task:
    words = f"A Jaco arm: {name.replace('_', ' ')}."
    return _task(name, f"{name}_features", words, _MANIPULATION_STEPS, _make_manipulation, ("robot-arm",))


_PAIRS = [(domain, task) for domain, tasks in _SUITE.items() for task in tasks.split()]
_STATE = (*(_suite(*pair) for pair in _PAIRS), *(_manipulation(name) for name in _MANIPULATION.split()))
TASKS = (
    *_STATE,
    *(_suite(*pair, physics) for physics in ("small", "large") for pair in _PAIRS),
    *(seen(task, width=64, height=64) for task in _STATE),
)
