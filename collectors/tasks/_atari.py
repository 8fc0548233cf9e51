"""Atari games whose seeds count, with mode and difficulty drawn for each episode where that is asked for."""

from __future__ import annotations

from typing import Any

import ale_py
import gymnasium

gymnasium.register_envs(ale_py)
# It greets at every start of a game.
ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)


class DrawnSetting(gymnasium.Wrapper):
    """Each reset draws a mode and a difficulty of the game, the same for the same seed; the reset's `info` has them."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        console = env.unwrapped.ale  # type: ignore[attr-defined]
        self._modes, self._difficulties = list(console.getAvailableModes()), list(console.getAvailableDifficulties())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Seeds, draws, and starts the game."""
        if seed is not None:
            self.env.reset(seed=seed)
        rng = self.unwrapped.np_random
        mode, difficulty = (int(rng.choice(choices)) for choices in (self._modes, self._difficulties))
        console = self.unwrapped.ale  # type: ignore[attr-defined]
        console.setMode(mode)
        console.setDifficulty(difficulty)
        observation, info = self.env.reset(options=options)
        return observation, {**info, "mode": mode, "difficulty": difficulty}


def make(env_id: str, *, render_mode: str | None, extended: bool = False) -> gymnasium.Env:
    """A game; observations are its 128 bytes of memory, which cost nothing: the task takes the rendered picture."""
    env = gymnasium.make(env_id, render_mode=render_mode, obs_type="ram", disable_env_checker=True)
    return DrawnSetting(env) if extended else env
