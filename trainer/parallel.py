"""Several processes train one network: each computes its rows of a batch, gradients are averaged.

    python -m trainer train --ranks 2 ...                                        # on this machine
    torchrun --nnodes 2 --nproc-per-node 8 ... -m trainer train ...              # on several

What is learned does not depend on their number but for rounding: row r of a batch belongs to rank r modulo the number
of ranks, and the loss is the weighted mean over the targets of all ranks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import IO, Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from episode_store.errors import UserError

_LAUNCHER = "TRAINER_LAUNCHER_PID"
_POLL_SECONDS = 0.2
_LET_GO_SECONDS = 0.5
# On a CPU more ranks average more often than they save.
_MOST_CPU_RANKS = 4


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
        distributed.all_reduce(values)
        return values

    def share(self, value: Any) -> Any:
        """The first rank's value (a number, a string)."""
        if self.size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.size > 1:
            distributed.barrier()

    def wrap(self, learner: nn.Module, blocks: Iterable[nn.Module], *, sharding: str) -> nn.Module:
        """A module whose backward pass averages the gradients over all ranks.

        Args:
          learner: the network and its loss.
          blocks: parts of it that are gathered one at a time under "fsdp".
          sharding: "ddp" keeps everything on each rank; "fsdp" cuts the tensors of `learner` itself into parts, so
            make the optimizer afterwards.

        Raises:
          UserError: for another name.
        """
        if sharding not in ("ddp", "fsdp"):
            raise UserError(f"sharding {sharding!r}: expected ddp or fsdp")
        if self.size == 1:
            return learner
        if sharding == "fsdp":
            mesh = init_device_mesh(self.device.type, (self.size,))
            for block in blocks:
                fully_shard(block, mesh=mesh)
            fully_shard(learner, mesh=mesh)
            return learner
        devices = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(learner, device_ids=devices)


def averaging(learner: nn.Module, *, wanted: bool) -> AbstractContextManager[object]:
    """Backward passes inside it average gradients over the ranks, or only add them up on their own."""
    if isinstance(learner, FSDPModule):
        learner.set_requires_gradient_sync(wanted)
    elif isinstance(learner, DistributedDataParallel) and not wanted:
        return learner.no_sync()
    return contextlib.nullcontext()


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
    if _LAUNCHER in os.environ:
        threading.Thread(target=_end_with, args=(int(os.environ[_LAUNCHER]),), daemon=True).start()
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        with _loss_told():
            yield Ranks(rank=distributed.get_rank(), size=size, device=device)
    finally:
        distributed.destroy_process_group()
        if device.type == "cpu":
            # Under FSDP the caches of DTensor keep gloo's threads beyond this. One that drops the tensors of the last
            # exchange while the interpreter ends would abort it (SIGABRT), so it gets time to do it before.
            time.sleep(_LET_GO_SECONDS)


@contextlib.contextmanager
def _loss_told() -> Iterator[None]:
    """gloo tells a lost connection by a bare RuntimeError, from wherever ranks wait for each other."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        line = str(error).strip().splitlines()[0]
        raise LostRankError(
            f"another rank of this run was lost ({line}); run the same command again, it goes on from the last "
            "checkpoint"
        ) from None


def number_of_ranks(text: str) -> int:
    """What `--ranks` asks for: a number, or "auto" for one a GPU, on CPUs one a core up to four.

    Raises:
      UserError: it is neither.
    """
    if text == "auto":
        return torch.cuda.device_count() or min(_MOST_CPU_RANKS, len(os.sched_getaffinity(0)))
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--ranks {text}: expected a number from 1 on, or auto")
    return int(text)


def launch(count: int, arguments: Sequence[str]) -> int:
    """Runs `python -m trainer <arguments>` as `count` ranks on this machine.

    Returns:
      The exit code of the first that failed, whereupon the others are stopped; else 0.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = max(1, len(os.sched_getaffinity(0)) // count)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    shared |= {_LAUNCHER: str(os.getpid()), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
    # gloo would look up the machine's name, which not every machine can resolve.
    shared |= {"GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo")}
    children: list[subprocess.Popen[bytes]] = []
    with contextlib.ExitStack() as stack:
        # The first rank speaks for all; what another says is shown only if that one fails alone.
        said: list[IO[bytes]] = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(count)]
        try:
            for rank in range(count):
                children.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "trainer", *arguments],
                        env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                        stderr=said[rank] if rank else None,
                    )
                )
            while any(child.poll() is None for child in children) and not any(child.poll() for child in children):
                time.sleep(_POLL_SECONDS)
            time.sleep(_POLL_SECONDS)  # the others may be failing for the same reason, and say so
            failed = [rank for rank, child in enumerate(children) if child.poll()]
            if not failed:
                return 0
            if 0 not in failed:
                said[failed[0]].seek(0)
                sys.stderr.write(said[failed[0]].read().decode(errors="replace"))
                sys.stderr.write(f"rank {failed[0]} ended with {children[failed[0]].returncode}\n")
            code = children[failed[0]].returncode
            return code if code > 0 else 1
        finally:
            for child in children:
                child.kill()
                child.wait()


def _end_with(launcher: int) -> None:
    """Ends this process once its launcher is gone, so that a killed run does not go on behind the user's back."""
    while os.getppid() == launcher:
        time.sleep(_POLL_SECONDS)
    os._exit(1)
