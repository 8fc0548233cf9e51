"""Named settings. Each preset is a function, so that one can be built from another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from episode_store.errors import UserError
from trainer.config import ModelConfig, OptimizerConfig, SamplerConfig, TrainConfig


def tiny() -> TrainConfig:
    """A network that a laptop trains in minutes: 0.7 million weights beside its embedding."""
    return TrainConfig(
        model=ModelConfig(width=128, num_blocks=4, num_heads=4, key_size=32, feed_forward_size=704),
        sampler=SamplerConfig(context_tokens=256),
        optimizer=OptimizerConfig(
            learning_rate=2e-3, warmup_steps=100, matrix_optimizer="muon", muon_learning_rate_share=1.5
        ),
        batch_size=8,
        steps=5_000,
        action_label_sigma_bins=8.0,
    )


def demo() -> TrainConfig:
    """`make demo`: tiny, with the mixture of its tasks; docs/experiments.md says how the weights were found."""
    base = tiny()
    # Shares of the tokens. A step of BabyAI costs 57 tokens for one action, one of Taxi 3.
    weights = {
        "babyai/GoToLocal-v0": 6.5,
        "babyai/*": 1.0,
        "metaworld/*": 1.5,
        "Pendulum-v1": 2.5,
        "LunarLander-v3": 1.5,
        "CartPole-v1": 1.0,
        "Acrobot-v1": 0.8,
        "Reacher-v5": 0.8,
        "InvertedPendulum-v5": 1.0,
        "MountainCar-v0": 0.3,
        "Taxi-v4": 0.4,
        "FrozenLake-v1": 0.4,
        "minigrid/*": 0.7,
        "vqa/*": 0.5,
        "text/*": 0.2,
        "dialogue/*": 0.2,
        "caption/*": 0.2,
    }
    # Half of the segments are prompted, not the paper's quarter: acting is always prompted, and a small network that
    # seldom saw a prompt takes it for the steps before.
    # A mission in words has no pattern to learn, and is five targets beside one action: it is not predicted.
    sampler = dataclasses.replace(
        base.sampler,
        task_weights=weights,
        prompt_share=0.5,
        text_observation_weight=0.0,
        action_weight_exponent=0.5,
    )
    # Fewer steps a minute on a CPU than with rotary ones, and more is learned from each (docs/model.md).
    model = dataclasses.replace(base.model, positions="relative")
    return dataclasses.replace(base, model=model, sampler=sampler)


def small() -> TrainConfig:
    """What a few hours of a CPU train: 5 million weights beside the embedding."""
    base = tiny()
    return dataclasses.replace(
        base,
        model=ModelConfig(width=256, num_blocks=6, num_heads=8, key_size=32, feed_forward_size=1408),
        sampler=dataclasses.replace(base.sampler, context_tokens=512),
        optimizer=dataclasses.replace(base.optimizer, learning_rate=1e-3, warmup_steps=200),
        batch_size=16,
        steps=30_000,
    )


def _paper(learning_rate: float, model: ModelConfig) -> TrainConfig:
    """The paper's recipe but for rotary positions; `--set model.positions=relative` is the paper's network."""
    return TrainConfig(
        model=dataclasses.replace(model, stochastic_depth=0.1),
        sampler=SamplerConfig(
            context_tokens=1024,
            short_segment_share=0.0,
            early_start_share=0.0,
            long_segment_tokens=1024,
            prompt_steps=4,
        ),
        optimizer=OptimizerConfig(
            learning_rate=learning_rate, initial_learning_rate=1e-7, warmup_steps=15_000, bin_learning_rate_share=1.0
        ),
        batch_size=512,
        steps=1_000_000,
        checkpoint_every_steps=1_000,
    )


def gato_79m() -> TrainConfig:
    """The paper's smallest network."""
    return _paper(1e-4, ModelConfig(width=768, num_blocks=8, num_heads=24, key_size=32, feed_forward_size=3072))


def gato_364m() -> TrainConfig:
    """The paper's middle network."""
    return _paper(2e-4, ModelConfig(width=1536, num_blocks=12, num_heads=12, key_size=128, feed_forward_size=6144))


def gato_1180m() -> TrainConfig:
    """Gato itself."""
    return _paper(1e-4, ModelConfig(width=2048, num_blocks=24, num_heads=16, key_size=128, feed_forward_size=8192))


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    "demo": demo,
    "tiny": tiny,
    "small": small,
    "79m": gato_79m,
    "364m": gato_364m,
    "1180m": gato_1180m,
}


def get(name: str) -> TrainConfig:
    """The settings of a preset.

    Raises:
      UserError: when there is no such preset.
    """
    if name not in PRESETS:
        raise UserError(f"preset {name!r}: expected one of {', '.join(sorted(PRESETS))}")
    return PRESETS[name]()
