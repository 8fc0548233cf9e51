"""Procgen through EnvPool, one environment at a time, whose seeds count."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

try:
    import envpool
except ImportError as error:
    if "Qt5" not in str(error):
        raise
    raise ImportError(f"{error}: Procgen draws with Qt; on Debian: apt-get install libqt5gui5") from None

_SIDE = 64


class Procgen(gymnasium.Env):
    """One game. EnvPool takes its seed when a pool is made, so every episode has a pool of its own."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012

    def __init__(self, name: str, *, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self._name = name
        self._pool: Any = None
        self.observation_space = spaces.Box(0, 255, (_SIDE, _SIDE, 3), np.uint8)
        self.action_space = spaces.Discrete(15)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """A new level; the same one for the same seed."""
        super().reset(seed=seed)
        self.close()
        self._pool = envpool.make_gymnasium(self._name, num_envs=1, seed=int(self.np_random.integers(2**31)))
        observation, _ = self._pool.reset()
        return self._picture(observation), {}

    def step(self, action: Any) -> Any:
        """One step of the game."""
        observation, reward, terminated, truncated, _ = self._pool.step(np.array([action], np.int32))
        return self._picture(observation), float(reward[0]), bool(terminated[0]), bool(truncated[0]), {}

    def render(self) -> Any:
        """What was observed last: uint8 [64, 64, 3]."""
        return self._frame

    def close(self) -> None:
        """Frees the pool."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _picture(self, observation: np.ndarray) -> np.ndarray:
        self._frame = np.ascontiguousarray(observation[0].transpose(1, 2, 0))
        return self._frame


def make(env_id: str, **kwargs: Any) -> gymnasium.Env:
    """A game of that name."""
    return Procgen(env_id, **kwargs)
