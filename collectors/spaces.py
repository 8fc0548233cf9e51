"""Gymnasium spaces as flat fields: space -> specs, value -> fields, action fields -> action.

Nested spaces become '/'-joined keys; a bare observation is called "observation", a bare action "action". Members of a
Tuple are called "0", "1", ... (padded with zeros to equal width, so that lexicographic order is their order).

How a leaf is understood, unless the task says otherwise:
  Discrete, MultiDiscrete, MultiBinary, and Boxes of integers or booleans with at most 1,024 values: DISCRETE;
  Boxes of uint8 that look like a picture (height, width at least 16; 1 or 3 channels): IMAGE;
  Text: TEXT; every other Box: CONTINUOUS.
Observation specs of CONTINUOUS fields carry no bounds: observations are never scaled by them, and simulators overstep
their own (LunarLander's angle, MuJoCo's velocities). Actions keep theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from episode_store.errors import UserError
from episode_store.spec import ArraySpec, Modality

# Integer Boxes with more values than the vocabulary has discrete ids are treated as numbers.
_MAX_DISCRETE_VALUES = 1024
_MIN_IMAGE_SIDE = 16

Fields = dict[str, Any]


def observation_spec(space: spaces.Space, modalities: Mapping[str, Modality] | None = None) -> dict[str, ArraySpec]:
    """Field name -> spec of an observation space.

    Raises:
      UserError: for a kind of space that cannot be an observation here, or a modality given to an unknown field.
    """
    specs = {key: _leaf_spec(key, leaf, (modalities or {}).get(key)) for key, leaf in _leaves(space, "observation")}
    unknown = set(modalities or {}) - set(specs)
    if unknown:
        raise UserError(f"modalities name unknown fields {sorted(unknown)}, expected some of {sorted(specs)}")
    return {key: _without_bounds(spec) for key, spec in specs.items()}


def action_spec(space: spaces.Space) -> dict[str, ArraySpec]:
    """Field name -> spec of an action space.

    Raises:
      UserError: for a kind of space that cannot be an action here.
    """
    return {key: _leaf_spec(key, leaf, None) for key, leaf in _leaves(space, "action")}


def action_box(spec: ArraySpec) -> spaces.Box:
    """The space of a bounded continuous action that has this spec."""
    low, high = (np.reshape(np.asarray(bound, spec.dtype), spec.shape) for bound in (spec.low, spec.high))
    return spaces.Box(low, high, dtype=np.dtype(spec.dtype).type)


def flatten_observation(space: spaces.Space, value: Any) -> Fields:
    """The fields of one observation: arrays, and strings for text. The inverse of `unflatten_observation`."""
    return flattener(space, "observation")(value)


def flatten_action(space: spaces.Space, value: Any) -> Fields:
    """The fields of one action: arrays, and strings for text."""
    return flattener(space, "action")(value)


def unflatten_observation(space: spaces.Space, fields: Mapping[str, Any]) -> Any:
    """The observation that has these fields."""
    return unflattener(space, "observation")(fields)


def unflatten_action(space: spaces.Space, fields: Mapping[str, Any]) -> Any:
    """An action that `space` contains: cast, integers rounded, clipped into the bounds.

    Raises:
      UserError: for an action that is missing a field, has another shape, or is not finite.
    """
    return unflattener(space, "action")(fields)


def flattener(space: spaces.Space, name: str) -> Callable[[Any], Fields]:
    """A function from values of `space` to fields; made once, called every step."""
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        convert = _encoder(space)
        return lambda value: {name: convert(value)}
    encoders = [(key, path, _encoder(leaf)) for key, path, leaf in _walk(space, (), ())]

    def flatten(value: Any) -> Fields:
        fields = {}
        for key, path, encode in encoders:
            member = value
            for part in path:
                member = member[part]
            fields[key] = encode(member)
        return fields

    return flatten


def unflattener(space: spaces.Space, name: str) -> Callable[[Mapping[str, Any]], Any]:
    """A function from fields to values of `space`; made once, called every step."""
    decoders = {key: _decoder(key, leaf) for key, leaf in _leaves(space, name)}

    def build(part: spaces.Space, path: tuple[str, ...], fields: Mapping[str, Any]) -> Any:
        if isinstance(part, spaces.Dict):
            return {key: build(member, (*path, str(key)), fields) for key, member in part.spaces.items()}
        if isinstance(part, spaces.Tuple):
            names = _tuple_names(part)
            return tuple(build(member, (*path, key), fields) for key, member in zip(names, part.spaces, strict=True))
        key = "/".join(path) or name
        try:
            return decoders[key](fields[key])
        except KeyError:
            raise UserError(f"{name} lacks the field {key!r}, got {sorted(fields)}") from None

    return lambda fields: build(space, (), fields)


def _tuple_names(space: spaces.Tuple) -> list[str]:
    width = len(str(max(len(space.spaces) - 1, 0)))
    return [str(index).zfill(width) for index in range(len(space.spaces))]


def _walk(
    space: spaces.Space, names: tuple[str, ...], path: tuple[Any, ...]
) -> Iterator[tuple[str, tuple[Any, ...], spaces.Space]]:
    """(joined name, path into a value, leaf space) of every leaf."""
    if isinstance(space, spaces.Dict):
        for key, member in space.spaces.items():
            if "/" in str(key):
                raise UserError(f"the key {key!r} of a Dict space holds a '/', which separates levels here")
            yield from _walk(member, (*names, str(key)), (*path, key))
    elif isinstance(space, spaces.Tuple):
        for index, (key, member) in enumerate(zip(_tuple_names(space), space.spaces, strict=True)):
            yield from _walk(member, (*names, key), (*path, index))
    else:
        yield "/".join(names), path, space


def _leaves(space: spaces.Space, name: str) -> Iterator[tuple[str, spaces.Space]]:
    for key, _, leaf in _walk(space, (), ()):
        yield key or name, leaf


def _without_bounds(spec: ArraySpec) -> ArraySpec:
    if spec.modality != Modality.CONTINUOUS:
        return spec
    return ArraySpec(modality=spec.modality, shape=spec.shape, dtype=spec.dtype)


def _leaf_spec(key: str, space: spaces.Space, modality: Modality | None) -> ArraySpec:
    if isinstance(space, spaces.Text):
        return ArraySpec(modality=Modality.TEXT, dtype="str")
    if isinstance(space, spaces.Discrete):
        return _discrete((), str(space.dtype), [int(space.start)], [int(space.n)])
    if isinstance(space, spaces.MultiDiscrete):
        start = [int(value) for value in np.ravel(space.start)]
        return _discrete(space.nvec.shape, str(space.dtype), start, [int(value) for value in np.ravel(space.nvec)])
    if isinstance(space, spaces.MultiBinary):
        size = int(np.prod(space.shape))
        return _discrete(space.shape, str(space.dtype), [0] * size, [2] * size)
    if isinstance(space, spaces.Box):
        return _box_spec(space, modality)
    raise UserError(f"field {key!r}: spaces of kind {type(space).__name__} are not supported; wrap the environment")


def _discrete(shape: tuple[int, ...], dtype: str, start: list[int], num_values: list[int]) -> ArraySpec:
    low = tuple(float(value) for value in start) if any(start) else ()
    return ArraySpec(modality=Modality.DISCRETE, shape=shape, dtype=dtype, low=low, num_values=tuple(num_values))


def _box_spec(space: spaces.Box, modality: Modality | None) -> ArraySpec:
    dtype = np.dtype(space.dtype)
    low, high = space.low.astype(np.float64).ravel(), space.high.astype(np.float64).ravel()
    if modality is None:
        modality = _box_modality(space, dtype, low, high)
    if modality == Modality.IMAGE:
        return ArraySpec(modality=modality, shape=space.shape, dtype=str(dtype))
    if modality == Modality.DISCRETE:
        return _discrete(space.shape, str(dtype), [int(v) for v in low], [int(v) + 1 for v in high - low])
    return ArraySpec(
        modality=modality,
        shape=space.shape,
        dtype=str(dtype),
        low=tuple(low.tolist()) if np.isfinite(low).any() else (),
        high=tuple(high.tolist()) if np.isfinite(high).any() else (),
    )


def _box_modality(space: spaces.Box, dtype: np.dtype, low: np.ndarray, high: np.ndarray) -> Modality:
    if (
        dtype == np.uint8
        and len(space.shape) == 3
        and space.shape[2] in (1, 3)
        and min(space.shape[:2]) >= _MIN_IMAGE_SIDE
    ):
        return Modality.IMAGE
    if dtype.kind in "iub" and bool((high - low < _MAX_DISCRETE_VALUES).all()):
        return Modality.DISCRETE
    return Modality.CONTINUOUS


def _encoder(space: spaces.Space) -> Callable[[Any], Any]:
    if isinstance(space, spaces.Text):
        return str
    dtype, shape = np.dtype(space.dtype), space.shape or ()
    if isinstance(space, spaces.Box | spaces.MultiBinary | spaces.MultiDiscrete):
        # A copy: environments may go on writing into the array they handed out.
        return lambda value: np.array(value, dtype).reshape(shape)
    return lambda value: np.array(value, dtype)


def _decoder(key: str, space: spaces.Space) -> Callable[[Any], Any]:
    if isinstance(space, spaces.Text):
        return str
    dtype, shape = np.dtype(space.dtype), space.shape or ()
    if isinstance(space, spaces.Discrete):
        first, last, scalar = int(space.start), int(space.start) + int(space.n) - 1, dtype.type

        def to_discrete(value: Any) -> Any:
            number = int(value)
            if not first <= number <= last:
                raise UserError(f"{key}: expected a whole number from {first} to {last}, got {number}")
            return scalar(number)

        return to_discrete
    if isinstance(space, spaces.MultiDiscrete):
        low, high = space.start, space.start + space.nvec - 1
    elif isinstance(space, spaces.MultiBinary):
        low, high = np.zeros(shape, dtype), np.ones(shape, dtype)
    else:
        assert isinstance(space, spaces.Box)
        low, high = space.low, space.high

    def to_array(value: Any) -> np.ndarray:
        array = np.asarray(value)
        if array.shape != shape:
            raise UserError(f"{key}: expected shape {shape}, got {array.shape}")
        if array.dtype.kind == "f":
            if not np.isfinite(array).all():
                raise UserError(f"{key}: expected finite numbers, got {array.tolist()}")
            if dtype.kind in "iub":
                array = np.rint(array)
        # Twice as fast as np.clip on the few numbers of an action.
        return np.asarray(np.minimum(np.maximum(array, low), high), dtype)

    return to_array
