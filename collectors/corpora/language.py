"""What the four corpora share beside `episode_store/corpus.py`: credits, and who says which split."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from collectors.task import CorpusSource, Task
from episode_store import corpus
from episode_store.corpus import IMAGE_SIDE, image_spec
from episode_store.episode import Episode, EpisodeMetadata
from episode_store.spec import FieldValues
from episode_store.task import TaskSpec

IMAGE = image_spec(IMAGE_SIDE)
IMAGE_SHAPE = IMAGE.shape

# A corpus says which split an episode belongs to where the episode holds several things that must not be divided
# (five images, two speakers), so that a hash of one group could not decide: split_group then begins "train/" or
# "validation/", and Beam jobs follow it.
TRAIN = "train"
VALIDATION = "validation"


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
    return corpus.corpus_episode(
        attribution.task_id,
        observations=observations,
        actions=actions,
        terminated=terminated,
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
