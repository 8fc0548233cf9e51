"""Keys of a keyboard as actions of an environment."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from episode_store.errors import UserError

# A pair of keys for each number of a continuous action: towards its lower and its upper bound.
_PAIRS = (("left", "right"), ("down", "up"), ("a", "d"), ("s", "w"), ("q", "e"), ("z", "x"), ("f", "r"), ("g", "t"))
# Families and tasks whose discrete actions have better names than their numbers.
_NAMED: Mapping[str, Mapping[str, int]] = {
    "babyai": {"left": 0, "right": 1, "up": 2, "p": 3, "d": 4, "space": 5, "enter": 6},
    "minigrid": {"left": 0, "right": 1, "up": 2, "p": 3, "d": 4, "space": 5, "enter": 6},
    "sokoban": {"up": 0, "right": 1, "down": 2, "left": 3},
    "CartPole-v1": {"left": 0, "right": 1},
    "Acrobot-v1": {"left": 0, "right": 2},
    "MountainCar-v0": {"left": 0, "right": 2},
    "LunarLander-v3": {"right": 1, "up": 2, "left": 3},
    "FrozenLake-v1": {"left": 0, "down": 1, "right": 2, "up": 3},
    "FrozenLake8x8-v1": {"left": 0, "down": 1, "right": 2, "up": 3},
    "CliffWalking-v1": {"up": 0, "right": 1, "down": 2, "left": 3},
    "CliffWalkingSlippery-v1": {"up": 0, "right": 1, "down": 2, "left": 3},
    "Taxi-v4": {"down": 0, "up": 1, "right": 2, "left": 3, "p": 4, "d": 5},
    "Blackjack-v1": {"s": 0, "h": 1},
}
_IDLE = {"Acrobot-v1": 1, "MountainCar-v0": 1, "LunarLander-v3": 0}
# The worlds that wait for the player.
_TURN_BASED = ("babyai", "minigrid", "sokoban", "toy_text")
# Every key that any mapping uses, by the name that browsers and pygame can be mapped to.
KEYS = frozenset([*"abcdefghijklmnopqrstuvwxyz0123456789", "left", "right", "up", "down", "space", "enter"])


@dataclasses.dataclass(frozen=True)
class Keyboard:
    """A mapping, called with the keys that are held down: their action, or None where the world should wait for one.

    Attributes:
      keys: that mean something here; no other begins an episode.
    """

    keys: frozenset[str]
    action: Callable[[Collection[str]], Any]

    def __call__(self, held: Collection[str]) -> Any:
        """The action."""
        return self.action(held)


def waits(family: str) -> bool:
    """Whether a world of that family stands still until a key is pressed."""
    return family in _TURN_BASED


def keyboard_for(env: gymnasium.Env, *, family: str, task_id: str) -> tuple[Keyboard, str]:
    """The mapping for an environment, and what to tell the player.

    Raises:
      UserError: its actions are more than a keyboard can do.
    """
    space = env.action_space
    if isinstance(space, gymnasium.spaces.Discrete):
        named = _NAMED.get(task_id) or _NAMED.get(family)
        if named is not None:
            return _by_name(named, idle=_IDLE.get(task_id)), _legend(named)
        if hasattr(env.unwrapped, "get_action_meanings"):
            meanings: Sequence[str] = env.unwrapped.get_action_meanings()
            return _by_meaning(meanings), "arrows and space"
        if space.n <= 10:
            digits = {str(number): number + int(space.start) for number in range(int(space.n))}
            return _by_name(digits, idle=None if family in _TURN_BASED else int(space.start)), _legend(digits)
    elif isinstance(space, gymnasium.spaces.Box) and space.shape and np.prod(space.shape) <= len(_PAIRS):
        pairs = _PAIRS[: int(np.prod(space.shape))]
        return _by_pairs(space, pairs), ", ".join(f"{low}/{high}" for low, high in pairs)
    raise UserError(f"task {task_id}: its actions {space} cannot be played with a keyboard")


def _by_name(named: Mapping[str, int], *, idle: int | None) -> Keyboard:
    def action(held: Collection[str]) -> Any:
        return next((np.int64(number) for key, number in named.items() if key in held), idle)

    return Keyboard(frozenset(named), action)


def _by_meaning(meanings: Sequence[str]) -> Keyboard:
    """Atari's names, for example UPRIGHTFIRE: the action that uses most of the keys held and no others."""
    wanted = [
        frozenset(key for key, word in (("space", "FIRE"), *((k, k.upper()) for k in _ARROWS)) if word in meaning)
        for meaning in meanings
    ]

    def action(held: Collection[str]) -> Any:
        possible = [number for number, keys in enumerate(wanted) if keys <= set(held)]
        return np.int64(max(possible, key=lambda number: len(wanted[number])))

    return Keyboard(frozenset[str]().union(*wanted), action)


_ARROWS = ("up", "down", "left", "right")


def _by_pairs(space: gymnasium.spaces.Box, pairs: Sequence[tuple[str, str]]) -> Keyboard:
    def action(held: Collection[str]) -> Any:
        low, high = space.low.ravel(), space.high.ravel()
        rest = np.clip(0.0, low, high)
        values = [
            low[i] if less in held else high[i] if more in held else rest[i] for i, (less, more) in enumerate(pairs)
        ]
        return np.array(values, space.dtype).reshape(space.shape)

    return Keyboard(frozenset(key for pair in pairs for key in pair), action)


def _legend(named: Mapping[str, int]) -> str:
    return ", ".join(f"{key}: action {number}" for key, number in named.items())
