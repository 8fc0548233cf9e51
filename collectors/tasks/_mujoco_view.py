"""Pictures of a MuJoCo simulation without a screen, fast enough for a processor: no shadows, no reflections."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np


class MujocoView:
    """Draws one simulation from one camera.

    Args:
      camera: name or number of a camera of the model.
      width: in pixels.
      height: in pixels.
      hidden_groups: of geoms that are not drawn, for example collision shapes.
    """

    def __init__(self, *, camera: str | int, width: int, height: int, hidden_groups: tuple[int, ...] = ()) -> None:
        self._camera, self._width, self._height = camera, width, height
        self._option = mujoco.MjvOption()
        for group in hidden_groups:
            self._option.geomgroup[group] = 0
        self._renderer: Any = None
        self._model: Any = None

    def draw(self, model: Any, data: Any) -> np.ndarray:
        """The picture of this moment: uint8 [height, width, 3]."""
        if model is not self._model:
            self.close()
            self._renderer = mujoco.Renderer(model, self._height, self._width)
            self._model = model
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                self._renderer.scene.flags[flag] = False
        self._renderer.update_scene(data, camera=self._camera, scene_option=self._option)
        return self._renderer.render()

    def close(self) -> None:
        """Frees the context."""
        if self._renderer is not None:
            self._renderer.close()
        self._renderer = self._model = None
