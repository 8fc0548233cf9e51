"""BabyAI and MiniGrid: grid worlds with a mission in words; BabyAI's bot and a path planner are the experts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from collectors.experts import program
from collectors.task import Controller, Disturbance, Environment, ScriptedExpert, Task

if TYPE_CHECKING:
    import gymnasium


# The wrappers need Gymnasium, which the catalogue must not: they are imported when an environment is made.
def packed_cells(env: gymnasium.Env) -> gymnasium.Env:
    """One number a cell of the view; see `_minigrid.PackedCells`."""
    from collectors.tasks._minigrid import PackedCells

    return PackedCells(env)


def pixels(env: gymnasium.Env, *, tile_pixels: int, with_mission: bool) -> gymnasium.Env:
    """The whole grid as a picture; see `_minigrid.Pixels`."""
    from collectors.tasks._minigrid import Pixels

    return Pixels(env, tile_pixels=tile_pixels, with_mission=with_mission)


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


def _environment(env_id: str, *wrappers: Callable[[Any], Any]) -> Environment:
    return Environment(env_id=env_id, wrappers=wrappers, package="minigrid", module="minigrid", extra="grid")


def _grid(task_id: str, env_id: str, expert: ScriptedExpert | None, description: str, *wrappers: Any) -> Task:
    return Task(
        task_id=task_id,
        family=task_id.partition("/")[0],
        make_env=_environment(env_id, *(wrappers or (packed_cells,))),
        expert=expert,
        disturbance=_STRAY,
        tags=("rgb",) if wrappers else (),
        licence="Apache-2.0",
        description=description,
    )


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
# Levels with doors, keys, boxes and things in the way, with their version where that is not 0.
_PLANNED_LEVELS = """
BlockedUnlockPickup DoorKey-5x5 DoorKey-6x6 DoorKey-8x8 DoorKey-16x16 Dynamic-Obstacles-5x5
Dynamic-Obstacles-Random-5x5 Dynamic-Obstacles-6x6 Dynamic-Obstacles-Random-6x6 Dynamic-Obstacles-8x8
Dynamic-Obstacles-16x16 Fetch-5x5-N2 Fetch-6x6-N2 Fetch-8x8-N3 GoToDoor-5x5 GoToDoor-6x6 GoToDoor-8x8
GoToObject-6x6-N2 GoToObject-8x8-N2 KeyCorridorS3R1 KeyCorridorS3R2 KeyCorridorS3R3 KeyCorridorS4R3 KeyCorridorS5R3
KeyCorridorS6R3 LockedRoom MemoryS17Random MemoryS13Random MemoryS13 MemoryS11 MemoryS9 MemoryS7 MultiRoom-N2-S4
MultiRoom-N4-S5-v1 MultiRoom-N6 ObstructedMaze-1Dl ObstructedMaze-1Dlh ObstructedMaze-1Dlhb ObstructedMaze-2Dl
ObstructedMaze-2Dlh ObstructedMaze-2Dlhb-v1 ObstructedMaze-1Q-v1 ObstructedMaze-2Q-v1 ObstructedMaze-Full-v1
PutNear-6x6-N2 PutNear-8x8-N3 RedBlueDoors-6x6 RedBlueDoors-8x8 Unlock UnlockPickup
"""


def _babyai(level: str) -> Task:
    name = level if "-v" in level else f"{level}-v0"
    return _grid(f"babyai/{name}", f"BabyAI-{name}", _BOT, "A BabyAI level: do what the mission says.")


def _walking(level: str) -> Task:
    description = "Walk to the green goal tile."
    return _grid(f"minigrid/{level}-v0", f"MiniGrid-{level}-v0", _PLANNER, description)


def _planned(level: str) -> Task:
    name = level if "-v" in level else f"{level}-v0"
    return _grid(
        f"minigrid/{name}", f"MiniGrid-{name}", _MISSION_PLANNER, "A MiniGrid level: do what the mission says."
    )


TASKS = (
    *(_babyai(level) for level in _BABYAI_LEVELS.split()),
    *(_walking(level) for level in _WALKING_LEVELS.split()),
    *(_planned(level) for level in _PLANNED_LEVELS.split()),
    _grid(
        "minigrid/Empty-Random-5x5-rgb-v0",
        "MiniGrid-Empty-Random-5x5-v0",
        _PLANNER,
        "Walk to the green goal tile, seen from above in 80x80 pixels.",
        functools.partial(pixels, tile_pixels=16, with_mission=False),
    ),
    _grid(
        "babyai/GoToRedBallGrey-rgb-v0",
        "BabyAI-GoToRedBallGrey-v0",
        _BOT,
        "Go to the red ball among grey things, seen from above in 64x64 pixels.",
        functools.partial(pixels, tile_pixels=8, with_mission=True),
    ),
)
