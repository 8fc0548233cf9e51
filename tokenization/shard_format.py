"""One WebDataset sample: a pack of many tokenized episodes of one task. The writer and the reader share this file.

A pack is a mapping from a member's name (its extension in the tar, without the leading dot) to bytes:

    tokens.npy            uint16 [N]
    targets.npy           uint8 [N]
    timestep_offsets.npy  int64 [S + 1], in tokens of the pack
    episode_offsets.npy   int64 [E + 1], in timesteps
    episodes.json         {"task_id": text, and a list of E for each of the `EPISODE_COLUMNS`}
    patch_index.npy       int32 [M], into the pack's patches           }
    patch_intervals.npy   uint8 [M, 4]                                 } only of packs with images
    patches.npy.zst       uint8 [U, 16, 16, 3], each different, zstd   }
    returns_to_go.npy     float32 [S], only of tasks with rewards
    crc32c.json           {member: CRC-32C of its bytes}

Nothing is pickled, arrays are little-endian, equal sequences give equal bytes. Facts of episodes are kept by column:
a list of texts is read ten times faster than a list of objects, which took longer than all arrays of a pack.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import google_crc32c
import numpy as np
import zstandard

from episode_store.errors import CorruptionError
from tokenization.image_patches import PATCH_SHAPE, unique_patches
from tokenization.token_sequence import TokenSequence
from tokenization.vocabulary import PATCH_PLACEHOLDER

FORMAT = "gato-shards-v3"  # of a folder of shards, as dataset.json names it
READABLE_FORMATS = (FORMAT, "gato-shards-v2")  # version 2 has no returns-to-go
ZSTD_LEVEL = 1
MAX_PATCHES_BYTES = 1 << 31  # of the patches of one pack, decompressed

EPISODE_COLUMNS: dict[str, type] = {
    "episode_id": str,
    "num_steps": int,
    "episode_return": float,
    "agent_id": str,
    "content_hash": str,
}

_DTYPES: dict[str, np.dtype] = {
    "tokens.npy": np.dtype("<u2"),
    "targets.npy": np.dtype("u1"),
    "timestep_offsets.npy": np.dtype("<i8"),
    "episode_offsets.npy": np.dtype("<i8"),
    "patch_index.npy": np.dtype("<i4"),
    "patch_intervals.npy": np.dtype("u1"),
    "returns_to_go.npy": np.dtype("<f4"),
}
_IMAGE_MEMBERS = ("patch_index.npy", "patch_intervals.npy", "patches.npy.zst")
_OPTIONAL_MEMBERS = {*_IMAGE_MEMBERS, "returns_to_go.npy"}
_EPISODES = "episodes.json"
_CHECKSUMS = "crc32c.json"
_HEADER = re.compile(
    rb"\{'descr': '(?P<descr>[<|][uif][1248])', 'fortran_order': False, 'shape': \((?P<shape>[0-9, ]{1,99})\), \} *\n"
)
_MEMBERS = {*_DTYPES, *_IMAGE_MEMBERS, _EPISODES}


class _Codecs(threading.local):
    """One of each a thread: to make one takes as long as a small pack."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True, write_content_size=True)
        self.decompressor = zstandard.ZstdDecompressor()


_codecs = _Codecs()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Pack:
    """E episodes of one task, one after the other; arrays as in `TokenSequence`, offsets over the whole pack.

    Attributes:
      task_id: of all of its episodes.
      tokens: uint16 [N].
      targets: uint8 [N].
      timestep_offsets: int64 [S + 1], in tokens.
      episode_offsets: int64 [E + 1], in timesteps.
      patches: uint8 [U, 16, 16, 3].
      patch_index: int32 [M].
      patch_intervals: uint8 [M, 4].
      returns_to_go: float32 [S]; empty in packs without.
      columns: facts of the episodes, a list of E for each of the `EPISODE_COLUMNS`; an unknown return is NaN.
    """

    task_id: str
    tokens: np.ndarray
    targets: np.ndarray
    timestep_offsets: np.ndarray
    episode_offsets: np.ndarray
    patches: np.ndarray
    patch_index: np.ndarray
    patch_intervals: np.ndarray
    returns_to_go: np.ndarray
    columns: Mapping[str, list[Any]]

    @property
    def num_episodes(self) -> int:
        """E."""
        return len(self.columns["episode_id"])

    @functools.cached_property
    def episodes(self) -> list[dict[str, Any]]:
        """`task_id` and the `EPISODE_COLUMNS` of each episode."""
        rows = zip(*(self.columns[name] for name in EPISODE_COLUMNS), strict=True)
        return [{"task_id": self.task_id, **dict(zip(EPISODE_COLUMNS, row, strict=True))} for row in rows]

    @property
    def num_timesteps(self) -> int:
        """S."""
        return len(self.timestep_offsets) - 1

    @property
    def num_tokens(self) -> int:
        """N."""
        return len(self.tokens)

    @functools.cached_property
    def timestep_patch_offsets(self) -> np.ndarray:
        """int64 [S + 1]: the image patches of timestep s are [offsets[s], offsets[s + 1]) of `patch_index`."""
        if not len(self.patch_index):
            return np.zeros(self.num_timesteps + 1, np.int64)
        before = np.concatenate([[0], np.cumsum(self.tokens == PATCH_PLACEHOLDER)])
        return before[self.timestep_offsets]

    def window(self, start: int, stop: int) -> TokenSequence:
        """Timesteps [start, stop) of the pack, which lie in one episode, as views; `patches` is the pack's."""
        episode = int(np.searchsorted(self.episode_offsets, start, side="right")) - 1
        first, last = int(self.timestep_offsets[start]), int(self.timestep_offsets[stop])
        first_patch, last_patch = int(self.timestep_patch_offsets[start]), int(self.timestep_patch_offsets[stop])
        return TokenSequence(
            task_id=self.task_id,
            episode_id=self.columns["episode_id"][episode],
            tokens=self.tokens[first:last],
            targets=self.targets[first:last],
            timestep_offsets=self.timestep_offsets[start : stop + 1] - first,
            patches=self.patches,
            patch_index=self.patch_index[first_patch:last_patch],
            patch_intervals=self.patch_intervals[first_patch:last_patch],
            returns_to_go=self.returns_to_go[start:stop],
            episode_return=self.columns["episode_return"][episode],
            agent_id=self.columns["agent_id"][episode],
            content_hash=self.columns["content_hash"][episode],
        )

    def sequence(self, episode_index: int) -> TokenSequence:
        """One whole episode, as views; `patches` is the pack's, and may hold more than this episode uses."""
        if not 0 <= episode_index < self.num_episodes:
            raise IndexError(f"episode {episode_index} of a pack of {self.num_episodes}")
        return self.window(int(self.episode_offsets[episode_index]), int(self.episode_offsets[episode_index + 1]))


def encode_pack(sequences: Sequence[TokenSequence]) -> dict[str, bytes]:
    """Whole episodes of one task as the members of one sample; image patches are stored once for all of them.

    Raises:
      ValueError: no sequences, or of several tasks.
    """
    if len({sequence.task_id for sequence in sequences}) != 1:
        raise ValueError("a pack holds at least one episode, all of one task")
    token_starts = np.concatenate([[0], np.cumsum([sequence.num_tokens for sequence in sequences])])
    offsets = [sequence.timestep_offsets[1:] + start for sequence, start in zip(sequences, token_starts, strict=False)]
    arrays = {
        "tokens.npy": np.concatenate([sequence.tokens for sequence in sequences]),
        "targets.npy": np.concatenate([sequence.targets for sequence in sequences]),
        "timestep_offsets.npy": np.concatenate([np.zeros(1, np.int64), *offsets]),
        "episode_offsets.npy": np.concatenate([[0], np.cumsum([sequence.num_steps for sequence in sequences])]),
    }
    if any(len(sequence.returns_to_go) for sequence in sequences):
        arrays["returns_to_go.npy"] = np.concatenate([sequence.returns_to_go for sequence in sequences])
    members: dict[str, bytes] = {}
    if any(len(sequence.patch_index) for sequence in sequences):
        used = [np.unique(sequence.patch_index, return_inverse=True) for sequence in sequences]
        starts = np.concatenate([[0], np.cumsum([len(rows) for rows, _ in used])])
        patches, index = unique_patches(
            np.concatenate([sequence.patches[rows] for sequence, (rows, _) in zip(sequences, used, strict=True)])
        )
        arrays["patch_index.npy"] = np.concatenate(
            [index[start + inverse.reshape(-1)] for (_, inverse), start in zip(used, starts, strict=False)]
        )
        arrays["patch_intervals.npy"] = np.concatenate([sequence.patch_intervals for sequence in sequences])
        members["patches.npy.zst"] = _codecs.compressor.compress(_to_npy(patches, np.dtype("u1")))
    members |= {name: _to_npy(array, _DTYPES[name]) for name, array in arrays.items()}
    columns = {name: [getattr(sequence, name) for sequence in sequences] for name in EPISODE_COLUMNS}
    columns["episode_return"] = [_finite_or_none(value) for value in columns["episode_return"]]
    members[_EPISODES] = _to_json({"task_id": sequences[0].task_id, **columns})
    members = dict(sorted(members.items()))
    members[_CHECKSUMS] = _to_json({name: google_crc32c.value(data) for name, data in members.items()})
    return members


def decode_pack(members: Mapping[str, bytes], *, where: str = "pack") -> Pack:
    """The inverse of `encode_pack`. Arrays are read-only views of the members. Other members are ignored.

    Args:
      members: by name, with or without the leading dot.
      where: named in errors, for example the shard and the sample's key.

    Raises:
      CorruptionError: a member is missing, cut short, does not match its checksum, or contradicts another.
    """
    parts = {name.removeprefix("."): data for name, data in members.items()}
    parts = {name: data for name, data in parts.items() if name in _MEMBERS or name == _CHECKSUMS}
    _check_checksums(parts, where)
    arrays = {
        name: _from_npy(parts[name], dtype, f"{where}: {name}") for name, dtype in _DTYPES.items() if name in parts
    }
    if "patches.npy.zst" in parts:
        patches = _from_npy(_decompress(parts["patches.npy.zst"], where), np.dtype("u1"), f"{where}: patches.npy.zst")
        patch_index, patch_intervals = arrays["patch_index.npy"], arrays["patch_intervals.npy"]
    else:
        patches = np.empty((0, *PATCH_SHAPE), np.uint8)
        patch_index, patch_intervals = np.empty(0, np.int32), np.empty((0, 4), np.uint8)
    task_id, columns = _episodes(parts[_EPISODES], where)
    pack = Pack(
        task_id=task_id,
        tokens=arrays["tokens.npy"],
        targets=arrays["targets.npy"],
        timestep_offsets=arrays["timestep_offsets.npy"],
        episode_offsets=arrays["episode_offsets.npy"],
        patches=patches,
        patch_index=patch_index,
        patch_intervals=patch_intervals,
        returns_to_go=arrays.get("returns_to_go.npy", np.empty(0, np.float32)),
        columns=columns,
    )
    _check_agreement(pack, where)
    return pack


def _check_checksums(parts: Mapping[str, bytes], where: str) -> None:
    try:
        checksums = json.loads(bytes(parts[_CHECKSUMS]))
        expected = {str(name): int(value) for name, value in checksums.items()}
    except KeyError:
        raise CorruptionError(f"{where}: expected a member {_CHECKSUMS}, got {sorted(parts)}") from None
    except (ValueError, AttributeError, TypeError):
        raise CorruptionError(
            f"{where}: {_CHECKSUMS}: expected a JSON object of checksums; the bytes are damaged"
        ) from None
    required = {_EPISODES, *_DTYPES} - _OPTIONAL_MEMBERS
    if set(expected) & set(_IMAGE_MEMBERS):
        required |= set(_IMAGE_MEMBERS)
    for name in sorted(required | set(expected)):
        if name not in parts or name not in expected:
            raise CorruptionError(
                f"{where}: expected a member {name}, got {sorted(parts)}; the shard is cut short or damaged"
            )
        found = google_crc32c.value(np.frombuffer(parts[name], np.uint8))  # of a memoryview it would want a copy
        if found != expected[name]:
            raise CorruptionError(
                f"{where}: {name}: expected CRC-32C {expected[name]:08x}, got {found:08x}; the bytes are damaged"
            )


def _check_agreement(pack: Pack, where: str) -> None:
    """What checksums do not show: a pack that was written wrong."""
    num_tokens, num_timesteps = len(pack.tokens), len(pack.timestep_offsets) - 1
    offsets, episodes = pack.timestep_offsets, pack.episode_offsets
    agree = (
        pack.tokens.ndim == pack.targets.ndim == offsets.ndim == episodes.ndim == pack.patch_index.ndim == 1
        and len(pack.targets) == num_tokens
        and num_timesteps >= 0
        and offsets[0] == 0
        and offsets[-1] == num_tokens
        and bool((np.diff(offsets) >= 0).all())
        and len(episodes) == pack.num_episodes + 1
        and episodes[0] == 0
        and episodes[-1] == num_timesteps
        and np.diff(episodes).tolist() == pack.columns["num_steps"]
        and pack.patch_intervals.shape == (len(pack.patch_index), 4)
        and pack.patches.shape[1:] == PATCH_SHAPE
        and pack.returns_to_go.shape in ((num_timesteps,), (0,))
    )
    if agree and len(pack.patch_index):
        agree = bool(pack.patch_index.min() >= 0 and pack.patch_index.max() < len(pack.patches))
        agree = agree and int(np.count_nonzero(pack.tokens == PATCH_PLACEHOLDER)) == len(pack.patch_index)
    if not agree:
        raise CorruptionError(f"{where}: its members contradict each other: lengths or offsets do not agree")


def _episodes(data: bytes, where: str) -> tuple[str, dict[str, list[Any]]]:
    """The task's id and the `EPISODE_COLUMNS`."""
    try:
        facts = json.loads(bytes(data))
        task_id, columns = facts["task_id"], {name: facts[name] for name in EPISODE_COLUMNS}
        columns["episode_return"] = [math.nan if value is None else float(value) for value in columns["episode_return"]]
        agree = isinstance(task_id, str) and all(
            isinstance(column, list) and set(map(type, column)) == {EPISODE_COLUMNS[name]}
            for name, column in columns.items()
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptionError(f"{where}: {_EPISODES}: expected columns of facts of episodes: {error!r}") from None
    if not agree or len({len(column) for column in columns.values()}) != 1:
        raise CorruptionError(
            f"{where}: {_EPISODES}: expected columns {[*EPISODE_COLUMNS]} of one length, at least one episode long"
        )
    return task_id, columns


def _to_npy(array: np.ndarray, dtype: np.dtype) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array, dtype=dtype), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _from_npy(data: bytes, dtype: np.dtype, where: str) -> np.ndarray:
    """A read-only view of the array in a .npy file of format 1.0, of the dtype that is expected there."""
    view = memoryview(data)
    header_end = 10 + int.from_bytes(view[8:10], "little")
    if bytes(view[:8]) != b"\x93NUMPY\x01\x00" or len(view) < header_end:
        raise CorruptionError(f"{where}: expected a .npy file of format 1.0")
    try:
        shape, descr = _parse_header(bytes(view[10:header_end]))
    except ValueError:
        raise CorruptionError(f"{where}: expected a .npy header of a plain array") from None
    size = math.prod(shape)
    found = len(view) - header_end
    if np.dtype(descr) != dtype or found != size * dtype.itemsize:
        raise CorruptionError(f"{where}: expected {size} values of {dtype}, got {found} bytes of {descr}")
    return np.frombuffer(view, dtype, size, header_end).reshape(shape)


def _parse_header(header: bytes) -> tuple[tuple[int, ...], str]:
    """Shape and dtype. NumPy's own parser evaluates the header as Python, in 20 times the time."""
    match = _HEADER.fullmatch(header)
    if match is None:
        raise ValueError(header)
    return tuple(int(side) for side in match["shape"].split(b",") if side.strip()), match["descr"].decode()


def _decompress(data: bytes, where: str) -> bytes:
    try:
        size = zstandard.get_frame_parameters(data).content_size
        if not 0 <= size <= MAX_PATCHES_BYTES:
            raise CorruptionError(f"{where}: patches.npy.zst: expected at most {MAX_PATCHES_BYTES} bytes, got {size}")
        return _codecs.decompressor.decompress(data)
    except zstandard.ZstdError as error:
        raise CorruptionError(f"{where}: patches.npy.zst: {error}; the bytes are damaged") from None


def _to_json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _finite_or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
