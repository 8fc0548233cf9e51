"""Training beside nanoGPT and Hugging Face; what waiting for data, ranks and kills do to a run.

All networks here have the tiny preset's layers, width, heads, context and vocabulary, and one thread. A step is: fetch
a batch, forward, backward, clip, AdamW. Ours draws its batches from shards; the peers cut windows out of an array in
memory, as nanoGPT does.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks import train_peers
from benchmarks.measure import Alone, Race
from benchmarks.train_data import ARM, POLE, TEXT, shards
from tokenization.token_sequence import TargetKind
from trainer import presets
from trainer.batch import collate
from trainer.config import ModelConfig, SamplerConfig, TrainConfig
from trainer.model import Generalist
from trainer.optim import Optimizer
from trainer.precision import autocast, choose_precision, make_scaler
from trainer.sampler import Sampler
from trainer.shards import Dataset
from trainer.train import Learner

_ROWS, _STEPS = 8, 1
_KILLS = 100
_CPU = torch.device("cpu")


def measures() -> Iterator[Race | Alone]:
    """`train.text`, `.control`, `.positions`, `.data_wait`, `.parallel_loss` and `.resume`."""
    torch.set_num_threads(1)
    yield _race("train.text", 1.0, (TEXT,))
    yield _race("train.control", 1.5, (ARM, POLE))
    yield _positions()
    facts = {"what": "tiny, batches made in the training process itself, as on every CPU"}
    yield Alone(name="train.data_wait", unit="share of a step", goal=0.02, ours=_data_wait, facts=facts)
    for sharding in ("ddp", "fsdp"):
        yield Alone(
            name="train.parallel_loss", unit="largest difference of a loss in 50 steps", goal=1e-5, most_rounds=1,
            ours=functools.partial(_parallel_loss, sharding), facts={"what": f"2 processes, gloo, {sharding}"},
        )  # fmt: skip
    facts = {"kills": _KILLS}
    yield Alone(name="train.resume", unit="differing runs", goal=0, most_rounds=1, ours=_resume, facts=facts)


def _config(task_ids: Sequence[str]) -> TrainConfig:
    tiny = presets.tiny()
    weights = dict.fromkeys(task_ids, 1.0) | {"*": 0.0}
    sampler = dataclasses.replace(tiny.sampler, task_weights=weights)
    optimizer = dataclasses.replace(tiny.optimizer, matrix_optimizer="adamw")
    return dataclasses.replace(tiny, sampler=sampler, optimizer=optimizer, action_label_sigma_bins=0.0)


def _race(name: str, goal: float, task_ids: Sequence[str]) -> Race:
    config = _config(task_ids)
    precision = choose_precision("auto", _CPU)
    found, missing = train_peers.peers(config.model, config.sampler.context_tokens)
    amount = float(_ROWS * _STEPS * config.sampler.context_tokens)
    return Race(
        name=name,
        unit=f"tokens/s of CPU time, {precision}",
        goal=goal,
        amount=amount,
        ours=_Ours(config, precision, amount),
        peers={
            peer: _Theirs(*network, task_ids, config.sampler.context_tokens, precision)
            for peer, network in found.items()
        } or {"none": lambda: float("inf")},
        not_measured=missing,
    )  # fmt: skip


def _positions() -> Race:
    """Rotary positions beside the paper's relative ones."""
    config = _config((TEXT, ARM, POLE))
    precision = choose_precision("auto", _CPU)
    amount = float(_ROWS * _STEPS * config.sampler.context_tokens)
    relative = dataclasses.replace(config, model=dataclasses.replace(config.model, positions="relative"))
    return Race(
        name="train.positions",
        unit=f"tokens/s of CPU time, {precision}, rotary positions",
        goal=1.0,
        amount=amount,
        ours=_Ours(config, precision, amount),
        peers={"relative positions, as in the paper": _Ours(relative, precision, amount)},
    )


class _Ours:
    """Seconds of CPU that our steps take, for `amount` real tokens."""

    def __init__(self, config: TrainConfig, precision: str, amount: float) -> None:
        self._precision, self._amount, self._number = precision, amount, 0
        data = Dataset.open(shards()).load("train")
        wanted = {task_id: one for task_id, one in data.items() if config.sampler.task_weights.get(task_id)}
        self._sampler = Sampler(wanted, config.sampler, 0)
        self.model = Generalist(config.model)
        self.model.initialize(0)
        self._learner = Learner(self.model.train(), 0.0)
        self._optimizer = Optimizer(self.model, config.optimizer)
        self._optimizer.set_learning_rate(1e-4)
        self._scaler = make_scaler(precision, _CPU)
        self.data_seconds = 0.0

    def __call__(self) -> float:
        began, tokens, self.data_seconds = time.process_time(), 0, 0.0
        for _ in range(_STEPS):
            fetching = time.process_time()
            batch = collate([self._sampler.sequence(self._number + row) for row in range(_ROWS)])
            self.data_seconds += time.process_time() - fetching
            self._number += _ROWS
            with autocast(self._precision, _CPU):
                _, loss = self._learner(batch, torch.tensor(batch.total_weight))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self._optimizer.step(self._scaler)
            tokens += batch.work.tokens
        self.seconds = time.process_time() - began
        return self.seconds * self._amount / tokens


class _Theirs:
    """Seconds of CPU that a peer's steps take on the same tokens; what is no target has no label."""

    def __init__(
        self,
        model: torch.nn.Module,
        loss: train_peers.Loss,
        task_ids: Sequence[str],
        context: int,
        precision: str,
    ) -> None:
        data = Dataset.open(shards()).load("train")
        tokens = np.concatenate([data[task_id].tokens for task_id in task_ids]).astype(np.int64)
        kinds = np.concatenate([data[task_id].targets for task_id in task_ids])
        self._tokens = torch.from_numpy(tokens)
        asked = kinds != TargetKind.NONE
        self._labels = torch.from_numpy(np.where(asked, tokens, -1))
        self._model, self._loss, self._context, self._precision = model.train(), loss, context, precision
        self._optimizer = torch.optim.AdamW(
            model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
        )  # fmt: skip
        self._rng = torch.Generator().manual_seed(0)

    def __call__(self) -> float:
        began = time.process_time()
        for _ in range(_STEPS):
            starts = torch.randint(len(self._tokens) - self._context - 1, (_ROWS,), generator=self._rng).tolist()
            tokens = torch.stack([self._tokens[start : start + self._context] for start in starts])
            labels = torch.stack([self._labels[start + 1 : start + 1 + self._context] for start in starts])
            with autocast(self._precision, _CPU):
                loss = self._loss(tokens, labels)
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
            self._optimizer.step()
        return time.process_time() - began


@functools.cache
def _mixture() -> _Ours:
    return _Ours(_config((TEXT, ARM, POLE)), choose_precision("auto", _CPU), 1.0)


def _data_wait() -> float:
    ours = _mixture()
    ours()
    return ours.data_seconds / ours.seconds


def _small(steps: int) -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(width=32, num_blocks=2, num_heads=2, key_size=16, feed_forward_size=64),
        sampler=SamplerConfig(context_tokens=64, long_segment_tokens=48, task_weights={TEXT: 1.0}),
        optimizer=dataclasses.replace(presets.tiny().optimizer, warmup_steps=2, matrix_optimizer="adamw"),
        batch_size=4,
        steps=steps,
        checkpoint_every_steps=3,
        log_every_steps=1,
        precision="fp32",
        device="cpu",
    )


def _parallel_loss(sharding: str) -> float:
    """Largest difference of a loss between one process and two."""
    with tempfile.TemporaryDirectory(prefix="generalist-bench-") as name:
        runs = {1: Path(name) / "one", 2: Path(name) / "two"}
        config = dataclasses.replace(_small(50), checkpoint_every_steps=50, sharding=sharding)
        given = Path(name) / "config.json"
        given.write_text(json.dumps(config.to_json()))
        for ranks, run in runs.items():
            launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
            script = ["-m", "benchmarks.train_once", str(shards()), str(run), str(given)]
            subprocess.run(
                [sys.executable, *(launch if ranks > 1 else []), *script], check=True, capture_output=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
            )  # fmt: skip
        one, two = (
            [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
            for run in runs.values()
        )
        assert len(one) == len(two) == 50
        return max(abs(first - second) for first, second in zip(one, two, strict=True))


def _resume() -> float:
    """Runs that end with other weights than an undisturbed one, of those that shared 100 kills.

    The processes are forked, so none of them loads torch anew; each is killed after a random part of a run's time.
    """
    rng, folder = random.Random(0), Path(tempfile.mkdtemp(prefix="generalist-bench-"))
    shards()
    try:
        began = time.monotonic()
        assert _until(lambda: _train(folder / "whole"), None)
        whole_seconds = time.monotonic() - began
        expected = _weights(folder / "whole")
        kills = runs = differing = 0
        while kills < _KILLS:
            run, finished, runs = folder / f"run-{runs}", False, runs + 1
            while not finished:
                last = kills >= _KILLS
                finished = _until(
                    functools.partial(_train, run), None if last else rng.uniform(0.0, 0.7 * whole_seconds)
                )
                kills += not finished
            differing += _weights(run) != expected
            shutil.rmtree(run)
            print(f"  {kills} kills, {runs} runs, {differing} differ", flush=True)
        return float(differing)
    finally:
        shutil.rmtree(folder)


def _train(run: Path) -> None:
    from trainer.train import train

    torch.set_num_threads(1)
    train(Dataset.open(shards()), run, _small(30))


def _weights(run: Path) -> bytes:
    from trainer import checkpoint

    return (checkpoint.latest(run) / "model.safetensors").read_bytes()


def _until(work: Callable[[], None], seconds: float | None) -> bool:
    """Works in a forked process, killed after so long; whether it came to its end."""
    child = os.fork()
    if child == 0:
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 2)
            work()
        except BaseException:  # noqa: BLE001 - the parent learns of it by the exit code
            os._exit(1)
        os._exit(0)
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            if code != 0:
                raise RuntimeError(f"a run ended with exit code {code}")
            return True
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
        time.sleep(0.005)
