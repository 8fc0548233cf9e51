"""Muon and AdamW, and their schedule, with the paper's constants as defaults."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from episode_store.errors import UserError
from trainer.config import OptimizerConfig
from trainer.model import Generalist


class Optimizer:
    """Several torch optimizers that step together; each group's "share" scales the schedule's learning rate.

    The blocks' matrices are trained by Muon (Jordan et al. 2024) or AdamW, everything else by AdamW. Matrices decay.
    Biases, norms and tables do not: a row that no batch touches must not shrink.
    """

    def __init__(self, model: Generalist, config: OptimizerConfig) -> None:
        bins = model.embedding.bins.weight
        matrices = [layer.weight for layer in model.blocks.modules() if isinstance(layer, nn.Linear)]
        known = {id(parameter) for parameter in (bins, *matrices)}
        others = [parameter for parameter in model.parameters() if id(parameter) not in known]
        groups = [
            {"params": others, "weight_decay": 0.0, "share": 1.0},
            {"params": [bins], "weight_decay": 0.0, "share": config.bin_learning_rate_share},
        ]
        decayed = {"params": matrices, "weight_decay": config.weight_decay}
        self.parts: list[torch.optim.Optimizer] = []
        if config.matrix_optimizer == "muon":
            share = config.muon_learning_rate_share
            self.parts.append(Muon([{**decayed, "share": share}], lr=0.0))
        elif config.matrix_optimizer == "adamw":
            groups.append({**decayed, "share": 1.0})
        else:
            raise UserError(f"optimizer.matrix_optimizer {config.matrix_optimizer!r}: expected muon or adamw")
        betas = (config.beta1, config.beta2)
        self.parts.append(torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=config.epsilon, fused=True))

    def set_learning_rate(self, rate: float) -> None:
        """The schedule's rate of the next step."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate * group["share"]

    def step(self, scaler: torch.amp.GradScaler) -> None:
        """One update with unscaled gradients, all of them finite; forgets them.

        The scaler would leave out a part whose own gradients are not finite, and the others would step.
        """
        for part in self.parts:
            scaler.step(part)
        self.skip(scaler)

    def skip(self, scaler: torch.amp.GradScaler) -> None:
        """Forgets unscaled gradients; the loss scale of fp16 is lowered where one is not finite."""
        scaler.update()
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def unscale(self, scaler: torch.amp.GradScaler) -> None:
        """Undoes the loss scaling of fp16, so that gradients can be clipped."""
        for part in self.parts:
            scaler.unscale_(part)

    def slots(self) -> dict[torch.Tensor, dict[str, torch.Tensor]]:
        """Every parameter's moments."""
        return {parameter: slots for part in self.parts for parameter, slots in part.state.items()}

    def load_slots(self, slots: dict[torch.Tensor, dict[str, torch.Tensor]]) -> None:
        """The inverse of `slots`."""
        for part in self.parts:
            for group in part.param_groups:
                for parameter in group["params"]:
                    if parameter in slots:
                        part.state[parameter] = slots[parameter]


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix is made orthogonal before it is applied (Jordan et al. 2024), Nesterov's form.

    torch.optim.Muon's update scaled to the size of AdamW's ("match_rms_adamw"), but matrices of one shape are
    orthogonalised together: on small networks that is a third of the time.
    """

    def __init__(self, groups: Any, *, lr: float, momentum: float = 0.95) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[torch.Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in shapes.items():
                for parameter in parameters:
                    if "momentum_buffer" not in self.state[parameter]:
                        self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
                buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
                gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
                torch._foreach_lerp_(buffers, gradients, 1.0 - group["momentum"])
                updates = orthogonalized(torch.stack(torch._foreach_lerp(gradients, buffers, group["momentum"])))
                torch._foreach_mul_(parameters, 1.0 - group["lr"] * group["weight_decay"])
                scale = 0.2 * math.sqrt(max(shape))
                torch._foreach_add_(parameters, list(updates.unbind()), alpha=-group["lr"] * scale)


def orthogonalized(matrices: torch.Tensor, *, steps: int = 5) -> torch.Tensor:
    """The nearest matrices with orthonormal rows or columns, roughly: Newton-Schulz iteration in bf16 on [n, r, c]."""
    a, b, c = 3.4445, -4.775, 2.0315
    x = matrices.to(torch.bfloat16)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def learning_rate(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Linear warm-up, then a cosine to `final_learning_rate_share` of the peak at `total_steps`."""
    warmup = min(config.warmup_steps, max(1, total_steps // 5))
    if step < warmup:
        start = config.initial_learning_rate
        return start + (config.learning_rate - start) * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    low = config.final_learning_rate_share
    return config.learning_rate * (low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * progress)))
