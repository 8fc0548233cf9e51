"""Registers Gymnasium-Robotics, without the note on its Adroit tasks that it prints at every import."""

from __future__ import annotations

import contextlib
import io

with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    import gymnasium_robotics  # noqa: F401
