"""Reading shards: our reader and stock webdataset on the same tars, in sequences of 1,024 tokens a second.

Ours compares every checksum and checks that a pack's parts agree; stock webdataset does neither.
"""

from __future__ import annotations

import functools
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from beam_jobs.write_shards import TarShard
from benchmarks.measure import Measure
from tokenization.shard_format import encode_pack
from tokenization.token_sequence import TokenSequence
from tokenization.vocabulary import SEPARATOR
from trainer.shards import read_shard

_SEQUENCES_PER_PACK, _PACKS_PER_SHARD, _SHARDS = 64, 64, 2
_ARRAYS = ("tokens.npy", "targets.npy", "timestep_offsets.npy", "episode_offsets.npy")


def measures() -> Iterator[Measure]:
    """`shards.tokens` (ours beside stock) and `shards.tokens.stock` (stock beside ours)."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [_write(Path(folder) / f"bench-train-{number:06d}.tar") for number in range(_SHARDS)]
        sequences = _SHARDS * _PACKS_PER_SHARD * _SEQUENCES_PER_PACK
        assert ours(paths) == stock(paths) == sequences * 1_024
        mine, theirs = functools.partial(ours, paths), functools.partial(stock, paths)
        compare = functools.partial(Measure, unit="sequences/s", amount=sequences)
        yield compare(name="shards.tokens", ours=mine, peer=theirs, peer_name="webdataset")
        yield compare(name="shards.tokens.stock", ours=theirs, peer=mine, peer_name="trainer.shards.read_shard")


def ours(paths: list[Path]) -> int:
    """Tokens in all packs."""
    shards = [read_shard(path, num_samples=_PACKS_PER_SHARD, num_bytes=path.stat().st_size) for path in paths]
    return sum(pack.num_tokens for shard in shards for pack in shard)


def stock(paths: list[Path]) -> int:
    """Tokens in all samples, whose arrays are decoded with NumPy."""
    import webdataset

    num_tokens = 0
    for sample in webdataset.WebDataset([str(path) for path in paths], shardshuffle=False):
        arrays = {name: np.load(io.BytesIO(sample[name]), allow_pickle=False) for name in _ARRAYS}
        num_tokens += len(arrays["tokens.npy"])
    return num_tokens


def _write(path: Path) -> Path:
    members = encode_pack([_sequence(seed) for seed in range(_SEQUENCES_PER_PACK)])
    with TarShard(path) as tar:
        for index in range(_PACKS_PER_SHARD):
            tar.write(f"{path.stem}-{index:06d}", members)
        tar.close()
    return path


def _sequence(seed: int) -> TokenSequence:
    """128 steps of six numbers, the separator and one action."""
    tokens = np.random.default_rng(seed).integers(32_000, 33_024, (128, 8)).astype(np.uint16)
    tokens[:, 6:] = SEPARATOR, 1
    targets = np.tile(np.array([0] * 7 + [1], np.uint8), 128)
    return TokenSequence(
        task_id="bench/Numbers-v0",
        episode_id=f"{seed:032x}",
        tokens=tokens.reshape(-1),
        targets=targets,
        timestep_offsets=np.arange(0, 1_025, 8),
    )
