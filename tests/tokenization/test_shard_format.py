import dataclasses
import io
import json

import google_crc32c
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from episode_store.errors import CorruptionError
from episode_store.spec import ArraySpec, Modality
from episode_store.task import TaskSpec
from episode_store.testing import random_episode
from tokenization.episode_tokenizer import EpisodeTokenizer
from tokenization.shard_format import decode_pack, encode_pack
from tokenization.token_sequence import TokenSequence

ACTION = ArraySpec(modality=Modality.DISCRETE, shape=(), dtype="int64", num_values=(4,))
FLOATS = TaskSpec(
    task_id="floats-v0",
    observation_spec={"state": ArraySpec(modality=Modality.CONTINUOUS, shape=(3,))},
    action_spec={"action": ACTION},
)
IMAGES = TaskSpec(
    task_id="images-v0",
    observation_spec={"camera": ArraySpec(modality=Modality.IMAGE, shape=(32, 20, 3), dtype="uint8")},
    action_spec={"action": ACTION},
)


def sequences(task: TaskSpec, num_episodes: int, seed: int = 0) -> list[TokenSequence]:
    rng = np.random.default_rng(seed)
    tokenizer = EpisodeTokenizer(task)
    return [tokenizer.encode(random_episode(task, rng, int(rng.integers(1, 9)))) for _ in range(num_episodes)]


def assert_equal(left: TokenSequence, right: TokenSequence) -> None:
    for name in ("task_id", "episode_id", "agent_id", "content_hash"):
        assert getattr(left, name) == getattr(right, name), name
    assert left.episode_return == right.episode_return or np.isnan([left.episode_return, right.episode_return]).all()
    for name in ("tokens", "targets", "timestep_offsets", "patch_intervals", "returns_to_go"):
        ours, theirs = getattr(left, name), getattr(right, name)
        assert ours.dtype == theirs.dtype, name
        assert np.array_equal(ours, theirs), name
    assert np.array_equal(left.patches[left.patch_index], right.patches[right.patch_index])


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([FLOATS, IMAGES]), st.integers(1, 5), st.integers(0, 1 << 32))
def test_property_a_pack_gives_back_its_sequences(task: TaskSpec, num_episodes: int, seed: int) -> None:
    originals = sequences(task, num_episodes, seed)
    members = encode_pack(originals)
    pack = decode_pack({f".{name}": data for name, data in members.items()} | {"__key__": b"x"})
    assert pack.task_id == task.task_id
    assert pack.num_episodes == num_episodes
    assert pack.num_timesteps == sum(original.num_steps for original in originals)
    assert pack.num_tokens == sum(original.num_tokens for original in originals)
    for index, original in enumerate(originals):
        assert_equal(pack.sequence(index), original)
    assert encode_pack([pack.sequence(index) for index in range(num_episodes)]) == members


def test_members_open_with_numpy_and_json() -> None:
    originals = sequences(IMAGES, 3)
    members = encode_pack(originals)
    assert sorted(members) == [
        "crc32c.json",
        "episode_offsets.npy",
        "episodes.json",
        "patch_index.npy",
        "patch_intervals.npy",
        "patches.npy.zst",
        "returns_to_go.npy",
        "targets.npy",
        "timestep_offsets.npy",
        "tokens.npy",
    ]
    arrays = {n: np.load(io.BytesIO(d), allow_pickle=False) for n, d in members.items() if n.endswith(".npy")}
    assert {name: str(array.dtype) for name, array in arrays.items()} == {
        "tokens.npy": "uint16",
        "targets.npy": "uint8",
        "timestep_offsets.npy": "int64",
        "episode_offsets.npy": "int64",
        "patch_index.npy": "int32",
        "patch_intervals.npy": "uint8",
        "returns_to_go.npy": "float32",
    }
    assert arrays["tokens.npy"].tolist() == np.concatenate([o.tokens for o in originals]).tolist()
    patches = np.load(io.BytesIO(zstandard.decompress(members["patches.npy.zst"])), allow_pickle=False)
    assert patches.dtype == np.uint8
    assert patches.shape[1:] == (16, 16, 3)
    assert zstandard.get_frame_parameters(members["patches.npy.zst"]).has_checksum
    episodes = json.loads(members["episodes.json"])
    assert episodes.pop("task_id") == "images-v0"
    assert sorted(episodes) == ["agent_id", "content_hash", "episode_id", "episode_return", "num_steps"]
    assert episodes["num_steps"] == [original.num_steps for original in originals]
    checksums = json.loads(members["crc32c.json"])
    assert checksums == {n: google_crc32c.value(d) for n, d in members.items() if n != "crc32c.json"}


def test_a_pack_without_images_has_no_members_for_them() -> None:
    members = encode_pack(sequences(FLOATS, 2))
    assert not [name for name in members if name.startswith("patch")]
    pack = decode_pack(members)
    assert pack.patches.shape == (0, 16, 16, 3)
    assert pack.timestep_patch_offsets.tolist() == [0] * (pack.num_timesteps + 1)


def test_equal_patches_of_several_episodes_are_stored_once() -> None:
    (original,) = sequences(IMAGES, 1)
    pack = decode_pack(encode_pack([original, original, original]))
    assert len(pack.patches) == len(original.patches)
    assert_equal(pack.sequence(2), original)


def test_windows_of_a_pack() -> None:
    originals = sequences(IMAGES, 4)
    pack = decode_pack(encode_pack(originals))
    start = originals[0].num_steps + originals[1].num_steps
    assert_equal(pack.window(start, start + 1), originals[2].window(0, 1))
    with pytest.raises(IndexError):
        pack.sequence(4)


def test_an_unknown_return() -> None:
    tokens = np.array([33_024, 1], np.uint16)
    lonely = TokenSequence(
        task_id="a-v0",
        episode_id="e",
        tokens=tokens,
        targets=np.array([0, 1], np.uint8),
        timestep_offsets=np.array([0, 2]),
    )
    pack = decode_pack(encode_pack([lonely]))
    assert np.isnan(pack.sequence(0).episode_return)


def test_a_pack_of_version_2_has_no_returns_to_go() -> None:
    originals = sequences(FLOATS, 2)
    members = encode_pack([dataclasses.replace(original, returns_to_go=np.empty(0, "f4")) for original in originals])
    assert sorted(members) == [
        "crc32c.json", "episode_offsets.npy", "episodes.json", "targets.npy", "timestep_offsets.npy", "tokens.npy",
    ]  # fmt: skip
    pack = decode_pack(members)
    assert pack.returns_to_go.shape == pack.sequence(1).returns_to_go.shape == (0,)
    assert np.array_equal(pack.tokens, decode_pack(encode_pack(originals)).tokens)


def test_what_is_no_pack() -> None:
    with pytest.raises(ValueError, match="at least one episode, all of one task"):
        encode_pack([])
    with pytest.raises(ValueError, match="at least one episode, all of one task"):
        encode_pack([*sequences(FLOATS, 1), *sequences(IMAGES, 1)])


def test_every_flipped_bit_is_noticed() -> None:
    members = encode_pack(sequences(IMAGES, 2))
    rng = np.random.default_rng(0)
    for name, data in members.items():
        for place in rng.integers(0, len(data) * 8, 40):
            damaged = bytearray(data)
            damaged[place // 8] ^= 1 << (place % 8)
            with pytest.raises(CorruptionError, match="shard-0: "):
                decode_pack({**members, name: bytes(damaged)}, where="shard-0")


def test_the_damaged_member_is_named() -> None:
    members = encode_pack(sequences(FLOATS, 1))
    damaged = bytes([members["tokens.npy"][0] ^ 1]) + members["tokens.npy"][1:]
    with pytest.raises(CorruptionError) as error:
        decode_pack({**members, "tokens.npy": damaged}, where="a.tar: a-000007")
    found, expected = google_crc32c.value(damaged), google_crc32c.value(members["tokens.npy"])
    assert str(error.value) == (
        f"a.tar: a-000007: tokens.npy: expected CRC-32C {expected:08x}, got {found:08x}; the bytes are damaged"
    )


def test_a_missing_or_short_member_is_noticed() -> None:
    members = encode_pack(sequences(IMAGES, 2))
    for name, data in members.items():
        with pytest.raises(CorruptionError):
            decode_pack({other: rest for other, rest in members.items() if other != name})
        with pytest.raises(CorruptionError):
            decode_pack({**members, name: data[:-1]})


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("targets.npy", np.zeros(3, np.uint8)),
        ("timestep_offsets.npy", np.array([0, 5], np.int64)),
        ("episode_offsets.npy", np.array([0, 99], np.int64)),
        ("returns_to_go.npy", np.zeros(99, np.float32)),
        ("tokens.npy", np.zeros(3, np.int32)),
        ("tokens.npy", np.array([{}], object)),
    ],
)
def test_members_that_were_written_wrong_are_noticed(name: str, array: np.ndarray) -> None:
    members = encode_pack(sequences(FLOATS, 1))
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    members[name] = buffer.getvalue()
    check_refused(members)


@pytest.mark.parametrize(
    "facts",
    [
        [],
        {"task_id": "floats-v0"},
        {"num_steps": ["1"]},
        {"num_steps": [1, 2]},
        {"num_steps": 1},
        {"episode_return": ["high"]},
        {"episode_id": [], "num_steps": [], "episode_return": [], "agent_id": [], "content_hash": []},
        {"task_id": 7},
    ],
)
def test_facts_that_were_written_wrong_are_noticed(facts: list | dict) -> None:
    members = encode_pack(sequences(FLOATS, 1))
    right = json.loads(members["episodes.json"])
    wrong = facts if isinstance(facts, list) or facts == {"task_id": "floats-v0"} else {**right, **facts}
    members["episodes.json"] = json.dumps(wrong).encode()
    check_refused(members)


def check_refused(members: dict[str, bytes]) -> None:
    """Although every checksum is right."""
    checksums = {n: google_crc32c.value(d) for n, d in members.items() if n != "crc32c.json"}
    members["crc32c.json"] = json.dumps(checksums).encode()
    with pytest.raises(CorruptionError):
        decode_pack(members)


def test_views_not_copies() -> None:
    pack = decode_pack(encode_pack(sequences(FLOATS, 2)))
    assert not pack.tokens.flags.owndata
    assert not pack.tokens.flags.writeable
    assert np.shares_memory(pack.sequence(1).tokens, pack.tokens)
