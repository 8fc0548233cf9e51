"""What a run tells of itself: JSON lines and TensorBoard."""

from __future__ import annotations

import collections
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from episode_store.files import write_bytes
from trainer.batch import Batch
from trainer.parallel import Ranks

METRICS_FILE = "metrics.jsonl"
# Steps that the speed is averaged over.
RECENT_STEPS = 50


class Metrics:
    """Means over the steps since the last log line, to JSON lines and TensorBoard."""

    def __init__(self, run: Path, task_ids: list[str], first_step: int, ranks: Ranks, peak_flops: float | None) -> None:
        self._task_ids, self._ranks, self._peak_flops = task_ids, ranks, peak_flops
        self._recent: collections.deque[float] = collections.deque(maxlen=RECENT_STEPS)
        self._reset()
        if ranks.is_first:
            self._open(run, first_step)

    def _open(self, run: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = run / METRICS_FILE
        lines = path.read_text().splitlines() if path.exists() else []
        # Lines after the checkpoint that we resume from are written again. A kill must not cost those before it.
        write_bytes(path, "".join(line + "\n" for line in lines if _step_of(line) <= first_step).encode())
        self._file = path.open("a")
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=first_step + 1)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        if self._ranks.is_first:
            self._file.close()
            self._board.close()

    @property
    def recent_seconds_per_step(self) -> float:
        """Mean over the last `RECENT_STEPS` steps."""
        return sum(self._recent) / len(self._recent)

    def _reset(self) -> None:
        self._sums = torch.zeros(len(self._task_ids))
        self._counts = torch.zeros(len(self._task_ids))
        self._totals = {"loss": 0.0, "norm": 0.0, "waited": 0.0, "seconds": 0.0, "tokens": 0.0, "flops": 0.0}
        self._steps = 0
        self._skipped = 0

    def add_targets(self, losses: torch.Tensor, batch: Batch) -> None:
        """The losses of this rank's targets."""
        tasks = batch.targets.tasks.cpu()
        self._sums.index_add_(0, tasks, losses.cpu())
        self._counts.index_add_(0, tasks, torch.ones(len(tasks)))

    def add_step(self, *, skipped: bool = False, **values: float) -> None:
        """One step's numbers: loss, norm, tokens and flops of all ranks; waited, seconds.

        A step that was skipped has no part in the means of loss and norm.
        """
        for name, value in values.items():
            if not (skipped and name in ("loss", "norm")):
                self._totals[name] += value
        self._steps += 1
        self._skipped += skipped
        self._recent.append(values["seconds"])

    def log(self, step: int, rate: float) -> dict[str, Any]:
        """Writes one line and starts anew. All ranks call it; the targets of all of them count.

        Loss and gradient norm are None where every step was skipped.
        """
        totals, taken = self._totals, self._steps - self._skipped
        sums, counts = self._ranks.sum(torch.stack([self._sums, self._counts]).to(self._ranks.device)).cpu()
        row: dict[str, Any] = {
            "step": step,
            "loss": totals["loss"] / taken if taken else None,
            "learning_rate": rate,
            "gradient_norm": totals["norm"] / taken if taken else None,
            "tokens_per_second": totals["tokens"] / totals["seconds"],
            "targets_per_second": float(counts.sum()) / totals["seconds"],
            "data_wait_share": totals["waited"] / totals["seconds"],
            "mfu": self._mfu(totals["flops"] / totals["seconds"]),
            "task_losses": {
                task_id: float(total / count)
                for task_id, total, count in zip(self._task_ids, sums, counts, strict=True)
                if count
            },
        }
        self._reset()
        if not self._ranks.is_first:
            return row
        self.add_event(**row)
        for name, value in row.items():
            if name == "task_losses":
                for task_id, loss in value.items():
                    self._board.add_scalar(f"loss/{task_id}", loss, step)
            elif name != "step" and value is not None:
                self._board.add_scalar(name, value, step)
        return row

    def add_event(self, **facts: Any) -> None:
        """A line of its own, for what does not happen in every step; "step" is the one that it belongs to, from 1."""
        if self._ranks.is_first:
            self._file.write(json.dumps(facts, allow_nan=False) + "\n")

    def tell(self, step: int, kind: str, said: str) -> None:
        """An event that the user should see at once, too."""
        self.add_event(step=step, **{kind: said})
        if self._ranks.is_first:
            tqdm.write(f"trainer: step {step}: {said}", file=sys.stderr)

    def _mfu(self, flops_per_second: float) -> float | None:
        """Model FLOPs utilisation: the part of the peak that the network's own operations used."""
        return flops_per_second / self._peak_flops / self._ranks.size if self._peak_flops else None

    def flush(self) -> None:
        """Puts the lines on the disk, so that they are there when the checkpoint is."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._board.flush()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # cut short by a kill
