"""Which seeds are for what, so that no episode that is judged was ever learned from or tuned on.

Every purpose has its own range of 2**26 seeds (all fit in 31 bits); a run's seed picks where in the range it starts.
"""

from __future__ import annotations

import enum

import numpy as np

_BITS_PER_PURPOSE = 26
_SIZE = 1 << _BITS_PER_PURPOSE


class Purpose(enum.IntEnum):
    """What an episode is for; the number is its range of seeds."""

    TRAIN = 1  # a specialist learns from it
    COLLECT = 2  # a demonstration
    SCORE = 3  # random and expert returns
    DEVELOP = 4  # choices are made on it
    TEST = 5  # no choice is ever made on it


def episode_seeds(purpose: Purpose, *, seed: int, count: int, first: int = 0) -> list[int]:
    """`count` different seeds for `env.reset`, from the place `first` on of the endless order that `seed` picks."""
    start = _start(purpose, seed) + first
    return [(int(purpose) << _BITS_PER_PURPOSE) + (start + place) % _SIZE for place in range(count)]


def place_of(episode_seed: int, purpose: Purpose, *, seed: int) -> int:
    """Where in the order that `seed` picks a seed of this purpose is; the inverse of `episode_seeds`."""
    return (episode_seed - (int(purpose) << _BITS_PER_PURPOSE) - _start(purpose, seed)) % _SIZE


def _start(purpose: Purpose, seed: int) -> int:
    return int(np.random.default_rng((seed, int(purpose))).integers(_SIZE))


def purpose_of(seed: int | None) -> Purpose | None:
    """The purpose whose range a seed is in; None for a seed of no range."""
    number = (seed or 0) >> _BITS_PER_PURPOSE
    return Purpose(number) if number in Purpose._value2member_map_ else None
