"""Bodies whose physics are drawn anew for each episode: gear, damping, stiffness, ranges, sizes and densities.

The properties and the two settings are those of the Gato paper's randomised DM Control: every value is scaled by a
number from the union of two intervals around 1.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

# (below 1, above 1)
INTERVALS = {"small": ((0.9, 0.95), (1.05, 1.1)), "large": ((0.6, 0.8), (1.2, 1.4))}
# Arrays of MuJoCo's model that hold one value or row for each actuator, joint, degree of freedom, geom and body.
_SCALED = ("actuator_gear", "jnt_range", "jnt_stiffness", "dof_damping")
# A geom's size, and what bounds it in the first phases of collision detection.
_SIZES = ("geom_size", "geom_rbound", "geom_aabb")
# Density is what a body's mass and inertia are proportional to.
_DENSITY = ("body_mass", "body_inertia")


class RandomisedModel:
    """Scales a compiled model in place; each draw starts from the model as it was made.

    Args:
      model: an `mujoco.MjModel`.
      setting: "small" or "large".
    """

    def __init__(self, model: Any, setting: str) -> None:
        import mujoco

        self._model = model
        self._intervals = INTERVALS[setting]
        self._originals = {name: getattr(model, name).copy() for name in (*_SCALED, *_SIZES, *_DENSITY)}
        # Its trees of bounding boxes are made when a model is compiled.
        model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_MIDPHASE
        # The ground, walls and targets stay: what is scaled is the body.
        moves = model.body_weldid[model.geom_bodyid] != 0
        self._scaled_geoms = moves & (model.geom_type != mujoco.mjtGeom.mjGEOM_MESH)

    def draw(self, rng: np.random.Generator) -> None:
        """A new body; the same for the same state of `rng`. The caller resets the simulation afterwards."""
        for name in _SCALED:
            self._scale(name, self._scales(rng, len(self._originals[name])))
        sizes = np.where(self._scaled_geoms, self._scales(rng, self._model.ngeom), 1.0)
        for name in _SIZES:
            self._scale(name, sizes)
        density = self._scales(rng, self._model.nbody)
        for name in _DENSITY:
            self._scale(name, density)

    def _scale(self, name: str, scales: np.ndarray) -> None:
        """Each row of an array by its own number."""
        original = self._originals[name]
        getattr(self._model, name)[:] = original * scales.reshape(-1, *[1] * (original.ndim - 1))

    def _scales(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Scales [count]: half of them below 1 on average."""
        low, high = np.array(self._intervals)[rng.integers(2, size=count)].T
        return rng.uniform(low, high)


def update_constants(model: Any, data: Any) -> None:
    """Recomputes what MuJoCo derives from masses and sizes when it compiles a model."""
    import mujoco

    mujoco.mj_setConst(model, data)


class RandomisedBody(gymnasium.Wrapper):
    """One of Gymnasium's MuJoCo environments, whose body each reset draws anew; the same for the same seed."""

    def __init__(self, env: gymnasium.Env, setting: str) -> None:
        super().__init__(env)
        self._physics = RandomisedModel(env.unwrapped.model, setting)  # type: ignore[attr-defined]
        self._rng = np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """A new body, then the environment's own reset."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._physics.draw(self._rng)
        update_constants(self.unwrapped.model, self.unwrapped.data)  # type: ignore[attr-defined]
        return self.env.reset(seed=seed, options=options)


def make(env_id: str, *, render_mode: str | None, physics: str) -> gymnasium.Env:
    """An environment of Gymnasium's with one of the settings."""
    return RandomisedBody(gymnasium.make(env_id, render_mode=render_mode), physics)
