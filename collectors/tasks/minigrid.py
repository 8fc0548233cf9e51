"""BabyAI and MiniGrid: grid worlds with a mission in words; BabyAI's bot and a path planner are the experts."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from collectors.experts import program
from collectors.task import Controller, Disturbance, Environment, ScriptedExpert, Task, seen

if TYPE_CHECKING:
    import gymnasium


# The wrappers need Gymnasium, which the catalogue must not: they are imported when an environment is made.
def packed_cells(env: gymnasium.Env) -> gymnasium.Env:
    """One number a cell of the view; see `_minigrid.PackedCells`."""
    from collectors.tasks._minigrid import PackedCells

    return PackedCells(env)


def _bot(env: gymnasium.Env, seed: int) -> Controller:
    from collectors.tasks._minigrid import bot

    return bot(env, seed)


def _shortest_path(env: gymnasium.Env, seed: int) -> Controller:
    from collectors.tasks._minigrid import shortest_path

    return shortest_path(env, seed)


_BOT = ScriptedExpert(name="bot", script=_bot)
_PLANNER = ScriptedExpert(name="shortest-path", script=_shortest_path)
_MISSION_PLANNER = program("planner", "minigrid.plan")
# Turning and walking only: an opened box or a dropped key cannot be put right.
_STRAY = Disturbance(actions=(0, 1, 2))


# Levels that both families have, but for a word of the mission or the time limit; and one that has two names.
_SHARED = """
BlockedUnlockPickup KeyCorridorS3R1 KeyCorridorS3R2 KeyCorridorS3R3 KeyCorridorS4R3 KeyCorridorS5R3 KeyCorridorS6R3
UnlockPickup
"""
_SAME = {f"minigrid/{name}-v0": f"babyai/{name}-v0" for name in _SHARED.split()} | {
    "babyai/KeyCorridor-v0": "babyai/KeyCorridorS6R3-v0"
}


def _grid(task_id: str, env_id: str, expert: ScriptedExpert | None, description: str) -> Task:
    return Task(
        task_id=task_id,
        family=task_id.partition("/")[0],
        make_env=Environment(
            env_id=env_id, wrappers=(packed_cells,), package="minigrid", module="minigrid", extra="grid"
        ),
        expert=expert,
        disturbance=_STRAY,
        variant_of=_SAME.get(task_id, ""),
        licence="Apache-2.0",
        description=description,
    )


# The side of a picture in pixels and of a tile before it is resized.
_PICTURE, _TILE = 128, 16
_SHOWN = {"minigrid/Empty-Random-5x5-v0": (80, 16), "babyai/GoToRedBallGrey-v0": (64, 8)}


def _seen(task: Task) -> Task:
    """The whole grid from above, whoever looks where. A mission stays beside it, unless all it says is "walk there"."""
    assert task.make_env is not None
    if task.expert is _PLANNER:
        task = dataclasses.replace(task, make_env=dataclasses.replace(task.make_env, wrappers=()))
    side, tile = _SHOWN.get(task.task_id, (_PICTURE, _TILE))
    # These experts ask the environment, not the observation.
    return seen(task, height=side, width=side, expert=task.expert, tile_size=tile, highlight=False)


# Every BabyAI level of MiniGrid 3, with its version where that is not 0.
_BABYAI_LEVELS = """
GoToRedBallGrey GoToRedBall GoToRedBallNoDists GoToObj GoToObjS4 GoToObjS6-v1 GoToLocal GoToLocalS5N2 GoToLocalS6N2
GoToLocalS6N3 GoToLocalS6N4 GoToLocalS7N4 GoToLocalS7N5 GoToLocalS8N2 GoToLocalS8N3 GoToLocalS8N4 GoToLocalS8N5
GoToLocalS8N6 GoToLocalS8N7 GoTo GoToOpen GoToObjMaze GoToObjMazeOpen GoToObjMazeS4R2 GoToObjMazeS4 GoToObjMazeS5
GoToObjMazeS6 GoToObjMazeS7 GoToImpUnlock GoToSeq GoToSeqS5R2 GoToRedBlueBall GoToDoor GoToObjDoor Open OpenRedDoor
OpenDoor OpenDoorDebug OpenDoorColor OpenDoorLoc OpenTwoDoors OpenRedBlueDoors OpenRedBlueDoorsDebug OpenDoorsOrderN2
OpenDoorsOrderN4 OpenDoorsOrderN2Debug OpenDoorsOrderN4Debug Pickup UnblockPickup PickupLoc PickupDist PickupDistDebug
PickupAbove PutNextLocal PutNextLocalS5N3 PutNextLocalS6N4 PutNextS4N1 PutNextS5N2 PutNextS5N1 PutNextS6N3 PutNextS7N4
PutNextS5N2Carrying PutNextS6N3Carrying PutNextS7N4Carrying Unlock UnlockLocal UnlockLocalDist KeyInBox UnlockPickup
UnlockPickupDist BlockedUnlockPickup UnlockToUnlock ActionObjDoor FindObjS5 FindObjS6 FindObjS7 KeyCorridor
KeyCorridorS3R1 KeyCorridorS3R2 KeyCorridorS3R3 KeyCorridorS4R3 KeyCorridorS5R3 KeyCorridorS6R3 OneRoomS8 OneRoomS12
OneRoomS16 OneRoomS20 MoveTwoAcrossS5N2 MoveTwoAcrossS8N9 Synth SynthS5R2 SynthLoc SynthSeq MiniBossLevel BossLevel
BossLevelNoUnlock
"""
_WALKING_LEVELS = """
Empty-5x5 Empty-Random-5x5 Empty-6x6 Empty-Random-6x6 Empty-8x8 Empty-16x16 FourRooms SimpleCrossingS9N1
SimpleCrossingS9N2 SimpleCrossingS9N3 SimpleCrossingS11N5 LavaGapS5 LavaGapS6 LavaGapS7 LavaCrossingS9N1
LavaCrossingS9N2 LavaCrossingS9N3 LavaCrossingS11N5 DistShift1 DistShift2
"""

# The others, in their newest versions: keys and doors, objects to fetch, obstacles that move, things to remember. The
# six of wave function collapse are left out, since the wheel lacks the pictures that they are made from, and the
# playground, where there is nothing to do.
_OTHER_LEVELS = """
BlockedUnlockPickup-v0 DoorKey-5x5-v0 DoorKey-6x6-v0 DoorKey-8x8-v0 DoorKey-16x16-v0 Dynamic-Obstacles-5x5-v0
Dynamic-Obstacles-Random-5x5-v0 Dynamic-Obstacles-6x6-v0 Dynamic-Obstacles-Random-6x6-v0 Dynamic-Obstacles-8x8-v0
Dynamic-Obstacles-16x16-v0 Fetch-5x5-N2-v0 Fetch-6x6-N2-v0 Fetch-8x8-N3-v0 GoToDoor-5x5-v0 GoToDoor-6x6-v0
GoToDoor-8x8-v0 GoToObject-6x6-N2-v0 GoToObject-8x8-N2-v0 KeyCorridorS3R1-v0 KeyCorridorS3R2-v0 KeyCorridorS3R3-v0
KeyCorridorS4R3-v0 KeyCorridorS5R3-v0 KeyCorridorS6R3-v0 LockedRoom-v0 MemoryS17Random-v0 MemoryS13Random-v0
MemoryS13-v0 MemoryS11-v0 MemoryS9-v0 MemoryS7-v0 MultiRoom-N2-S4-v0 MultiRoom-N4-S5-v1 MultiRoom-N6-v0
ObstructedMaze-1Dl-v0 ObstructedMaze-1Dlh-v0 ObstructedMaze-1Dlhb-v0 ObstructedMaze-2Dl-v0 ObstructedMaze-2Dlh-v0
ObstructedMaze-2Dlhb-v1 ObstructedMaze-1Q-v1 ObstructedMaze-2Q-v1 ObstructedMaze-Full-v1
PutNear-6x6-N2-v0 PutNear-8x8-N3-v0 RedBlueDoors-6x6-v0 RedBlueDoors-8x8-v0 Unlock-v0 UnlockPickup-v0
"""


def _babyai(level: str) -> Task:
    name = level if "-v" in level else f"{level}-v0"
    return _grid(f"babyai/{name}", f"BabyAI-{name}", _BOT, "A BabyAI level: do what the mission says.")


def _walking(level: str) -> Task:
    description = "Walk to the green goal tile."
    return _grid(f"minigrid/{level}-v0", f"MiniGrid-{level}-v0", _PLANNER, description)


def _level(name: str) -> Task:
    description = "A MiniGrid level: do what the mission says."
    return _grid(f"minigrid/{name}", f"MiniGrid-{name}", _MISSION_PLANNER, description)


_STATE = (
    *(_babyai(level) for level in _BABYAI_LEVELS.split()),
    *(_walking(level) for level in _WALKING_LEVELS.split()),
    *(_level(name) for name in _OTHER_LEVELS.split()),
)
TASKS = (*_STATE, *(_seen(task) for task in _STATE))
