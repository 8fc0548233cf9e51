"""robosuite: manipulation with one arm, of five makes, or with two."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from collectors.action_guard import ActionGuard
from collectors.experts import program
from collectors.task import Environment, Task, seen

if TYPE_CHECKING:
    import gymnasium

_STEPS = 500
# With their words for `collectors list`.
_ONE_ARM = {
    "Lift": "Lift a cube off the table",
    "Stack": "Stack a red cube on a green one",
    "NutAssembly": "Put a square and a round nut on their pegs",
    "NutAssemblySingle": "Put one of two nuts on its peg",
    "NutAssemblySquare": "Put the square nut on its peg",
    "NutAssemblyRound": "Put the round nut on its peg",
    "PickPlace": "Sort four groceries into their bins",
    "PickPlaceSingle": "Put one of four groceries into its bin",
    "PickPlaceMilk": "Put the milk into its bin",
    "PickPlaceBread": "Put the bread into its bin",
    "PickPlaceCereal": "Put the cereal into its bin",
    "PickPlaceCan": "Put the can into its bin",
    "Door": "Open a door by its handle",
    "Wipe": "Wipe a whiteboard clean",
    "ToolHang": "Assemble a stand and hang a tool on it",
}
_EXPERTS = {
    "Lift": program("pick-and-place", "robosuite.lift"),
    "Stack": program("pick-and-place", "robosuite.stack"),
}
_TWO_ARMS = {
    "TwoArmLift": "Lift a pot by its two handles",
    "TwoArmPegInHole": "Put a peg into a hole",
    "TwoArmHandover": "Hand a hammer over",
    "TwoArmTransport": "Carry a payload from bin to bin",
}
# The first is robosuite's own choice and gives the tasks without an arm in their name. Sawyer and Baxter do not load
# with MuJoCo 3.8: a mesh of their heads has no volume.
_ARMS = ("Panda", "IIWA", "UR5e", "Kinova3", "Jaco")


# Around the table, for the (first) arm; random actions reach 1.1 m/s and contacts of 0.9 kN.
_GUARD = ActionGuard(
    site="gripper0_right_grip_site",
    low=(-1.5, -1.5, 0.2),
    high=(1.5, 1.5, 2.2),
    max_speed=4.0,
    max_force=10_000.0,
    max_change=0.75,
)


def _make(env_id: str, **kwargs: Any) -> gymnasium.Env:
    from collectors.tasks import _robosuite

    return _robosuite.make(env_id, **kwargs)


def _task(name: str, words: str, robots: tuple[str, ...]) -> Task:
    arm = "" if robots[0] == _ARMS[0] else f"-{robots[0]}"
    return Task(
        task_id=f"robosuite/{name}{arm}-v1",
        family="robosuite",
        make_env=Environment(
            env_id=name,
            kwargs={"robots": list(robots), "horizon": _STEPS},
            package="robosuite",
            module="collectors.tasks._robosuite",
            extra="robosuite",
            maker=_make,
        ),
        expert=_EXPERTS.get(name),
        max_episode_steps=_STEPS,
        guard=_GUARD,
        tags=("robot-arm",),
        licence="MIT",
        description=f"{words}, with {' and '.join(robots)}.",
    )


_STATE = (
    *(_task(name, words, (arm,)) for arm in _ARMS for name, words in _ONE_ARM.items()),
    *(_task(name, words, (_ARMS[0], _ARMS[0])) for name, words in _TWO_ARMS.items()),
)
TASKS = (*_STATE, *(seen(task, height=80, width=80) for task in _STATE[: len(_ONE_ARM)] + _STATE[-len(_TWO_ARMS) :]))
