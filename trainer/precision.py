"""Which number format the machine is best at, and the autocast that goes with it."""

from __future__ import annotations

import contextlib
import time
from contextlib import AbstractContextManager

import torch

from episode_store.errors import UserError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """ "auto" takes CUDA where there is a GPU.

    Raises:
      UserError: for "cuda" on a machine without one.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda: this machine has no CUDA GPU that torch can use; use --set device=cpu")
    if name not in ("cpu", "cuda"):
        raise UserError(f"device {name!r}: expected auto, cpu or cuda")
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> str:
    """ "auto" takes bf16 on GPUs that have it, else fp16; on CPUs bf16 where a matrix product is faster in it.

    Raises:
      UserError: for an unknown name, or fp16 on a CPU.
    """
    if name not in ("auto", *_DTYPES):
        raise UserError(f"precision {name!r}: expected auto, {', '.join(_DTYPES)}")
    if name == "fp16" and device.type == "cpu":
        raise UserError("precision fp16 needs a GPU; on a CPU use auto, bf16 or fp32")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if _product_seconds(torch.bfloat16) < 0.8 * _product_seconds(torch.float32) else "fp32"


def _product_seconds(dtype: torch.dtype) -> float:
    left, right = torch.ones(2048, 256, dtype=dtype), torch.ones(256, 1024, dtype=dtype)
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        torch.mm(left, right)
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[1]


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Forward passes run inside it; weights stay in fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, _DTYPES[precision])


def make_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Loss scaling for fp16; does nothing in the other precisions."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")
