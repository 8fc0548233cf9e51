"""Codecs of blocks: literal bytes, sizes checked before allocation, partial decoding."""

from __future__ import annotations

import numpy as np
import pytest
import zstandard

from episode_store.column_codecs import (
    BlockDecoder,
    Codec,
    ImageEncoder,
    encode_text_blocks,
    encode_texts,
    image_block_rows,
    raw_block_rows,
)
from episode_store.errors import CorruptionError


def _stored(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def test_block_sizes() -> None:
    """About 16 KiB of numbers; 16 frames, fewer of huge ones; never none."""
    assert raw_block_rows(4) == 4096
    assert raw_block_rows(100_000) == 1
    assert raw_block_rows(0) == 16_384
    assert image_block_rows(210 * 160 * 3) == 16
    assert image_block_rows(1080 * 1920 * 3) == 5
    assert image_block_rows(1 << 28) == 1


def test_the_temporal_difference_literally() -> None:
    """First frame whole, then differences modulo 256."""
    frames = np.array([[[[250]]], [[[5]]], [[[5]]], [[[0]]]], np.uint8)
    film = np.repeat(np.repeat(frames, 64, axis=1), 64, axis=2)
    codec, (block,) = ImageEncoder().encode([film])
    assert codec in (Codec.ZSTD, Codec.TEMPORAL_DIFFERENCE_ZSTD)
    stored = zstandard.compress(bytes([250, 11, 0, 251]), 1)
    out = np.empty((4, 1, 1, 1), np.uint8)
    BlockDecoder().decode_rows(Codec.TEMPORAL_DIFFERENCE_ZSTD, _stored(stored), out, 0, 4)
    assert out.ravel().tolist() == [250, 5, 5, 0]
    whole = np.empty_like(film)
    BlockDecoder().decode_rows(codec, _stored(block), whole, 0, 4)
    np.testing.assert_array_equal(whole, film)


@pytest.mark.parametrize("codec", [Codec.RAW, Codec.ZSTD, Codec.TEMPORAL_DIFFERENCE_ZSTD])
def test_any_part_of_a_block(codec: Codec) -> None:
    """Every range of rows equals the slice."""
    film = np.random.default_rng(0).integers(0, 256, (9, 2, 3, 1), dtype=np.uint8)
    stored = _stored(ImageEncoder()._encode(codec, film))
    for start in range(9):
        for end in range(start + 1, 10):
            out = np.empty((end - start, 2, 3, 1), np.uint8)
            BlockDecoder().decode_rows(codec, stored, out, start, 9)
            np.testing.assert_array_equal(out, film[start:end])


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    """A frame that claims more than its block holds."""
    bomb = _stored(zstandard.compress(bytes(1 << 22), 1))
    out = np.empty((2, 4), np.uint8)
    for codec in (Codec.ZSTD, Codec.TEMPORAL_DIFFERENCE_ZSTD):
        with pytest.raises(CorruptionError, match="unpacks to 4194304 bytes, expected 8"):
            BlockDecoder().decode_rows(codec, bomb, out, 0, 2)
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
