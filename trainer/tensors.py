"""Dataclasses of tensors: one function over all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")


def map_tensors(values: T, change: Callable[[Tensor], Tensor]) -> T:
    """A dataclass whose fields are tensors or tuples of tensors, each tensor changed."""

    def changed(value: Any) -> Any:
        return tuple(map(changed, value)) if isinstance(value, tuple) else change(value)

    instance: Any = values
    return dataclasses.replace(
        instance, **{field.name: changed(getattr(values, field.name)) for field in dataclasses.fields(instance)}
    )
