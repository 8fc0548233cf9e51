"""Model FLOPs utilisation on a GPU; prints that it was not measured where there is none."""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.measure import Alone
from benchmarks.train_data import shards
from trainer import presets
from trainer.shards import Dataset

_PRESETS = {"79m": (0.4, 64), "364m": (0.5, 32), "1180m": (0.5, 8)}


def measures() -> Iterator[Alone]:
    """`gpu.mfu.79m`, `gpu.mfu.364m` and `gpu.mfu.1180m`: 40 steps in bf16, compiled, the median of the last 20."""
    if not torch.cuda.is_available():
        print("gpu.mfu: no GPU: not measured")
        return
    for name, (goal, rows) in _PRESETS.items():
        facts = {"what": f"bf16, {rows} rows of 1,024 tokens", "gpu": torch.cuda.get_device_name()}
        ours = functools.partial(_utilisation, name, rows)
        yield Alone(name=f"gpu.mfu.{name}", unit="MFU", goal=goal, most_rounds=1, ours=ours, facts=facts)


def _utilisation(name: str, rows: int) -> float:
    from trainer.train import train

    config = dataclasses.replace(
        presets.get(name), batch_size=rows, steps=40, checkpoint_every_steps=40, log_every_steps=20, precision="bf16",
        device="cuda", compile=True, checkpoint_activations=name == "1180m",
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="generalist-bench-") as folder:
        summary = train(Dataset.open(shards()), Path(folder) / "run", config)
        rows_of_metrics = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
        last = json.loads(rows_of_metrics[-1])
    memory = torch.cuda.max_memory_allocated() / 1e9
    print(f"  {name}: {last['tokens_per_second']:,.0f} tokens/s, {memory:.1f} GB, {summary['tokens']:,} tokens")
    return float(last["mfu"])
