"""features.json of TFDS: what each field of an Example is, and its values to and from NumPy.

The file is a tree of features. Its leaves become `Leaf`s with the key of the Example where their values are: the path
joined with '/', values of all steps one after the other. tests/episode_store/test_rlds.py has both files as literals.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from episode_store.errors import CorruptionError, UserError
from episode_store.formats.format import need
from episode_store.formats.tf_example import FeatureValues
from episode_store.spec import VARIES, FieldValues

_PREFIX = "tensorflow_datasets.core.features."
# A step of more bytes than this is damage or an attack, and no one's observation.
MAX_ROW_BYTES = 1 << 30
_MAX_DEPTH = 32
_NUMBERS = frozenset(
    f"{kind}{bits}" for kind in ("int", "uint", "float") for bits in (8, 16, 32, 64) if f"{kind}{bits}" != "float8"
)
_PICTURE_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")
_TEXT_DTYPES = ("string", "object", "str", "bytes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaf:
    """One field of an Example.

    Attributes:
      path: from the top, without the name of the steps: ("observation", "image").
      key: of the Example.
      kind: "tensor", "image" or "text".
      dtype: NumPy's name; "str" for text; what the file declares.
      shape: of one step; None for a side that the file does not say, `VARIES` for those of images whose size varies.
      encoding: "none": lists of numbers; "bytes" or "zlib": one byte string a step; of images the file format.
      num_ragged: how many inner sequences each step has; their values lie apart from their lengths.
      num_values: of a class label, else 0.
    """

    path: tuple[str, ...]
    key: str
    kind: Literal["tensor", "image", "text"]
    dtype: str
    shape: tuple[int | None, ...] = ()
    encoding: str = "none"
    num_ragged: int = 0
    num_values: int = 0

    @property
    def name(self) -> str:
        """The path joined with '/'."""
        return "/".join(self.path)

    @property
    def varies(self) -> bool:
        """Whether these are images whose size varies from step to step."""
        return VARIES in self.shape

    @property
    def item_shape(self) -> tuple[int | None, ...]:
        """The shape inside the inner sequences."""
        return self.shape[self.num_ragged :]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
    """What one features.json says.

    Attributes:
      steps: the fields of each step; empty when the set has no steps.
      episode: the fields of each episode.
      unknown: fields that cannot be read, with the reason.
    """

    steps: tuple[Leaf, ...]
    episode: tuple[Leaf, ...]
    unknown: Mapping[str, str]


def parse_features(tree: Any) -> Features:
    """The leaves of a parsed features.json; the form of TFDS before 4.5 is read too.

    Raises:
      UserError: it is not a tree of features.
    """
    top = _children(_normal(tree))
    if top is None:
        raise UserError("features.json: expected a FeaturesDict at the top")
    steps: list[Leaf] = []
    episode: list[Leaf] = []
    unknown: dict[str, str] = {}
    for name, child in top.items():
        inner = _sequence(_normal(child))
        if name == "steps" and inner is not None:
            _collect(inner[0], ("steps",), steps, unknown, inside_steps=True, depth=0)
        else:
            _collect(child, (name,), episode, unknown, inside_steps=False, depth=0)
    return Features(steps=tuple(steps), episode=tuple(episode), unknown=unknown)


def _content(node: Any, name: str) -> Any:
    """The part of a node that its kind fills in; `content` in old files."""
    if not isinstance(node, dict):
        raise UserError(f"features.json: expected an object, got {str(node)[:60]!r}")
    return node.get(name)


# The part that a kind fills in, by the name of its message in files of TFDS 4.5.
_MESSAGES = {
    "FeaturesDict": "featuresDict",
    "Sequence": "sequence",
    "TensorFeature": "tensor",
    "ImageFeature": "image",
    "VideoFeature": "video",
    "TextFeature": "text",
    "ClassLabel": "classLabel",
    "BoundingBoxFeature": "boundingBox",
}


def _normal(node: Any) -> Any:
    """A node of TFDS 4.5, with the name of a message and its JSON as an object or a string, in today's form."""
    if not isinstance(node, dict) or "proto_cls" not in node:
        return node
    part = _MESSAGES.get(str(node["proto_cls"]).rpartition(".")[2], "")
    content = node.get("content")
    if isinstance(content, str):
        content = json.loads(content)
    return {"pythonClassName": node.get("type"), part: content}


def _class_name(node: Mapping[str, Any]) -> str:
    return str(node.get("pythonClassName") or node.get("type") or "").rpartition(".")[2]


def _children(node: Any) -> Mapping[str, Any] | None:
    new = _content(node, "featuresDict")
    children = new.get("features", {}) if isinstance(new, dict) else None
    if children is None and _class_name(node) == "FeaturesDict":
        children = node.get("content", {})
    return children if isinstance(children, dict) else None


def _sequence(node: Any) -> tuple[Any, int | None] | None:
    """The inner feature and the length of a Sequence, Dataset or Video."""
    new = _content(node, "sequence")
    if new is None and _class_name(node) in ("Sequence", "Dataset") and isinstance(node.get("content"), dict):
        new = node["content"]
    if not isinstance(new, dict) or "feature" not in new:
        return None
    length = new.get("length")
    return new["feature"], None if length is None or int(length) < 0 else int(length)


def _collect(
    node: Any,
    path: tuple[str, ...],
    leaves: list[Leaf],
    unknown: dict[str, str],
    *,
    inside_steps: bool,
    depth: int,
    ragged: tuple[int | None, ...] = (),
) -> None:
    if depth > _MAX_DEPTH:
        raise UserError(f"features.json: {'/'.join(path)[:80]}: nested more than {_MAX_DEPTH} deep")
    node = _normal(node)
    children = _children(node)
    where = {"inside_steps": inside_steps, "depth": depth + 1}
    if children is not None:
        for name, child in children.items():
            _collect(child, (*path, name), leaves, unknown, ragged=ragged, **where)  # type: ignore[arg-type]
        return
    inner = _sequence(node)
    if inner is not None:
        _collect(inner[0], path, leaves, unknown, ragged=(*ragged, inner[1]), **where)  # type: ignore[arg-type]
        return
    names = path[1:] if inside_steps else path
    leaf = _leaf(node, names, "/".join(path), ragged)
    if isinstance(leaf, str):
        unknown["/".join(path)] = leaf
    else:
        leaves.append(leaf)


def _leaf(node: Mapping[str, Any], path: tuple[str, ...], key: str, ragged: tuple[int | None, ...]) -> Leaf | str:
    """A leaf, or why it cannot be read."""
    name = _class_name(node)
    content = node.get("content")
    old: dict[str, Any] = content if isinstance(content, dict) else {}
    place: dict[str, Any] = {"path": path, "key": key, "num_ragged": len(ragged)}
    if "text" in node or name == "Text":
        return Leaf(kind="text", dtype="str", shape=ragged, **place)
    if "classLabel" in node or name == "ClassLabel":
        label = node.get("classLabel") or old
        num_values = int(label.get("numClasses") or label.get("num_classes") or 0)
        return Leaf(kind="tensor", dtype="int64", shape=ragged, num_values=num_values, **place)
    if "image" in node or name == "Image":
        image = node.get("image") or old
        shape = _shape(image.get("shape")) or (None, None, 3)
        dtype = str(image.get("dtype") or "uint8")
        if len(shape) != 3 or dtype not in ("uint8", "uint16", "float32"):
            return f"an image of shape {shape} and dtype {dtype}"
        encoding = str(image.get("encodingFormat") or image.get("encoding_format") or "")
        return Leaf(kind="image", dtype=dtype, shape=(*ragged, *shape), encoding=encoding, **place)
    if isinstance(node.get("video"), dict):
        shape = _shape(node["video"].get("shape"))
        if len(shape) != 4 or str(node["video"].get("dtype") or "uint8") != "uint8":
            return f"a video of shape {shape}"
        place["num_ragged"] += 1
        return Leaf(kind="image", dtype="uint8", shape=(*ragged, *shape), **place)
    tensor = (
        node.get("tensor") or node.get("boundingBox") or (old if name in ("Tensor", "Scalar", "BBoxFeature") else None)
    )
    if name == "BBoxFeature" or "boundingBox" in node:
        return Leaf(kind="tensor", dtype="float32", shape=(*ragged, 4), **place)
    if not isinstance(tensor, dict):
        return f"a feature of class {name or '?'}"
    dtype, shape = str(tensor.get("dtype")), _shape(tensor.get("shape"))
    encoding = str(tensor.get("encoding") or "none").lower()
    if dtype in _TEXT_DTYPES:
        return "an array of texts" if shape else Leaf(kind="text", dtype="str", shape=ragged, **place)
    if dtype == "bfloat16" and encoding == "none":
        dtype = "float32"
    if dtype not in _NUMBERS and dtype != "bool":
        return f"dtype {dtype}"
    if encoding not in ("none", "bytes", "zlib"):
        return f"encoding {encoding}"
    return Leaf(kind="tensor", dtype=dtype, shape=(*ragged, *shape), encoding=encoding, **place)


def _shape(value: Any) -> tuple[int | None, ...]:
    """A shape of either form of the file; -1 and null stand for a side that is not said."""
    sides = value.get("dimensions", []) if isinstance(value, dict) else value or []
    return tuple(None if side is None or int(side) < 0 else int(side) for side in sides)


def num_rows(leaf: Leaf, example: Mapping[str, FeatureValues]) -> int | None:
    """The number of steps as this field has it; None where it does not tell."""
    if leaf.num_ragged:
        lengths = example.get(f"{leaf.key}/ragged_row_lengths_0")
        return None if lengths is None else len(lengths)
    values = example.get(f"{leaf.key}/value", example.get(leaf.key))
    if values is None or (not len(values)):
        return None
    if leaf.kind != "tensor" or leaf.encoding != "none":
        return len(values)
    if None in leaf.shape or math.prod(_known(leaf.shape)) == 0:
        return None
    size = math.prod(_known(leaf.shape))
    return len(values) // size if len(values) % size == 0 else None


def _known(shape: Sequence[int | None]) -> list[int]:
    return [side for side in shape if side is not None]


def decode_leaf(leaf: Leaf, example: Mapping[str, FeatureValues], rows: int) -> FieldValues:
    """The values of one field.

    Args:
      leaf: which field. Sides of its shape that are None are found out and must be the same in all steps.
      example: the decoded Example.
      rows: number of steps.

    Returns:
      [rows, *shape] in the dtype of the leaf, a list of texts, or of images where their size varies.

    Raises:
      CorruptionError: the values are not what the leaf says, or their sizes differ between steps.
    """
    try:
        if leaf.num_ragged:
            return _decode_ragged(leaf, example, rows)
        if f"{leaf.key}/value" in example and leaf.key not in example:
            leaf = dataclasses.replace(leaf, shape=_dynamic_shape(leaf, example, rows))
            values = example[f"{leaf.key}/value"]
        elif leaf.key in example:
            values = example[leaf.key]
        else:
            raise CorruptionError("missing")
        return _decode_flat(leaf, values, rows)
    except CorruptionError as error:
        raise CorruptionError(f"{leaf.key}: {error}") from None


def _dynamic_shape(leaf: Leaf, example: Mapping[str, FeatureValues], rows: int) -> tuple[int | None, ...]:
    """The one shape of all steps of a tensor that carries its shape in every step."""
    shapes = example.get(f"{leaf.key}/shape")
    if not isinstance(shapes, np.ndarray) or len(shapes) != rows * len(leaf.shape) or not rows:
        raise CorruptionError("the shapes of the steps are missing")
    table = shapes.reshape(rows, -1)
    if (table != table[0]).any():
        raise CorruptionError(f"steps of different shapes: {table[0].tolist()} and others")
    return tuple(int(side) for side in table[0])


def _decode_ragged(leaf: Leaf, example: Mapping[str, FeatureValues], rows: int) -> FieldValues:
    sides: list[int] = []
    count = rows
    for level in range(leaf.num_ragged):
        lengths = example.get(f"{leaf.key}/ragged_row_lengths_{level}")
        if not isinstance(lengths, np.ndarray):
            lengths = np.zeros(0, np.int64)
        if len(lengths) != count:
            raise CorruptionError(f"{len(lengths)} lengths of inner sequences, expected {count}")
        if count and (lengths != lengths[0]).any():
            raise CorruptionError(f"inner sequences of different lengths, {lengths.min()} to {lengths.max()}")
        side = int(lengths[0]) if count else 0
        if not 0 <= side <= MAX_ROW_BYTES:
            raise CorruptionError(f"an inner sequence of length {side}")
        sides.append(side)
        count *= side
    flat = example.get(f"{leaf.key}/ragged_flat_values", [])
    inner = dataclasses.replace(leaf, shape=leaf.item_shape, num_ragged=0)
    values = _decode_flat(inner, flat, count)
    if isinstance(values, list):
        raise CorruptionError("texts in an inner sequence")
    return values.reshape(rows, *sides, *values.shape[1:])


def _decode_flat(leaf: Leaf, values: FeatureValues, rows: int) -> FieldValues:
    if leaf.kind == "tensor" and leaf.encoding == "none":
        return _decode_numbers(leaf, values, rows)
    if isinstance(values, np.ndarray):
        raise CorruptionError(f"expected byte strings, got {values.dtype}")
    if len(values) != rows:
        raise CorruptionError(f"{len(values)} values, expected {rows}")
    if leaf.kind == "text":
        return [bytes(item).decode("utf-8", "replace") for item in values]
    if leaf.varies:
        free = dataclasses.replace(leaf, shape=(None, None, leaf.shape[2]))
        return [_decode_image(free, item, step, None) for step, item in enumerate(values)]
    if leaf.kind == "image":
        return decode_images(leaf, values)
    return _decode_encoded(leaf, values)


def _decode_numbers(leaf: Leaf, values: FeatureValues, rows: int) -> np.ndarray:
    dtype = np.dtype(leaf.dtype)
    array = values if isinstance(values, np.ndarray) else np.empty(0, np.float32 if dtype.kind == "f" else np.int64)
    if not isinstance(values, np.ndarray) and len(values):
        raise CorruptionError("expected numbers, got byte strings")
    if array.size and (array.dtype.kind == "f") != (dtype.kind == "f"):
        raise CorruptionError(f"declared as {leaf.dtype}, stored as {array.dtype}")
    shape = _complete(leaf.shape, len(array), rows)
    if dtype == np.uint64:
        converted = array.astype(np.int64).view(np.uint64)
    else:
        with np.errstate(over="ignore"):
            converted = array.astype(dtype)
        if dtype.kind != "f" and not np.array_equal(converted, array):
            raise CorruptionError(f"a number that {leaf.dtype} cannot hold")
    return converted.reshape(rows, *shape)


def _complete(shape: tuple[int | None, ...], count: int, rows: int) -> tuple[int, ...]:
    """The shape with its one unknown side filled in, checked against the number of values."""
    known = math.prod(_known(shape))
    unknown = shape.count(None)
    if unknown > 1:
        raise CorruptionError(f"shape {shape} has several sides that are not said")
    if unknown == 1:
        side, rest = divmod(count, rows * known) if rows * known else (0, count)
        if rest:
            raise CorruptionError(f"{count} numbers do not divide into {rows} steps of shape {shape}")
        return tuple(side if s is None else s for s in shape)
    if count != rows * known:
        raise CorruptionError(f"{count} numbers, expected {rows} steps of shape {tuple(shape)}")
    return tuple(_known(shape))


def _decode_encoded(leaf: Leaf, values: Sequence[bytes | memoryview]) -> np.ndarray:
    dtype = np.dtype(leaf.dtype).newbyteorder("<")
    known = math.prod(_known(leaf.shape)) * dtype.itemsize
    if known > MAX_ROW_BYTES:
        raise CorruptionError(f"a step of {known} bytes")
    rows: list[bytes | memoryview] = []
    for item in values:
        row: bytes | memoryview = item
        if leaf.encoding == "zlib":
            row = _decompress(item, known if None not in leaf.shape else MAX_ROW_BYTES)
        if rows and len(row) != len(rows[0]):
            raise CorruptionError(f"steps of different sizes, {len(rows[0])} and {len(row)} bytes")
        if len(row) % dtype.itemsize:
            raise CorruptionError(f"{len(row)} bytes are no whole number of {leaf.dtype}")
        rows.append(row)
    count = sum(len(row) for row in rows) // dtype.itemsize
    shape = _complete(leaf.shape, count, len(rows))
    return np.frombuffer(b"".join(rows), dtype=dtype).reshape(len(rows), *shape)


def _decompress(item: bytes | memoryview, limit: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        row = inflater.decompress(item, limit + 1)
    except zlib.error as error:
        raise CorruptionError(f"cannot be decompressed: {error}") from None
    if len(row) > limit or not inflater.eof:
        raise CorruptionError(f"more than {limit} bytes in a step, or cut short")
    return row


def decode_images(leaf: Leaf, values: Sequence[bytes | memoryview]) -> np.ndarray:
    """Encoded files to [n, height, width, channels]; sizes are checked before anything is decoded.

    Raises:
      CorruptionError: one cannot be decoded or has another size than the leaf, or than the first.
    """
    out: np.ndarray | None = None
    for step, item in enumerate(values):
        image = _decode_image(leaf, item, step, None if out is None else out.shape[1:])
        if out is None:
            out = np.empty((len(values), *image.shape), image.dtype)
        out[step] = image
    if out is None:
        return np.empty((0, *(side or 0 for side in leaf.shape)), np.dtype(leaf.dtype))
    return out


def image_size(item: bytes | memoryview) -> tuple[int, int] | None:
    """Height and width as the header of an encoded file says; None where that cannot be read."""
    pillow = need("PIL.Image", "images", "decoding images")
    try:
        with pillow.open(io.BytesIO(item), formats=_PICTURE_FORMATS) as image:
            return image.height, image.width
    except (OSError, ValueError, SyntaxError, zlib.error, pillow.DecompressionBombError):
        return None


def _decode_image(leaf: Leaf, item: bytes | memoryview, step: int, expected: tuple[int, ...] | None) -> np.ndarray:
    pillow = need("PIL.Image", "images", "decoding images")
    height, width, channels = leaf.shape if expected is None else expected
    is_float = leaf.dtype == "float32"
    try:
        with pillow.open(io.BytesIO(item), formats=_PICTURE_FORMATS) as image:
            size = (image.height, image.width)
            # The header is all that was read so far: sizes are checked before anything is decoded.
            if (height is not None and size[0] != height) or (width is not None and size[1] != width):
                raise CorruptionError(f"step {step}: an image of {size}, expected {(height, width)}")
            if size[0] * size[1] * 8 > MAX_ROW_BYTES:
                raise CorruptionError(f"step {step}: an image of {size}")
            if leaf.dtype == "uint8" and channels is not None:
                mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}.get(channels)
                if mode is not None and image.mode != mode:
                    image = image.convert(mode)
            elif image.mode in ("1", "P", "CMYK", "YCbCr"):
                image = image.convert("L" if image.mode == "1" else "RGB")
            array = np.asarray(image)
    except (OSError, ValueError, SyntaxError, zlib.error, pillow.DecompressionBombError) as error:
        reason = " ".join(str(error).partition(" <_io")[0].split())[:120]
        raise CorruptionError(f"step {step}: the image cannot be decoded: {reason}") from None
    if is_float:
        # A float32 image of one channel is kept as four bytes a pixel in the four channels of a PNG.
        if array.shape[2:] != (4,) or array.dtype != np.uint8:
            raise CorruptionError(f"step {step}: a float32 image of shape {array.shape}")
        return np.ascontiguousarray(array).view("<f4")
    array = array if array.ndim == 3 else array[:, :, None]
    if leaf.dtype == "uint16":
        array = array.astype(np.uint16)
    if array.dtype != np.dtype(leaf.dtype) or (channels is not None and array.shape[2] != channels):
        raise CorruptionError(
            f"step {step}: an image of {array.dtype} {array.shape}, expected {leaf.dtype} {leaf.shape}"
        )
    return array


def encode_leaf(leaf: Leaf, values: FieldValues) -> FeatureValues:
    """The values of one field as they stand in an Example; the inverse of `decode_leaf`.

    Args:
      leaf: which field; without inner sequences and unknown sides.
      values: [rows, *shape], a list of texts, or of images where their size varies.
    """
    if leaf.kind == "text":
        return [text.encode() for text in values]
    if leaf.kind == "image":
        return [_encode_png(frame) for frame in values]
    if leaf.encoding == "bytes":
        data = np.ascontiguousarray(values, dtype=np.dtype(leaf.dtype).newbyteorder("<")).tobytes()
        size = len(data) // len(values)
        return [data[row * size : (row + 1) * size] for row in range(len(values))]
    flat = np.ascontiguousarray(values).reshape(-1)
    return flat.astype(np.float32) if flat.dtype.kind == "f" else flat.astype(np.int64)


def _encode_png(frame: np.ndarray) -> bytes:
    pillow = need("PIL.Image", "images", "encoding images")
    buffer = io.BytesIO()
    pillow.fromarray(frame[:, :, 0] if frame.shape[2] == 1 else frame).save(buffer, format="PNG")
    return buffer.getvalue()


def features_json(leaves: Sequence[Leaf]) -> dict[str, Any]:
    """The tree of features.json for leaves without inner sequences; keys that begin with "steps/" are of each step."""
    tree: dict[str, Any] = {}
    for leaf in leaves:
        node = tree
        *folders, name = leaf.key.split("/")
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    steps = _features_dict(tree.pop("steps", {}))
    result = _features_dict(tree)
    result["featuresDict"]["features"]["steps"] = {
        "pythonClassName": f"{_PREFIX}dataset_feature.Dataset",
        "sequence": {"feature": steps, "length": "-1"},
    }
    return result


def _features_dict(tree: Mapping[str, Any]) -> dict[str, Any]:
    features = {
        name: _features_dict(node) if isinstance(node, dict) else _leaf_json(node)
        for name, node in sorted(tree.items())
    }
    return {"pythonClassName": f"{_PREFIX}features_dict.FeaturesDict", "featuresDict": {"features": features}}


def _leaf_json(leaf: Leaf) -> dict[str, Any]:
    shape = {"dimensions": [str(-1 if side is None else side) for side in leaf.shape]} if leaf.shape else {}
    if leaf.kind == "text":
        return {"pythonClassName": f"{_PREFIX}text_feature.Text", "text": {}}
    if leaf.kind == "image":
        image = {"shape": shape, "dtype": leaf.dtype, "encodingFormat": "png"}
        return {"pythonClassName": f"{_PREFIX}image_feature.Image", "image": image}
    tensor = {"shape": shape, "dtype": leaf.dtype, "encoding": leaf.encoding}
    return {"pythonClassName": f"{_PREFIX}tensor_feature.Tensor", "tensor": tensor}
