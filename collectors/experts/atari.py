"""Players of two Atari games that look into the console's memory, where a network sees the picture.

The addresses are those of Anand et al. (2019), "Unsupervised State Representation Learning in Atari".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from collectors.task import Controller

if TYPE_CHECKING:
    import gymnasium


# From the paddle's left end to its middle.
_HALF_PADDLE = 8


def _player(env: gymnasium.Env, choose: Callable[[np.ndarray], str]) -> Controller:
    """`choose` names an action of the game from the 128 bytes of memory."""
    console: Any = env.unwrapped
    names: Sequence[str] = console.get_action_meanings()

    def controller(observation: Mapping[str, Any], last_action: Any) -> np.int64:
        return np.int64(names.index(choose(console.ale.getRAM().astype(int))))

    return controller


def freeway(env: gymnasium.Env, seed: int) -> Controller:
    """Up, whatever comes: a chicken that is hit loses less time than one that waits."""
    return _player(env, lambda memory: "UP")


def breakout(env: gymnasium.Env, seed: int) -> Controller:
    """The paddle stays under the ball; a lost ball is served again."""

    def choose(memory: np.ndarray) -> str:
        paddle, ball_x, ball_y = memory[72], memory[99], memory[101]
        if ball_y == 0:
            return "FIRE"
        if abs(ball_x - paddle - _HALF_PADDLE) <= 3:
            return "NOOP"
        return "RIGHT" if ball_x > paddle + _HALF_PADDLE else "LEFT"

    return _player(env, choose)
