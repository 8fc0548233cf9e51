"""The wire format of tf.train.Example and of TFRecord files, against bytes that TensorFlow 2.21 wrote."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from episode_store.errors import CorruptionError
from episode_store.formats import tf_example
from episode_store.formats.tfrecord import DamagedRecord, TFRecordReader, TFRecordWriter, TruncatedShard, frame

# tf.train.Example with a: [1, 300, -1], b: [0.5, -2.0], c: [b"hi", b""], d: an empty int64_list.
EXAMPLE = bytes.fromhex(
    "0a430a160a016112111a0f0a0d01ac02ffffffffffffffffff010a110a0162120c120a0a080000003f000000c0"
    "0a0d0a016312080a060a0268690a000a070a016412021a00"
)
# tf.io.TFRecordWriter: the records b"abc" and b"".
TFRECORD = bytes.fromhex("0300000000000000b099490e6162636e57f121000000000000000029039807d8ea82a2")

FEATURES: dict[str, tf_example.FeatureValues] = {
    "a": np.array([1, 300, -1]),
    "b": np.array([0.5, -2.0], np.float32),
    "c": [b"hi", b""],
    "d": np.array([], np.int64),
}


def test_an_example_is_written_as_tensorflow_writes_it() -> None:
    assert tf_example.encode_example(FEATURES).hex() == EXAMPLE.hex()


def test_an_example_of_tensorflow_is_read() -> None:
    example = tf_example.decode_example(EXAMPLE)
    assert list(example) == ["a", "b", "c", "d"]
    assert list(example["a"]) == [1, 300, -1]
    assert list(example["b"]) == [0.5, -2.0]
    assert [bytes(item) for item in example["c"]] == [b"hi", b""]
    assert list(example["d"]) == []


def test_lists_that_are_not_packed_are_read() -> None:
    """Old writers give each number its own tag; a reader of protobuf takes both, and mixtures."""
    ints = bytes.fromhex("1a 0b 08 05 08 ac02 0a 02 01 07 08 01".replace(" ", ""))
    floats = bytes.fromhex("12 0a 0d 0000003f 0d 000000c0".replace(" ", ""))
    for name, feature, expected in (("i", ints, [5, 300, 1, 7, 1]), ("f", floats, [0.5, -2.0])):
        entry = b"\x0a\x01" + name.encode() + b"\x12" + bytes([len(feature)]) + feature
        features = b"\x0a" + bytes([len(entry)]) + entry
        example = tf_example.decode_example(b"\x0a" + bytes([len(features)]) + features)
        assert example[name].tolist() == expected  # type: ignore[union-attr]


def test_varints_at_the_edges() -> None:
    values = np.array([0, 127, 128, 16383, 16384, 2**31, 2**63 - 1, -1, -(2**63)])
    encoded = tf_example.encode_varints(values)
    assert encoded.hex() == ("007f8001ff7f8080018080808008ffffffffffffffff7fffffffffffffffffff0180808080808080808001")
    assert (tf_example.decode_varints(encoded) == values).all()


@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_varints_round_trip(values: list[int]) -> None:
    array = np.array(values, np.int64)
    assert (tf_example.decode_varints(tf_example.encode_varints(array)) == array).all()


def test_varints_of_more_than_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf_example, "_PIECE", 64)
    values = np.random.default_rng(0).integers(-(2**40), 2**40, 1000)
    assert (tf_example.decode_varints(tf_example.encode_varints(values)) == values).all()


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ("80", "cut short"),
        ("ffffffffffffffffffff01", "more than ten bytes"),
    ],
)
def test_bad_varints(data: str, problem: str) -> None:
    with pytest.raises(CorruptionError, match=problem):
        tf_example.decode_varints(bytes.fromhex(data))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ("0aff", "cut short"),
        ("0a05", "5 bytes announced, 0 left"),
        ("0affffffffffffffff7f", "9223372036854775807 bytes announced, 0 left"),
        ("0b", "unknown wire type 3"),
        ("0805", "expected bytes, got a number"),
        ("0a0d0a0b0a0162120612040a020000", "feature 'b': float_list of 2 bytes"),
    ],
)
def test_bad_protobufs_are_named(data: str, problem: str) -> None:
    with pytest.raises(CorruptionError, match=problem):
        tf_example.decode_example(bytes.fromhex(data))


@given(st.integers(0, len(EXAMPLE) - 1), st.integers(0, 255), st.integers(0, len(EXAMPLE)))
def test_changed_bytes_never_crash(place: int, byte: int, end: int) -> None:
    changed = bytearray(EXAMPLE)
    changed[place] = byte
    with contextlib.suppress(CorruptionError):
        tf_example.decode_example(bytes(changed[:end]))


def test_a_file_is_framed_as_tensorflow_frames_it(tmp_path: Path) -> None:
    assert (frame(b"abc") + frame(b"")).hex() == TFRECORD.hex()
    with TFRecordWriter(tmp_path / "x") as writer:
        writer.write(b"abc")
        writer.write(b"")
    assert (tmp_path / "x").read_bytes() == TFRECORD


def read(path: Path) -> list[bytes | str]:
    """Records, and the texts of errors in their places."""
    found: list[bytes | str] = []
    try:
        for record in TFRecordReader(path):
            found.append(str(record) if isinstance(record, DamagedRecord) else bytes(record))
    except TruncatedShard as error:
        found.append(str(error))
    return found


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    """A cut at a record's edge leaves a whole file (dataset_info.json has the count); any other is named."""
    path = tmp_path / "x"
    for end in range(len(TFRECORD)):
        path.write_bytes(TFRECORD[:end])
        if end == 0:
            assert read(path) == []
        elif end < 19:
            assert read(path) == [
                f"{path} record 0 (byte 0): the file ends inside the record's header"
                if end < 12
                else f"{path} record 0 (byte 0): the file ends inside the record: 3 bytes announced, {end - 12} left"
            ]
        elif end == 19:
            assert read(path) == [b"abc"]
        else:
            first, second = read(path)
            assert first == b"abc"
            assert str(second).startswith(f"{path} record 1 (byte 19): the file ends inside the record")


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for bit in range(8 * len(TFRECORD)):
        changed = bytearray(TFRECORD)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        found = read(path)
        assert any(isinstance(item, str) for item in found)
        assert all(item in (b"abc", b"") for item in found if isinstance(item, bytes))
        if 12 <= bit // 8 < 19:
            # The length is whole, so the next record is still found.
            assert found[1:] == [b""]
            assert "record 0 (byte 0): the checksum of the record does not match" in str(found[0])
