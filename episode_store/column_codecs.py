"""How one column's rows become stored bytes: blocks of rows, each decodable alone. Always lossless.

Numbers are RAW. Images are coded in blocks of 16 frames by the codec that a short trial on the data finds smallest.
Text is UTF-8, compressed where that pays.
"""

from __future__ import annotations

import enum
import itertools
import math
import threading
from collections.abc import Sequence

import numpy as np
import zstandard

from episode_store.errors import CorruptionError

RAW_BLOCK_BYTES = 16_384
IMAGE_BLOCK_ROWS = 16
TEXT_BLOCK_ROWS = 256
MAX_BLOCK_BYTES = 1 << 30
# An image block is cut to fewer frames rather than grow beyond this.
_IMAGE_BLOCK_BYTES = 1 << 25
# Compression must save this part of the bytes, else the reader is spared the work.
_WORTHWHILE = 0.95
_TRIAL_EVERY_BLOCKS = 256


class Codec(enum.IntEnum):
    """The number stored in a column's header. Numbers are never reused."""

    RAW = 0  # the rows' bytes, little-endian, C order
    ZSTD = 1  # one zstd frame of the rows' bytes
    TEMPORAL_DIFFERENCE_ZSTD = 2  # uint8: the block's first row whole, then each row minus the row before (mod 256)
    TEXT = 3  # uint32 byte length of each row, then the UTF-8 bytes
    TEXT_ZSTD = 4  # one zstd frame of the same


TEXT_CODECS = frozenset({Codec.TEXT, Codec.TEXT_ZSTD})


def raw_block_rows(row_bytes: int) -> int:
    """Rows in a RAW block: about 16 KiB, what one checksum covers."""
    return max(1, RAW_BLOCK_BYTES // max(1, row_bytes))


def image_block_rows(row_bytes: int) -> int:
    """Frames in an image block."""
    return max(1, min(IMAGE_BLOCK_ROWS, _IMAGE_BLOCK_BYTES // max(1, row_bytes)))


class ImageEncoder:
    """Encodes blocks of one image column, trying the codecs on the first block and now and then again."""

    def __init__(self) -> None:
        # One context is reused: making one costs more than a small block.
        self._zstd = zstandard.ZstdCompressor(level=1, write_content_size=True)
        self._codec = Codec.TEMPORAL_DIFFERENCE_ZSTD
        self._blocks_until_trial = 0

    def encode(self, blocks: Sequence[np.ndarray]) -> tuple[Codec, list[bytes]]:
        """Encodes all blocks of one column of one episode.

        Args:
          blocks: uint8 [rows, height, width, channels] each, contiguous.

        Returns:
          The codec and each block's stored bytes.
        """
        if self._blocks_until_trial <= 0:
            self._codec = self._trial(blocks[0])
            self._blocks_until_trial = _TRIAL_EVERY_BLOCKS
        self._blocks_until_trial -= len(blocks)
        return self._codec, [self._encode(self._codec, block) for block in blocks]

    def _trial(self, block: np.ndarray) -> Codec:
        difference = len(self._encode(Codec.TEMPORAL_DIFFERENCE_ZSTD, block))
        plain = len(self._encode(Codec.ZSTD, block))
        best, size = (Codec.ZSTD, plain) if plain < difference else (Codec.TEMPORAL_DIFFERENCE_ZSTD, difference)
        return best if size < _WORTHWHILE * block.nbytes else Codec.RAW

    def _encode(self, codec: Codec, block: np.ndarray) -> bytes:
        if codec == Codec.RAW:
            return block.tobytes()
        if codec == Codec.TEMPORAL_DIFFERENCE_ZSTD:
            difference = np.empty_like(block)
            difference[0] = block[0]
            np.subtract(block[1:], block[:-1], out=difference[1:])
            block = difference
        return self._zstd.compress(block.data)


def encode_texts(texts: Sequence[str]) -> bytes:
    """The TEXT payload of one block."""
    encoded = [text.encode("utf-8") for text in texts]
    lengths = np.fromiter(map(len, encoded), dtype="<u4", count=len(encoded))
    return lengths.tobytes() + b"".join(encoded)


def encode_text_blocks(blocks: Sequence[Sequence[str]]) -> tuple[Codec, list[bytes]]:
    """Encodes all blocks of one text column of one episode, compressed where that saves something."""
    plain = [encode_texts(block) for block in blocks]
    size = sum(map(len, plain))
    if size >= 256:
        compressor = zstandard.ZstdCompressor(level=3, write_content_size=True)
        packed = [compressor.compress(block) for block in plain]
        if sum(map(len, packed)) < 0.8 * size:
            return Codec.TEXT_ZSTD, packed
    return Codec.TEXT, plain


class BlockDecoder:
    """Decodes blocks whose checksum was already verified; sizes are still checked before anything is allocated.

    Safe to share among threads.
    """

    def __init__(self) -> None:
        self._contexts = threading.local()

    def decode_rows(self, codec: Codec, stored: np.ndarray, out: np.ndarray, skip: int, block_rows: int) -> None:
        """Decodes rows [skip, skip + len(out)) of a block into `out`.

        Args:
          codec: RAW, ZSTD or TEMPORAL_DIFFERENCE_ZSTD.
          stored: uint8 [n], the block's bytes.
          out: [rows, ...], contiguous.
          skip: rows of the block before the first wanted one.
          block_rows: all rows of the block.
        """
        expected = block_rows * (out.nbytes // len(out))
        if codec == Codec.RAW:
            if len(stored) != expected:
                raise CorruptionError(f"a block of {len(stored)} bytes, expected {expected}")
            rows = np.ndarray((block_rows, *out.shape[1:]), out.dtype, stored)
            out[:] = rows[skip : skip + len(out)]
            return
        # Stops at the last row wanted.
        wanted = skip + len(out)
        unpacked = self._decompress(stored.data, expected, wanted * (expected // block_rows))
        rows = np.frombuffer(unpacked, out.dtype).reshape(wanted, *out.shape[1:])
        if codec == Codec.ZSTD:
            out[:] = rows[skip:]
        elif codec == Codec.TEMPORAL_DIFFERENCE_ZSTD:
            if skip:
                np.sum(rows[: skip + 1], axis=0, dtype=out.dtype, out=out[0])
            else:
                out[0] = rows[0]
            for row in range(1, len(out)):
                np.add(out[row - 1], rows[skip + row], out=out[row])
        else:
            raise CorruptionError(f"codec {int(codec)} does not hold rows of numbers")

    def decode_texts(self, codec: Codec, stored: np.ndarray, rows: int) -> list[str]:
        """All texts of a TEXT or TEXT_ZSTD block."""
        payload = stored.tobytes()
        if codec == Codec.TEXT_ZSTD:
            payload = self._decompress(payload, None)
        if len(payload) < 4 * rows:
            raise CorruptionError(f"a text block of {len(payload)} bytes cannot hold {rows} texts")
        ends = np.cumsum(np.frombuffer(payload, "<u4", rows), dtype=np.int64)
        body = payload[4 * rows :]
        if int(ends[-1]) != len(body):
            raise CorruptionError(f"texts of {int(ends[-1])} bytes in a block of {len(body)}")
        edges = [0, *ends.tolist()]
        try:
            text = body.decode("utf-8")
            if len(text) == len(body):
                return [text[start:end] for start, end in itertools.pairwise(edges)]
            return [body[start:end].decode("utf-8") for start, end in itertools.pairwise(edges)]
        except UnicodeDecodeError as error:
            raise CorruptionError(f"a text is not UTF-8: {error.reason}") from None

    def _decompress(self, stored: memoryview | bytes, expected: int | None, wanted: int | None = None) -> bytes:
        """The first `wanted` bytes (all by default) of a frame that unpacks to `expected` bytes (any by default)."""
        try:
            size = zstandard.frame_content_size(stored)
            if size < 0 or size > MAX_BLOCK_BYTES or (expected is not None and size != expected):
                raise CorruptionError(f"a block unpacks to {size} bytes, expected {expected}")
            context = getattr(self._contexts, "zstd", None)
            if context is None:
                context = self._contexts.zstd = zstandard.ZstdDecompressor()
            if wanted is None or wanted == size:
                return context.decompress(stored, max_output_size=size)
            with context.stream_reader(stored, read_size=len(stored)) as reader:
                unpacked = reader.read(wanted)
            if len(unpacked) != wanted:
                raise CorruptionError(f"a block unpacks to {len(unpacked)} bytes, expected {wanted}")
            return unpacked
        except zstandard.ZstdError as error:
            raise CorruptionError(f"a block cannot be unpacked: {error}") from None


def row_bytes(shape: Sequence[int], dtype: np.dtype) -> int:
    """Bytes of one row of a column."""
    return math.prod(shape) * dtype.itemsize
