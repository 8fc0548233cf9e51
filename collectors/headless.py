"""Drawing without a screen: which of MuJoCo's renderers this machine has, chosen before MuJoCo is imported."""

from __future__ import annotations

import ctypes.util
import functools
import os

from episode_store.errors import UserError

ADVICE = "for MuJoCo install libegl1, libegl-mesa0 and libgl1-mesa-dri (MUJOCO_GL=egl) or libosmesa6 (MUJOCO_GL=osmesa)"


class RenderingUnavailable(UserError):  # noqa: N818
    """This machine cannot draw this environment without a screen."""


@functools.cache
def prepare() -> None:
    """Lets pygame and MuJoCo draw without a screen; what the user has set stays.

    MuJoCo's packages read MUJOCO_GL when they are imported, and cannot be imported where it names a library that is not
    there: EGL where the library exists, else OSMesa, else nothing.
    """
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    if "MUJOCO_GL" not in os.environ:
        for backend, library in (("egl", "EGL"), ("osmesa", "OSMesa")):
            if ctypes.util.find_library(library):
                os.environ["MUJOCO_GL"] = backend
                return
