"""Discrete values and continuous actions as ids, and back.

A bounded continuous action is scaled linearly from its space to [-1, 1] and binned without companding (Gato, section
2.2: actions "are bounded to [-1, 1] already"). An action with an infinite bound is companded as observations are.
"""

from __future__ import annotations

import numpy as np

from episode_store.errors import EpisodeError
from episode_store.spec import ArraySpec, Modality
from tokenization import bins, mu_law
from tokenization.vocabulary import TOKEN_DTYPE


def to_ids(values: np.ndarray, spec: ArraySpec, *, where: str) -> np.ndarray:
    """Ids of an action field: uint16, of the shape of `values` [S, *spec.shape].

    Raises:
      EpisodeError: NaN, Inf, or a value outside a discrete space, naming `where`, step and element.
    """
    if spec.modality == Modality.DISCRETE:
        return discrete_to_ids(values, spec, where=where)
    if not spec.is_bounded:
        return bins.companded_to_ids(values, where=where)
    mu_law.check_finite(values, where=where)
    low, half_range = _scale(spec)
    flat = values.reshape(len(values), spec.size).astype(np.float64)
    # Halves, so that the range of float64 itself does not overflow.
    unit = (flat / 2 - low / 2) / half_range * 2 - 1
    return bins.to_ids(unit, where=where).reshape(values.shape)


def from_ids(ids: np.ndarray, spec: ArraySpec) -> np.ndarray:
    """The inverse of `to_ids` for one step: [spec.size] ids to an array of the spec's shape and dtype, in its space."""
    if spec.modality == Modality.DISCRETE:
        start = np.array(spec.low or (0,) * spec.size).astype(np.int64)
        return (np.asarray(ids).astype(np.int64) + start).reshape(spec.shape).astype(spec.dtype)
    if spec.is_bounded:
        low, half_range = _scale(spec)
        values = ((bins.from_ids(ids) + 1) / 2 * half_range + low / 2) * 2
    else:
        values = bins.companded_from_ids(ids)
    return _into_space(values, spec).reshape(spec.shape)


def discrete_to_ids(values: np.ndarray, spec: ArraySpec, *, where: str) -> np.ndarray:
    """`value - start` of a discrete field: uint16, of the shape of `values` [S, *spec.shape].

    Raises:
      EpisodeError: for a value outside its space, naming `where`, step and element.
    """
    flat = np.asarray(values).reshape(len(values), spec.size).astype(np.int64)
    start = np.array(spec.low or (0,) * spec.size).astype(np.int64)
    ids = flat - start
    bad = (ids < 0) | (ids >= np.array(spec.num_values, np.int64))
    if bad.any():
        step, element = (int(i) for i in np.argwhere(bad)[0])
        raise EpisodeError(
            f"{where}: step {step}, element {element}: expected a value in "
            f"[{start[element]}, {start[element] + spec.num_values[element]}), got {flat[step, element]}"
        )
    return ids.astype(TOKEN_DTYPE).reshape(np.shape(values))


def _scale(spec: ArraySpec) -> tuple[np.ndarray, np.ndarray]:
    """Low and half the range of each element; a range of one value counts as 1, so that it divides."""
    low, high = np.array(spec.low), np.array(spec.high)
    half_range = high / 2 - low / 2
    return low, np.where(half_range > 0, half_range, 1.0)


def _into_space(values: np.ndarray, spec: ArraySpec) -> np.ndarray:
    """float64 [size] rounded if need be, clipped into the space's bounds and cast to its dtype."""
    dtype = np.dtype(spec.dtype)
    low = np.array(spec.low or (-np.inf,) * spec.size)
    high = np.array(spec.high or (np.inf,) * spec.size)
    if dtype == np.bool_:
        return np.rint(np.clip(values, 0, 1)).astype(np.bool_)
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        clipped = np.clip(np.rint(values), low, high)
        # float(2**63 - 1) is 2**63: compare as Python integers where a float cannot say the limit.
        return np.array([min(max(int(v), int(limits.min)), int(limits.max)) for v in clipped], dtype=dtype)
    limits_f = np.finfo(dtype)
    low, high = np.maximum(low, limits_f.min), np.minimum(high, limits_f.max)
    result = np.clip(values, low, high).astype(dtype)
    # Casting rounds, perhaps over a bound that the dtype cannot hold exactly.
    result = np.where(result.astype(np.float64) > high, np.nextafter(result, dtype.type(-np.inf)), result)
    return np.where(result.astype(np.float64) < low, np.nextafter(result, dtype.type(np.inf)), result).astype(dtype)
