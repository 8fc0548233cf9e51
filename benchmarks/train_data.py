"""Shards to train on, made by the real store and job: text of this repository, and control without pictures."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np

from beam_jobs.build_shards import build_locally
from beam_jobs.plan import BuildConfig
from beam_jobs.return_filter import FilterRule, ReturnFilter
from beam_jobs.stores import Source
from episode_store.spec import ArraySpec, Modality, uniform_bounds
from episode_store.task import TaskSpec
from episode_store.testing import random_episode
from episode_store.writer import EpisodeWriter
from tokenization.text import TextTokenizer

TEXT, ARM, POLE = "text/docs-v0", "bench/Arm-v0", "bench/Pole-v0"
_TEXT_FIELD = {"text": ArraySpec(modality=Modality.TEXT, dtype="str")}
_TASKS = (
    TaskSpec(task_id=TEXT, observation_spec=_TEXT_FIELD, action_spec=_TEXT_FIELD, tags=("corpus", "family:text")),
    # As wide as an arm of MetaWorld.
    TaskSpec(
        task_id=ARM,
        observation_spec={"observation": ArraySpec(modality=Modality.CONTINUOUS, shape=(39,))},
        action_spec={
            "action": ArraySpec(
                modality=Modality.CONTINUOUS, shape=(4,), low=uniform_bounds(-1, (4,)), high=uniform_bounds(1, (4,))
            )
        },
    ),
    TaskSpec(
        task_id=POLE,
        observation_spec={"observation": ArraySpec(modality=Modality.CONTINUOUS, shape=(4,))},
        action_spec={"action": ArraySpec(modality=Modality.DISCRETE, dtype="int64", num_values=(2,))},
    ),
)


@functools.cache
def shards() -> Path:
    """The folder; it stays until the process ends."""
    folder = Path(_kept().name)
    root = Path(__file__).parents[1]
    texts = [path.read_text() for path in sorted([*root.glob("docs/*.md"), *root.glob("trainer/*.py")])]
    paragraphs = [part for text in texts for part in text.split("\n\n") if 80 < len(part) < 4000]
    TextTokenizer.train(paragraphs, folder / "text.model", num_pieces=1000)
    rng = np.random.default_rng(0)
    with EpisodeWriter(folder / "store") as writer:
        for task in _TASKS:
            writer.add_task(task)
            for number in range(200):
                episode = random_episode(task, rng, 1 if task.is_corpus else 50)
                if task.is_corpus:
                    first = int(rng.integers(len(paragraphs)))
                    text = "\n\n".join([f"{number}", *(paragraphs + paragraphs)[first : first + 12]])
                    episode.observations["text"] = ["" for _ in episode.observations["text"]]
                    episode.actions["text"] = [text for _ in episode.actions["text"]]
                writer.add_episode(episode)
    build_locally(
        BuildConfig(
            sources=(Source(name="store", store=folder / "store"),),
            output=folder / "shards",
            text_model=folder / "text.model",
            task_ids=tuple(sorted(task.task_id for task in _TASKS)),
            return_filter=ReturnFilter(rule=FilterRule.NONE),
            random_returns={task.task_id: 0.0 for task in _TASKS},
            holdout=0.1,
        )
    )
    return folder / "shards"


@functools.cache
def _kept() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="generalist-bench-")
