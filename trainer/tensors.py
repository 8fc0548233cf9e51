"""Dataclasses of tensors: one function over all of them. And tensors that ranks hold parts of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor
from torch.distributed.tensor import DTensor

T = TypeVar("T")


def map_tensors(values: T, change: Callable[[Tensor], Tensor]) -> T:
    """A dataclass with each tensor in it changed; a field is a tensor, a tuple of tensors, or stays as it is."""

    def changed(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(changed, value))
        return change(value) if isinstance(value, Tensor) else value

    instance: Any = values
    return dataclasses.replace(
        instance, **{field.name: changed(getattr(values, field.name)) for field in dataclasses.fields(instance)}
    )


def whole(value: Tensor) -> Tensor:
    """A tensor as one; where ranks hold parts of it, all of them must call this."""
    return value.full_tensor() if isinstance(value, DTensor) else value
