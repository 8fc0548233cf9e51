"""Atari 2600 through ale-py: every game whose ROM it brings, and each with its modes and difficulties drawn anew.

The package is GPL-2.0-only: an extra of its own. Pictures have 80x64 pixels, 20 patches, as in the Gato paper; its
"Extended" set too draws mode and difficulty at the start of each episode.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from collectors.experts import program
from collectors.task import Environment, Sb3Expert, ScriptedExpert, Task

if TYPE_CHECKING:
    import gymnasium

# Every game of Gymnasium's registry whose ROM ale-py brings.
_GAMES = """
Adventure AirRaid Alien Amidar Assault Asterix Asteroids Atlantis2 Atlantis Backgammon BankHeist BasicMath BattleZone
BeamRider Berzerk Blackjack Bowling Boxing Breakout Carnival Casino Centipede ChopperCommand CrazyClimber Crossbow
Darkchambers Defender DemonAttack DonkeyKong DoubleDunk Earthworld ElevatorAction Enduro Entombed Et FishingDerby
FlagCapture Freeway Frogger Frostbite Galaxian Gopher Gravitar Hangman HauntedHouse Hero HumanCannonball IceHockey
Jamesbond JourneyEscape Kaboom Kangaroo KeystoneKapers KingKong Klax Koolaid Krull KungFuMaster LaserGates LostLuggage
MarioBros MiniatureGolf MontezumaRevenge MrDo MsPacman NameThisGame Othello Pacman Phoenix Pitfall2 Pitfall Pong
Pooyan PrivateEye Qbert Riverraid RoadRunner Robotank Seaquest SirLancelot Skiing Solaris SpaceInvaders SpaceWar
StarGunner Superman Surround Tennis Tetris TicTacToe3D TimePilot Trondead Turmoil Tutankham UpNDown Venture
VideoCheckers VideoChess VideoCube VideoPinball WizardOfWor WordZapper YarsRevenge Zaxxon
"""
# These have one mode and one difficulty.
_ONE_SETTING = """
Assault Asterix Atlantis2 Backgammon Carnival Darkchambers DonkeyKong Earthworld ElevatorAction Enduro Kaboom
KeystoneKapers Koolaid Krull KungFuMaster LaserGates MontezumaRevenge Phoenix Pitfall2 Pitfall RoadRunner Robotank
SirLancelot Skiing Solaris Tetris
"""
# From pictures alone, in some ten minutes of one core: not what PPO reaches with a hundred times the steps.
_FROM_PICTURES = Sb3Expert(
    algorithm="PPO",
    steps=160_000,
    normalize=True,
    frame_stack=2,
    draws=True,
    hyperparameters={
        "n_steps": 128,
        "batch_size": 128,
        "n_epochs": 4,
        "clip_range": 0.1,
        "ent_coef": 0.01,
        "learning_rate": {"linear": 5e-4},
        "policy_kwargs": {"features_extractor_class": "SmallCombinedExtractor"},
    },
)
_LEARNED = "Krull KungFuMaster RoadRunner"
# The scripts read the console's memory and need no picture.
_EXPERTS: Mapping[str, ScriptedExpert | Sb3Expert] = {
    **dict.fromkeys(_LEARNED.split(), _FROM_PICTURES),
    "Freeway": program("script", "atari.freeway"),
    "Freeway-extended": program("script", "atari.freeway"),
    "Breakout": program("script", "atari.breakout"),
}
# As ale-py registers its version 5: 108,000 frames of the console, 4 a step.
_STEPS = 27_000
_PIXELS = (80, 64)


def _make(env_id: str, **kwargs: Any) -> gymnasium.Env:
    from collectors.tasks import _atari

    return _atari.make(env_id, **kwargs)


def _game(name: str, extended: bool) -> Task:
    words = f"Play {name} on an Atari 2600"
    words += ", in a mode and at a difficulty that change from episode to episode." if extended else "."
    return Task(
        task_id=f"atari/{name}{'-extended' * extended}-v5",
        family="atari",
        make_env=Environment(
            env_id=f"ALE/{name}-v5",
            kwargs={"extended": True} if extended else {},
            package="ale-py",
            module="collectors.tasks._atari",
            extra="atari",
            maker=_make,
            pixels=_PIXELS,
        ),
        expert=_EXPERTS.get(f"{name}{'-extended' * extended}"),
        max_episode_steps=_STEPS,
        tags=("pixels", "extended") if extended else ("pixels",),
        licence="GPL-2.0-only",
        description=words,
    )


TASKS = (
    *(_game(name, False) for name in _GAMES.split()),
    *(_game(name, True) for name in _GAMES.split() if name not in _ONE_SETTING.split()),
)
