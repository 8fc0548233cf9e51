"""Bodies that Gymnasium brings, with limbs cut off when they are made (the idea of Huang et al., arXiv 2007.04976).

The task of every body is to move forward with what it has.
"""

from __future__ import annotations

import importlib.resources
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces

from collectors.tasks._mujoco_view import MujocoView
from collectors.tasks._randomised import RandomisedModel, update_constants

_CONTROL_COST = 1e-3
_MAX_SPEED = 10.0
_RESET_NOISE = 5e-3


def cut(xml: str, limbs: Mapping[str, int]) -> str:
    """The XML of a body without the ends of some limbs.

    Args:
      xml: of MuJoCo.
      limbs: name of the body a limb begins with -> how many bodies of its chain stay; 0 for none.
    """
    root = ElementTree.fromstring(xml)  # of an installed package
    for name, kept in limbs.items():
        parent = next(parent for parent in root.iter() for child in parent if child.get("name") == name)
        limb = next(child for child in parent if child.get("name") == name)
        for _ in range(kept):
            parent, limb = limb, limb.find("body")  # type: ignore[assignment]
            if limb is None:
                break
        if limb is not None:
            parent.remove(limb)
    joints = {joint.get("name") for joint in root.find("worldbody").iter("joint")}  # type: ignore[union-attr]
    # Motors and tendons of joints that are gone go with them.
    for section in ("actuator", "tendon"):
        found = root.find(section)
        for element in list(found if found is not None else ()):
            if any(part.get("joint", "") not in {*joints, ""} for part in element.iter()):
                found.remove(element)  # type: ignore[union-attr]
    return ElementTree.tostring(root, encoding="unicode")


class ModularBody(gymnasium.Env):
    """Move forward. The reward of a step is the speed of the trunk along x in m/s, less a small cost of the motors.

    Observations are the joints' positions without the place along the ground, and their speeds, clipped to 10.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}  # noqa: RUF012

    def __init__(
        self,
        file: str,
        *,
        limbs: Mapping[str, int],
        frame_skip: int,
        physics: str | None = None,
        render_mode: str | None = None,
        width: int = 320,
        height: int = 320,
    ) -> None:
        xml = (importlib.resources.files("gymnasium") / "envs" / "mujoco" / "assets" / file).read_text("utf-8")
        self.render_mode = render_mode
        self._frame_skip = frame_skip
        self._model = mujoco.MjModel.from_xml_string(cut(xml, limbs))
        self._data = mujoco.MjData(self._model)
        self._physics = RandomisedModel(self._model, physics) if physics else None
        self._view = MujocoView(camera=0, width=width, height=height)
        # A free trunk has its place along x and y, one in the plane along x only.
        is_free = self._model.jnt_type[0] == mujoco.mjtJoint.mjJNT_FREE
        self._num_places, self._height_index = (2, 2) if is_free else (1, 1)
        size = self._model.nq - self._num_places + self._model.nv
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        low, high = self._model.actuator_ctrlrange.T.astype(np.float32)
        self.action_space = spaces.Box(low, high)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """The body stands, a little disturbed, on whatever it has left to stand on."""
        super().reset(seed=seed)
        if self._physics is not None:
            self._physics.draw(self.np_random)
            update_constants(self._model, self._data)
        mujoco.mj_resetData(self._model, self._data)
        data = self._data
        data.qpos[:] += self.np_random.uniform(-_RESET_NOISE, _RESET_NOISE, self._model.nq)
        data.qvel[:] = _RESET_NOISE * self.np_random.standard_normal(self._model.nv)
        mujoco.mj_forward(self._model, data)
        data.qpos[self._height_index] -= self._lowest_point()
        mujoco.mj_forward(self._model, data)
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        """Pushes the motors for a few frames of the simulation; nothing ends an episode but its time."""
        self._data.ctrl[:] = action
        before = float(self._data.qpos[0])
        mujoco.mj_step(self._model, self._data, self._frame_skip)
        seconds = self._frame_skip * self._model.opt.timestep
        speed = (float(self._data.qpos[0]) - before) / seconds
        cost = _CONTROL_COST * float(np.square(action).sum())
        return self._observe(), speed - cost, False, False, {"speed": speed}

    def render(self) -> Any:
        """From the side: uint8 [height, width, 3]."""
        return self._view.draw(self._model, self._data)

    def close(self) -> None:
        """Frees the view."""
        self._view.close()

    def _observe(self) -> np.ndarray:
        speeds = np.clip(self._data.qvel, -_MAX_SPEED, _MAX_SPEED)
        return np.concatenate([self._data.qpos[self._num_places :], speeds]).astype(np.float32)

    def _lowest_point(self) -> float:
        """Height in metres of the lowest point of the body; its geoms are capsules and spheres."""
        geoms = self._model.geom_bodyid > 0
        radius, half_length = self._model.geom_size[geoms, 0], self._model.geom_size[geoms, 1]
        is_capsule = self._model.geom_type[geoms] == mujoco.mjtGeom.mjGEOM_CAPSULE
        up = np.abs(self._data.geom_xmat[geoms, 8]) * half_length * is_capsule
        return float((self._data.geom_xpos[geoms, 2] - up - radius).min())


def make(env_id: str, *, limit: int, **kwargs: Any) -> gymnasium.Env:
    """A body, cut out of the XML file that `env_id` names, with its limit of steps."""
    from gymnasium.wrappers import TimeLimit

    return TimeLimit(ModularBody(env_id, **kwargs), limit)
