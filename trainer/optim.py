"""AdamW and its schedule, with the paper's constants as defaults."""

from __future__ import annotations

import math

import torch
from torch import nn

from trainer.config import OptimizerConfig


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Fused AdamW; matrices decay, biases, norms and embedding tables do not."""
    tables = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)
    }  # a row that no batch touches must not shrink
    decayed = [p for p in model.parameters() if p.ndim >= 2 and id(p) not in tables]
    kept = [p for p in model.parameters() if p.ndim < 2 or id(p) in tables]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )


def learning_rate(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Linear warm-up, then a cosine to `final_learning_rate_share` of the peak at `total_steps`."""
    warmup = min(config.warmup_steps, max(1, total_steps // 5))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    low = config.final_learning_rate_share
    return config.learning_rate * (low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * progress)))
