"""What one field of an observation or an action looks like: modality, shape, dtype and bounds."""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from episode_store.errors import EpisodeError

# A field over time: an array with a leading time axis, a list of strings for text, or a list of uint8
# [height, width, channels] for images whose size varies.
FieldValues = np.ndarray | list[Any]

# In `ArraySpec.shape`: a side that differs from step to step.
VARIES = -1
# The most bytes of one image whose size varies.
MAX_IMAGE_BYTES = 1 << 28

_DTYPES = (
    *("str", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)
# The same as NumPy writes them with their byte order, which is always little-endian.
STORED_DTYPES = frozenset(np.dtype(name).newbyteorder("<").str for name in _DTYPES if name != "str")


class Modality(enum.StrEnum):
    """The four kinds of data of the Gato paper, section 2.1."""

    TEXT = "text"
    IMAGE = "image"
    DISCRETE = "discrete"
    CONTINUOUS = "continuous"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """One field of one timestep.

    Attributes:
      modality: decides how the field is tokenized.
      shape: of one step, without the time axis; () for a scalar and for text. Images are (height, width, channels);
        (-1, -1, channels) where height and width vary from step to step.
      dtype: NumPy's name of the dtype; "str" for text.
      low: lowest value of each element, flattened row-major; empty when unbounded. For DISCRETE the `start` values.
      high: highest value of each element, flattened; empty when unbounded.
      num_values: DISCRETE only: how many values each element can take, flattened row-major.
    """

    modality: Modality
    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    num_values: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.varies and (self.modality != Modality.IMAGE or len(self.shape) != 3 or self.shape[2] < 1):
            raise ValueError(f"ArraySpec.shape {self.shape}: only an IMAGE of 1 or more channels can vary in size")
        if not self.varies and any(side < 0 for side in self.shape):
            raise ValueError(f"ArraySpec.shape has a negative side: {self.shape}")
        if self.dtype not in _DTYPES:
            raise ValueError(f"ArraySpec.dtype {self.dtype!r}: expected one of {', '.join(_DTYPES)}")
        if (self.dtype == "str") != (self.modality == Modality.TEXT):
            raise ValueError(f"a {self.modality.name} ArraySpec cannot have dtype {self.dtype!r}")
        size = self.size
        for name in ("low", "high", "num_values"):
            length = len(getattr(self, name))
            if length not in (0, size):
                raise ValueError(f"ArraySpec.{name} has {length} values, expected 0 or {size} for shape {self.shape}")
        if self.modality == Modality.DISCRETE and len(self.num_values) != size:
            raise ValueError(f"a DISCRETE ArraySpec of shape {self.shape} needs {size} num_values")
        if self.modality == Modality.IMAGE and (len(self.shape) != 3 or self.dtype != "uint8"):
            raise ValueError(f"an IMAGE ArraySpec is uint8 (height, width, channels), got {self.dtype} {self.shape}")
        if self.modality == Modality.TEXT and (self.dtype != "str" or self.shape != ()):
            raise ValueError("a TEXT ArraySpec has dtype 'str' and shape ()")

    @property
    def varies(self) -> bool:
        """Whether this is an image whose height and width vary from step to step."""
        return self.shape[:2] == (VARIES, VARIES)

    @property
    def size(self) -> int:
        """Number of elements of one step; 0 where it varies."""
        return 0 if self.varies else math.prod(self.shape)

    @property
    def is_bounded(self) -> bool:
        """Whether every element has a finite lower and upper bound."""
        return bool(self.low) and bool(self.high) and bool(np.isfinite([*self.low, *self.high]).all())

    def validate(self, values: FieldValues, *, length: int, where: str) -> None:
        """Checks a field over `length` steps.

        Raises:
          EpisodeError: naming `where`, the first offending step, what was expected and what was found.
        """
        if self.modality == Modality.TEXT:
            self._validate_text(values, length=length, where=where)
            return
        if self.varies:
            self._validate_varying(values, length=length, where=where)
            return
        if not isinstance(values, np.ndarray):
            raise EpisodeError(f"{where}: expected a NumPy array, got {type(values).__name__}")
        if values.shape != (length, *self.shape):
            raise EpisodeError(f"{where}: expected shape {(length, *self.shape)}, got {values.shape}")
        if values.dtype != self._numpy_dtype:
            raise EpisodeError(f"{where}: expected dtype {self.dtype}, got {values.dtype}")
        is_float = values.dtype.kind == "f"
        if is_float and not all_finite(values):
            _first_offender(~np.isfinite(values), values, where, "a finite number")
        if self.modality == Modality.DISCRETE:
            flat = values.reshape(length, self.size)
            start, end = self._discrete_range
            _first_offender((flat < start) | (flat >= end), flat, where, "a value of its discrete space")
        elif self.modality == Modality.CONTINUOUS and (self.low or self.high):
            flat = values.reshape(length, self.size)
            # Rounding's slack: simulators clip in float64 and hand out float32.
            slack = max(1e-6, float(np.finfo(values.dtype).eps)) if is_float else 0.0
            low, high = self._bounds
            if slack:
                low, high = low - slack * np.maximum(1.0, np.abs(low)), high + slack * np.maximum(1.0, np.abs(high))
            _first_offender(flat < low, flat, where, "a value not below its space's low")
            _first_offender(flat > high, flat, where, "a value not above its space's high")

    @functools.cached_property
    def _numpy_dtype(self) -> np.dtype:
        return np.dtype(self.dtype)

    @functools.cached_property
    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest values as float64 [size], infinite where unbounded."""
        return np.array(self.low or (-np.inf,) * self.size), np.array(self.high or (np.inf,) * self.size)

    @functools.cached_property
    def _discrete_range(self) -> tuple[np.ndarray, np.ndarray]:
        """First value and one past the last of each element, int64 [size]."""
        start = np.array(self.low or (0,) * self.size, dtype=np.int64)
        return start, start + np.array(self.num_values, dtype=np.int64)

    def _validate_text(self, values: FieldValues, *, length: int, where: str) -> None:
        if not isinstance(values, list) or not all(isinstance(text, str) for text in values):
            raise EpisodeError(f"{where}: expected a list of strings, got {type(values).__name__}")
        if len(values) != length:
            raise EpisodeError(f"{where}: expected {length} texts, got {len(values)}")
        for step, text in enumerate(values):
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise EpisodeError(f"{where}: step {step} is not valid Unicode text: {error.reason}") from None

    def _validate_varying(self, values: FieldValues, *, length: int, where: str) -> None:
        if not isinstance(values, list):
            raise EpisodeError(f"{where}: expected a list of images, got {type(values).__name__}")
        if len(values) != length:
            raise EpisodeError(f"{where}: expected {length} images, got {len(values)}")
        for step, image in enumerate(values):
            if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
                got = f"dtype {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
                raise EpisodeError(f"{where}: step {step}: expected a uint8 array, got {got}")
            if image.ndim != 3 or image.shape[2] != self.shape[2] or not image.size:
                expected = f"(height, width, {self.shape[2]}), at least 1 x 1"
                raise EpisodeError(f"{where}: step {step}: expected an image {expected}, got shape {image.shape}")
            if image.nbytes > MAX_IMAGE_BYTES:
                raise EpisodeError(f"{where}: step {step}: an image of {image.nbytes} bytes, expected at most 256 MiB")

    def generate_value(self, rng: np.random.Generator, *, length: int) -> FieldValues:
        """Random valid values of `length` steps, for tests and benchmarks."""
        if self.modality == Modality.TEXT:
            return ["".join(rng.choice(list("abc é\n漢"), size=rng.integers(0, 12))) for _ in range(length)]
        if self.varies:
            sizes = rng.integers(1, 12, (length, 2)).tolist()
            return [rng.integers(0, 256, (*size, self.shape[2]), dtype=np.uint8) for size in sizes]
        shape = (length, *self.shape)
        dtype = np.dtype(self.dtype)
        if self.modality == Modality.IMAGE:
            return rng.integers(0, 256, shape, dtype=np.uint8)
        if self.modality == Modality.DISCRETE:
            start, end = self._discrete_range
            return rng.integers(start, end, (length, self.size)).reshape(shape).astype(dtype)
        low, high = self._bounds
        if dtype.kind in "biu":
            least, most = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
            low, high = np.maximum(low, float(least)), np.minimum(high, float(most))
        low = np.where(np.isfinite(low), low, np.where(np.isfinite(high), high - 100.0, -50.0))
        high = np.where(np.isfinite(high), high, low + 100.0)
        flat = rng.uniform(np.maximum(low, -1e6), np.minimum(high, 1e6), (length, self.size))
        return flat.reshape(shape).astype(dtype)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; infinities become the strings "inf" and "-inf"."""
        result: dict[str, Any] = {"modality": str(self.modality), "shape": list(self.shape), "dtype": self.dtype}
        for name in ("low", "high"):
            if getattr(self, name):
                result[name] = [_float_to_json(value) for value in getattr(self, name)]
        if self.num_values:
            result["num_values"] = list(self.num_values)
        return result

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ArraySpec:
        """The inverse of `to_json`."""
        return cls(
            modality=Modality(data["modality"]),
            shape=tuple(int(side) for side in data["shape"]),
            dtype=str(data["dtype"]),
            low=tuple(float(value) for value in data.get("low", ())),
            high=tuple(float(value) for value in data.get("high", ())),
            num_values=tuple(int(value) for value in data.get("num_values", ())),
        )


def _float_to_json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _first_offender(bad: np.ndarray, values: np.ndarray, where: str, expected: str) -> None:
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        step, element = index[0], index[1:]
        raise EpisodeError(f"{where}: step {step}, element {element}: expected {expected}, got {values[index]}")


def all_finite(values: np.ndarray) -> bool:
    """Whether no float is infinite or NaN."""
    # What `ndarray.all` does, without the layers of Python that take as long as a short episode.
    return bool(np.logical_and.reduce(np.isfinite(values), axis=None))


def is_text(values: FieldValues) -> bool:
    """Whether these are texts, by their first step."""
    return isinstance(values, list) and bool(values) and isinstance(values[0], str)


def numbers_of(values: FieldValues) -> np.ndarray:
    """A field of numbers as one array: itself, or all pixels in a row where the size of images varies."""
    return np.concatenate([image.reshape(-1) for image in values]) if isinstance(values, list) else values


def uniform_bounds(value: float, shape: Sequence[int]) -> tuple[float, ...]:
    """One bound for each element of `shape`."""
    return (float(value),) * math.prod(shape)
