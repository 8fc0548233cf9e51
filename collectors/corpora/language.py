"""What the four corpora share: specs, credits, held-out groups, and text cut at a sentence's end."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from collectors.task import CorpusSource, Task
from episode_store.episode import Episode, EpisodeMetadata
from episode_store.spec import ArraySpec, FieldValues, Modality, uniform_bounds
from episode_store.task import TaskSpec

TEXT = ArraySpec(modality=Modality.TEXT, dtype="str")
IMAGE_SIDE = 64
IMAGE_SHAPE = (IMAGE_SIDE, IMAGE_SIDE, 3)
IMAGE = ArraySpec(
    modality=Modality.IMAGE,
    shape=IMAGE_SHAPE,
    dtype="uint8",
    low=uniform_bounds(0, IMAGE_SHAPE),
    high=uniform_bounds(255, IMAGE_SHAPE),
)

# A vision-language episode is five (image, text) pairs (the Gato paper, section 2.2).
PAIRS_PER_EPISODE = 5
MAX_TEXT_CHARACTERS = 2_000

# A corpus says which split an episode belongs to where the episode holds several things that must not be divided
# (five images, two speakers), so that a hash of one group could not decide: split_group then begins "train/" or
# "validation/", and Beam jobs follow it.
TRAIN = "train"
VALIDATION = "validation"

_SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s|$)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attribution:
    """Whose work a corpus is. Printed whenever it is collected, and recorded in every episode.

    Attributes:
      task_id: of the corpus.
      title: of the work.
      authors: to be credited.
      licence: SPDX identifier.
      source: where the work lives.
      archive: what was downloaded, as NAME==VERSION.
      changes: what was done to it here (CC BY-SA asks for it).
    """

    task_id: str
    title: str
    authors: str
    licence: str
    source: str
    archive: str
    changes: str

    def line(self) -> str:
        """One line to print."""
        return f"{self.title}, {self.authors}, {self.licence}, {self.source} ({self.archive}; {self.changes})"

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return dataclasses.asdict(self)


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


def corpus_episode(
    attribution: Attribution,
    *,
    observations: Mapping[str, FieldValues],
    actions: list[str],
    collection_index: int,
    group: str,
    facts: Mapping[str, Any],
    split: str = "",
    seed: int | None = None,
    terminated: bool = True,
) -> Episode:
    """An episode whose actions are texts: T actions between T + 1 observations, all rewards 0.

    Args:
      group: episodes of one group are never divided between training and held-out data.
      facts: recorded as metadata.environment_config beside the name of the archive and the split.
      split: `TRAIN` or `VALIDATION` where the corpus decides; "" where a hash of the group may.
      seed: only where it decides what is in the episode, and not merely when it comes.
      terminated: False where the work goes on after the last action; then the episode is truncated.
    """
    return Episode(
        task_id=attribution.task_id,
        observations=observations,
        actions={"text": actions},
        rewards=np.zeros(len(actions), np.float64),
        terminated=terminated,
        truncated=not terminated,
        metadata=EpisodeMetadata(
            agent_id=attribution.archive.replace("==", "-"),
            seed=seed,
            collection_index=collection_index,
            environment_config={"archive": attribution.archive, **({"split": split} if split else {}), **facts},
            split_group=f"{split}/{group}" if split else group,
            attribution=attribution.line(),
        ),
    )


def corpus_task(spec: TaskSpec, load: Callable[..., Iterator[Episode]], *, description: str) -> Task:
    """The catalogue's entry of a corpus; its family is the namespace of its id."""
    return Task(
        task_id=spec.task_id,
        family=spec.task_id.partition("/")[0],
        expert=CorpusSource(load=load, spec=lambda: spec),
        max_episode_steps=spec.max_episode_steps,
        disturbance=None,
        tags=("corpus",),
        licence=spec.licence,
        description=description,
    )
