"""Several processes train one network: torchrun starts them, each computes its rows of a batch, gradients are averaged.

    torchrun --standalone --nproc-per-node 2 -m trainer train --shards ... --output ...

What is learned does not depend on their number but for rounding: row r of a batch belongs to rank r modulo the number
of ranks, and the loss is the weighted mean over the targets of all ranks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from episode_store.errors import UserError


class LostRankError(UserError):
    """Another process of the run ended or cannot be reached."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among the others.

    Attributes:
      rank: number of this process, from 0.
      size: number of processes.
      device: of this process.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes files and shows progress."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, elementwise."""
        if self.size == 1:
            return values
        values = values.clone()
        with _loss_told():
            distributed.all_reduce(values)
        return values

    def share(self, value: Any) -> Any:
        """The first rank's value (a number, a string)."""
        if self.size == 1:
            return value
        box = [value]
        with _loss_told():
            distributed.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def wait(self) -> None:
        """Until all ranks are here."""
        self.share(None)

    def wrap(self, module: nn.Module) -> nn.Module:
        """A module whose backward pass averages the gradients over all ranks."""
        if self.size == 1:
            return module
        # A rank whose rows hold no picture has no gradient for the embedding of patches; another one may.
        devices = [self.device.index] if self.device.type == "cuda" else None
        with _loss_told():
            return DistributedDataParallel(module, device_ids=devices, find_unused_parameters=True)


@contextlib.contextmanager
def ranks(device: torch.device) -> Iterator[Ranks]:
    """The ranks that torchrun started, or one alone.

    Raises:
      LostRankError: another rank ended before this one.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks(rank=0, size=1, device=device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        with _loss_told():
            yield Ranks(rank=distributed.get_rank(), size=size, device=device)
    finally:
        distributed.destroy_process_group()


@contextlib.contextmanager
def _loss_told() -> Iterator[None]:
    try:
        yield
    except (distributed.DistBackendError, distributed.DistNetworkError, RuntimeError) as error:
        if isinstance(error, (distributed.DistBackendError, distributed.DistNetworkError)) or "gloo" in str(error):
            line = str(error).strip().splitlines()[0]
            raise LostRankError(
                f"another rank of this run was lost ({line}); run the same command again, it goes on from the last "
                "checkpoint"
            ) from None
        raise
