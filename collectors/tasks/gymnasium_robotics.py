"""Gymnasium-Robotics: a Fetch arm, a Shadow hand, an Adroit hand, mazes for a point and an ant, a Franka kitchen."""

from __future__ import annotations

from typing import Any

from collectors.action_guard import ActionGuard
from collectors.experts import program
from collectors.task import Environment, Task, seen

# Name, version, limit of steps, what to do. A goal is reached where the reward is 0 (Fetch, hands) or 1 (mazes).
_GOALS = (
    ("FetchReach", 4, 50, "Bring the gripper of an arm to a point"),
    ("FetchPush", 4, 50, "Push a box on a table to a point"),
    ("FetchSlide", 4, 50, "Hit a puck so that it stops at a point out of reach"),
    ("FetchPickAndPlace", 4, 50, "Lift a box to a point"),
    ("HandReach", 3, 50, "Bring the five fingertips of a hand to given points"),
    ("HandManipulateBlockRotateZ", 1, 100, "Turn a block in the hand about the vertical"),
    ("HandManipulateBlockRotateParallel", 1, 100, "Turn a block in the hand onto a side and about the vertical"),
    ("HandManipulateBlockRotateXYZ", 1, 100, "Turn a block in the hand to any orientation"),
    ("HandManipulateBlock", 1, 100, "Bring a block in the hand to a place and an orientation"),
    ("HandManipulateEggRotate", 1, 100, "Turn an egg in the hand to any orientation"),
    ("HandManipulateEgg", 1, 100, "Bring an egg in the hand to a place and an orientation"),
    ("HandManipulatePenRotate", 1, 100, "Turn a pen in the hand to any direction"),
    ("HandManipulatePen", 1, 100, "Bring a pen in the hand to a place and a direction"),
    ("PointMaze_Open", 3, 300, "Roll a ball to a point of an empty square"),
    ("PointMaze_Open_Diverse_G", 3, 300, "Roll a ball to one of many points of an empty square"),
    ("PointMaze_Open_Diverse_GR", 3, 300, "Roll a ball from anywhere to one of many points of an empty square"),
    ("PointMaze_UMaze", 3, 300, "Roll a ball around a U"),
    ("PointMaze_Medium", 3, 600, "Roll a ball through a maze"),
    ("PointMaze_Medium_Diverse_G", 3, 600, "Roll a ball to one of many points of a maze"),
    ("PointMaze_Medium_Diverse_GR", 3, 600, "Roll a ball from anywhere to one of many points of a maze"),
    ("PointMaze_Large", 3, 800, "Roll a ball through a large maze"),
    ("PointMaze_Large_Diverse_G", 3, 800, "Roll a ball to one of many points of a large maze"),
    ("PointMaze_Large_Diverse_GR", 3, 800, "Roll a ball from anywhere to one of many points of a large maze"),
    ("AntMaze_Open", 5, 700, "Walk an ant to a point of an empty square"),
    ("AntMaze_Open_Diverse_G", 5, 700, "Walk an ant to one of many points of an empty square"),
    ("AntMaze_Open_Diverse_GR", 5, 700, "Walk an ant from anywhere to one of many points of an empty square"),
    ("AntMaze_UMaze", 5, 700, "Walk an ant around a U"),
    ("AntMaze_Medium", 5, 1000, "Walk an ant through a maze"),
    ("AntMaze_Medium_Diverse_G", 5, 1000, "Walk an ant to one of many points of a maze"),
    ("AntMaze_Medium_Diverse_GR", 5, 1000, "Walk an ant from anywhere to one of many points of a maze"),
    ("AntMaze_Large", 5, 1000, "Walk an ant through a large maze"),
    ("AntMaze_Large_Diverse_G", 5, 1000, "Walk an ant to one of many points of a large maze"),
    ("AntMaze_Large_Diverse_GR", 5, 1000, "Walk an ant from anywhere to one of many points of a large maze"),
)
_EXPERTS = {
    "FetchReach": program("script", "robotics.fetch_reach"),
    "FetchPush": program("script", "robotics.fetch_push"),
    "FetchPickAndPlace": program("script", "robotics.fetch_pick_and_place"),
    "PointMaze": program("waypoints", "robotics.point_maze"),
}
_ADROIT = {
    "Door": "Unlatch a door and open it",
    "Hammer": "Hammer a nail into a board",
    "Pen": "Turn a pen in the hand to a direction",
    "Relocate": "Carry a ball to a point",
}
_KITCHEN = (
    *("microwave", "kettle", "bottom burner", "top burner", "light switch", "slide cabinet", "hinge cabinet"),
    "microwave, kettle, light switch, slide cabinet",
)


# Around the table; random actions reach 1.2 m/s and, with an object, contacts of 17 kN in this stiff simulation.
_FETCH_GUARD = ActionGuard(
    site="robot0:grip",
    low=(0.6, 0.2, 0.3),
    high=(1.9, 1.3, 1.3),
    max_speed=2.5,
    max_force=40_000.0,
    max_change=0.75,
)


# Random actions stay within 0.6 m of (-0.1, -0.2, 1.7), below 1.7 m/s and 340 N; kettle and cabinets are further away.
_KITCHEN_GUARD = ActionGuard(
    site="end_effector",
    low=(-1.0, -1.0, 1.0),
    high=(1.0, 1.2, 2.8),
    max_speed=3.0,
    max_force=5_000.0,
    max_change=0.75,
)
_GUARDS = {"Fetch": _FETCH_GUARD, "FrankaKitchen": _KITCHEN_GUARD}


def _task(env_id: str, steps: int, description: str, *, variant_of: str = "", task_id: str = "", **kwargs: Any) -> Task:
    guard = next((guard for name, guard in _GUARDS.items() if env_id.startswith(name)), None)
    return Task(
        task_id=task_id or env_id,
        family="gymnasium_robotics",
        make_env=Environment(
            env_id=env_id,
            kwargs=kwargs,
            package="gymnasium-robotics",
            module="collectors.tasks._gymnasium_robotics",
            extra="robotics",
        ),
        expert=next((expert for name, expert in _EXPERTS.items() if env_id.startswith(name)), None),
        max_episode_steps=steps,
        guard=guard,
        tags=("robot-arm",) if guard else (),
        variant_of=variant_of,
        licence="MIT",
        description=description,
    )


def _goal(name: str, version: int, steps: int, words: str) -> tuple[Task, Task]:
    """A task with a reward at the goal, and its twin that is told its distance at every step."""
    # An open maze has its places to start everywhere anyway.
    same = f"{name.partition('_Diverse')[0]}-v{version}" if name.endswith("Open_Diverse_GR") else ""
    sparse = _task(f"{name}-v{version}", steps, f"{words}.", variant_of=same)
    dense = _task(f"{name}Dense-v{version}", steps, f"{words}; dense reward.", variant_of=same or sparse.task_id)
    return sparse, dense


def _kitchen(todo: str) -> Task:
    name = f"FrankaKitchen-{todo.replace(' ', '_')}" if "," not in todo else "FrankaKitchen"
    words = f"In a kitchen, bring into their wanted state: {todo}."
    return _task("FrankaKitchen-v1", 280, words, task_id=f"{name}-v1", tasks_to_complete=todo.split(", "))


_STATE = (
    *(task for goal in _GOALS for task in _goal(*goal)),
    *(_task(f"AdroitHand{name}-v1", 200, f"{words}.") for name, words in _ADROIT.items()),
    *(
        _task(f"AdroitHand{name}Sparse-v1", 200, f"{words}; reward at success.", variant_of=f"AdroitHand{name}-v1")
        for name, words in _ADROIT.items()
    ),
    *(_kitchen(todo) for todo in _KITCHEN),
)
# The kitchen has no twin in pixels: without a GPU one picture of its meshes takes seconds.
TASKS = (
    *_STATE,
    *(seen(task, width=64, height=64) for task in _STATE if not (task.variant_of or "Kitchen" in task.task_id)),
)
