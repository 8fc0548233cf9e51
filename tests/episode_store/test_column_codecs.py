"""Codecs of blocks: literal bytes, sizes checked before allocation, partial decoding."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from episode_store import image_codecs
from episode_store.column_codecs import (
    BlockDecoder,
    Codec,
    ImageEncoder,
    encode_text_blocks,
    encode_texts,
    encode_varying_images,
    image_block_rows,
    raw_block_rows,
)
from episode_store.errors import CorruptionError


def _stored(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def test_block_sizes() -> None:
    """About 2 KiB of numbers; 32 frames, fewer of huge ones; never none."""
    assert raw_block_rows(4) == 512
    assert raw_block_rows(100_000) == 1
    assert raw_block_rows(0) == 2_048
    assert image_block_rows(210 * 160 * 3) == 32
    assert image_block_rows(1080 * 1920 * 3) == 5
    assert image_block_rows(1 << 28) == 1


def test_the_temporal_difference_literally() -> None:
    """First frame whole, then differences modulo 256."""
    frames = np.array([[[[250]]], [[[5]]], [[[5]]], [[[0]]]], np.uint8)
    film = np.repeat(np.repeat(frames, 64, axis=1), 64, axis=2)
    codec, (block,) = ImageEncoder().encode([film])
    stored = zstandard.compress(bytes([250, 11, 0, 251]), 1)
    out = np.empty((4, 1, 1, 1), np.uint8)
    BlockDecoder().decode_rows(Codec.TEMPORAL_DIFFERENCE_ZSTD, _stored(stored), out, 0, 4)
    assert out.ravel().tolist() == [250, 5, 5, 0]
    whole = np.empty_like(film)
    BlockDecoder().decode_rows(codec, _stored(block), whole, 0, 4)
    np.testing.assert_array_equal(whole, film)


LOSSLESS = [
    Codec.RAW,
    Codec.ZSTD,
    Codec.TEMPORAL_DIFFERENCE_ZSTD,
    Codec.CHANGED_UNITS_ZSTD,
    Codec.SPATIAL_DIFFERENCE_ZSTD,
]


@pytest.mark.parametrize("codec", LOSSLESS)
@pytest.mark.parametrize("shape", [(2, 3, 1), (8, 8, 3), (21, 8, 4), (1, 1, 1)])
@pytest.mark.parametrize("kind", ["noise", "still", "few changes"])
def test_any_part_of_a_block(codec: Codec, shape: tuple[int, ...], kind: str) -> None:
    """Every range of rows equals the slice, whatever changes and whether or not a frame is whole units."""
    rng = np.random.default_rng(0)
    film = rng.integers(0, 256, (9, *shape), dtype=np.uint8)
    if kind != "noise":
        film[:] = film[0]
    if kind == "few changes":
        for row in range(1, 9, 2):
            film[row:].reshape(9 - row, -1)[:, rng.integers(film[0].size)] += 1
    stored = _stored(ImageEncoder()._encode(codec, film))
    for start in range(9):
        for end in range(start + 1, 10):
            out = np.empty((end - start, *shape), np.uint8)
            BlockDecoder().decode_rows(codec, stored, out, start, 9)
            np.testing.assert_array_equal(out, film[start:end])


def test_changed_units_literally() -> None:
    """Counts, places, the first frame, and the parts of 64 bytes that changed."""
    film = np.zeros((3, 5, 5, 3), np.uint8)  # 75 bytes: two units, the second filled up with zeros
    film[1:, 4, 4, 2] = 9  # byte 74, in unit 1 of frame 1
    packed = image_codecs.changed_units(film)
    assert packed == bytes([1, 0, 0, 0, 0, 0, 0, 0, 1, 0]) + bytes(128) + bytes(10) + bytes([9]) + bytes(53)
    assert image_codecs.unit_bytes(4 << 20) == 64
    assert image_codecs.unit_bytes((4 << 20) + 1) == 128
    assert image_codecs.changed_units_bytes(np.array([1, 0], np.uint32), 75) == len(packed)


def test_spatial_difference_literally() -> None:
    """Less left, less above, plus left above; then red and blue less green; channel by channel."""
    film = np.array([[[[10, 20, 30], [11, 22, 33]], [[12, 20, 29], [14, 23, 30]]]], np.uint8)
    planes = image_codecs.spatial_difference(film)
    assert planes[0, 1].tolist() == [[20, 2], [0, 1]]
    assert planes[0, 0].tolist() == [[246, 255], [2, 0]]
    out = np.empty_like(film)
    image_codecs.restore_spatial_difference(planes, out)
    np.testing.assert_array_equal(out, film)


def test_large_frames_have_larger_units() -> None:
    """A frame of more than 4 MiB keeps its places in 16 bits."""
    film = np.zeros((2, 1200, 1200, 3), np.uint8)
    film[1, -1, -1] = 7
    stored = _stored(ImageEncoder()._encode(Codec.CHANGED_UNITS_ZSTD, film))
    out = np.empty_like(film)
    BlockDecoder().decode_rows(Codec.CHANGED_UNITS_ZSTD, stored, out, 0, 2)
    np.testing.assert_array_equal(out, film)


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_crafted_changed_units_never_crash(data: st.DataObject) -> None:
    """Any bytes in a valid zstd frame: the film, another film or an error, in bounds."""
    film = np.zeros((4, 8, 8, 3), np.uint8)
    film[2:, 3] = 5
    packed = bytearray(image_codecs.changed_units(film))
    for _ in range(data.draw(st.integers(1, 4))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    del packed[len(packed) - data.draw(st.integers(0, len(packed) // 2)) :]
    out = np.empty((2, 8, 8, 3), np.uint8)
    stored = _stored(zstandard.compress(bytes(packed)))
    with contextlib.suppress(CorruptionError):
        BlockDecoder().decode_rows(Codec.CHANGED_UNITS_ZSTD, stored, out, data.draw(st.integers(0, 2)), 4)


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    """A frame that claims more than its block holds."""
    bomb = _stored(zstandard.compress(bytes(1 << 22), 1))
    out = np.empty((2, 4), np.uint8)
    for codec in (Codec.ZSTD, Codec.TEMPORAL_DIFFERENCE_ZSTD):
        with pytest.raises(CorruptionError, match="unpacks to 4194304 bytes, expected 8"):
            BlockDecoder().decode_rows(codec, bomb, out, 0, 2)
    with pytest.raises(CorruptionError, match="unpacks to 4194304 bytes, expected at most"):
        BlockDecoder().decode_rows(Codec.CHANGED_UNITS_ZSTD, bomb, np.empty((2, 2, 2, 1), np.uint8), 0, 2)
    with pytest.raises(CorruptionError, match="cannot be unpacked"):
        BlockDecoder().decode_rows(Codec.ZSTD, _stored(b"not zstd"), out, 0, 2)
    with pytest.raises(CorruptionError, match="a block of 3 bytes, expected 8"):
        BlockDecoder().decode_rows(Codec.RAW, _stored(b"abc"), out, 0, 2)
    with pytest.raises(CorruptionError, match="does not hold rows of numbers"):
        BlockDecoder().decode_rows(Codec.TEXT, _stored(zstandard.compress(bytes(8))), out, 0, 2)


def test_texts_literally() -> None:
    """Byte lengths, then UTF-8."""
    payload = encode_texts(["a", "", "é"])
    assert payload == bytes([1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0]) + "aé".encode()
    decoder = BlockDecoder()
    assert decoder.decode_texts(Codec.TEXT, _stored(payload), 3) == ["a", "", "é"]
    codec, blocks = encode_text_blocks([["go to the red ball"] * 200])
    assert codec == Codec.TEXT_ZSTD
    assert len(blocks[0]) < 200
    assert decoder.decode_texts(codec, _stored(blocks[0]), 200) == ["go to the red ball"] * 200
    for bad in (payload[:-1], payload[:8], payload + b"x", payload[:-2] + b"\xff\xff"):
        with pytest.raises(CorruptionError):
            decoder.decode_texts(Codec.TEXT, _stored(bad), 3)


def test_images_of_varying_size_literally() -> None:
    """Heights and widths, then pixels; 32 in a block."""
    images = [np.full((1, 2, 1), 7, np.uint8), np.full((2, 1, 1), 9, np.uint8)]
    rows, (block,) = encode_varying_images(images)
    assert rows == 32
    payload = bytes([1, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 7, 7, 9, 9])
    assert zstandard.decompress(block) == payload
    found = BlockDecoder().decode_varying_images(_stored(block), 2, 1)
    assert [image.shape for image in found] == [(1, 2, 1), (2, 1, 1)]
    rows, blocks = encode_varying_images([*images, np.zeros((1 << 12, 1 << 12, 1), np.uint8)])
    assert (rows, len(blocks)) == (2, 2)


@pytest.mark.parametrize(
    ("sizes", "pixels"),
    [
        ([(1, 2), (2, 1)], 3),  # one pixel is missing
        ([(1, 2), (2, 1)], 5),
        ([(1 << 16, 1 << 16), (2, 2)], 4),  # their product is 0 in 32 bits
        ([((1 << 32) - 1, (1 << 32) - 1), (1, 1)], 2),  # and 1 here
        ([(0, 5), (2, 2)], 4),
    ],
)
def test_sizes_that_do_not_fit_their_pixels_are_damage(sizes: list[tuple[int, int]], pixels: int) -> None:
    """Said before anything of that size is allocated."""
    block = zstandard.compress(np.array(sizes, "<u4").tobytes() + bytes(pixels))
    with pytest.raises(CorruptionError, match=f"2 images of .* bytes in a block of {16 + pixels}"):
        BlockDecoder().decode_varying_images(_stored(block), 2, 1)


def test_a_block_of_varying_images_has_a_largest_size() -> None:
    """A small block that would unpack to 512 MiB, and one too small for its sizes."""
    compressor = zstandard.ZstdCompressor().compressobj(size=1 << 29)
    huge = compressor.compress(bytes(1 << 20)) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    with pytest.raises(CorruptionError, match="a block unpacks to 536870912 bytes"):
        BlockDecoder().decode_varying_images(_stored(huge), 2, 1)
    with pytest.raises(CorruptionError, match="a block of 9 bytes cannot hold 2 images"):
        BlockDecoder().decode_varying_images(_stored(zstandard.compress(bytes(9))), 2, 1)


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(1, 4))
def test_any_bytes_as_varying_images(payload: bytes, rows: int) -> None:
    """Images that have these bytes, or an error."""
    with contextlib.suppress(CorruptionError):
        found = BlockDecoder().decode_varying_images(_stored(zstandard.compress(payload)), rows, 3)
        assert sum(image.nbytes for image in found) + 8 * rows == len(payload)
