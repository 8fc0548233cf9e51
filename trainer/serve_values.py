"""Observations and actions as JSON: nested lists, or the bytes of an array in base64 (docs/serving.md)."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from episode_store.errors import UserError
from episode_store.spec import ArraySpec, Modality

MAX_TEXT_BYTES = 4096
# What a value takes at most in JSON: -1.7976931348623157e+308 or -9223372036854775808, a comma, spaces, a bracket.
_BYTES_PER_VALUE = 32
_BYTES_PER_SMALL_VALUE = 8  # of 8 bits: "-128", likewise
_SPARE_BYTES = 4096
_MAX_REWARD = 1e30


def most_bytes(specs: Mapping[str, ArraySpec]) -> int:
    """Of the JSON of one observation."""
    total = _SPARE_BYTES
    for key, spec in specs.items():
        total += 6 * len(key) + 64
        if spec.modality == Modality.TEXT:
            total += 6 * MAX_TEXT_BYTES  # "\u00e9"
        else:
            small = np.dtype(spec.dtype).itemsize == 1
            total += spec.size * (_BYTES_PER_SMALL_VALUE if small else _BYTES_PER_VALUE)
    return total


def read_observation(given: Any, specs: Mapping[str, ArraySpec]) -> dict[str, Any]:
    """The fields of an observation as the tokenizer takes them.

    Raises:
      UserError: naming the field, what was expected and what was found.
    """
    if not isinstance(given, dict):
        raise UserError(f"observation: expected an object with {sorted(specs)}, got {_kind(given)}")
    if set(given) != set(specs):
        missing, unknown = sorted(set(specs) - set(given)), sorted(map(str, set(given) - set(specs)))
        raise UserError(
            f"observation: expected the fields {sorted(specs)}; missing {missing}, unknown {str(unknown)[:200]}"
        )
    return {key: _read(given[key], spec, f"observation.{key}") for key, spec in specs.items()}


def read_reward(given: Any) -> float:
    """What the action before earned.

    Raises:
      UserError: it is no finite number.
    """
    if isinstance(given, bool) or not isinstance(given, int | float) or not abs(given) <= _MAX_REWARD:
        raise UserError(f"reward: expected a number of at most {_MAX_REWARD:g} in size, got {_kind(given)}")
    return float(given)


def _read(value: Any, spec: ArraySpec, where: str) -> Any:
    if spec.modality == Modality.TEXT:
        if not isinstance(value, str):
            raise UserError(f"{where}: expected text, got {_kind(value)}")
        size = len(value.encode("utf-8", "replace"))
        if size > MAX_TEXT_BYTES:
            raise UserError(f"{where}: expected at most {MAX_TEXT_BYTES} bytes of text, got {size}")
        spec.validate([value], length=1, where=where)
        return value
    array = _from_base64(value, spec, where) if isinstance(value, dict) else _from_lists(value, spec, where)
    spec.validate(array[None], length=1, where=where)
    return array


def _from_base64(value: Mapping[str, Any], spec: ArraySpec, where: str) -> np.ndarray:
    if set(value) != {"base64"} or not isinstance(value["base64"], str):
        raise UserError(
            f'{where}: expected nested lists or {{"base64": "..."}}, got an object with {sorted(value)!s:.99}'
        )
    try:
        content = base64.b64decode(value["base64"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"{where}: expected base64, got something else ({error})") from None
    dtype = np.dtype(spec.dtype).newbyteorder("<")
    expected = spec.size * dtype.itemsize
    if len(content) != expected:
        raise UserError(
            f"{where}: expected {expected} bytes ({spec.dtype} {list(spec.shape)}, little-endian), got {len(content)}"
        )
    if dtype.kind == "b" and set(content) - {0, 1}:
        raise UserError(f"{where}: expected bytes 0 and 1, got others")
    return np.frombuffer(content, dtype).astype(spec.dtype).reshape(spec.shape)


def _from_lists(value: Any, spec: ArraySpec, where: str) -> np.ndarray:
    dtype, expected = np.dtype(spec.dtype), f"{spec.dtype} of shape {list(spec.shape)}"
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):
        raise UserError(f"{where}: expected {expected}, got lists of different lengths") from None
    if array.shape != spec.shape and array.dtype.kind in "biuf":
        raise UserError(f"{where}: expected {expected}, got shape {list(array.shape)}")
    kinds = {"b": "b", "f": "iuf"}.get(dtype.kind, "iu")
    if array.size and (array.dtype.kind not in kinds or _has_bools(value)) and dtype.kind != "b":
        raise UserError(f"{where}: expected {expected}, got {_kind(array.ravel().tolist()[0])} among its values")
    if dtype.kind == "b" and array.dtype.kind != "b":
        raise UserError(f"{where}: expected {expected}, got something else than true and false")
    if dtype.kind in "iu" and array.size:
        limits = np.iinfo(dtype)
        low, high = int(array.min()), int(array.max())
        if low < limits.min or high > limits.max:
            raise UserError(f"{where}: expected {expected}, got {low if low < limits.min else high}")
    with np.errstate(over="ignore"):
        return array.astype(dtype)


def _has_bools(value: Any) -> bool:
    """Whether true or false is among numbers, which NumPy takes for 1 and 0."""
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, bool):
            return True
        if isinstance(one, list):
            pending.extend(one)
    return False


def write_action(action: Mapping[str, Any], encoding: str) -> dict[str, Any]:
    """An action as JSON; `encoding` is "lists" or "base64"."""
    result: dict[str, Any] = {}
    for key, value in action.items():
        if isinstance(value, str):
            result[key] = value
        elif encoding == "base64":
            ordered = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<"))
            result[key] = {"base64": base64.b64encode(ordered.tobytes()).decode()}
        else:
            result[key] = np.asarray(value).tolist()
    return result


def describe(specs: Mapping[str, ArraySpec]) -> dict[str, Any]:
    """The fields of an observation or an action for `GET /schema`."""
    described = {}
    for key, spec in specs.items():
        described[key] = spec.to_json()
        if spec.modality == Modality.TEXT:
            described[key]["max_bytes"] = MAX_TEXT_BYTES
    return described


def _kind(value: Any) -> str:
    """What JSON calls a value."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float) and not math.isfinite(value):
        return "a number that is not finite"
    names = {dict: "an object", list: "a list", str: "text", int: "an integer", float: "a fraction"}
    return names.get(type(value), type(value).__name__)
