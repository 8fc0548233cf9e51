"""How one column's rows become stored bytes: blocks of rows, each decodable alone. Lossless unless asked otherwise.

Numbers are RAW. Images are coded in blocks of 32 frames by the codec that a short trial on the data finds best.
Text is UTF-8, compressed where that pays.
"""

from __future__ import annotations

import enum
import itertools
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xxhash
import zstandard

from episode_store import image_codecs, webp
from episode_store.errors import CorruptionError
from episode_store.spec import MAX_IMAGE_BYTES

RAW_BLOCK_BYTES = 2_048
IMAGE_BLOCK_ROWS = 32
TEXT_BLOCK_ROWS = 256
MAX_BLOCK_BYTES = 1 << 30
# An image block is cut to fewer frames rather than grow beyond this.
_IMAGE_BLOCK_BYTES = 1 << 25
_TRIAL_EVERY_BLOCKS = 256
# Frames that are enough to see what a codec without memory of other frames makes of them.
_TRIAL_FRAMES = 2

# The checksum of a block: XXH3 with 64 bits.
checksum: Callable[[Any], int] = xxhash.xxh3_64_intdigest
# The checksum of a whole column: XXH3 with 128 bits, which of numbers is also what their content hash is made of.
digest: Callable[[Any], bytes] = xxhash.xxh3_128_digest


class Codec(enum.IntEnum):
    """The number stored in a column's header. Numbers are never reused."""

    RAW = 0  # the rows' bytes, little-endian, C order
    ZSTD = 1  # one zstd frame of the rows' bytes
    TEMPORAL_DIFFERENCE_ZSTD = 2  # one zstd frame of `image_codecs.temporal_difference`
    TEXT = 3  # uint32 byte length of each row, then the UTF-8 bytes
    TEXT_ZSTD = 4  # one zstd frame of the same
    CHANGED_UNITS_ZSTD = 5  # one zstd frame of `image_codecs.changed_units`
    SPATIAL_DIFFERENCE_ZSTD = 6  # one zstd frame of `image_codecs.spatial_difference`
    WEBP = 7  # uint32 byte length of each frame, then the WebP files
    VARYING_IMAGES_ZSTD = 8  # one zstd frame of uint32 height and width of each image, then their pixels


TEXT_CODECS = frozenset({Codec.TEXT, Codec.TEXT_ZSTD})
IMAGE_CODECS = frozenset(
    {Codec.TEMPORAL_DIFFERENCE_ZSTD, Codec.CHANGED_UNITS_ZSTD, Codec.SPATIAL_DIFFERENCE_ZSTD, Codec.WEBP}
)
# Of those, the best is chosen by what a reader pays: nanoseconds to fetch a stored byte (from a disk or a network of
# 50 MB/s), and to decode a byte of image (docs/store.md#codecs has the measurements).
_FETCH_NANOSECONDS = 20.0
_DECODE_NANOSECONDS = {
    Codec.RAW: 0.05,
    Codec.CHANGED_UNITS_ZSTD: 0.1,
    Codec.ZSTD: 0.2,
    Codec.TEMPORAL_DIFFERENCE_ZSTD: 0.25,
    Codec.SPATIAL_DIFFERENCE_ZSTD: 2.0,
}
# What is left after a difference is noise, where a search for repetitions costs much and finds little.
_ZSTD_LEVELS = {
    Codec.CHANGED_UNITS_ZSTD: 3,
    Codec.ZSTD: 3,
    Codec.TEMPORAL_DIFFERENCE_ZSTD: 1,
    Codec.SPATIAL_DIFFERENCE_ZSTD: 1,
}


def raw_block_rows(row_bytes: int) -> int:
    """Rows in a RAW block: about 2 KiB, what one checksum covers, since a window of steps is not longer."""
    return max(1, RAW_BLOCK_BYTES // max(1, row_bytes))


def image_block_rows(row_bytes: int) -> int:
    """Frames in an image block."""
    return max(1, min(IMAGE_BLOCK_ROWS, _IMAGE_BLOCK_BYTES // max(1, row_bytes)))


class ImageEncoder:
    """Encodes blocks of one image column, trying the codecs on a block of the first episode and now and then again."""

    def __init__(self) -> None:
        # Contexts are reused: making one costs more than a small block.
        self._zstd = {
            level: zstandard.ZstdCompressor(level=level, write_content_size=True)
            for level in set(_ZSTD_LEVELS.values())
        }
        self._codec = Codec.CHANGED_UNITS_ZSTD
        self._blocks_until_trial = 0

    def encode(self, blocks: Sequence[np.ndarray]) -> tuple[Codec, list[bytes]]:
        """Encodes all blocks of one column of one episode.

        Args:
          blocks: uint8 [rows, height, width, channels] each, contiguous.

        Returns:
          The codec and each block's stored bytes.
        """
        if self._blocks_until_trial <= 0:
            # From the middle: episodes often begin with a screen that stands still.
            self._codec = self._trial(blocks[(len(blocks) - 1) // 2])
            self._blocks_until_trial = _TRIAL_EVERY_BLOCKS
        self._blocks_until_trial -= len(blocks)
        return self._codec, [self._encode(self._codec, block) for block in blocks]

    def _trial(self, block: np.ndarray) -> Codec:
        few = block[:: -(-len(block) // _TRIAL_FRAMES)]
        sizes: dict[Codec, float] = {Codec.RAW: block.nbytes}
        for codec in _ZSTD_LEVELS:
            sample = np.ascontiguousarray(few) if codec == Codec.SPATIAL_DIFFERENCE_ZSTD else block
            sizes[codec] = len(self._encode(codec, sample)) * (len(block) / len(sample))
        return min(
            sizes,
            key=lambda codec: sizes[codec] * _FETCH_NANOSECONDS + block.nbytes * _DECODE_NANOSECONDS[codec],
        )

    def _encode(self, codec: Codec, block: np.ndarray) -> bytes:
        if codec == Codec.RAW:
            return block.tobytes()
        packed: bytes | memoryview
        if codec == Codec.CHANGED_UNITS_ZSTD:
            packed = image_codecs.changed_units(block)
        elif codec == Codec.TEMPORAL_DIFFERENCE_ZSTD:
            packed = image_codecs.temporal_difference(block).data
        elif codec == Codec.SPATIAL_DIFFERENCE_ZSTD:
            packed = image_codecs.spatial_difference(block).data
        else:
            packed = block.data
        return self._zstd[_ZSTD_LEVELS[codec]].compress(packed)


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


def encode_varying_images(images: Sequence[np.ndarray]) -> tuple[int, list[bytes]]:
    """Encodes one column of images whose size varies.

    Args:
      images: uint8 [height, width, channels] each.

    Returns:
      How many images a block has, and each block's stored bytes.
    """
    rows = image_block_rows(max(image.nbytes for image in images))
    compressor = zstandard.ZstdCompressor(level=3, write_content_size=True)
    blocks = []
    for start in range(0, len(images), rows):
        block = images[start : start + rows]
        sizes = np.array([image.shape[:2] for image in block], "<u4")
        blocks.append(compressor.compress(b"".join([sizes.tobytes(), *(image.tobytes() for image in block)])))
    return rows, blocks


class BlockDecoder:
    """Decodes blocks whose checksum was already verified; sizes are still checked before anything is allocated.

    Safe to share among threads.
    """

    def __init__(self) -> None:
        self._contexts = threading.local()

    def decode_rows(self, codec: Codec, stored: np.ndarray, out: np.ndarray, skip: int, block_rows: int) -> None:
        """Decodes rows [skip, skip + len(out)) of a block into `out`, unpacking no more than they need.

        Args:
          codec: RAW, ZSTD, or one of `IMAGE_CODECS`.
          stored: uint8 [n], the block's bytes.
          out: [rows, ...], contiguous; for `IMAGE_CODECS` uint8 [rows, height, width, channels].
          skip: rows of the block before the first wanted one.
          block_rows: all rows of the block.

        Raises:
          CorruptionError: the bytes are not what the codec makes.
        """
        row_bytes = out.nbytes // len(out)
        wanted = skip + len(out)
        if codec == Codec.RAW:
            if len(stored) != block_rows * row_bytes:
                raise CorruptionError(f"a block of {len(stored)} bytes, expected {block_rows * row_bytes}")
            rows = np.ndarray((block_rows, *out.shape[1:]), out.dtype, stored)
            out[:] = rows[skip:wanted]
        elif codec == Codec.CHANGED_UNITS_ZSTD:
            packed = self._unpack_changed_units(stored.data, block_rows, wanted, row_bytes)
            image_codecs.restore_changed_units(packed, out, skip, block_rows)
        elif codec == Codec.WEBP:
            webp.decode_frames(stored, out, skip, block_rows)
        elif codec in (Codec.ZSTD, Codec.TEMPORAL_DIFFERENCE_ZSTD, Codec.SPATIAL_DIFFERENCE_ZSTD):
            unpacked = self._decompress(stored.data, block_rows * row_bytes, wanted * row_bytes)
            rows = np.frombuffer(unpacked, out.dtype)
            if codec == Codec.SPATIAL_DIFFERENCE_ZSTD:
                height, width, channels = out.shape[1:]
                image_codecs.restore_spatial_difference(rows.reshape(wanted, channels, height, width)[skip:], out)
            elif codec == Codec.TEMPORAL_DIFFERENCE_ZSTD:
                image_codecs.restore_temporal_difference(rows.reshape(wanted, *out.shape[1:]), out, skip)
            else:
                out[:] = rows.reshape(wanted, *out.shape[1:])[skip:]
        else:
            raise CorruptionError(f"codec {int(codec)} does not hold rows of numbers")

    def _unpack_changed_units(self, stored: memoryview, block_rows: int, wanted: int, row_bytes: int) -> np.ndarray:
        """What `image_codecs.changed_units` made, up to the last frame wanted where that saves much."""
        try:
            size = zstandard.frame_content_size(stored)
            most = image_codecs.most_changed_units_bytes(block_rows, row_bytes)
            if not 0 < size <= most:
                raise CorruptionError(f"a block unpacks to {size} bytes, expected at most {most}")
            few_changes = size <= 2 * row_bytes + 4 * block_rows + image_codecs.unit_bytes(row_bytes)
            if wanted == block_rows or few_changes:
                packed = np.frombuffer(self._context().decompress(stored, max_output_size=size), np.uint8)
                counts = packed[: 4 * (block_rows - 1)].view("<u4")
                needed = len(packed)
            else:
                with self._context().stream_reader(stored, read_size=len(stored)) as reader:
                    head = reader.read(4 * (block_rows - 1))
                    counts = np.frombuffer(head, "<u4")
                    later = counts[wanted - 1 :].sum(dtype=np.uint64)
                    needed = size - int(later) * image_codecs.unit_bytes(row_bytes)
                    packed = np.frombuffer(head + reader.read(max(0, needed - len(head))), np.uint8)
        except (zstandard.ZstdError, ValueError) as error:
            raise CorruptionError(f"a block cannot be unpacked: {error}") from None
        if image_codecs.changed_units_bytes(counts, row_bytes) != size or len(packed) != needed:
            raise CorruptionError(f"a block unpacks to {size} bytes, which its parts do not make")
        return packed

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

    def decode_varying_images(self, stored: np.ndarray, rows: int, channels: int) -> list[np.ndarray]:
        """All images of a VARYING_IMAGES_ZSTD block: uint8 [height, width, channels] each, read-only."""
        payload = self._decompress(stored.data, None, most=8 * rows + max(_IMAGE_BLOCK_BYTES, MAX_IMAGE_BYTES))
        if len(payload) < 8 * rows:
            raise CorruptionError(f"a block of {len(payload)} bytes cannot hold {rows} images")
        # Python's integers: products of two uint32 do not wrap.
        shapes = [(*size, channels) for size in np.frombuffer(payload, "<u4", 2 * rows).reshape(rows, 2).tolist()]
        sizes = [math.prod(shape) for shape in shapes]
        if 0 in sizes or 8 * rows + sum(sizes) != len(payload):
            raise CorruptionError(f"{rows} images of {sum(sizes)} bytes in a block of {len(payload)}")
        starts = itertools.accumulate(sizes, initial=8 * rows)
        return [np.ndarray(shape, np.uint8, payload, start) for shape, start in zip(shapes, starts, strict=False)]

    def _context(self) -> zstandard.ZstdDecompressor:
        """This thread's own."""
        context: zstandard.ZstdDecompressor | None = getattr(self._contexts, "zstd", None)
        if context is None:
            context = self._contexts.zstd = zstandard.ZstdDecompressor()
        return context

    def _decompress(
        self,
        stored: memoryview | bytes,
        expected: int | None,
        wanted: int | None = None,
        most: int = MAX_BLOCK_BYTES,
    ) -> bytes:
        """The first `wanted` bytes (all by default) of a frame that unpacks to `expected` bytes (any up to `most`)."""
        try:
            size = zstandard.frame_content_size(stored)
            if size < 0 or size > most or (expected is not None and size != expected):
                raise CorruptionError(f"a block unpacks to {size} bytes, expected {expected}")
            context = self._context()
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
