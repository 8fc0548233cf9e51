"""Packed sequences become tensors, and are made ahead of time in a thread."""

from __future__ import annotations

import dataclasses
import itertools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from episode_store.errors import UserError
from trainer.attention import PackedAttention, SegmentedAttention
from trainer.flops import Work
from trainer.loss import Targets
from trainer.model import ModelInput
from trainer.sampler import PackedSequence, Sampler
from trainer.tensors import map_tensors


class StalledLoaderError(UserError):
    """The thread that makes batches has made none for long."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Packed sequences, and what is asked of them.

    Attributes:
      total_weight: of its targets.
      work: what it costs.
    """

    inputs: ModelInput
    attention: PackedAttention
    targets: Targets
    total_weight: float
    work: Work

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return self if device.type == "cpu" else self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The same in memory that a GPU copies from by itself."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return dataclasses.replace(
            self,
            inputs=map_tensors(self.inputs, change),
            attention=map_tensors(self.attention, change),
            targets=map_tensors(self.targets, change),
        )


def collate(rows: Sequence[PackedSequence], attention: type[PackedAttention] = SegmentedAttention) -> Batch:
    """Lays packed sequences end to end, for one kind of attention."""
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
        attention=attention.from_lengths([n for row in rows for n in row.segment_lengths]),
        targets=targets,
        total_weight=float(sum(row.target_weights.sum() for row in rows)),
        work=Work(
            tokens=sum(row.num_real for row in rows),
            pairs=sum(_pairs(row) for row in rows),
            text_targets=int(sum(row.target_is_text.sum() for row in rows)),
            control_targets=int(sum((~row.target_is_text).sum() for row in rows)),
            patches=sum(len(row.patches) for row in rows),
        ),
    )


def _pairs(row: PackedSequence) -> int:
    lengths = np.asarray(row.segment_lengths)
    padding = len(row.tokens) - row.num_real
    return int((lengths * (lengths + 1) // 2).sum()) - padding * (padding + 1) // 2


def _tensor(parts: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts))


def batches(
    sampler: Sampler,
    *,
    batch_size: int,
    first_step: int,
    steps_ahead: int,
    rank: int = 0,
    ranks: int = 1,
    parts: int = 1,
    attention: type[PackedAttention] = SegmentedAttention,
    pin: bool = False,
    timeout_seconds: float = 600.0,
) -> Iterator[tuple[Batch, ...]]:
    """The `parts` of batch `first_step`, `first_step` + 1, ... without end; a thread keeps `steps_ahead` steps ready.

    Of the `batch_size` rows of a step these are those of one rank, dealt to the parts in turn. With `steps_ahead` 0
    they are made when they are asked for. That is faster where the network itself runs on the CPU: torch's threads spin
    while they wait for each other, and one more busy thread than cores makes them wait for whole time slices.

    Raises:
      StalledLoaderError: the thread had no step ready for `timeout_seconds`.
    """

    def make(step: int) -> tuple[Batch, ...]:
        rows = [sampler.sequence(step * batch_size + row) for row in range(rank, batch_size, ranks)]
        made = [collate(rows[part::parts], attention) for part in range(min(parts, len(rows)))]
        return tuple(batch.pinned() if pin else batch for batch in made)

    if steps_ahead == 0:
        for step in itertools.count(first_step):
            yield make(step)
    ready: queue.Queue[tuple[Batch, ...] | BaseException] = queue.Queue(maxsize=steps_ahead)
    stopped = threading.Event()

    def work() -> None:
        try:
            for step in itertools.count(first_step):
                made = make(step)
                while not stopped.is_set():
                    try:
                        ready.put(made, timeout=0.5)
                        break
                    except queue.Full:
                        continue
                if stopped.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 - handed to the reader, which raises it
            ready.put(error)

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    patience = timeout_seconds
    try:
        while True:
            try:
                item = ready.get(timeout=timeout_seconds)
            except queue.Empty:
                patience = 1.0  # it dies with the process
                raise StalledLoaderError(
                    f"no batch for {timeout_seconds:g} seconds; is the disk of the shards still there? Run the same "
                    "command again, it goes on from the last checkpoint; loader_timeout_seconds sets the limit"
                ) from None
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        # A thread that still uses torch when the interpreter ends would abort it.
        stopped.set()
        thread.join(timeout=patience)
