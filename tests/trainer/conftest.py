"""A small shard folder with a control task of every kind and a text, made by the real store and the real shard job."""

import dataclasses

import numpy as np
import pytest
import torch

from beam_jobs.build_shards import build_locally
from beam_jobs.plan import BuildConfig
from beam_jobs.return_filter import FilterRule, ReturnFilter
from beam_jobs.stores import Source
from episode_store.spec import ArraySpec, Modality, uniform_bounds
from episode_store.task import TaskSpec
from episode_store.testing import random_episode
from episode_store.writer import EpisodeWriter
from tokenization.text import TextTokenizer
from trainer.config import ModelConfig, OptimizerConfig, SamplerConfig, TrainConfig
from trainer.model import Generalist
from trainer.shards import Dataset

TASKS = (
    TaskSpec(
        task_id="Discrete-v0",
        observation_spec={"observation": ArraySpec(modality=Modality.CONTINUOUS, shape=(3,))},
        action_spec={"action": ArraySpec(modality=Modality.DISCRETE, dtype="int64", num_values=(4,))},
    ),
    TaskSpec(
        task_id="Continuous-v0",
        observation_spec={"observation": ArraySpec(modality=Modality.CONTINUOUS, shape=(2,))},
        action_spec={
            "action": ArraySpec(
                modality=Modality.CONTINUOUS, shape=(2,), low=uniform_bounds(-1, (2,)), high=uniform_bounds(1, (2,))
            )
        },
    ),
    TaskSpec(
        task_id="grid/Seen-v0",
        observation_spec={
            "image": ArraySpec(modality=Modality.IMAGE, shape=(32, 48, 3), dtype="uint8"),
            "mission": ArraySpec(modality=Modality.TEXT, dtype="str"),
        },
        action_spec={"action": ArraySpec(modality=Modality.DISCRETE, dtype="int64", num_values=(3,))},
    ),
    TaskSpec(
        task_id="text/story-v0",
        observation_spec={"text": ArraySpec(modality=Modality.TEXT, dtype="str")},
        action_spec={"text": ArraySpec(modality=Modality.TEXT, dtype="str")},
        tags=("corpus", "family:text"),
    ),
)
WORDS = (
    "the",
    "red",
    "ball",
    "is",
    "near",
    "a",
    "blue",
    "door",
    "and",
    "green",
    "key",
    "on",
    "grey",
    "box",
    "we",
    "walk",
)


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """The folder."""
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    with EpisodeWriter(folder / "store") as writer:
        for task in TASKS:
            writer.add_task(task)
            for _ in range(12):
                episode = random_episode(task, rng, int(rng.integers(3, 9)))
                for fields in (episode.observations, episode.actions):
                    for key, values in fields.items():
                        if isinstance(values, list):
                            fields[key] = [" ".join(rng.choice(WORDS, 6)) for _ in values]
                writer.add_episode(episode)
    TextTokenizer.train([" ".join(rng.choice(WORDS, 12)) for _ in range(200)], folder / "text.model", num_pieces=300)
    build_locally(
        BuildConfig(
            sources=(Source(name="store", store=folder / "store"),),
            output=folder / "shards",
            text_model=folder / "text.model",
            task_ids=tuple(sorted(task.task_id for task in TASKS)),
            return_filter=ReturnFilter(rule=FilterRule.NONE),
            random_returns={task.task_id: 0.0 for task in TASKS},
            holdout=0.2,
        )
    )
    return folder / "shards"


@pytest.fixture(scope="session")
def data(shards):
    """Its training data."""
    return Dataset.open(shards).load("train")


@pytest.fixture
def config():
    """Settings that train in a moment, in fp32."""
    return TrainConfig(
        model=ModelConfig(width=32, num_blocks=2, num_heads=2, key_size=16, feed_forward_size=64),
        sampler=SamplerConfig(context_tokens=64, long_segment_tokens=48),
        optimizer=OptimizerConfig(warmup_steps=2),
        batch_size=2,
        steps=6,
        checkpoint_every_steps=2,
        log_every_steps=1,
        precision="fp32",
        device="cpu",
    )


@pytest.fixture
def random_model():
    """A network of a config with one kind of positions, as it begins but for biases, which would be zero."""

    def make(config, positions):
        model = Generalist(dataclasses.replace(config, positions=positions))
        model.initialize(0)
        with torch.no_grad():
            for block in model.blocks:
                if positions == "relative":
                    block.content_bias.normal_(generator=torch.Generator().manual_seed(1))
                    block.position_bias.normal_(generator=torch.Generator().manual_seed(2))
        return model.eval()

    return make
