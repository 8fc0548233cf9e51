"""Which of this project's extras brings a package that is missing: told in one line wherever it is noticed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from episode_store.errors import UserError

# The module of a package -> an extra that brings it. What is not here belongs to the extra of its environment.
_EXTRAS = {
    "Box2D": "box2d",
    "PIL": "collect",
    "gymnasium": "collect",
    "pygame": "toy",
    "sb3_contrib": "collect",
    "scipy": "collect",
    "sentencepiece": "collect",
    "stable_baselines3": "collect",
    "tensorboard": "train",
    "torch": "collect",
}


def told(error: BaseException, extra: str = "") -> str:
    """What to say of a package that is missing, by the `ModuleNotFoundError` that `error` is or comes from.

    Args:
      error: for example Gymnasium's `DependencyNotInstalled`.
      extra: to name where the package is not one that every collector uses; "" to say nothing of it.

    Returns:
      "" where no module is missing, or it is nobody's known.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ModuleNotFoundError):
        cause = cause.__cause__ or cause.__context__
    name = (cause.name or "").partition(".")[0] if cause is not None else ""
    extra = _EXTRAS.get(name, extra)
    return f"{name} is not installed: pip install 'generalist-agent[{extra}]'" if name and extra else ""


@contextlib.contextmanager
def named() -> Iterator[None]:
    """Around what imports packages that may be missing; as a decorator too.

    Raises:
      UserError: one is missing; names the extra that brings it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if not (what := told(error)):
            raise
        raise UserError(what) from None
