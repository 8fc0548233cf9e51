"""docs/file_format.md, held to its word: a reader written from that page alone, and literal bytes."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import xxhash
import zstandard

from episode_store.episode import Episode, EpisodeMetadata
from episode_store.spec import ArraySpec, Modality
from episode_store.store import EpisodeStore
from episode_store.task import TaskSpec
from episode_store.testing import StoreContract
from episode_store.writer import EpisodeWriter

PAGE = Path(__file__).parents[2] / "docs" / "file_format.md"


def read_data_file(path: Path) -> list[dict[str, Any]]:
    """All episodes of a data file, by the page alone."""
    data = path.read_bytes()
    assert data[:16] == b"EPISODE-SEGMENT\0"
    assert struct.unpack("<I", data[16:20]) == (2,)
    assert data[20:64] == bytes(44)
    start, episodes = 64, []
    while start < len(data):
        episodes.append(read_record(data, start))
        start += episodes[-1]["record_bytes"]
    assert start == len(data)
    return episodes


def read_record(data: bytes, start: int) -> dict[str, Any]:
    """The record at `start`."""
    assert data[start : start + 8] == bytes.fromhex("45504953 4F444502")
    crc, header_bytes, record_bytes, steps, flags = struct.unpack_from("<IIQII", data, start + 8)
    assert google_crc32c.value(data[start + 12 : start + header_bytes]) == crc
    assert record_bytes % 64 == 0
    task_bytes, num_columns, metadata_bytes = struct.unpack_from("<HHI", data, start + 72)
    position = start + 80
    task_id = data[position : position + task_bytes].decode()
    position += task_bytes
    metadata = json.loads(data[position : position + metadata_bytes])
    position += metadata_bytes
    columns = {}
    for _ in range(num_columns):
        group, codec, axes, dtype_bytes, name_bytes, quality, rows, block_rows, num_blocks, offset, size, whole = (
            struct.unpack_from("<BBBBHHIIIQQ16s", data, position)
        )
        assert quality == 0
        assert xxhash.xxh3_128_digest(data[start + offset : start + offset + size]) == whole
        position += 52
        name = data[position : position + name_bytes].decode()
        position += name_bytes
        dtype = data[position : position + dtype_bytes].decode()
        position += dtype_bytes
        shape = struct.unpack_from(f"<{axes}I", data, position)
        position += 4 * axes
        sizes = struct.unpack_from(f"<{num_blocks}I", data, position)
        checksums = struct.unpack_from(f"<{num_blocks}Q", data, position + 4 * num_blocks)
        position += 12 * num_blocks
        assert offset % 64 == 0
        at, parts = start + offset, []
        for block, (block_bytes, block_hash) in enumerate(zip(sizes, checksums, strict=True)):
            stored = data[at : at + block_bytes]
            assert xxhash.xxh3_64_intdigest(stored) == block_hash
            at += block_bytes
            parts.append(decode(codec, stored, dtype, shape, min(block_rows, rows - block * block_rows)))
        assert at == start + offset + size
        if dtype == "str" or codec == 8:
            columns[group, name] = [row for part in parts for row in part]
        else:
            columns[group, name] = np.concatenate(parts) if parts else np.zeros((rows, *shape), dtype)
    assert position == start + header_bytes
    return {
        "id": data[start + 32 : start + 48].hex(),
        "task_id": task_id,
        "metadata": metadata,
        "steps": steps,
        "flags": flags,
        "columns": columns,
        "record_bytes": record_bytes,
    }


def decode(codec: int, stored: bytes, dtype: str, shape: tuple[int, ...], rows: int) -> Any:
    """One block."""
    if codec in (1, 2, 4, 5, 6, 8):
        stored = zstandard.ZstdDecompressor().decompress(stored)
    if codec in (3, 4):
        lengths = struct.unpack_from(f"<{rows}I", stored)
        texts, at = [], 4 * rows
        for length in lengths:
            texts.append(stored[at : at + length].decode())
            at += length
        return texts
    if codec == 8:
        assert (dtype, shape[:2]) == ("|u1", (2**32 - 1, 2**32 - 1))
        images, at = [], 8 * rows
        for height, width in struct.iter_unpack("<II", stored[:at]):
            size = height * width * shape[2]
            images.append(np.frombuffer(stored[at : at + size], np.uint8).reshape(height, width, shape[2]))
            at += size
        assert at == len(stored)
        return images
    if codec == 5:
        return changed_units(stored, shape, rows)
    if codec == 6:
        height, width, channels = shape
        planes = np.frombuffer(stored, np.uint8).reshape(rows, channels, height, width).copy()
        if channels >= 3:
            planes[:, 0] += planes[:, 1]
            planes[:, 2] += planes[:, 1]
        planes = np.cumsum(np.cumsum(planes, axis=2, dtype=np.uint8), axis=3, dtype=np.uint8)
        return np.moveaxis(planes, 1, -1)
    values = np.frombuffer(stored, dtype).reshape(rows, *shape)
    return np.cumsum(values, axis=0, dtype=np.uint8) if codec == 2 else values


def changed_units(stored: bytes, shape: tuple[int, ...], rows: int) -> np.ndarray:
    """A block of codec 5, frame by frame."""
    frame_bytes = int(np.prod(shape))
    unit = 64
    while unit * 65_536 < frame_bytes:
        unit *= 2
    num_units = -(-frame_bytes // unit)
    counts = struct.unpack_from(f"<{rows - 1}I", stored)
    at = 4 * (rows - 1)
    places = struct.unpack_from(f"<{sum(counts)}H", stored, at)
    at += 2 * sum(counts)
    frame = bytearray(stored[at : at + num_units * unit])
    at += num_units * unit
    frames, done = [bytes(frame[:frame_bytes])], 0
    for count in counts:
        for place in places[done : done + count]:
            frame[place * unit : (place + 1) * unit] = stored[at : at + unit]
            at += unit
        done += count
        frames.append(bytes(frame[:frame_bytes]))
    assert at == len(stored)
    return np.frombuffer(b"".join(frames), np.uint8).reshape(rows, *shape)


class _Contract(StoreContract):
    __test__ = False


def test_a_reader_written_from_the_page_reads_every_episode(tmp_path: Path) -> None:
    """Every kind of column, by `struct`."""
    episodes = _Contract().fill(tmp_path)
    (file,) = (tmp_path / "segments").glob("*.data")
    found = read_data_file(file)
    assert [record["id"] for record in found] == list(episodes)
    for record in found:
        episode = episodes[record["id"]]
        assert record["task_id"] == episode.task_id
        assert record["steps"] == episode.num_steps
        assert record["flags"] == episode.terminated + 2 * episode.truncated
        assert EpisodeMetadata.from_json(record["metadata"]).to_json() == episode.metadata.to_json()
        columns = {(2, "rewards"): episode.rewards}
        for group, fields in ((0, episode.observations), (1, episode.actions), (3, episode.step_columns)):
            columns |= {(group, name): values for name, values in fields.items()}
        assert list(record["columns"]) == list(columns)
        for key, values in columns.items():
            for found_row, row in zip(record["columns"][key], values, strict=True):
                np.testing.assert_array_equal(found_row, row)


@pytest.mark.parametrize(("kind", "codec"), [("few changes", 5), ("flicker", 2), ("camera", 6), ("noise", 0)])
def test_the_trial_chooses_the_codec(tmp_path: Path, kind: str, codec: int) -> None:
    """Few changes are stored alone, flicker as difference in time, smooth pictures in space, noise raw."""
    spec = ArraySpec(modality=Modality.IMAGE, dtype="uint8", shape=(32, 32, 3))
    action = ArraySpec(modality=Modality.DISCRETE, dtype="int64", num_values=(2,))
    task = TaskSpec(task_id="Film-v0", observation_spec={"image": spec}, action_spec={"action": action})
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    film = np.repeat(scene[None], 41, axis=0)
    film[np.arange(41), np.arange(41) % 32, 5] += 7
    if kind == "flicker":
        film += rng.integers(0, 3, film.shape, dtype=np.uint8)
    elif kind == "camera":
        down, right = np.mgrid[:32, :32]
        slopes = [(time % 5 + 1) * down + (time % 3 + 2) * right for time in range(41)]
        film = (np.stack(slopes)[..., None] + rng.integers(0, 4, (41, 32, 32, 1)) + [0, 9, 5]).astype(np.uint8)
    elif kind == "noise":
        film = rng.integers(0, 256, film.shape, dtype=np.uint8)
    episode = Episode(
        task_id="Film-v0",
        observations={"image": film},
        actions={"action": np.zeros(40, np.int64)},
        rewards=np.zeros(40),
        terminated=True,
        truncated=False,
    )
    with EpisodeWriter(tmp_path) as writer:
        writer.add_task(task)
        episode_id = writer.add_episode(episode)
    (file,) = (tmp_path / "segments").glob("*.data")
    (record,) = read_data_file(file)
    np.testing.assert_array_equal(record["columns"][0, "image"], film)
    # The second column's codec: after the fixed part, task id, metadata and the entry of the rewards.
    data = file.read_bytes()
    task_bytes, _, metadata_bytes = struct.unpack_from("<HHI", data, 64 + 72)
    entry = 64 + 80 + task_bytes + metadata_bytes + 52 + len("rewards") + len("<f8") + 12
    assert data[entry : entry + 2] == bytes([0, codec])
    store = EpisodeStore.open(tmp_path)
    window = store.read_window(episode_id, 14, 5, columns=["observations/image"])
    np.testing.assert_array_equal(window.observations["image"], film[14:20])
    if kind == "few changes":
        assert file.stat().st_size < film.nbytes / 8


def example_bytes(folder: Path) -> bytes:
    """The data file of the page's example."""
    task = TaskSpec(
        task_id="FrozenLake-v1",
        observation_spec={
            "observation": ArraySpec(modality=Modality.DISCRETE, dtype="int64", num_values=(16,)),
        },
        action_spec={"action": ArraySpec(modality=Modality.DISCRETE, dtype="int64", num_values=(4,))},
    )
    episode = Episode(
        task_id="FrozenLake-v1",
        observations={"observation": np.array([0, 4, 8])},
        actions={"action": np.array([1, 1])},
        rewards=np.array([0.0, 1.0]),
        terminated=True,
        truncated=False,
    )
    with EpisodeWriter(folder) as writer:
        writer.add_task(task)
        writer.add_episode(episode)
    (file,) = (folder / "segments").glob("*.data")
    return file.read_bytes()


def hexdump(data: bytes) -> str:
    """As `hexdump -C` prints it, equal lines folded."""
    lines: list[str] = []
    before, folded = b"", False
    for start in range(0, len(data), 16):
        row = data[start : start + 16]
        if row == before:
            if not folded:
                lines.append("*")
            folded = True
            continue
        before, folded = row, False
        left, right = row[:8].hex(" "), row[8:].hex(" ")
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{start:08x}  {left}  {right}  |{text}|")
    return "\n".join([*lines, f"{len(data):08x}"])


def test_the_hexdump_of_the_page(tmp_path: Path) -> None:
    """Equal input gives equal bytes, and these are they."""
    assert hexdump(example_bytes(tmp_path)) in PAGE.read_text()


def test_the_marker_of_the_page(tmp_path: Path) -> None:
    """`store.json`, literally."""
    EpisodeWriter(tmp_path).close()
    marker = (tmp_path / "store.json").read_text()
    assert marker == '{"format":"episode-store","version":2,"crc32c":"0f87946b"}\n'
    assert marker.strip() in PAGE.read_text()
