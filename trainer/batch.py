"""Packed sequences become tensors, and are made ahead of time in a thread."""

from __future__ import annotations

import dataclasses
import itertools
import queue
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from trainer.attention import SegmentedAttention
from trainer.loss import Targets
from trainer.model import ModelInput
from trainer.sampler import PackedSequence, Sampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """What one optimizer step needs."""

    inputs: ModelInput
    attention: SegmentedAttention
    targets: Targets
    num_real_tokens: int

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        if device.type == "cpu":
            return self
        return Batch(
            inputs=self.inputs.to(device),
            attention=self.attention.to(device),
            targets=self.targets.to(device),
            num_real_tokens=self.num_real_tokens,
        )


def collate(rows: Sequence[PackedSequence]) -> Batch:
    """Lays packed sequences end to end."""
    length = len(rows[0].tokens)
    starts = np.arange(len(rows)) * length
    patch_starts = np.cumsum([0] + [len(row.patches) for row in rows])
    inputs = ModelInput(
        tokens=_tensor([row.tokens for row in rows]),
        local_positions=_tensor([row.local_positions for row in rows]),
        positions=_tensor([row.positions for row in rows]),
        patches=_tensor([row.patches for row in rows]),
        patch_slots=_tensor([row.patch_slots + start for row, start in zip(rows, starts, strict=True)]),
        patch_index=_tensor([row.patch_index + base for row, base in zip(rows, patch_starts, strict=False)]),
        patch_positions=_tensor([row.patch_positions for row in rows]),
    )
    targets = Targets(
        slots=_tensor([row.target_slots + start for row, start in zip(rows, starts, strict=True)]),
        ids=_tensor([row.target_ids for row in rows]),
        weights=_tensor([row.target_weights for row in rows]),
        is_text=_tensor([row.target_is_text for row in rows]),
        tasks=_tensor([row.target_tasks for row in rows]),
    )
    return Batch(
        inputs=inputs,
        attention=SegmentedAttention.from_lengths([n for row in rows for n in row.segment_lengths]),
        targets=targets,
        num_real_tokens=sum(row.num_real for row in rows),
    )


def _tensor(parts: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts))


def batches(
    sampler: Sampler, *, batch_size: int, first_step: int, steps_ahead: int, rank: int = 0, ranks: int = 1
) -> Iterator[Batch]:
    """Batch `first_step`, `first_step` + 1, ... without end; a thread keeps `steps_ahead` of them ready.

    Of the `batch_size` rows of a step these are those of one rank. With `steps_ahead` 0 they are made when they are
    asked for. That is faster where the network itself runs on the CPU: torch's threads spin while they wait for each
    other, and one more busy thread than cores makes them wait for whole time slices.
    """
    if steps_ahead == 0:
        for step in itertools.count(first_step):
            yield collate([sampler.sequence(step * batch_size + row) for row in range(rank, batch_size, ranks)])
    ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=steps_ahead)
    stopped = threading.Event()

    def work() -> None:
        step = first_step
        try:
            while not stopped.is_set():
                batch = collate([sampler.sequence(step * batch_size + row) for row in range(rank, batch_size, ranks)])
                step += 1
                while not stopped.is_set():
                    try:
                        ready.put(batch, timeout=0.5)
                        break
                    except queue.Full:
                        continue
        except BaseException as error:  # noqa: BLE001 - handed to the reader, which raises it
            ready.put(error)

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
