"""What packages above lend to this one's commands, which import nothing above: found by name, loaded when used.

A package declares an entry point of the group `episode_store.extensions` in its own `pyproject.toml`; only what is
installed with pip can do so, never a store's data.

  token_view   called as token_view(text_model) -> `viewer.content.TokenView`; `view` shows a step's tokens with it
  simulator    called without arguments -> `replay.Simulator`; `replay` acts again with it
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

from episode_store.errors import UserError

GROUP = "episode_store.extensions"


class ExtensionMissingError(UserError):
    """Nobody lends what a command needs, or what it needs in turn is not installed."""


def load(name: str, *, remedy: str) -> Any:
    """What the installed package lends under `name`.

    Raises:
      ExtensionMissingError: none does, or its own requirements are missing; ends with `remedy`.
      UserError: several do.
    """
    found = list(dict.fromkeys(importlib.metadata.entry_points(group=GROUP, name=name)))
    if not found:
        raise ExtensionMissingError(f"no installed package lends {GROUP} {name!r}: {remedy}")
    if len(found) > 1:
        values = ", ".join(sorted(point.value for point in found))
        raise UserError(f"{GROUP} {name!r}: expected one installed package to lend it, got {values}; uninstall one")
    try:
        return found[0].load()
    except ModuleNotFoundError as error:
        raise ExtensionMissingError(f"{name}: {error.name} is not installed: {remedy}") from None
