"""`tf.train.Example` to and from bytes, without TensorFlow or protobuf: three kinds of lists, packed with NumPy.

Example   { Features features = 1; }
Features  { map<string, Feature> feature = 1; }         each entry: string key = 1; Feature value = 2
Feature   { oneof { BytesList bytes_list = 1; FloatList float_list = 2; Int64List int64_list = 3; } }
BytesList { repeated bytes value = 1; }   FloatList { repeated float value = 1; }  Int64List { ... int64 ... }
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from episode_store.errors import CorruptionError

# float32 [n], int64 [n], or n byte strings.
FeatureValues = np.ndarray | Sequence[bytes | memoryview]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3
_MAX_VARINT_BYTES = 10
# Varints are decoded in pieces of this many bytes, which bounds the memory for temporary values.
_PIECE = 1 << 20


def encode_example(features: Mapping[str, FeatureValues]) -> bytes:
    """The bytes of an Example, features sorted by name.

    Args:
      features: name -> float32 array, int64 array (both 1-D), or a list of byte strings.

    Raises:
      TypeError: an array of another dtype.
    """
    entries = []
    for name in sorted(features):
        key = name.encode()
        value = _encode_feature(features[name])
        entry = b"".join((b"\x0a", encode_varint(len(key)), key, b"\x12", encode_varint(len(value)), value))
        entries += [b"\x0a", encode_varint(len(entry)), entry]
    body = b"".join(entries)
    return b"".join((b"\x0a", encode_varint(len(body)), body))


def _encode_feature(values: FeatureValues) -> bytes:
    if not isinstance(values, np.ndarray):
        parts: list[bytes | memoryview] = []
        for item in values:
            parts += [b"\x0a", encode_varint(len(item)), item]
        body, tag = b"".join(parts), b"\x0a"
    else:
        if values.dtype == np.float32:
            packed, tag = np.ascontiguousarray(values, dtype="<f4").tobytes(), b"\x12"
        elif values.dtype == np.int64:
            packed, tag = encode_varints(values), b"\x1a"
        else:
            raise TypeError(f"expected float32 or int64, got {values.dtype}")
        body = b"".join((b"\x0a", encode_varint(len(packed)), packed)) if packed else b""
    return b"".join((tag, encode_varint(len(body)), body))


def encode_varint(value: int) -> bytes:
    """One non-negative integer, seven bits a byte, lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_varints(values: np.ndarray) -> bytes:
    """int64 [n] as varints; negative ones take ten bytes, as protobuf has it."""
    unsigned = np.ascontiguousarray(values, dtype=np.int64).view(np.uint64)
    if not len(unsigned):
        return b""
    largest = int(unsigned.max())
    if largest < 0x80:
        return unsigned.astype(np.uint8).tobytes()
    width = -(-largest.bit_length() // 7)
    shifts = np.arange(width, dtype=np.uint64) * np.uint64(7)
    out = []
    for start in range(0, len(unsigned), _PIECE // width):
        groups = unsigned[start : start + _PIECE // width, None] >> shifts
        # A byte is written while anything is left at or above it; the first one always.
        used = groups != 0
        used[:, 0] = True
        more = np.zeros_like(used)
        more[:, :-1] = used[:, 1:]
        encoded = (groups & np.uint64(0x7F)).astype(np.uint8) | (more.astype(np.uint8) << 7)
        out.append(encoded[used].tobytes())
    return b"".join(out)


def decode_varints(data: memoryview | bytes) -> np.ndarray:
    """The inverse of `encode_varints`.

    Raises:
      CorruptionError: the last one is cut short, or one has more than ten bytes.
    """
    encoded = np.frombuffer(data, dtype=np.uint8)
    if not len(encoded):
        return np.empty(0, dtype=np.int64)
    last = encoded < 0x80
    if last.all():
        return encoded.astype(np.int64)
    if not last[-1]:
        raise CorruptionError("an integer is cut short")
    ends = np.flatnonzero(last)
    lengths = np.diff(ends, prepend=-1)
    if int(lengths.max()) > _MAX_VARINT_BYTES:
        raise CorruptionError("an integer of more than ten bytes")
    out = np.empty(len(ends), dtype=np.uint64)
    first = 0
    while first < len(ends):
        begin = int(ends[first] - lengths[first] + 1)
        stop = max(int(np.searchsorted(ends, begin + _PIECE)), first + 1)
        starts = ends[first:stop] - lengths[first:stop] + 1 - begin
        piece = encoded[begin : int(ends[stop - 1]) + 1].astype(np.uint64)
        places = np.arange(len(piece)) - np.repeat(starts, lengths[first:stop])
        # The tenth byte holds one bit; what a shift pushes out is dropped, as protobuf does.
        parts = (piece & np.uint64(0x7F)) << (places.astype(np.uint64) * np.uint64(7))
        out[first:stop] = np.add.reduceat(parts, starts)
        first = stop
    return out.view(np.int64)


def decode_example(data: bytes | memoryview) -> dict[str, FeatureValues]:
    """Features by name: float32 [n], int64 [n] or a list of memoryviews into `data`; empty ones as an empty list.

    Raises:
      CorruptionError: the bytes are not an Example; nothing is allocated beyond their size.
    """
    features: dict[str, FeatureValues] = {}
    view = memoryview(data)
    for field, body in _fields(view, "Example"):
        if field != 1:
            continue
        for entry_field, entry in _fields(_message(body, "Example.features"), "Features"):
            if entry_field == 1:
                name, values = _decode_entry(_message(entry, "Features.feature"))
                features[name] = values
    return features


def _decode_entry(entry: memoryview) -> tuple[str, FeatureValues]:
    name, values = "", memoryview(b"")
    for field, body in _fields(entry, "a feature's entry"):
        if field == 1:
            try:
                name = bytes(_message(body, "a feature's name")).decode()
            except UnicodeDecodeError:
                raise CorruptionError("a feature's name is not UTF-8") from None
        elif field == 2:
            values = _message(body, f"feature {name[:100]!r}")
    try:
        return name, _decode_feature(values)
    except CorruptionError as error:
        raise CorruptionError(f"feature {name[:100]!r}: {error}") from None


def _decode_feature(data: memoryview) -> FeatureValues:
    values: FeatureValues = []
    for kind, body in _fields(data, "a feature"):
        message = _message(body, "a feature's list")
        if kind == _BYTES_LIST:
            values = _decode_bytes(message)
        elif kind == _FLOAT_LIST:
            values = _decode_floats(message)
        elif kind == _INT64_LIST:
            values = _decode_ints(message)
    return values


def _decode_bytes(data: memoryview) -> list[bytes | memoryview]:
    return [_message(body, "bytes_list") for field, body in _fields(data, "bytes_list") if field == 1]


def _decode_floats(data: memoryview) -> np.ndarray:
    pieces = []
    for field, body in _fields(data, "float_list"):
        if field != 1:
            continue
        # Packed, or one fixed 32-bit value: in either case whole floats.
        raw = body if isinstance(body, memoryview) else memoryview(b"")
        if not isinstance(body, memoryview) or len(raw) % 4:
            raise CorruptionError(f"float_list of {len(raw)} bytes, expected a multiple of 4")
        pieces.append(np.frombuffer(raw, dtype="<f4"))
    return _join(pieces, np.float32)


def _decode_ints(data: memoryview) -> np.ndarray:
    pieces = []
    for field, body in _fields(data, "int64_list"):
        if field != 1:
            continue
        if isinstance(body, int):
            signed = body - (1 << 64) if body >= 1 << 63 else body
            pieces.append(np.array([signed], dtype=np.int64))
        else:
            pieces.append(decode_varints(body))
    return _join(pieces, np.int64)


def _join(pieces: list[np.ndarray], dtype: type) -> np.ndarray:
    if len(pieces) == 1:
        return pieces[0]
    return np.concatenate(pieces) if pieces else np.empty(0, dtype)


def _message(body: memoryview | int, what: str) -> memoryview:
    if not isinstance(body, memoryview):
        raise CorruptionError(f"{what}: expected bytes, got a number")
    return body


@dataclasses.dataclass(slots=True)
class _Fields:
    """Iterates over (field number, memoryview or int) of one message."""

    data: memoryview
    what: str
    position: int = 0

    def __iter__(self) -> _Fields:
        return self

    def __next__(self) -> tuple[int, memoryview | int]:
        data, size = self.data, len(self.data)
        if self.position >= size:
            raise StopIteration
        tag = self._varint()
        field, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            return field, self._varint()
        if kind == _BYTES:
            length = self._varint()
        elif kind == _FIXED32:
            length = 4
        elif kind == _FIXED64:
            length = 8
        else:
            raise CorruptionError(f"{self.what}: unknown wire type {kind}")
        start = self.position
        if length > size - start:
            raise CorruptionError(f"{self.what}: {length} bytes announced, {size - start} left")
        self.position = start + length
        return field, data[start : start + length]

    def _varint(self) -> int:
        value = shift = 0
        for position in range(self.position, min(self.position + _MAX_VARINT_BYTES, len(self.data))):
            byte = self.data[position]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                self.position = position + 1
                return value & 0xFFFFFFFFFFFFFFFF
            shift += 7
        raise CorruptionError(f"{self.what}: an integer is cut short or too long")


def _fields(data: memoryview, what: str) -> _Fields:
    return _Fields(data, what)
