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
        "babyai/GoToLocal-v0": 5.0,
        "babyai/*": 1.0,
        "metaworld/*": 1.5,
        "Pendulum-v1": 2.5,
        "LunarLander-v3": 1.5,
        "CartPole-v1": 1.0,
        "Acrobot-v1": 0.8,
        "Reacher-v5": 0.8,
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
    return dataclasses.replace(base, sampler=sampler)


PRESETS: dict[str, Callable[[], TrainConfig]] = {"demo": demo, "tiny": tiny}


def get(name: str) -> TrainConfig:
    """The settings of a preset.

    Raises:
      UserError: when there is no such preset.
    """
    if name not in PRESETS:
        raise UserError(f"preset {name!r}: expected one of {', '.join(sorted(PRESETS))}")
    return PRESETS[name]()
