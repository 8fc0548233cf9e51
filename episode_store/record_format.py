"""One episode as a self-describing record of bytes. docs/file_format.md has the same facts for other languages.

    header      fixed part, task id, metadata JSON, one entry a column with the size and checksum of each block
    columns     each at a multiple of 64 bytes from the record's start, zeros between

A record holds all that is known of its episode, so an index can always be made again from the records.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import struct
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import google_crc32c
import numpy as np

from episode_store import column_codecs
from episode_store.column_codecs import Codec, ImageEncoder
from episode_store.episode import Episode, EpisodeMetadata
from episode_store.errors import CorruptionError, EpisodeError
from episode_store.spec import STORED_DTYPES, VARIES, ArraySpec, FieldValues, Modality
from episode_store.storage import Record
from episode_store.task import TaskSpec

ALIGNMENT = 64
RECORD_MAGIC = b"EPISODE\x02"
MAX_HEADER_BYTES = 1 << 26

# magic, crc32c of header bytes from 12 on, header bytes, record bytes, steps, flags, episode id, content hash,
# return, length of task id, number of columns, length of the metadata.
_FIXED = struct.Struct("<8s I I Q I I 16s 16s d H H I")
_COLUMN = struct.Struct("<B B B B H H I I I Q Q 16s")
_CHECKSUM = struct.Struct("<I")
_TERMINATED, _TRUNCATED = 1, 2
_MAX_NAME_BYTES = 1_000
_REWARDS_TYPE = ("<f8", ())
# `VARIES` as an unsigned integer.
_VARIES_STORED = (1 << 32) - 1


class Group(enum.IntEnum):
    """What a column belongs to."""

    OBSERVATION = 0
    ACTION = 1
    REWARD = 2
    STEP_COLUMN = 3


_NOTHING: Mapping[str, Any] = MappingProxyType({})
_ZEROS = bytes(ALIGNMENT)
GROUP_NAMES = {Group.OBSERVATION: "observations", Group.ACTION: "actions", Group.STEP_COLUMN: "step_columns"}


def column_path(group: Group, name: str) -> str:
    """`observations/<name>`, `actions/<name>`, `rewards` or `step_columns/<name>`."""
    return "rewards" if group == Group.REWARD else f"{GROUP_NAMES[group]}/{name}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """Where one column of one record lies.

    Attributes:
      group, name: which column.
      codec: how its blocks are stored.
      dtype: NumPy dtype string with byte order, or "str".
      shape: of one row.
      num_rows: T + 1 for observations, else T.
      quality: of lossy images, 1 to 100; 0 where the column is what was given.
      block_rows: rows of each block but the last.
      offset: of the first block from the record's start; blocks follow each other without a gap.
      stored_bytes: of all blocks.
      digest: `column_codecs.digest` of all of them.
      block_bytes: stored bytes of each block.
      checksums: `column_codecs.checksum` of each block's stored bytes.
      checksums_offset: of the first of these from the record's start.
    """

    group: Group
    name: str
    codec: Codec
    dtype: str
    shape: tuple[int, ...]
    num_rows: int
    quality: int
    block_rows: int
    offset: int
    stored_bytes: int
    digest: bytes
    block_bytes: tuple[int, ...]
    checksums: tuple[int, ...]
    checksums_offset: int

    @property
    def path(self) -> str:
        """`observations/<name>`, `actions/<name>`, `rewards` or `step_columns/<name>`."""
        return column_path(self.group, self.name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordHeader:
    """The parsed header of one record."""

    episode_id: str
    content_hash: str
    task_id: str
    num_steps: int
    episode_return: float
    terminated: bool
    truncated: bool
    metadata_json: str
    header_bytes: int
    record_bytes: int
    columns: tuple[Column, ...]

    @property
    def metadata(self) -> EpisodeMetadata:
        """The episode's provenance."""
        try:
            return EpisodeMetadata.from_json(json.loads(self.metadata_json))
        except (ValueError, TypeError, AttributeError) as error:
            raise CorruptionError(f"the record's metadata cannot be parsed: {error}") from None


def align(size: int) -> int:
    """`size` rounded up to the next multiple of 64."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class EncodedColumn(NamedTuple):
    """The blocks of one column, ready to be stored; `body` is buffers in a row, the rest is as in `Column`."""

    codec: Codec
    quality: int
    block_rows: int
    stored_bytes: int
    digest: bytes
    block_bytes: Sequence[int]
    checksums: Sequence[int]
    body: Sequence[Any]

    @classmethod
    def of_blocks(cls, codec: Codec, block_rows: int, blocks: Sequence[bytes], quality: int = 0) -> EncodedColumn:
        """A column whose blocks are buffers of their own."""
        digest = column_codecs.digest(b"".join(blocks))
        sizes = [len(block) for block in blocks]
        checksums = [column_codecs.checksum(block) for block in blocks]
        return cls(codec, quality, block_rows, sum(sizes), digest, sizes, checksums, blocks)

    @classmethod
    def of_numbers(cls, values: np.ndarray, row_bytes: int, digest: bytes | None = None) -> EncodedColumn:
        """A RAW column; its body is a view of `values`, which are contiguous; `digest` where it is at hand."""
        rows, size = column_codecs.raw_block_rows(row_bytes), values.nbytes
        digest = digest or column_codecs.digest(values)
        if not size:
            return cls(Codec.RAW, 0, rows, 0, digest, (), (), ())
        stored, step = values.data.cast("B"), rows * row_bytes
        starts = range(0, size, step)
        sizes = [step] * len(starts)
        sizes[-1] = size - starts[-1]
        checksums = [column_codecs.checksum(stored[start : start + step]) for start in starts]
        return cls(Codec.RAW, 0, rows, size, digest, sizes, checksums, (stored,))


class _PlannedColumn(NamedTuple):
    """What is the same for a column in every episode of its task."""

    group: Group
    path: str
    spec: ArraySpec | None
    # The entry's name, dtype and axes as they are stored, and the lengths of these three.
    described: bytes
    lengths: tuple[int, int, int]


class RecordEncoder:
    """Turns valid episodes into records; remembers per image column which codec the trial chose."""

    def __init__(self) -> None:
        self._image_encoders: dict[tuple[str, str], ImageEncoder] = {}
        # By task id: the task and its columns in stored order, but for step columns.
        self._plans: dict[str, tuple[TaskSpec, list[_PlannedColumn]]] = {}

    def encode(
        self,
        episode: Episode,
        task: TaskSpec,
        content_hash: str,
        episode_id: str,
        *,
        metadata_json: str | None = None,
        digests: Mapping[str, bytes] = _NOTHING,
        encoded: Mapping[str, EncodedColumn] = _NOTHING,
    ) -> list[Any]:
        """The whole record of an episode that `Episode.validate` accepted, as buffers to write one after the other.

        Args:
          episode, task: what is stored.
          content_hash, episode_id: of the episode.
          metadata_json: its `encode_metadata`, where that is at hand.
          digests: of its fields, from `hash_content`, where they are at hand.
          encoded: path -> what was made of a column already.

        Raises:
          EpisodeError: a size or a name that the format cannot hold.
        """
        where = f"episode of {episode.task_id}"
        task_id = episode.task_id.encode()
        if metadata_json is None:
            metadata_json = encode_metadata(episode.metadata, where)
        metadata = metadata_json.encode()
        entries: list[tuple[Any, ...]] = []
        bodies: list[Any] = []
        offset = 0  # from the first column on; the header's size is known last
        header_bytes = _FIXED.size + len(task_id) + len(metadata)
        fields = dict(episode.fields())
        for group, path, spec, described, (axes, dtype_bytes, name_bytes) in self._columns_of(episode, task):
            values = fields[path]
            codec, quality, block_rows, size, digest, block_bytes, checksums, body = (
                encoded.get(path) if encoded else None
            ) or self._encode_column(episode.task_id, path, values, spec, digests.get(path))
            num_blocks = len(checksums)
            tail = described + struct.pack(f"<{num_blocks}I{num_blocks}Q", *block_bytes, *checksums)
            lengths = (axes, dtype_bytes, name_bytes, quality, len(values), block_rows, num_blocks)
            entries.append((group, codec, *lengths, offset, size, digest, tail))
            header_bytes += _COLUMN.size + len(tail)
            bodies += body
            padding = -size % ALIGNMENT
            if padding:
                bodies.append(_ZEROS[:padding])
            offset += size + padding
        if header_bytes > MAX_HEADER_BYTES or len(entries) > 0xFFFF or episode.num_steps >= 1 << 32:
            raise EpisodeError(f"{where}: too long for one record ({episode.num_steps} steps); divide it")
        base = align(header_bytes)
        header = bytearray(
            _FIXED.pack(
                RECORD_MAGIC,
                0,
                header_bytes,
                base + offset,
                episode.num_steps,
                _TERMINATED * bool(episode.terminated) | _TRUNCATED * bool(episode.truncated),
                bytes.fromhex(episode_id),
                bytes.fromhex(content_hash),
                episode.episode_return,
                len(task_id),
                len(entries),
                len(metadata),
            )
        )
        header += task_id + metadata
        for *facts, start, size, digest, tail in entries:
            header += _COLUMN.pack(*facts, base + start, size, digest)
            header += tail
        _CHECKSUM.pack_into(header, 8, google_crc32c.value(bytes(header[12:header_bytes])))
        header += bytes(base - header_bytes)
        return [header, *bodies]

    def _columns_of(self, episode: Episode, task: TaskSpec) -> list[_PlannedColumn]:
        """All columns in stored order: rewards first, then observations, actions and step columns by name."""
        known, columns = self._plans.get(task.task_id, (None, []))
        if known is not task:
            columns = [_plan(episode.task_id, Group.REWARD, "rewards", None, *_REWARDS_TYPE)]
            for group, specs in ((Group.OBSERVATION, task.observation_spec), (Group.ACTION, task.action_spec)):
                columns += [
                    _plan(task.task_id, group, name, spec, *_stored_type(spec)) for name, spec in sorted(specs.items())
                ]
            self._plans[task.task_id] = (task, columns)
        if episode.step_columns:
            return columns + [
                _plan(task.task_id, Group.STEP_COLUMN, name, None, values.dtype.str, values.shape[1:])
                for name, values in sorted(episode.step_columns.items())
            ]
        return columns

    def _encode_column(
        self, task_id: str, path: str, values: FieldValues, spec: ArraySpec | None, digest: bytes | None
    ) -> EncodedColumn:
        if spec is not None and spec.varies:
            rows, varying = column_codecs.encode_varying_images(list(values))
            return EncodedColumn.of_blocks(Codec.VARYING_IMAGES_ZSTD, rows, varying)
        if isinstance(values, list):
            rows = column_codecs.TEXT_BLOCK_ROWS
            codec, texts = column_codecs.encode_text_blocks([values[i : i + rows] for i in range(0, len(values), rows)])
            return EncodedColumn.of_blocks(codec, rows, texts)
        row_bytes = column_codecs.row_bytes(values.shape[1:], values.dtype)
        if row_bytes > column_codecs.MAX_BLOCK_BYTES:
            raise EpisodeError(f"episode of {task_id}: {path}: {row_bytes} bytes a step, expected at most 1 GiB")
        values = np.ascontiguousarray(values)
        if spec is not None and spec.modality == Modality.IMAGE and row_bytes:
            encoder = self._image_encoders.setdefault((task_id, path), ImageEncoder())
            rows = column_codecs.image_block_rows(row_bytes)
            codec, images = encoder.encode(image_blocks(values))
            return EncodedColumn.of_blocks(codec, rows, images)
        return EncodedColumn.of_numbers(values, row_bytes, digest)


def image_blocks(values: np.ndarray) -> list[np.ndarray]:
    """Frames in blocks as they are stored; [rows, height, width, channels] each."""
    rows = column_codecs.image_block_rows(values.nbytes // len(values))
    return [values[i : i + rows] for i in range(0, len(values), rows)]


def encode_metadata(metadata: EpisodeMetadata, where: str) -> str:
    """The metadata as JSON.

    Raises:
      EpisodeError: a value that JSON cannot hold or an integer beyond 64 bits.
    """
    for name, number in (("seed", metadata.seed), ("collection_index", metadata.collection_index)):
        if number is not None and not -(1 << 63) <= number < 1 << 63:
            raise EpisodeError(f"{where}: metadata/{name}: expected a 64-bit integer, got {number}")
    try:
        text = metadata.encode()
        text.encode("utf-8")
    except (TypeError, ValueError) as error:
        raise EpisodeError(f"{where}: metadata: expected values that JSON can hold: {error}") from None
    return text


def _plan(
    task_id: str, group: Group, name: str, spec: ArraySpec | None, dtype: str, shape: tuple[int, ...]
) -> _PlannedColumn:
    name_bytes, dtype_bytes = name.encode(), dtype.encode()
    if len(name_bytes) > _MAX_NAME_BYTES:
        raise EpisodeError(f"episode of {task_id}: field name {name[:40]!r}... has more than {_MAX_NAME_BYTES} bytes")
    sides = struct.pack(f"<{len(shape)}I", *(_VARIES_STORED if side == VARIES else side for side in shape))
    lengths = (len(shape), len(dtype_bytes), len(name_bytes))
    return _PlannedColumn(group, column_path(group, name), spec, name_bytes + dtype_bytes + sides, lengths)


def window_ranges(
    header: RecordHeader, start: int, num_steps: int, wanted: Collection[str] | None
) -> list[tuple[int, int]]:
    """The bytes of a record that steps [start, start + num_steps) of some columns need: the blocks that hold them."""
    ranges = []
    for column in header.columns:
        if column.num_rows and (wanted is None or column.path in wanted):
            stop = start + num_steps + (column.group == Group.OBSERVATION)
            first, last = max(start, 0) // column.block_rows, -(-stop // column.block_rows)
            begin = column.offset + sum(column.block_bytes[:first])
            ranges.append((begin, begin + sum(column.block_bytes[first:last])))
    return ranges


def parse_header(data: Record) -> RecordHeader:
    """Parses and checks the header at the start of `data`.

    Args:
      data: uint8 [n], bytes of a segment from a record's start on; n bounds what the header may claim.

    Raises:
      CorruptionError: a byte of the header was changed, or the record is cut short.
    """
    if len(data) < _FIXED.size:
        raise CorruptionError("cut short inside a record's header")
    (
        magic,
        checksum,
        header_bytes,
        record_bytes,
        num_steps,
        flags,
        episode_id,
        content_hash,
        episode_return,
        task_length,
        num_columns,
        metadata_length,
    ) = _FIXED.unpack_from(data[: _FIXED.size].data)
    if magic != RECORD_MAGIC:
        raise CorruptionError("no record starts here")
    if not _FIXED.size <= header_bytes <= min(record_bytes, MAX_HEADER_BYTES) or record_bytes > len(data):
        raise CorruptionError(f"a record of {record_bytes} bytes where {len(data)} are left")
    header = data[:header_bytes].tobytes()
    if google_crc32c.value(header[12:]) != checksum:
        raise CorruptionError("the checksum of a record's header does not match")
    try:
        position = _FIXED.size + task_length
        task_id = header[_FIXED.size : position].decode()
        metadata_json = header[position : position + metadata_length].decode()
        position += metadata_length
        columns = []
        for _ in range(num_columns):
            column, position = _parse_column(header, position)
            columns.append(column)
            if column.offset + column.stored_bytes > record_bytes or sum(column.block_bytes) != column.stored_bytes:
                raise CorruptionError(f"column {column.path} does not lie inside its record")
    except (struct.error, ValueError) as error:
        raise CorruptionError(f"a record's header cannot be parsed: {error}") from None
    return RecordHeader(
        episode_id=episode_id.hex(),
        content_hash=content_hash.hex(),
        task_id=task_id,
        num_steps=num_steps,
        episode_return=episode_return,
        terminated=bool(flags & _TERMINATED),
        truncated=bool(flags & _TRUNCATED),
        metadata_json=metadata_json,
        header_bytes=header_bytes,
        record_bytes=record_bytes,
        columns=tuple(columns),
    )


def padding_of(header: RecordHeader) -> list[tuple[int, int]]:
    """Byte ranges of a record that are zeros: after its header and after each column."""
    edges = [header.header_bytes]
    for column in header.columns:
        edges += [column.offset, column.offset + column.stored_bytes]
    return list(zip(edges[::2], [*edges[1::2], header.record_bytes], strict=True))


def _parse_column(header: bytes, position: int) -> tuple[Column, int]:
    (
        group,
        codec,
        num_axes,
        dtype_length,
        name_length,
        quality,
        num_rows,
        block_rows,
        num_blocks,
        offset,
        size,
        digest,
    ) = _COLUMN.unpack_from(header, position)
    position += _COLUMN.size
    name = header[position : position + name_length].decode()
    position += name_length
    dtype = header[position : position + dtype_length].decode()
    position += dtype_length
    numbers = struct.unpack_from(f"<{num_axes + num_blocks}I", header, position)
    position += 4 * len(numbers)
    checksums = struct.unpack_from(f"<{num_blocks}Q", header, position)
    column = Column(
        group=Group(group),
        name=name,
        codec=Codec(codec),
        dtype=dtype,
        shape=tuple(VARIES if side == _VARIES_STORED else side for side in numbers[:num_axes]),
        num_rows=num_rows,
        quality=quality,
        block_rows=block_rows,
        offset=offset,
        stored_bytes=size,
        digest=digest,
        block_bytes=numbers[num_axes:],
        checksums=checksums,
        checksums_offset=position,
    )
    return column, position + 8 * num_blocks


# Path of a column -> its dtype, the shape of a row, and rows beyond T.
ExpectedColumns = Mapping[str, tuple[str, tuple[int, ...], int]]


def _stored_type(spec: ArraySpec | None) -> tuple[str, tuple[int, ...]]:
    """Dtype and row shape of a field of a task, as a column has them."""
    if spec is None or spec.modality == Modality.TEXT:
        return "str", ()
    return np.dtype(spec.dtype).newbyteorder("<").str, spec.shape


def expected_columns(task: TaskSpec) -> ExpectedColumns:
    """The columns that every record of a task has, besides step columns."""
    expected: dict[str, tuple[str, tuple[int, ...], int]] = {"rewards": (*_REWARDS_TYPE, 0)}
    for group, specs, more in ((Group.OBSERVATION, task.observation_spec, 1), (Group.ACTION, task.action_spec, 0)):
        for name, spec in specs.items():
            expected[f"{GROUP_NAMES[group]}/{name}"] = (*_stored_type(spec), more)
    return expected


def check_columns(header: RecordHeader, expected: ExpectedColumns) -> None:
    """Checks that a record's columns are those of its task, which bounds every allocation that follows.

    Raises:
      CorruptionError: they are not.
    """
    missing = set(expected)
    for column in header.columns:
        path = column.path
        if column.group == Group.STEP_COLUMN:
            if column.dtype not in STORED_DTYPES or column.codec != Codec.RAW:
                raise CorruptionError(f"{path}: a step column of dtype {column.dtype!r}")
            _check_column(column, (column.dtype, column.shape, header.num_steps))
            continue
        if path not in missing:
            raise CorruptionError(f"{path}: its task has no such column, or it is there twice")
        missing.remove(path)
        dtype, shape, more = expected[path]
        _check_column(column, (dtype, shape, header.num_steps + more))
    if missing:
        raise CorruptionError(f"the record lacks columns {sorted(missing)}")


def _check_column(column: Column, expected: tuple[str, tuple[int, ...], int]) -> None:
    """Checks one column's dtype, row shape, rows and block count."""
    got = (column.dtype, column.shape, column.num_rows)
    if got != expected:
        raise CorruptionError(f"{column.path}: stored as {got}, its task has {expected}")
    is_text, varies = column.dtype == "str", VARIES in column.shape
    if varies != (column.codec == Codec.VARYING_IMAGES_ZSTD):
        raise CorruptionError(f"{column.path}: codec {column.codec.name} cannot hold {got}")
    if varies and column.block_rows > column_codecs.IMAGE_BLOCK_ROWS:
        raise CorruptionError(f"{column.path}: blocks of {column.block_rows} images")
    if is_text != (column.codec in column_codecs.TEXT_CODECS) or column.block_rows < 1:
        raise CorruptionError(f"{column.path}: codec {column.codec.name} cannot hold {column.dtype}")
    row_bytes = 1 if is_text or varies else column_codecs.row_bytes(column.shape, np.dtype(column.dtype))
    num_blocks = -(-column.num_rows // column.block_rows) if row_bytes else 0
    if len(column.block_bytes) != num_blocks:
        raise CorruptionError(f"{column.path}: {len(column.block_bytes)} blocks, expected {num_blocks}")
    if column.codec == Codec.RAW and column.stored_bytes != column.num_rows * row_bytes:
        raise CorruptionError(f"{column.path}: {column.stored_bytes} bytes for {column.num_rows} rows")
    is_image = column.dtype == "|u1" and len(column.shape) == 3
    if (column.codec in column_codecs.IMAGE_CODECS and not is_image) or (column.quality and column.codec != Codec.WEBP):
        raise CorruptionError(f"{column.path}: codec {column.codec.name} cannot hold {got}")
    if column.codec == Codec.RAW and any(size != column.block_rows * row_bytes for size in column.block_bytes[:-1]):
        raise CorruptionError(f"{column.path}: blocks that are not {column.block_rows} rows each")
    if column.codec != Codec.RAW and not is_text and row_bytes * column.block_rows > column_codecs.MAX_BLOCK_BYTES:
        raise CorruptionError(f"{column.path}: blocks of more than 1 GiB")
