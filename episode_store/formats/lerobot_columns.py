"""One feature of a LeRobot set that is written: its entry in info.json, its Arrow type, its values."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pyarrow as pa

from episode_store.formats import lerobot_video as video
from episode_store.formats.format import need
from episode_store.spec import FieldValues

# Hugging Face's array types go to five axes; what has more is flattened.
_MAX_AXES = 5
_ARRAY_TYPE = "datasets.features.features.Array{}DExtensionType"


class Column:
    """One feature."""

    def __init__(
        self, key: str, dtype: str, shape: tuple[int, ...], *, is_picture: bool = False, is_video: bool = False
    ) -> None:
        self.key = key
        self.is_picture = is_picture
        self.is_video = is_video
        self.dtype = "string" if dtype == "str" else "video" if is_video else "image" if is_picture else dtype
        sides = shape or (1,)
        self.shape = sides if len(sides) <= _MAX_AXES else (int(np.prod(sides)),)

    def info(self, fps: float) -> dict[str, Any]:
        """As info.json has it."""
        names = ["height", "width", "channels"] if self.is_picture else None
        entry: dict[str, Any] = {"dtype": self.dtype, "shape": list(self.shape), "names": names}
        return entry | {"info": video.describe(self.shape, fps)} if self.is_video else entry

    def hugging_face(self) -> dict[str, Any]:
        """As the schema's metadata have it."""
        if self.is_picture:
            return {"_type": "Image"}
        if self.shape == (1,):
            return {"dtype": self.dtype, "_type": "Value"}
        if len(self.shape) == 1:
            return {"feature": {"dtype": self.dtype, "_type": "Value"}, "length": self.shape[0], "_type": "List"}
        return {"shape": list(self.shape), "dtype": self.dtype, "_type": f"Array{len(self.shape)}D"}

    def field(self) -> pa.Field:
        """The Arrow field, with the name of Hugging Face's type where it has one."""
        if self.is_picture:
            return pa.field(self.key, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
        kind = pa.string() if self.dtype == "string" else pa.from_numpy_dtype(np.dtype(self.dtype))
        if self.shape == (1,):
            return pa.field(self.key, kind)
        if len(self.shape) == 1:
            return pa.field(self.key, pa.list_(kind, self.shape[0]))
        for _ in self.shape:
            kind = pa.list_(kind)
        metadata = {
            "ARROW:extension:name": _ARRAY_TYPE.format(len(self.shape)),
            "ARROW:extension:metadata": json.dumps([list(self.shape), self.dtype]),
        }
        return pa.field(self.key, kind, metadata=metadata)

    def array(self, values: FieldValues) -> pa.Array:
        """The rows of one episode."""
        if isinstance(values, list):
            return pa.array(values, pa.string())
        if self.is_picture:
            data = pa.array([_png(frame) for frame in values], pa.binary())
            return pa.StructArray.from_arrays(
                [data, pa.nulls(len(values), pa.string())], fields=list(self.field().type)
            )
        flat = pa.array(np.ascontiguousarray(values).reshape(-1).astype(self.dtype, copy=False))
        if self.shape == (1,):
            return flat
        if len(self.shape) == 1:
            return pa.FixedSizeListArray.from_arrays(flat, self.shape[0])
        rows = len(values) * int(np.prod(self.shape))
        for side in reversed(self.shape):
            rows //= side
            flat = pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * side), flat)
        return flat

    def numbers(self, values: FieldValues) -> np.ndarray:
        """The values as statistics are taken of them: [rows, *shape]."""
        array = np.asarray(values)
        return array if self.is_picture else array.reshape(len(array), *self.shape)


def _png(frame: np.ndarray) -> bytes:
    pillow = need("PIL.Image", "images", "encoding images")
    buffer = io.BytesIO()
    pillow.fromarray(frame[:, :, 0] if frame.shape[2] == 1 else frame).save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


def to_bytes(value: Any) -> bytes:
    """One row of a field, little-endian; text in UTF-8."""
    if isinstance(value, str):
        return value.encode()
    return np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<")).tobytes()
