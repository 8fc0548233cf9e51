"""Copies among the texts of all corpora of a job, equal and nearly equal, found without any text leaving its worker.

An episode goes into one bucket for what it says exactly and, when it has no pictures and is long enough, into one for
each band of its MinHash signature (Broder 1997; bands as in Leskovec, Rajaraman, Ullman, Mining of Massive Datasets,
section 3.4). In a bucket the episode that comes first in the order of (task id, row) stands for all; an episode is a
copy when it equals the first of an exact bucket, or its signature agrees with that of the first of a band's bucket in
the share of places that the similarity asks for. That rule looks at one bucket at a time, so it gives the same copies
in any order and on any number of workers, and needs two walks over a bucket, not its memory.

A near copy of a near copy goes too, even where it is not alike the episode that stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import rensa
import xxhash

from beam_jobs.content_filter import texts_of
from beam_jobs.word_lists import words_of
from episode_store.episode import Episode

NUM_BANDS, ROWS_PER_BAND = 16, 8
NUM_PERMUTATIONS = NUM_BANDS * ROWS_PER_BAND
WORDS_PER_SHINGLE = 3
# With fewer shingles a signature says little, and short replies and captions are alike by nature.
MIN_SHINGLES = 20
_SEED = 20_260_101


# One episode in a bucket, about 200 bytes: task id, row in the table of its task, episode id, and the lowest byte of
# each MinHash value (none in an exact bucket). Plain values, which every runner encodes; their order says who stands
# for all.
Entry = tuple[str, int, str, bytes]


def buckets(episode: Episode, *, task_id: str, row: int, episode_id: str, near: bool) -> Iterator[tuple[str, Entry]]:
    """The buckets of an episode.

    Args:
      episode: of a corpus.
      task_id, row, episode_id: of it.
      near: whether copies that are only nearly equal are looked for.
    """
    texts = texts_of(episode)
    yield f"exact:{content_key(episode)}", (task_id, row, episode_id, b"")
    if not near or any(not isinstance(values, list) for values in episode.observations.values()):
        return
    shingles = shingles_of(texts)
    if len(shingles) < MIN_SHINGLES:
        return
    signature = signature_of(shingles)
    entry = (task_id, row, episode_id, signature.astype(np.uint8).tobytes())
    for band in range(NUM_BANDS):
        rows = signature[band * ROWS_PER_BAND : (band + 1) * ROWS_PER_BAND]
        yield f"near{band:02d}:{xxhash.xxh3_64_hexdigest(rows.tobytes())}", entry


def copies(entries: Iterable[Entry], similarity: float) -> Iterator[tuple[Entry, Entry]]:
    """The copies in one bucket, each with the entry that stays in its place.

    Args:
      entries: in any order, perhaps repeated; walked over twice.
      similarity: the lowest share of equal shingles of a near copy.
    """
    first = min(entries)
    for entry in entries:
        if entry != first and (not entry[3] or jaccard(entry[3], first[3]) >= similarity):
            yield entry, first


def content_key(episode: Episode) -> str:
    """32 hex digits of what is said and shown, whatever the task, the rewards and the end."""
    digest = xxhash.xxh3_128()
    for group in (episode.observations, episode.actions):
        for key, values in sorted(group.items()):
            digest.update(f"{key}\0".encode())
            if isinstance(values, list):
                for text in values:
                    encoded = text.encode()
                    digest.update(len(encoded).to_bytes(8, "little") + encoded)
            else:
                digest.update(f"{values.dtype.str}{values.shape}\0".encode() + np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def shingles_of(texts: Sequence[str]) -> list[str]:
    """Each run of three words once, sorted; runs do not cross from one text into the next."""
    found: set[str] = set()
    for text in texts:
        words = words_of(text)
        for start in range(max(0, len(words) - WORDS_PER_SHINGLE + 1)):
            found.add(" ".join(words[start : start + WORDS_PER_SHINGLE]))
    return sorted(found)


def signature_of(shingles: Sequence[str]) -> np.ndarray:
    """MinHash: uint32 [NUM_PERMUTATIONS]."""
    sketch = rensa.RMinHash(num_perm=NUM_PERMUTATIONS, seed=_SEED)
    sketch.update(list(shingles))
    return np.asarray(sketch.digest(), np.uint32)


def jaccard(one: bytes, other: bytes) -> float:
    """The similarity that two signatures of lowest bytes tell; two different values agree in theirs once in 256."""
    agree = float(np.mean(np.frombuffer(one, np.uint8) == np.frombuffer(other, np.uint8)))
    return max(0.0, (agree - 1 / 256) / (1 - 1 / 256))
