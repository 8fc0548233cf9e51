"""DM Control as plain Gymnasium environments: seeds that count, named observations, randomised bodies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from collectors.tasks._randomised import RandomisedModel, update_constants

_LARGEST_ACTION = 10.0


class DmControl(gymnasium.Env):
    """A `dm_env.Environment` of dm_control, with its step limit.

    Attributes:
      suite: dm_control's own environment.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012

    def __init__(
        self,
        suite: Any,
        *,
        reseed: Callable[[Any, int], None],
        physics: str | None = None,
        render_mode: str | None = None,
        width: int = 320,
        height: int = 320,
    ) -> None:
        """`reseed(suite, seed)` decides all that follows; `physics` is a setting of `_randomised`, None for none."""
        self.suite = suite
        self.render_mode = render_mode
        self._reseed = reseed
        self._view = {"width": width, "height": height}
        self._physics = RandomisedModel(suite.physics.model.ptr, physics) if physics else None
        self.observation_space = spaces.Dict(
            {_field(key): _box(spec) for key, spec in suite.observation_spec().items()}
        )
        self.action_space = _box(suite.action_spec(), bounded=True)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """A new first state, and a new body where bodies are randomised; the same for the same seed."""
        super().reset(seed=seed)
        self._reseed(self.suite, int(self.np_random.integers(2**31)))
        if self._physics is not None:
            self._physics.draw(self.np_random)
            update_constants(self.suite.physics.model.ptr, self.suite.physics.data.ptr)
        return self._fields(self.suite.reset().observation), {}

    def step(self, action: Any) -> Any:
        """One control step. An episode that ends with a discount of 0 terminated; else its time was up."""
        timestep = self.suite.step(np.asarray(action, np.float64))
        terminated = timestep.last() and timestep.discount == 0.0
        reward = float(timestep.reward or 0.0)
        return self._fields(timestep.observation), reward, terminated, timestep.last() and not terminated, {}

    @property
    def model(self) -> Any:
        """MuJoCo's own."""
        return self.suite.physics.model.ptr

    @property
    def data(self) -> Any:
        """MuJoCo's own."""
        return self.suite.physics.data.ptr

    def render(self) -> Any:
        """From the first camera of the body: uint8 [height, width, 3]."""
        return self.suite.physics.render(camera_id=0, **self._view)

    def close(self) -> None:
        """Frees the simulation."""
        self.suite.close()

    def _fields(self, observation: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return {_field(key): np.asarray(value, np.float32) for key, value in observation.items()}


def _field(key: str) -> str:
    """A '/' separates levels here."""
    return key.replace("/", "_")


def _box(spec: Any, bounded: bool = False) -> spaces.Box:
    if bounded:
        # The linear tasks bound their forces by 1e10, which nobody could explore or cut into bins.
        bounds = (np.clip(bound, -_LARGEST_ACTION, _LARGEST_ACTION) for bound in (spec.minimum, spec.maximum))
        low, high = (np.broadcast_to(bound, spec.shape).astype(np.float32) for bound in bounds)
        return spaces.Box(low, high)
    return spaces.Box(-np.inf, np.inf, spec.shape, np.float32)


def make_suite(env_id: str, *, limit: int | None = None, **kwargs: Any) -> gymnasium.Env:
    """A task of the suite from `domain/task`; `limit` ends what has no end of its own."""
    from dm_control import suite

    def reseed(env: Any, seed: int) -> None:
        env.task._random = np.random.RandomState(seed)

    domain, _, task = env_id.partition("/")
    # The linear tasks draw the strength of their springs when they are made.
    loaded = suite.load(domain, task, task_kwargs={"random": 0})
    return _limited(DmControl(loaded, reseed=reseed, **kwargs), limit)


def make_manipulation(env_id: str, **kwargs: Any) -> gymnasium.Env:
    """A task of `dm_control.manipulation`."""
    from dm_control import manipulation

    return DmControl(manipulation.load(env_id), reseed=_reseed_composer, **kwargs)


def _reseed_composer(env: Any, seed: int) -> None:
    env.random_state.seed(seed)


def _limited(env: gymnasium.Env, limit: int | None) -> gymnasium.Env:
    from gymnasium.wrappers import TimeLimit

    return TimeLimit(env, limit) if limit else env
