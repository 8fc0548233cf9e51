"""What every corpus of texts and pictures shares: specs, length of texts, pairs an episode, who is held out.

An action is the text field `text`; observations have `text`, `image` or both; rewards are 0. An episode of T actions
has T + 1 observations: the last is an empty text and a white image, or what was said after the last reply.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from episode_store.episode import Episode, EpisodeMetadata
from episode_store.spec import ArraySpec, FieldValues, Modality, uniform_bounds
from episode_store.task import TaskSpec

TEXT = ArraySpec(modality=Modality.TEXT, dtype="str")
IMAGE_SIDE = 64

# A vision-language episode is five (image, text) pairs (the Gato paper, section 2.2).
PAIRS_PER_EPISODE = 5
MAX_TEXT_CHARACTERS = 2_000
MAX_TURNS = 16

_SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s|$)")


def image_spec(side: int = IMAGE_SIDE) -> ArraySpec:
    """Of square RGB images."""
    shape = (side, side, 3)
    low, high = uniform_bounds(0, shape), uniform_bounds(255, shape)
    return ArraySpec(modality=Modality.IMAGE, shape=shape, dtype="uint8", low=low, high=high)


def corpus_spec(
    task_id: str, *, observation: Mapping[str, ArraySpec], kind: str, max_steps: int | None, licence: str = ""
) -> TaskSpec:
    """A corpus whose actions are texts; `kind` is text, caption, vqa or dialogue."""
    return TaskSpec(
        task_id=task_id,
        observation_spec=observation,
        action_spec={"text": TEXT},
        max_episode_steps=max_steps,
        tags=("corpus", f"family:{kind}"),
        licence=licence,
    )


def corpus_episode(
    task_id: str,
    *,
    observations: Mapping[str, FieldValues],
    actions: list[str],
    terminated: bool,
    metadata: EpisodeMetadata,
) -> Episode:
    """An episode whose actions are texts: T actions between T + 1 observations, all rewards 0.

    `terminated` is False where the work goes on after the last action; then the episode is truncated.
    """
    return Episode(
        task_id=task_id,
        observations=observations,
        actions={"text": actions},
        rewards=np.zeros(len(actions), np.float64),
        terminated=terminated,
        truncated=not terminated,
        metadata=metadata,
    )


def is_held_out(group: str, fraction: float) -> bool:
    """Whether a group belongs to the held-out data: a fixed choice, whatever the seed and the number of episodes."""
    digest = hashlib.blake2b(group.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def cap_text(text: str, max_characters: int = MAX_TEXT_CHARACTERS) -> str:
    """The text, or its longest beginning of whole sentences that fits; failing that of whole words."""
    if len(text) <= max_characters:
        return text
    head = text[: max_characters + 1]  # one more, so that a sentence may end exactly at the limit
    ends = [match.end() for match in _SENTENCE_END.finditer(head) if match.end() <= max_characters]
    if ends and ends[-1] >= max_characters // 4:
        return text[: ends[-1]]
    words = head.rsplit(None, 1)[0] if any(character.isspace() for character in head) else ""
    return words.rstrip() if len(words) >= max_characters // 4 else text[:max_characters]


def parts_of(text: str, max_characters: int = MAX_TEXT_CHARACTERS) -> Iterator[str]:
    """The text cut as `cap_text` cuts; joined, the parts are the text again."""
    while text:
        part = cap_text(text, max_characters)
        rest = text[len(part) :]
        gap = len(rest) - len(rest.lstrip())  # white space stays with what it follows
        yield text[: len(part) + gap]
        text = text[len(part) + gap :]


def facts_hash(*facts: Any) -> str:
    """16 hex digits of strings or bytes, to name a group."""
    digest = hashlib.blake2b(digest_size=8)
    for fact in facts:
        data = fact if isinstance(fact, bytes) else str(fact).encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
