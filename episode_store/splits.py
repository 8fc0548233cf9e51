"""Which episodes are held out: decided by what must stay together, never by chance at run time.

Control tasks are all training data: they are judged by rollouts. A corpus declares its own split when the split
group begins with "train/" or "validation/"; otherwise a share of the groups (of the contents, where there is no group)
is held out by hash, the same ones whatever the seed, the task or the order.
"""

from __future__ import annotations

import hashlib

TRAIN, VALIDATION = "train", "validation"
DEFAULT_HOLDOUT = 0.05


def split_of(*, is_corpus: bool, split_group: str | None, content_hash: str, holdout: float = DEFAULT_HOLDOUT) -> str:
    """The split of one episode."""
    if not is_corpus:
        return TRAIN
    group = split_group or content_hash
    declared, slash, _ = group.partition("/")
    if slash and declared in (TRAIN, VALIDATION):
        return declared
    return VALIDATION if fraction_of(group) < holdout else TRAIN


def fraction_of(group: str) -> float:
    """A number in [0, 1] that depends on the name of a group and on nothing else."""
    digest = hashlib.blake2b(f"holdout:{group}".encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "little") / 2**64
