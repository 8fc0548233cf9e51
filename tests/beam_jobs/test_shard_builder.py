from pathlib import Path

import numpy as np

from beam_jobs.plan import BuildConfig
from beam_jobs.shard_builder import packs_of
from tokenization.token_sequence import TokenSequence


def sequence(num_tokens: int, num_patches: int = 0) -> TokenSequence:
    return TokenSequence(
        task_id="a-v0",
        episode_id="",
        tokens=np.zeros(num_tokens, np.uint16),
        targets=np.zeros(num_tokens, np.uint8),
        timestep_offsets=np.array([0, num_tokens]),
        patches=np.zeros((num_patches, 16, 16, 3), np.uint8),
    )


def sizes(sequences: list[TokenSequence], **limits: int) -> list[int]:
    config = BuildConfig(sources=(), output=Path(), text_model=None, task_ids=(), **limits)
    return [len(pack) for pack in packs_of(iter(sequences), config)]


def test_a_pack_is_closed_by_tokens_by_patches_or_by_episodes() -> None:
    assert sizes([sequence(10)] * 7, max_pack_tokens=30) == [3, 3, 1]
    assert sizes([sequence(10)] * 7, max_pack_episodes=2) == [2, 2, 2, 1]
    assert sizes([sequence(10, 4)] * 5, max_pack_patch_bytes=8 * 768) == [2, 2, 1]
    assert sizes([sequence(99)] * 2, max_pack_tokens=1) == [1, 1]
    assert sizes([]) == []


def test_the_default_holds_256_sequences_of_1024_tokens() -> None:
    assert sizes([sequence(1_024)] * 600) == [256, 256, 88]
