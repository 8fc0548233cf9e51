"""Modular bodies: hopper, walker, cheetah, ant and humanoid with some of their limbs, as they are or randomised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from collectors.task import Environment, Task, seen

if TYPE_CHECKING:
    import gymnasium

_STEPS = 1000
# Body -> (file of Gymnasium's, simulation frames a step, the bodies its limbs begin with,
# kept bodies of each limb: one tuple a variant). Mirror images of a body in the plane are one body.
_BODIES: dict[str, tuple[str, int, tuple[str, ...], tuple[tuple[int, ...], ...]]] = {
    "hopper": ("hopper.xml", 4, ("thigh",), ((1,), (2,), (3,))),
    "walker": (
        "walker2d.xml",
        4,
        ("thigh", "thigh_left"),
        tuple((right, left) for right in range(1, 4) for left in range(right + 1)),
    ),
    "cheetah": (
        "half_cheetah.xml",
        5,
        ("bthigh", "fthigh"),
        tuple((back, front) for back in range(4) for front in range(4) if back + front),
    ),
    # A leg's first body has no joint of its own.
    "ant": (
        "ant.xml",
        5,
        ("front_left_leg", "front_right_leg", "back_leg", "right_back_leg"),
        (
            *((3, 3, 3, 3), (3, 3, 3, 2), (3, 3, 2, 2), (3, 2, 3, 2)),
            *((2, 2, 2, 2), (3, 3, 3, 0), (3, 0, 3, 0), (3, 3, 0, 0)),
        ),
    ),
    "humanoid": (
        "humanoid.xml",
        5,
        ("right_thigh", "left_thigh", "right_upper_arm", "left_upper_arm"),
        (
            *((3, 3, 2, 2), (3, 3, 1, 1), (3, 3, 0, 2), (3, 3, 2, 0)),
            *((1, 3, 2, 2), (3, 1, 2, 2), (0, 3, 2, 2), (3, 0, 2, 2)),
        ),
    ),
}


def _make(env_id: str, **kwargs: Any) -> gymnasium.Env:
    from collectors.tasks import _modular

    return _modular.make(env_id, **kwargs)


def _body(name: str, kept: tuple[int, ...], physics: str = "") -> Task:
    file, frame_skip, limbs, _ = _BODIES[name]
    kwargs = {"limbs": dict(zip(limbs, kept, strict=True)), "frame_skip": frame_skip, "limit": _STEPS}
    words = f"Move forward: a {name} of whose limbs {' and '.join(map(str, kept))} parts are left"
    words += f", with {physics} changes from episode to episode." if physics else "."
    return Task(
        task_id=f"modular/{name}-{''.join(map(str, kept))}{f'-{physics}' * bool(physics)}-v0",
        family="modular",
        make_env=Environment(
            env_id=file,
            kwargs=kwargs | ({"physics": physics} if physics else {}),
            module="mujoco",
            extra="mujoco",
            maker=_make,
        ),
        max_episode_steps=_STEPS,
        tags=("randomised",) if physics else (),
        licence="MIT",
        description=words,
    )


_ALL = [(name, kept) for name, (*_, variants) in _BODIES.items() for kept in variants]
_STATE = tuple(_body(*body) for body in _ALL)
TASKS = (
    *_STATE,
    *(_body(*body, physics) for physics in ("small", "large") for body in _ALL),
    *(seen(task, width=64, height=64) for task in _STATE),
)
