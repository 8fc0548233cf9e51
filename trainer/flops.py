"""How many floating-point operations a step needs, and how many a second a machine has: their ratio is the MFU.

Counted is what the result needs: matrix products of real tokens, attention inside segments and into the past, logits at
targets. What is computed beside that (padding, masked pairs, activations made twice) counts as lost.
"""

from __future__ import annotations

import dataclasses
import time

import torch

from tokenization.image_patches import PATCH_SIZE
from tokenization.vocabulary import NUM_BINS, NUM_DISCRETE, VOCABULARY_SIZE
from trainer.config import ModelConfig

# Dense peak of one GPU in 10^12 operations a second, from the makers' data sheets: bf16 and fp16, then tf32.
_GPU_PEAKS = {
    "H200": (989.0, 494.0),
    "H100 PCIe": (756.0, 378.0),
    "H100": (989.0, 494.0),
    "A100": (312.0, 156.0),
    "L40S": (362.0, 183.0),
    "L4": (121.0, 60.0),
    "A10": (125.0, 62.0),
    "T4": (65.0, 8.1),
    "V100": (125.0, 15.7),
    "RTX 4090": (165.0, 82.0),
}
# A backward pass costs two forward passes.
TRAINING_FACTOR = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What a batch asks of the network.

    Attributes:
      tokens: real ones.
      pairs: of a token and one that it sees, itself included.
      text_targets: scored among all ids.
      control_targets: scored among discrete values and bins.
      patches: different ones.
    """

    tokens: int
    pairs: int
    text_targets: int
    control_targets: int
    patches: int

    def __add__(self, other: Work) -> Work:
        names = [field.name for field in dataclasses.fields(self)]
        return Work(**{name: getattr(self, name) + getattr(other, name) for name in names})


def forward_flops(config: ModelConfig, work: Work) -> float:
    """Operations of one forward pass; an addition and a multiplication count as two."""
    inner = config.num_heads * config.key_size
    linear = 4 * config.width * inner + config.width * config.feed_forward_size * 3 // 2
    pair = 2 * inner
    if config.positions == "relative":
        pair += inner
    channels, places = config.patch_channels, (PATCH_SIZE // 2) ** 2
    patch = places * (27 * channels + 2 * 9 * channels**2 + channels * config.width)
    logits = config.width * (work.text_targets * VOCABULARY_SIZE + work.control_targets * (NUM_DISCRETE + NUM_BINS))
    return 2.0 * (config.num_blocks * (work.tokens * linear + work.pairs * pair) + work.patches * patch + logits)


def training_flops(config: ModelConfig, work: Work) -> float:
    """Operations of a forward and a backward pass."""
    return TRAINING_FACTOR * forward_flops(config, work)


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Operations a second: of a known GPU by its data sheet, of a CPU as measured; None for an unknown GPU."""
    if device.type == "cuda":
        return known_peak(torch.cuda.get_device_name(device), precision)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    size = 1024
    left, right = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        torch.mm(left, right)
        seconds.append(time.perf_counter() - start)
    return 2.0 * size**3 / min(seconds)


def known_peak(name: str, precision: str) -> float | None:
    """Operations a second of a GPU whose name contains a known one."""
    for known, (half, single) in _GPU_PEAKS.items():
        if all(word in name for word in known.split()):
            return 1e12 * (single if precision == "fp32" else half)
    return None
