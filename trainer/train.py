"""One training run, from shards to checkpoints; killed at any moment, it goes on from the last checkpoint."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from episode_store.command_line import progress
from episode_store.errors import UserError
from episode_store.files import hold, write_json
from trainer import checkpoint, parallel
from trainer.batch import Batch, batches
from trainer.config import TrainConfig
from trainer.loss import target_losses, weighted_mean
from trainer.model import Generalist, num_parameters
from trainer.optim import Optimizer, learning_rate
from trainer.parallel import Ranks
from trainer.precision import autocast, choose_device, choose_precision, make_scaler
from trainer.sampler import Sampler
from trainer.shards import Dataset

METRICS_FILE = "metrics.jsonl"
# With `budget_seconds` the schedule's length follows the measured speed; a machine may slow down half-way.
_CALIBRATE_EVERY_STEPS = 50
_LOCK_FILE = ".lock"
# What a killed run leaves needs a moment to be gone.
_LOCK_SECONDS = 5.0


class NonFiniteLossError(UserError):
    """The loss became NaN or infinite."""


def train(dataset: Dataset, run: Path, config: TrainConfig) -> dict[str, Any]:
    """Trains until `config.steps` (or its budget) and returns a summary. Resumes by itself.

    Raises:
      UserError: when the run was begun with other settings or shards.
    """
    with parallel.ranks(choose_device(config.device)) as ranks, contextlib.ExitStack() as stack:
        if ranks.is_first:
            stack.enter_context(_alone(run))
        return _train(dataset, run, config, ranks)


def _train(dataset: Dataset, run: Path, config: TrainConfig, ranks: Ranks) -> dict[str, Any]:
    device = ranks.device
    if config.batch_size < ranks.size:
        raise UserError(f"batch_size {config.batch_size}: expected a row for each of the {ranks.size} ranks, or more")
    if ranks.is_first:
        _begin(run, config, dataset)
    ranks.wait()
    data = dataset.load("train")
    sampler = Sampler(data, config.sampler, config.seed)
    model = Generalist(config.model)
    model.initialize(config.seed)
    model.to(device).train()
    optimizer = Optimizer(model, config.optimizer)
    existing = checkpoint.list_checkpoints(run)
    if not existing:
        precision = ranks.share(choose_precision(config.precision, device))
        state = _TrainingState(step=0, total_steps=config.steps, seconds=0.0, num_tokens=0, precision=precision)
    else:
        saved = checkpoint.read_state(existing[-1])
        state = _TrainingState(**{field.name: saved[field.name] for field in dataclasses.fields(_TrainingState)})
        checkpoint.load_weights(existing[-1], model)
        checkpoint.load_optimizer(existing[-1], model, optimizer)
        # "auto" measures the machine; a resumed run keeps what was chosen at its start.
        precision = choose_precision(state.precision, device)
    ranks.wait()  # from here on the first rank writes checkpoints
    scaler = make_scaler(precision, device)
    learner: nn.Module = _Learner(model, config.action_label_sigma_bins)
    if config.compile:
        learner = torch.compile(learner)  # type: ignore[assignment]
    learner = ranks.wrap(learner)
    with contextlib.ExitStack() as stack:
        metrics = stack.enter_context(_Metrics(run, sampler.task_ids, state.step, ranks))
        source: Iterator[Batch] = batches(
            sampler,
            batch_size=config.batch_size,
            first_step=state.step,
            steps_ahead=4 if device.type == "cuda" else 0,
            rank=ranks.rank,
            ranks=ranks.size,
        )
        stack.callback(source.close)  # type: ignore[attr-defined]
        bar = stack.enter_context(progress(description="training", total=state.total_steps, unit="steps"))
        bar.disable = not ranks.is_first
        bar.update(state.step)
        while state.step < state.total_steps:
            waited = time.perf_counter()
            batch = next(source).to(device)
            began = time.perf_counter()
            rate = learning_rate(state.step, state.total_steps, config.optimizer)
            optimizer.set_learning_rate(rate)
            total_weight, num_tokens = ranks.sum(
                torch.stack([batch.targets.weights.sum(), torch.tensor(float(batch.num_real_tokens), device=device)])
            )
            with autocast(precision, device):
                losses, share = learner(batch, total_weight.clamp_min(1e-6))
            # DistributedDataParallel takes the mean over the ranks; the shares are to be added.
            scaler.scale(share * ranks.size).backward()
            loss, losses = ranks.sum(share.detach()), losses.detach()
            optimizer.unscale(scaler)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.gradient_clip_norm)
            if not math.isfinite(float(loss)) or (not math.isfinite(float(norm)) and not scaler.is_enabled()):
                raise NonFiniteLossError(
                    f"step {state.step}: loss {float(loss)}, gradient norm {float(norm)}: not finite; worst task "
                    f"{metrics.worst_task(losses, batch)}; lower optimizer.learning_rate and run again"
                )
            optimizer.step(scaler)
            state.step += 1
            state.num_tokens += int(num_tokens)
            now = time.perf_counter()
            state.seconds += now - waited
            metrics.add(
                losses,
                batch,
                loss=float(loss),
                norm=float(norm),
                tokens=float(num_tokens),
                waited=began - waited,
                seconds=now - waited,
            )
            if state.step % config.log_every_steps == 0 or state.step == state.total_steps:
                row = metrics.log(state.step, rate)
                bar.set_postfix_str(f"loss {row['loss']:.3f}, {row['tokens_per_second']:,.0f} tokens/s")
            bar.update(1)
            if config.budget_seconds and state.step % _CALIBRATE_EVERY_STEPS == 0:
                state.total_steps = ranks.share(_steps_in_budget(state, config, metrics.recent_seconds_per_step))
                bar.total = state.total_steps
            if ranks.is_first and (state.step % config.checkpoint_every_steps == 0 or state.step == state.total_steps):
                metrics.flush()
                checkpoint.save(run, step=state.step, model=model, optimizer=optimizer, state=dataclasses.asdict(state))
        ranks.wait()
    return {
        "steps": state.step,
        "tokens": state.num_tokens,
        "seconds": state.seconds,
        "parameters": num_parameters(model),
        "precision": precision,
        "device": str(device),
        "ranks": ranks.size,
        "checkpoint": str(checkpoint.latest(run)),
    }


@dataclasses.dataclass(kw_only=True)
class _TrainingState:
    """What a resumed run needs besides weights and moments; the sampler needs the step alone."""

    step: int
    total_steps: int
    seconds: float
    num_tokens: int
    precision: str


class _Learner(nn.Module):
    """The forward pass as one module, for compilation and for the averaging of gradients."""

    def __init__(self, model: Generalist, sigma_bins: float) -> None:
        super().__init__()
        self.model, self.sigma_bins = model, sigma_bins

    def forward(self, batch: Batch, total_weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses of the targets [K], and what they add to the mean by weight over `total_weight`."""
        hidden = self.model(batch.inputs, batch.attention)
        losses = target_losses(self.model, hidden, batch.targets, self.sigma_bins)
        return losses, weighted_mean(losses, batch.targets, total_weight)


def _steps_in_budget(state: _TrainingState, config: TrainConfig, seconds_per_step: float) -> int:
    assert config.budget_seconds is not None
    left = max(0.0, config.budget_seconds - state.seconds)
    return max(state.step, min(config.steps, state.step + int(left / seconds_per_step)))


@contextlib.contextmanager
def _alone(run: Path) -> Iterator[None]:
    """Holds the run's folder, so that two processes never write checkpoints of one run."""
    run.mkdir(parents=True, exist_ok=True)
    with hold(run / _LOCK_FILE, wait_seconds=_LOCK_SECONDS) as free:
        if not free:
            raise UserError(f"{run}: another process trains there; wait for it, or stop it")
        yield


def _begin(run: Path, config: TrainConfig, dataset: Dataset) -> None:
    """Records the settings, or checks that they are those the run was begun with."""
    run.mkdir(parents=True, exist_ok=True)
    body = {**config.to_json(), "shards": {"path": str(dataset.path), "fingerprint": dataset.info.get("fingerprint")}}
    file = run / checkpoint.CONFIG_FILE
    if checkpoint.list_checkpoints(run):
        try:
            before = json.loads(file.read_text())
        except (FileNotFoundError, ValueError) as error:
            raise UserError(f"{file}: unreadable ({error}); use another --output") from None
        for key in body:
            same = before.get(key) == json.loads(json.dumps(body[key]))
            if key == "shards":
                same = before.get(key, {}).get("fingerprint") == body[key]["fingerprint"]
            if not same:
                raise UserError(
                    f"{run}: begun with {key}={before.get(key)}, now {body[key]}; "
                    "use the same settings to resume, or another --output"
                )
    else:
        (run / METRICS_FILE).unlink(missing_ok=True)
    write_json(file, body)


class _Metrics:
    """Means over the steps since the last log line, to JSON lines and TensorBoard."""

    def __init__(self, run: Path, task_ids: list[str], first_step: int, ranks: Ranks) -> None:
        self._task_ids, self._ranks = task_ids, ranks
        self._recent: collections.deque[float] = collections.deque(maxlen=_CALIBRATE_EVERY_STEPS)
        self._reset()
        if ranks.is_first:
            self._open(run, first_step)

    def _open(self, run: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = run / METRICS_FILE
        lines = path.read_text().splitlines() if path.exists() else []
        # Lines after the checkpoint that we resume from are written again.
        kept = [line for line in lines if _step_of(line) <= first_step]
        self._file = path.open("w")
        self._file.writelines(line + "\n" for line in kept)
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=first_step + 1)

    def __enter__(self) -> _Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        if self._ranks.is_first:
            self._file.close()
            self._board.close()

    @property
    def recent_seconds_per_step(self) -> float:
        """Mean over the last `_CALIBRATE_EVERY_STEPS` steps."""
        return sum(self._recent) / len(self._recent)

    def _reset(self) -> None:
        self._sums = torch.zeros(len(self._task_ids))
        self._counts = torch.zeros(len(self._task_ids))
        self._totals = {"loss": 0.0, "norm": 0.0, "waited": 0.0, "seconds": 0.0, "tokens": 0.0}
        self._steps = 0

    def add(self, losses: torch.Tensor, batch: Batch, **values: float) -> None:
        """One step's numbers: losses of this rank's targets; loss, norm and tokens of all ranks; waited, seconds."""
        tasks = batch.targets.tasks.cpu()
        self._sums.index_add_(0, tasks, losses.cpu())
        self._counts.index_add_(0, tasks, torch.ones(len(tasks)))
        for name, value in values.items():
            self._totals[name] += value
        self._steps += 1
        self._recent.append(values["seconds"])

    def worst_task(self, losses: torch.Tensor, batch: Batch) -> str:
        """The task of the first non-finite loss, or of the largest."""
        broken = (~losses.isfinite()).nonzero()
        place = int(broken[0]) if len(broken) else int(losses.argmax())
        return self._task_ids[int(batch.targets.tasks[place])]

    def log(self, step: int, rate: float) -> dict[str, Any]:
        """Writes one line and starts anew. All ranks call it; the targets of all of them count."""
        totals = self._totals
        sums, counts = self._ranks.sum(torch.stack([self._sums, self._counts]).to(self._ranks.device)).cpu()
        row: dict[str, Any] = {
            "step": step,
            "loss": totals["loss"] / self._steps,
            "learning_rate": rate,
            "gradient_norm": totals["norm"] / self._steps,
            "tokens_per_second": totals["tokens"] / totals["seconds"],
            "targets_per_second": float(counts.sum()) / totals["seconds"],
            "data_wait_share": totals["waited"] / totals["seconds"],
            "task_losses": {
                task_id: float(total / count)
                for task_id, total, count in zip(self._task_ids, sums, counts, strict=True)
                if count
            },
        }
        self._reset()
        if not self._ranks.is_first:
            return row
        self._file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            if name == "task_losses":
                for task_id, loss in value.items():
                    self._board.add_scalar(f"loss/{task_id}", loss, step)
            elif name != "step":
                self._board.add_scalar(name, value, step)
        return row

    def flush(self) -> None:
        """Puts the lines on the disk, so that they are there when the checkpoint is."""
        self._file.flush()
        self._board.flush()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # cut short by a kill
