"""Meta-World version 3: fifty tasks of a robot arm, each with the scripted policy that it ships."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from collectors.action_guard import ActionGuard
from collectors.task import Controller, Environment, ScriptedExpert, Task, seen

if TYPE_CHECKING:
    import gymnasium

_NAMES = """
assembly basketball bin-picking box-close button-press button-press-topdown button-press-topdown-wall button-press-wall
coffee-button coffee-pull coffee-push dial-turn disassemble door-close door-lock door-open door-unlock drawer-close
drawer-open faucet-close faucet-open hammer hand-insert handle-press handle-press-side handle-pull handle-pull-side
lever-pull peg-insert-side peg-unplug-side pick-out-of-hole pick-place pick-place-wall plate-slide plate-slide-back
plate-slide-back-side plate-slide-side push push-back push-wall reach reach-wall shelf-place soccer stick-pull
stick-push sweep sweep-into window-close window-open
"""


# A little more than the arm's mocap point may roam. Scripts open and close the gripper at once: the whole range of an
# action is a change they may make.
_GUARD = ActionGuard(
    site="endEffector",
    low=(-0.7, 0.1, -0.1),
    high=(0.7, 1.2, 0.9),
    max_speed=5.0,
    max_force=50_000.0,
    max_change=1.0,
)


def _make(env_id: str, **kwargs: Any) -> gymnasium.Env:
    from collectors.tasks import _metaworld

    return _metaworld.make(env_id, **kwargs)


def _script(env: gymnasium.Env, seed: int) -> Controller:
    from collectors.tasks import _metaworld

    return _metaworld.script(env, seed)


_STATE = tuple(
    Task(
        task_id=f"metaworld/{name}-v3",
        family="metaworld",
        make_env=Environment(
            env_id=f"{name}-v3",
            package="metaworld",
            module="metaworld",
            extra="metaworld",
            maker=_make,
            render_kwargs={"camera_name": "corner2", "width": 320, "height": 320},
        ),
        expert=ScriptedExpert(name="script", script=_script),
        max_episode_steps=500,
        guard=_GUARD,
        tags=("robot-arm",),
        licence="MIT",
        description=f"{name.replace('-', ' ').capitalize()}, with a Sawyer arm.",
    )
    for name in _NAMES.split()
)
TASKS = (*_STATE, *(seen(task, width=80, height=80) for task in _STATE))
