"""A small store with every kind of data: negative returns, an arm, images, a corpus with copies and mail addresses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from beam_jobs.plan import BuildConfig
from beam_jobs.stores import Source
from episode_store.episode import Episode, EpisodeMetadata
from episode_store.spec import ArraySpec, Modality
from episode_store.task import TaskSpec
from episode_store.writer import EpisodeWriter
from tokenization.text import TextTokenizer

SWING = TaskSpec(
    task_id="Swing-v1",
    observation_spec={"observation": ArraySpec(modality=Modality.CONTINUOUS, shape=(3,))},
    action_spec={
        "action": ArraySpec(modality=Modality.CONTINUOUS, shape=(1,), low=(-2.0,), high=(2.0,)),
    },
)
PICTURE = TaskSpec(
    task_id="toy/Picture-v0",
    observation_spec={"image": ArraySpec(modality=Modality.IMAGE, shape=(32, 32, 3), dtype="uint8")},
    action_spec={"action": ArraySpec(modality=Modality.DISCRETE, dtype="int64", num_values=(4,))},
)
CHAT = TaskSpec(
    task_id="dialogue/chat-v0",
    observation_spec={"text": ArraySpec(modality=Modality.TEXT, dtype="str")},
    action_spec={"text": ArraySpec(modality=Modality.TEXT, dtype="str")},
    tags=("corpus",),
    licence="MIT",
)
RANDOM_RETURNS = {"Swing-v1": -1000.0, "toy/Picture-v0": 0.0}
NUM_SWING, NUM_PICTURE, NUM_CHAT = 40, 20, 60


def _swing_episode(index: int) -> Episode:
    """Returns rise from about -1000 to -205 while the agent trains: -1000 + 20 * index for the first 40."""
    rng = np.random.default_rng(index)
    num_steps = 10
    return Episode(
        task_id=SWING.task_id,
        observations={"observation": rng.normal(size=(num_steps + 1, 3)).astype(np.float32)},
        actions={"action": rng.uniform(-2, 2, (num_steps, 1)).astype(np.float32)},
        rewards=np.full(num_steps, (-1000.0 + 20.0 * index) / num_steps),
        terminated=False,
        truncated=True,
        metadata=EpisodeMetadata(agent_id="ppo", seed=index, collection_index=index),
    )


def _picture_episode(index: int) -> Episode:
    rng = np.random.default_rng(1000 + index)
    num_steps = 4
    return Episode(
        task_id=PICTURE.task_id,
        observations={"image": rng.integers(0, 256, (num_steps + 1, 32, 32, 3), dtype=np.uint8)},
        actions={"action": rng.integers(0, 4, num_steps)},
        rewards=np.full(num_steps, 0.25),
        terminated=True,
        truncated=False,
        metadata=EpisodeMetadata(agent_id="script", seed=index, collection_index=index),
    )


def _chat_episode(index: int) -> Episode:
    """Every tenth repeats its predecessor; number 5 has a mail address, number 7 a telephone number."""
    said = index - 1 if index % 10 == 9 else index
    answer = {5: "write to jane.doe@example.org", 7: "call 212-555-0123 now"}.get(said, f"answer number {said}")
    return Episode(
        task_id=CHAT.task_id,
        observations={"text": [f"question number {said}", ""]},
        actions={"text": [answer]},
        rewards=np.zeros(1),
        terminated=True,
        truncated=False,
        metadata=EpisodeMetadata(agent_id="people", collection_index=index, attribution="a made-up chat"),
    )


def _write_store(path: Path) -> Path:
    with EpisodeWriter(path) as writer:
        for task in (SWING, PICTURE, CHAT):
            writer.add_task(task)
        for make, number in ((_swing_episode, NUM_SWING), (_picture_episode, NUM_PICTURE), (_chat_episode, NUM_CHAT)):
            for index in range(number):
                writer.add_episode(make(index))
    return path


@pytest.fixture(scope="session")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write_store(tmp_path_factory.mktemp("data") / "store")


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.model"
    TextTokenizer.train([f"question number {n}, answer number {n}" for n in range(200)], path, num_pieces=400)
    return path


@pytest.fixture
def chat_episode() -> Callable[[int], Episode]:
    return _chat_episode


@pytest.fixture
def make_config(store_path: Path, text_model: Path, tmp_path: Path) -> Callable[..., BuildConfig]:
    """A config of the small store with tiny shards and packs, so that there are several of each."""

    def make(*, store: Path = store_path, **changes: object) -> BuildConfig:
        values: dict[str, object] = {
            "sources": (Source(name="store", store=store),),
            "output": tmp_path / "shards",
            "text_model": text_model,
            "task_ids": ("Swing-v1", "dialogue/chat-v0", "toy/Picture-v0"),
            "random_returns": RANDOM_RETURNS,
            "holdout": 0.2,
            "max_shard_bytes": 12_000,
            "max_pack_tokens": 200,
            "max_pack_episodes": 4,
        }
        return BuildConfig(**{**values, **changes})  # type: ignore[arg-type]

    return make
