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
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=100),
        batch_size=16,
        steps=3_000,
        action_label_sigma_bins=8.0,
    )


def demo() -> TrainConfig:
    """`make demo`: tiny, with the mixture of its tasks; docs/experiments.md says how the weights were found."""
    base = tiny()
    weights = {
        "babyai/*": 3.0,
        "text/*": 0.25,
        "dialogue/*": 0.25,
        "caption/*": 0.25,
        "vqa/*": 0.5,
    }
    return dataclasses.replace(base, sampler=dataclasses.replace(base.sampler, task_weights=weights))


PRESETS: dict[str, Callable[[], TrainConfig]] = {"demo": demo, "tiny": tiny}


def get(name: str) -> TrainConfig:
    """The settings of a preset.

    Raises:
      UserError: when there is no such preset.
    """
    if name not in PRESETS:
        raise UserError(f"preset {name!r}: expected one of {', '.join(sorted(PRESETS))}")
    return PRESETS[name]()
