"""Tasks seen as pictures: any environment that renders, at any size that is a multiple of a patch."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from collectors import packages
from collectors.headless import ADVICE, RenderingUnavailable

IMAGE = "image"


class Pixels(gymnasium.Wrapper):
    """Observations are the rendered picture, resized; words among the observations (a mission) stay beside it.

    Args:
      env: made with render_mode="rgb_array".
      height: of the picture in pixels.
      width: of the picture in pixels.
    """

    def __init__(self, env: gymnasium.Env, *, height: int, width: int) -> None:
        super().__init__(env)
        self._name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
        self._size = (height, width)
        fields: dict[str, spaces.Space] = {IMAGE: spaces.Box(0, 255, (height, width, 3), np.uint8)}
        if isinstance(env.observation_space, spaces.Dict):
            words = {key: leaf for key, leaf in env.observation_space.items() if isinstance(leaf, spaces.Text)}
            fields |= words
        self._words = tuple(key for key in fields if key != IMAGE)
        self.observation_space = spaces.Dict(fields)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """As the environment's, with the picture."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._observe(observation), info

    def step(self, action: Any) -> Any:
        """As the environment's, with the picture."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._observe(observation), reward, terminated, truncated, info

    def _observe(self, observation: Any) -> dict[str, Any]:
        fields = {IMAGE: resized(draw(self.env, self._name), *self._size)}
        return fields | {key: observation[key] for key in self._words}


def draw(env: gymnasium.Env, name: str) -> np.ndarray:
    """The picture that an environment renders, uint8 [height, width, 3]; `name` is for the error.

    Raises:
      RenderingUnavailable: this machine cannot, or the environment does not.
    """
    try:
        picture: Any = env.render()
    except gymnasium.error.DependencyNotInstalled as error:
        raise RenderingUnavailable(f"{name} cannot be drawn here: {packages.told(error) or error}") from None
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        # MuJoCo without a working EGL or OSMesa raises any of these, depending on the part that is missing.
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        raise RenderingUnavailable(f"{name} cannot be drawn here ({reason}); {ADVICE}") from None
    if not isinstance(picture, np.ndarray):
        raise RenderingUnavailable(f"{name} draws no RGB frames, got {type(picture).__name__}")
    return picture


def resized(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture of that size: uint8 [height, width, 3]; each pixel the mean of those it covers."""
    if picture.shape[:2] == (height, width):
        return np.array(picture, np.uint8)
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(picture, np.uint8))
    return np.asarray(image.resize((width, height), Image.Resampling.BOX), np.uint8)
