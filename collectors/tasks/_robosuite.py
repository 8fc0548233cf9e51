"""robosuite as plain Gymnasium environments: seeds that count, named observations, success as the reward."""

from __future__ import annotations

import logging
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

# It tells where its files are at every import and every making.
logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)

import robosuite  # noqa: E402

from collectors.tasks._mujoco_view import MujocoView  # noqa: E402

# Said again in other words by other observations: tokens without news.
_REDUNDANT = ("-state", "_cos", "_sin", "_quat_site")


class SuccessTask(gymnasium.Env):
    """Reach success once: the reward is 1 at the step that first succeeds, which ends the episode, else 0.

    Observations are robosuite's own, by name, as float32. `info["shaped_reward"]` has robosuite's reward.

    Attributes:
      suite: the environment of robosuite.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(
        self,
        name: str,
        *,
        robots: str | list[str],
        horizon: int,
        render_mode: str | None = None,
        camera_name: str = "agentview",
        width: int = 320,
        height: int = 320,
    ) -> None:
        self.render_mode = render_mode
        # Collision shapes are in group 0 and would hide what they stand for.
        self._view = MujocoView(camera=camera_name, width=width, height=height, hidden_groups=(0,))
        with _RandomState(0):
            self.suite = robosuite.make(
                name,
                robots=robots,
                has_renderer=False,
                has_offscreen_renderer=False,
                use_camera_obs=False,
                reward_shaping=True,
                horizon=horizon,
                hard_reset=False,
            )
            first = self._fields(self.suite.reset())
        self.observation_space = spaces.Dict(
            {key: spaces.Box(-np.inf, np.inf, value.shape, np.float32) for key, value in first.items()}
        )
        low, high = self.suite.action_spec
        self.action_space = spaces.Box(low.astype(np.float32), high.astype(np.float32))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Objects and arm anew; the same for the same seed."""
        super().reset(seed=seed)
        with _RandomState(int(self.np_random.integers(2**31))):
            observation = self.suite.reset()
        return self._fields(observation), {}

    def step(self, action: Any) -> Any:
        """One control step of robosuite."""
        observation, shaped_reward, done, info = self.suite.step(np.asarray(action, np.float64))
        success = bool(self.suite._check_success())
        info |= {"success": success, "shaped_reward": shaped_reward}
        # Some tasks also end early: Wipe when the arm collides or reaches the limit of a joint.
        terminated = success or (bool(done) and self.suite.timestep < self.suite.horizon)
        return self._fields(observation), float(success), terminated, bool(done) and not terminated, info

    @property
    def model(self) -> Any:
        """MuJoCo's own."""
        return self.suite.sim.model._model

    @property
    def data(self) -> Any:
        """MuJoCo's own."""
        return self.suite.sim.data._data

    def render(self) -> Any:
        """The scene from a camera of robosuite's: uint8 [height, width, 3]."""
        return self._view.draw(self.model, self.data)

    def close(self) -> None:
        """Frees the simulation."""
        self._view.close()
        self.suite.close()

    @staticmethod
    def _fields(observation: Any) -> dict[str, np.ndarray]:
        return {
            key: np.asarray(value, np.float32)
            for key, value in observation.items()
            if not key.endswith(_REDUNDANT) and np.size(value)
        }


class _RandomState:
    """Lets robosuite, which draws from NumPy's global generator, draw from a seed; puts the global one back."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __enter__(self) -> None:
        self._before = np.random.get_state()
        np.random.seed(self._seed)

    def __exit__(self, *_: object) -> None:
        np.random.set_state(self._before)


def make(env_id: str, **kwargs: Any) -> gymnasium.Env:
    """A robosuite environment of that name."""
    return SuccessTask(env_id, **kwargs)
