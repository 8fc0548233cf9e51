"""What a run will need, before it is begun: memory, time, tokens, money. Estimates from the settings alone.

Operations are those of `flops.py`. Time is operations over the peak of the hardware times a share of it that the run is
assumed to use; memory is counted in tensors. docs/scaling.md compares time and money with what is published of Gato;
neither was compared with a run of ours.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from episode_store.errors import UserError
from tokenization.vocabulary import NUM_BINS, NUM_DISCRETE, VOCABULARY_SIZE
from trainer.config import ModelConfig, TrainConfig
from trainer.flops import Work, forward_flops, known_peak, peak_flops, training_flops
from trainer.model import Generalist, num_parameters
from trainer.shards import BYTES_PER_TOKEN


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hardware:
    """One device.

    Attributes:
      name: as its driver calls it.
      peak_flops: operations a second in bf16 or fp16, dense.
      memory_gb: 10^9 bytes.
      dollars_per_hour: what renting one was listed for; prices change, `--price` overrides it.
      is_host: whether its memory is the machine's, which also holds the data set.
    """

    name: str
    peak_flops: float
    memory_gb: float
    dollars_per_hour: float
    is_host: bool = False


def _gpu(name: str, memory_gb: float, dollars_per_hour: float) -> Hardware:
    peak = known_peak(name, "bf16")
    assert peak is not None
    return Hardware(name=name, peak_flops=peak, memory_gb=memory_gb, dollars_per_hour=dollars_per_hour)


HARDWARE = {
    "h200": _gpu("H200", 141, 3.5),
    "h100": _gpu("H100", 80, 2.5),
    "a100": _gpu("A100", 80, 1.5),
    "l4": _gpu("L4", 24, 0.7),
    "t4": _gpu("T4", 16, 0.35),
    # Gato was trained on a 16x16 slice of these for about four days; 2 dollars a chip and hour.
    "tpu-v3": Hardware(name="TPU v3 chip", peak_flops=123e12, memory_gb=32, dollars_per_hour=2.0),
}


def this_cpu() -> Hardware:
    """This machine's processor, its peak as measured now, without a price."""
    import os

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    peak = peak_flops(torch.device("cpu"), "bf16")
    assert peak is not None
    return Hardware(name="this processor", peak_flops=peak, memory_gb=memory, dollars_per_hour=0.0, is_host=True)


def hardware(name: str) -> Hardware:
    """One of `HARDWARE`, or "cpu" for this machine.

    Raises:
      UserError: for another name.
    """
    if name == "cpu":
        return this_cpu()
    if name not in HARDWARE:
        raise UserError(f"--hardware {name}: expected cpu or one of {', '.join(sorted(HARDWARE))}")
    return HARDWARE[name]


def activation_bytes_per_token(config: ModelConfig) -> int:
    """What one block keeps of one token for the backward pass under bf16 autocast.

    The residual stream and the norms are fp32, what goes into and comes out of matrix products is bf16.
    """
    width, inner, hidden = config.width, config.num_heads * config.key_size, config.feed_forward_size
    norms = 2 * (4 + 4 + 2) * width  # input, output, and the output in bf16
    attention = 2 * (3 + 2 + 3 + 1) * inner  # query, key, value; rotated; laid by segment; mixed
    feed_forward = 2 * (hidden + hidden // 2 + hidden // 2)
    return norms + attention + feed_forward


def make_plan(
    config: TrainConfig,
    device: Hardware,
    *,
    count: int = 1,
    utilisation: float = 0.4,
    price: float | None = None,
    data_tokens: int | None = None,
    target_share: float = 0.15,
    text_share: float = 0.1,
) -> dict[str, Any]:
    """The estimate, as JSON.

    Args:
      config: the run.
      device: what it runs on.
      count: of devices.
      utilisation: share of the peak that is assumed to be used (MFU).
      price: dollars an hour and device; the listed one by default.
      data_tokens: of the training data, which each rank holds whole in the machine's memory; by default as many as the
        run sees, each once.
      target_share: share of the tokens that are targets.
      text_share: share of the targets that are text, scored among all ids.
    """
    if not 0 < utilisation <= 1:
        raise UserError(f"--mfu {utilisation}: expected more than 0 and at most 1")
    with torch.device("meta"):
        model = Generalist(config.model)
    parameters = num_parameters(model)
    matrices = sum(layer.weight.numel() for layer in model.blocks.modules() if isinstance(layer, nn.Linear))
    tokens_a_step = config.batch_size * config.sampler.context_tokens
    targets = tokens_a_step * target_share
    work = Work(
        tokens=tokens_a_step,
        pairs=config.batch_size * config.sampler.context_tokens * (config.sampler.context_tokens + 1) // 2,
        text_targets=int(targets * text_share),
        control_targets=int(targets * (1 - text_share)),
        patches=0,
    )
    flops = training_flops(config.model, work)
    if config.checkpoint_activations:  # the blocks' forward pass once more
        flops += forward_flops(config.model, dataclasses.replace(work, text_targets=0, control_targets=0))
    seconds = flops / (device.peak_flops * count * utilisation)
    hours = seconds * config.steps / 3600
    parts = count if config.sharding == "fsdp" else 1
    # AdamW keeps two moments of a weight, Muon one of the blocks' matrices, which are all that it trains.
    moments = 2 * parameters - (matrices if config.optimizer.matrix_optimizer == "muon" else 0)
    tokens_at_once = tokens_a_step / count / config.accumulation_steps
    kept = 4 * config.model.width + (0 if config.checkpoint_activations else activation_bytes_per_token(config.model))
    logits = tokens_at_once * target_share * 4 * 3
    logits *= text_share * VOCABULARY_SIZE + (1 - text_share) * (NUM_DISCRETE + NUM_BINS)
    memory = {
        "weights": 4 * parameters / parts,
        "gradients": 4 * parameters / parts,
        "optimizer": 4 * moments / parts,
        "activations": tokens_at_once * config.model.num_blocks * kept
        + (tokens_at_once * activation_bytes_per_token(config.model) if config.checkpoint_activations else 0),
        "logits": logits,
    }
    tokens = tokens_a_step * config.steps
    data_tokens = tokens if data_tokens is None else data_tokens
    data_set = BYTES_PER_TOKEN * data_tokens
    if device.is_host:
        memory["data set"] = data_set
    total = sum(memory.values())
    dollars = price if price is not None else device.dollars_per_hour
    return {
        "parameters": parameters,
        "tokens_a_step": tokens_a_step,
        "steps": config.steps,
        "tokens": tokens,
        "flops": flops * config.steps,
        "hardware": device.name,
        "devices": count,
        "assumed_mfu": utilisation,
        "tokens_per_second": tokens_a_step / seconds,
        "hours": hours,
        "device_hours": hours * count,
        "dollars": hours * count * dollars,
        "memory_gb": {name: value / 1e9 for name, value in memory.items()} | {"total": total / 1e9},
        "device_memory_gb": device.memory_gb,
        "fits": total / 1e9 < 0.92 * device.memory_gb,
        "data_tokens": data_tokens,
        "data_set_gb": data_set / 1e9,
        "checkpoint_gb": 4 * (parameters + moments) / 1e9,
    }
