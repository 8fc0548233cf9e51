"""Programs that are good at a task: controllers, planners, scripts. One file a family; `tasks/` names them."""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING

from collectors.task import Controller, ScriptedExpert

if TYPE_CHECKING:
    import gymnasium


def program(name: str, function: str) -> ScriptedExpert:
    """The expert that a function of this package is, for example program("search", "sokoban.solve").

    Its module, and the heavy packages that this needs, are imported when the first episode begins.
    """
    return ScriptedExpert(name=name, script=functools.partial(_run, function=function))


def _run(env: gymnasium.Env, seed: int, *, function: str) -> Controller:
    module, _, attribute = function.partition(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)(env, seed)
