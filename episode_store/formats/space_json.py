"""Gymnasium spaces as Minari writes them in JSON, without Gymnasium: text -> fields, fields -> text.

    {"type": "Dict", "subspaces": {"pos": {"type": "Box", "dtype": "float32", "shape": [3], "low": [..], "high": [..]}}}

Types: Box, Discrete, MultiDiscrete, MultiBinary, Text, Dict, Tuple. Fields get the names and kinds that they get when
an environment is recorded: nested names joined with '/', members of a Tuple "0", "1", ..., a bare space "observation"
or "action"; pictures, discrete values and bounds as in docs/formats.md.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from episode_store.errors import UserError
from episode_store.formats.format import one_line
from episode_store.spec import ArraySpec, Modality

# Integer Boxes with at most so many values are choices, with more they are numbers.
_MAX_DISCRETE_VALUES = 1024
_MIN_IMAGE_SIDE = 16
_MAX_ELEMENTS = 1 << 24
_MAX_DEPTH = 16
# Minari takes a Box of uint8 for a picture, which it may store as JPEG, when both sides are at least this.
_MINARI_IMAGE_SIDE = 32

Role = Literal["observation", "action"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpaceLeaf:
    """One space that is not Dict or Tuple.

    Attributes:
      path: keys of Dicts (str) and indices of Tuples (int) that lead to it.
      name: of the field.
      spec: of the field.
      is_picture: whether Minari may store it as JPEG.
    """

    path: tuple[str | int, ...]
    name: str
    spec: ArraySpec
    is_picture: bool


def parse_space(text: str, role: Role, *, bounds: bool) -> list[SpaceLeaf]:
    """The fields of a space.

    Args:
      text: JSON, as Minari's metadata.json has it.
      role: names a bare space; observations carry no bounds.
      bounds: whether actions keep theirs.

    Raises:
      UserError: not such JSON, or a kind of space that a store cannot hold.
    """
    try:
        tree = json.loads(text)
        leaves = [_leaf(path, name or role, node) for path, name, node in _walk(tree, (), (), 0)]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        raise UserError(f"{role} space: cannot be understood: {type(error).__name__}: {one_line(error)}") from None
    if role == "observation" or not bounds:
        leaves = [dataclasses.replace(leaf, spec=_without_bounds(leaf.spec)) for leaf in leaves]
    if len({leaf.name for leaf in leaves}) != len(leaves):
        raise UserError(f"{role} space: two fields have one name among {sorted(leaf.name for leaf in leaves)}")
    return leaves


def _walk(
    node: Any, names: tuple[str, ...], path: tuple[str | int, ...], depth: int
) -> Iterator[tuple[tuple[str | int, ...], str, Mapping[str, Any]]]:
    """(path, joined name, JSON) of every leaf."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"nested more than {_MAX_DEPTH} deep")
    if node["type"] == "Dict":
        for key, member in node["subspaces"].items():
            if not key or "/" in key or "\0" in key:
                raise ValueError(f"the key {key!r} of a Dict")
            yield from _walk(member, (*names, key), (*path, key), depth + 1)
    elif node["type"] == "Tuple":
        members = node["subspaces"]
        width = len(str(max(len(members) - 1, 0)))
        for index, member in enumerate(members):
            yield from _walk(member, (*names, str(index).zfill(width)), (*path, index), depth + 1)
    else:
        yield path, "/".join(names), node


def _leaf(path: tuple[str | int, ...], name: str, node: Mapping[str, Any]) -> SpaceLeaf:
    spec = _SPECS[node["type"]](node) if node["type"] in _SPECS else None
    if spec is None:
        raise ValueError(f"field {name!r}: spaces of type {node['type']!r} are not supported")
    is_picture = (
        spec.dtype == "uint8"
        and len(spec.shape) in (2, 3)
        and min(spec.shape[:2]) >= _MINARI_IMAGE_SIDE
        and node["type"] == "Box"
        and set(np.ravel(node["low"])) == {0}
        and set(np.ravel(node["high"])) == {255}
    )
    return SpaceLeaf(path=path, name=name, spec=spec, is_picture=is_picture)


def _shape(sides: Sequence[Any]) -> tuple[int, ...]:
    shape = tuple(int(side) for side in sides)
    if any(side < 0 for side in shape) or math.prod(shape) > _MAX_ELEMENTS:
        raise ValueError(f"shape {shape}")
    return shape


def _box(node: Mapping[str, Any]) -> ArraySpec:
    shape, dtype = _shape(node["shape"]), np.dtype(str(node["dtype"]))
    size = math.prod(shape)
    low, high = (np.ravel(np.array(node[side], np.float64)) for side in ("low", "high"))
    if len(low) not in (1, size) or len(high) not in (1, size):
        raise ValueError(f"bounds of {len(low)} and {len(high)} values for shape {shape}")
    low, high = np.broadcast_to(low, (size,)), np.broadcast_to(high, (size,))
    is_image = len(shape) == 3 and shape[2] in (1, 3) and min(shape[:2]) >= _MIN_IMAGE_SIDE
    if dtype == np.uint8 and is_image:
        return ArraySpec(modality=Modality.IMAGE, shape=shape, dtype="uint8")
    if dtype.kind in "iub" and size and bool((high - low < _MAX_DISCRETE_VALUES).all()):
        return _discrete(shape, dtype.name, low, high - low + 1)
    if dtype.kind in "iu":
        # The ends of the dtype are no bounds.
        info = np.iinfo(dtype)
        low = np.where(low <= float(info.min), -np.inf, low)
        high = np.where(high >= float(info.max), np.inf, high)
    return ArraySpec(
        modality=Modality.CONTINUOUS,
        shape=shape,
        dtype=dtype.name,
        low=tuple(low.tolist()) if np.isfinite(low).any() else (),
        high=tuple(high.tolist()) if np.isfinite(high).any() else (),
    )


def _discrete(shape: tuple[int, ...], dtype: str, start: Any, num_values: Any) -> ArraySpec:
    size = math.prod(shape)
    starts = np.broadcast_to(np.ravel(start), (size,))
    counts = np.broadcast_to(np.ravel(num_values), (size,))
    low = tuple(float(value) for value in starts) if starts.any() else ()
    return ArraySpec(
        modality=Modality.DISCRETE, shape=shape, dtype=dtype, low=low, num_values=tuple(int(count) for count in counts)
    )


def _multi_discrete(node: Mapping[str, Any]) -> ArraySpec:
    nvec = np.array(node["nvec"], np.int64)
    return _discrete(_shape(nvec.shape), str(node["dtype"]), np.array(node.get("start", 0), np.int64), nvec)


def _multi_binary(node: Mapping[str, Any]) -> ArraySpec:
    sides = node["n"]
    return _discrete(_shape(sides if isinstance(sides, list) else [sides]), "int8", 0, 2)


_SPECS = {
    "Box": _box,
    "Discrete": lambda node: _discrete((), "int64", int(node.get("start", 0)), int(node["n"])),
    "MultiDiscrete": _multi_discrete,
    "MultiBinary": _multi_binary,
    "Text": lambda node: ArraySpec(modality=Modality.TEXT, dtype="str"),
}


def _without_bounds(spec: ArraySpec) -> ArraySpec:
    if spec.modality != Modality.CONTINUOUS:
        return spec
    return ArraySpec(modality=spec.modality, shape=spec.shape, dtype=spec.dtype)


@dataclasses.dataclass(kw_only=True)
class TextFacts:
    """What a Text space says of its texts: collected while they are written."""

    max_length: int = 1
    characters: set[str] = dataclasses.field(default_factory=set)

    def add(self, texts: Sequence[str]) -> None:
        """Takes up the texts of one episode."""
        for text in set(texts):
            self.max_length = max(self.max_length, len(text))
            self.characters.update(text)


def leaf_paths(specs: Mapping[str, ArraySpec], role: Role, where: str) -> dict[str, tuple[str, ...]]:
    """Field name -> keys of the Dicts that lead to it; () for a bare space.

    Raises:
      UserError: a field lies inside another one.
    """
    if list(specs) == [role]:
        return {role: ()}
    for name in specs:
        for other in specs:
            if other.startswith(f"{name}/"):
                raise UserError(f"{where}: {role} {name!r} is a field and {other!r} lies inside it: no space has both")
    return {name: tuple(name.split("/")) for name in specs}


def format_space(specs: Mapping[str, ArraySpec], role: Role, texts: Mapping[str, TextFacts], where: str) -> str:
    """JSON of the space that holds these fields.

    Args:
      specs: the fields.
      role: names the field that makes a bare space.
      texts: field name -> facts, for texts.
      where: for the error.
    """
    paths = leaf_paths(specs, role, where)
    if paths == {role: ()}:
        return json.dumps(_node(specs[role], texts.get(role)))
    tree: dict[str, Any] = {"type": "Dict", "subspaces": {}}
    for name, path in paths.items():
        node = tree
        for key in path[:-1]:
            node = node["subspaces"].setdefault(key, {"type": "Dict", "subspaces": {}})
        node["subspaces"][path[-1]] = _node(specs[name], texts.get(name))
    return json.dumps(tree)


def stored_dtype(spec: ArraySpec) -> str:
    """The dtype that the space of `_node` has: Gymnasium's choices have int64, its flags int8."""
    if spec.modality != Modality.DISCRETE:
        return spec.dtype
    if not spec.shape:
        return "int64"
    return "int8" if spec.dtype == "bool" or _is_binary(spec) else spec.dtype


def _is_binary(spec: ArraySpec) -> bool:
    return spec.dtype in ("int8", "bool") and not any(spec.low) and set(spec.num_values) == {2}


def _node(spec: ArraySpec, text: TextFacts | None) -> dict[str, Any]:
    if spec.modality == Modality.TEXT:
        facts = text or TextFacts()
        charset = "".join(sorted(facts.characters)) or "a"
        return {"type": "Text", "max_length": facts.max_length, "min_length": 0, "charset": charset}
    if spec.modality == Modality.DISCRETE:
        start = np.array(spec.low or (0,) * spec.size, np.int64).reshape(spec.shape).tolist()
        if not spec.shape:
            return {"type": "Discrete", "dtype": "int64", "start": start, "n": spec.num_values[0]}
        if _is_binary(spec):
            return {"type": "MultiBinary", "n": spec.shape[0] if len(spec.shape) == 1 else list(spec.shape)}
        nvec = np.array(spec.num_values, np.int64).reshape(spec.shape).tolist()
        return {"type": "MultiDiscrete", "dtype": stored_dtype(spec), "nvec": nvec, "start": start}
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        least, most = -math.inf, math.inf
    else:
        least, most = (False, True) if dtype.kind == "b" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    low, high = (
        [_bound(value, least, most, dtype) for value in values or (default,) * spec.size]
        for values, default in ((spec.low, least), (spec.high, most))
    )
    return {
        "type": "Box",
        "dtype": spec.dtype,
        "shape": list(spec.shape),
        "low": np.array(low, object).reshape(spec.shape).tolist(),
        "high": np.array(high, object).reshape(spec.shape).tolist(),
    }


def _bound(value: float, least: Any, most: Any, dtype: np.dtype) -> Any:
    if dtype.kind == "f":
        return float(value)
    return least if value <= least else most if value >= most else dtype.type(value).item()
