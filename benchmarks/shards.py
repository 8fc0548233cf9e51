"""Reading shards, in sequences of 1,024 tokens a second of CPU, beside stock webdataset and the peers' own formats.

A sequence is what a sampler takes from a shard: the arrays of 1,024 consecutive tokens and of their targets, and with
images every patch of them, uint8 [M, 16, 16, 3], in a buffer that is used again. Our shards hold packs of whole
episodes, from which the trainer draws at any place; here a pack is cut into sequences end to end. The first pass of
every reader is compared with the original arrays. All files are in the page cache.

Ours compares every checksum, checks that a pack's parts agree, and reads offsets and facts of the episodes too; no peer
has or does that. A peer keeps one sequence an item, patches as they are and uncompressed, which was the fastest of its
settings and takes many times our room; ours keeps equal patches of a pack once, compressed. The peers run in an
environment of their own (`make benchmarks-peers`): one that is not installed is named as not measured.
"""

from __future__ import annotations

import contextlib
import functools
import io
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import zstandard

from beam_jobs.plan import BuildConfig
from beam_jobs.shard_builder import packs_of
from beam_jobs.write_shards import TarShard
from benchmarks.measure import Race, cpu_seconds
from benchmarks.peer_readers import PEERS, Sequence, Source, checksum, count
from tokenization.image_patches import PATCH_SHAPE, patch_intervals, unique_patches_of_frames
from tokenization.shard_format import encode_pack
from tokenization.token_sequence import TokenSequence
from tokenization.vocabulary import PATCH_PLACEHOLDER, SEPARATOR
from trainer.shards import read_shard

PEERS_PYTHON = Path(__file__).parents[1] / ".venv-peers-readers" / "bin" / "python"
_READER = Path(__file__).with_name("peer_readers.py")

Shard = tuple[Path, int]  # a tar and its number of samples

_LENGTH = 1_024
_IMAGE_STEPS, _SIDE = 512, 96
_STEP_PATCHES = (_SIDE // 16) ** 2
_MOST_PATCHES = _LENGTH  # of one sequence


def races(
    name: str, episodes: list[TokenSequence], *, goal: float, stock_goal: float, with_patches: bool
) -> Iterator[Race]:
    """`name` (our reader) and `name.stock` (stock webdataset on our shards), each beside all others."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        path = Path(folder)
        shards, number = write_shards(path, episodes), _write_raw(path, episodes)
        for reader in (our_sequences, stock_sequences):
            assert checksum(reader(shards), 3) == checksum(Source(path), 3)
        mine = functools.partial(cpu_seconds, lambda: count(our_sequences(shards)))
        stock = functools.partial(cpu_seconds, lambda: count(stock_sequences(shards)))
        peers, missing = _peers(path, stack, with_patches=with_patches)
        race = functools.partial(Race, unit="sequences/s", amount=number, not_measured=missing)
        yield race(name=name, goal=goal, ours=mine, peers={"stock webdataset, our shards": stock, **peers})
        yield race(name=f"{name}.stock", goal=stock_goal, ours=stock, peers={"our reader": mine, **peers})


def our_sequences(shards: list[Shard]) -> Iterator[Sequence]:
    """Every sequence of shards, through the trainer's reader."""
    buffer = np.empty((_MOST_PATCHES, *PATCH_SHAPE), np.uint8)
    for path, num_samples in shards:
        for pack in read_shard(path, num_samples=num_samples, num_bytes=path.stat().st_size):
            yield from _cut(pack.tokens, pack.targets, pack.patch_index, pack.patches, buffer)


def stock_sequences(shards: list[Shard]) -> Iterator[Sequence]:
    """The same through stock webdataset, with the arrays decoded by NumPy and zstandard."""
    import webdataset

    buffer = np.empty((_MOST_PATCHES, *PATCH_SHAPE), np.uint8)
    decompressor = zstandard.ZstdDecompressor()
    for sample in webdataset.WebDataset([str(path) for path, _ in shards], shardshuffle=False):
        index, patches = np.empty(0, np.int32), np.empty((0, *PATCH_SHAPE), np.uint8)
        if "patches.npy.zst" in sample:
            index = _npy(sample["patch_index.npy"])
            patches = _npy(decompressor.decompress(sample["patches.npy.zst"]))
        yield from _cut(_npy(sample["tokens.npy"]), _npy(sample["targets.npy"]), index, patches, buffer)


def _npy(data: bytes) -> np.ndarray:
    return np.load(io.BytesIO(data), allow_pickle=False)


def _cut(
    tokens: np.ndarray, targets: np.ndarray, index: np.ndarray, patches: np.ndarray, buffer: np.ndarray
) -> Iterator[Sequence]:
    """The sequences of a pack; the patches of one are overwritten by the next."""
    rows, target_rows = tokens.reshape(-1, _LENGTH), targets.reshape(-1, _LENGTH)
    if not len(index):
        yield from zip(rows, target_rows, strict=True)
        return
    words, out = patches.reshape(len(patches), -1).view(np.uint64), buffer.reshape(len(buffer), -1).view(np.uint64)
    ends = np.cumsum(np.count_nonzero(rows == PATCH_PLACEHOLDER, axis=1))
    for row, target_row, start, end in zip(rows, target_rows, [0, *ends[:-1].tolist()], ends.tolist(), strict=True):
        np.take(words, index[start:end], axis=0, out=out[: end - start], mode="clip")
        yield row, target_row, buffer[: end - start]


def write_shards(folder: Path, episodes: list[TokenSequence]) -> list[Shard]:
    """As `build-shards` packs them, in files of about 32 MB."""
    config = BuildConfig(sources=(), output=folder, text_model=None, task_ids=())
    shards: list[Shard] = []
    packs = packs_of(iter(episodes), config)
    pack = next(packs, None)
    while pack is not None:
        path = folder / f"bench-train-{len(shards):06d}.tar"
        with TarShard(path) as tar:
            while pack is not None and tar.num_bytes < config.max_shard_bytes - 2**20:
                tar.write(f"{path.stem}-{tar.num_samples:06d}", encode_pack(pack))
                pack = next(packs, None)
            tar.close()
        shards.append((path, tar.num_samples))
    return shards


def _write_raw(folder: Path, episodes: list[TokenSequence]) -> int:
    """The same as plain arrays, as `peer_readers.py` wants them; the number of sequences."""
    tokens = np.concatenate([episode.tokens for episode in episodes]).reshape(-1, _LENGTH)
    np.save(folder / "tokens.npy", tokens)
    np.save(folder / "targets.npy", np.concatenate([episode.targets for episode in episodes]).reshape(-1, _LENGTH))
    if len(episodes[0].patch_index):
        np.save(folder / "patches.npy", np.concatenate([episode.patches[episode.patch_index] for episode in episodes]))
        ends = np.cumsum(np.count_nonzero(tokens == PATCH_PLACEHOLDER, axis=1))
        np.save(folder / "patch_offsets.npy", np.concatenate([[0], ends]))
    return len(tokens)


def numbers_episode(seed: int) -> TokenSequence:
    """One sequence: 128 steps of six numbers, the separator and one action."""
    tokens = np.random.default_rng(seed).integers(32_000, 33_024, (128, 8)).astype(np.uint16)
    tokens[:, 6:] = SEPARATOR, 1
    return _episode(seed, "bench/Numbers-v0", tokens)


def image_episode(seed: int) -> TokenSequence:
    """19 sequences: 512 frames of 96x96, a ball and a paddle that move over a background of flat tiles.

    A frame is 36 patches, a sequence about 970: 745,000 bytes.
    """
    rng = np.random.default_rng(seed)
    background = rng.integers(0, 256, (_SIDE // 8, _SIDE // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    frames = np.repeat(background[None], _IMAGE_STEPS, axis=0)
    ball = np.cumsum(rng.integers(-3, 4, (_IMAGE_STEPS, 2)), axis=0) % (_SIDE - 16)
    paddle = np.cumsum(rng.integers(-2, 3, _IMAGE_STEPS)) % (_SIDE - 16)
    for frame, (row, column), place in zip(frames, ball, paddle, strict=True):
        frame[row : row + 4, column : column + 4] = 236
        frame[-4:, place : place + 16] = 92, 186, 92
    tokens = np.full((_IMAGE_STEPS, _STEP_PATCHES + 2), PATCH_PLACEHOLDER, np.uint16)
    tokens[:, _STEP_PATCHES:] = SEPARATOR, 1
    patches, index = unique_patches_of_frames([frames])
    images = {
        "patches": patches,
        "patch_index": index.reshape(-1),
        "patch_intervals": np.tile(patch_intervals(_SIDE, _SIDE), (_IMAGE_STEPS, 1)),
    }
    return _episode(seed, "bench/Frames-v0", tokens, **images)


def _episode(seed: int, task_id: str, tokens: np.ndarray, **images: np.ndarray) -> TokenSequence:
    steps, width = tokens.shape
    return TokenSequence(
        task_id=task_id,
        episode_id=f"{seed:032x}",
        tokens=tokens.reshape(-1),
        targets=np.tile(np.array([0] * (width - 1) + [1], np.uint8), steps),
        timestep_offsets=np.arange(0, steps * width + 1, width),
        episode_return=float(seed),
        agent_id="bench",
        content_hash=f"{seed:032x}",
        **images,
    )


def _peers(
    folder: Path, stack: contextlib.ExitStack, *, with_patches: bool
) -> tuple[dict[str, Callable[[], float]], list[str]]:
    """Starts each peer that is installed: name -> a pass through its data. And those that cannot be measured."""
    runners, missing = {}, []
    for name in PEERS:
        if with_patches and "alone" in name:
            continue
        if not PEERS_PYTHON.exists():
            missing.append(f"{name}: not installed (make benchmarks-peers)")
            continue
        command = [str(PEERS_PYTHON), "-P", str(_READER), name, str(folder)]
        errors = stack.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115
        process = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
        )
        answer = process.stdout.readline().strip() if process.stdout else ""
        if answer == "ready":
            runners[name] = functools.partial(_ask, process)
        else:
            errors.seek(0)
            missing.append(f"{name}: {answer or errors.read()[-200:]}")
    return runners, missing


def _ask(process: subprocess.Popen[str]) -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())
