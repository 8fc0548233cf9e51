"""One training run, from shards to checkpoints; killed at any moment, it goes on from the last checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from episode_store.command_line import progress
from episode_store.errors import UserError
from episode_store.files import hold, write_json
from trainer import checkpoint, parallel
from trainer.attention import PackedAttention, SegmentedAttention
from trainer.batch import Batch, batches, collate
from trainer.config import ModelConfig, TrainConfig, by_name
from trainer.flops import peak_flops, training_flops
from trainer.loss import target_losses, weighted_mean
from trainer.metrics import METRICS_FILE, RECENT_STEPS, Metrics
from trainer.model import Generalist, num_parameters
from trainer.optim import Optimizer, learning_rate
from trainer.parallel import Ranks, averaging
from trainer.precision import autocast, choose_device, choose_precision, make_scaler
from trainer.sampler import Sampler
from trainer.shards import Dataset
from trainer.tensors import whole

_MOST_SKIPPED_IN_A_ROW = 10
_LOCK_FILE = ".lock"
# What a killed run leaves needs a moment to be gone.
_LOCK_SECONDS = 5.0


class NonFiniteLossError(UserError):
    """The loss became NaN or infinite."""


def train(dataset: Dataset, run: Path, config: TrainConfig, *, extend: bool = False) -> dict[str, Any]:
    """Trains until `config.steps` (or its budget) and returns a summary. Resumes by itself.

    Args:
      dataset: the shards.
      run: folder of the run.
      config: its settings.
      extend: whether a run begun with fewer `steps` goes on to these; not one with a budget of time.

    Raises:
      UserError: when the run was begun with other settings or shards.
    """
    with parallel.ranks(choose_device(config.device)) as ranks, contextlib.ExitStack() as stack:
        if ranks.is_first:
            stack.enter_context(_alone(run))
        return _train(dataset, run, config, ranks, extend=extend)


def _train(dataset: Dataset, run: Path, config: TrainConfig, ranks: Ranks, *, extend: bool = False) -> dict[str, Any]:
    device = ranks.device
    _check(config, ranks)
    if ranks.is_first:
        _begin(run, config, dataset, extend=extend)
    ranks.wait()
    data = dataset.load("train", damaged=config.damaged_shards)
    sampler = Sampler(data, config.sampler, config.seed)
    validation = _validation_batches(dataset, config, ranks)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.tf32
    model = Generalist(config.model)
    model.initialize(config.seed)
    model.checkpoint_activations = config.checkpoint_activations
    existing = checkpoint.list_checkpoints(run)
    if not existing:
        precision = ranks.share(choose_precision(config.precision, device))
        state = _TrainingState(step=0, total_steps=config.steps, seconds=0.0, num_tokens=0, precision=precision)
    else:
        saved = checkpoint.read_state(existing[-1])
        state = _TrainingState(**{f.name: saved[f.name] for f in dataclasses.fields(_TrainingState) if f.name in saved})
        checkpoint.load_weights(existing[-1], model)
        # "auto" measures the machine; a resumed run keeps what was chosen at its start.
        precision = choose_precision(state.precision, device)
    model.to(device).train()
    learner: nn.Module = Learner(model, config.action_label_sigma_bins)
    if config.compile:
        learner.compile(dynamic=True)
    learner = ranks.wrap(learner, model.blocks, sharding=config.sharding)
    optimizer = Optimizer(model, config.optimizer)
    if existing:
        checkpoint.load_optimizer(existing[-1], model, optimizer)
    ranks.wait()  # from here on the first rank writes checkpoints
    scaler = make_scaler(precision, device)
    if state.scaler:
        scaler.load_state_dict(state.scaler)
    with contextlib.ExitStack() as stack:
        peak = peak_flops(device, precision)
        metrics = stack.enter_context(Metrics(run, sampler.task_ids, state.step, ranks, peak))
        writer = stack.enter_context(checkpoint.Writer(run, keep=config.keep_checkpoints))
        source = batches(
            sampler,
            batch_size=config.batch_size,
            first_step=state.step,
            steps_ahead=4 if device.type == "cuda" else 0,
            rank=ranks.rank,
            ranks=ranks.size,
            parts=config.accumulation_steps,
            attention=_attention(config, device),
            pin=device.type == "cuda",
            timeout_seconds=config.loader_timeout_seconds,
        )
        stack.callback(source.close)  # type: ignore[attr-defined]
        _tell_damage(dataset, state, metrics)
        if state.total_steps != config.steps and not config.budget_seconds:
            _extend(state, config, metrics)
        bar = stack.enter_context(progress(description="training", total=state.total_steps, unit="steps"))
        bar.disable = not ranks.is_first
        bar.update(state.step)
        ended = time.perf_counter()
        parts = _moved(next(source), device)
        waited = time.perf_counter() - ended
        while state.step < state.total_steps:
            # Dropout and stochastic depth draw from here, so a resumed run draws the same.
            torch.manual_seed(config.seed * 1_000_003 + state.step)
            rate = learning_rate(state.step, state.total_steps, config.optimizer)
            optimizer.set_learning_rate(rate)
            total_weight, num_tokens, flops = _sums(parts, config.model, ranks)
            loss, losses = _accumulate(learner, parts, total_weight, ranks, scaler, precision)
            # The GPU is still at work: the next batch is made ready and copied meanwhile.
            began = time.perf_counter()
            upcoming = _moved(next(source), device)
            next_waited = time.perf_counter() - began
            optimizer.unscale(scaler)
            total_norm = get_total_norm([value.grad for value in model.parameters() if value.grad is not None])
            norm = float(whole(total_norm))
            finite = math.isfinite(float(loss)) and math.isfinite(norm)
            state.step += 1
            if finite:
                state.skipped_in_a_row = 0
                clip_grads_with_norm_(model.parameters(), config.optimizer.gradient_clip_norm, total_norm)
                optimizer.step(scaler)
                for part, values in zip(parts, losses, strict=True):
                    metrics.add_targets(values, part)
            else:
                source_task = _first_broken(sampler.task_ids, parts, losses, ranks)
                said = f"loss {float(loss)}, gradient norm {norm}: not finite; {source_task}{_broken_gradient(model)}"
                if scaler.is_enabled():
                    said += f", loss scale {scaler.get_scale():g}"
                # While the scale of fp16 settles gradients overflow; a loss that is not finite has another cause.
                settling = scaler.is_enabled() and math.isfinite(float(loss))
                _skip_or_stop(state, metrics, said, may_skip=settling or config.non_finite == "skip")
                optimizer.skip(scaler)
            state.num_tokens += num_tokens
            now = time.perf_counter()
            seconds, ended = now - ended, now
            state.seconds += seconds
            metrics.add_step(
                skipped=not finite,
                loss=float(loss),
                norm=norm,
                tokens=num_tokens,
                flops=flops,
                waited=waited,
                seconds=seconds,
            )
            parts, waited = upcoming, next_waited
            if state.step % config.log_every_steps == 0 or state.step == state.total_steps:
                row = metrics.log(state.step, rate)
                utilisation = f", MFU {row['mfu']:.1%}" if row["mfu"] else ""
                loss_text = "no step taken" if row["loss"] is None else f"loss {row['loss']:.3f}"
                bar.set_postfix_str(f"{loss_text}, {row['tokens_per_second']:,.0f} tokens/s{utilisation}")
            bar.update(1)
            if config.budget_seconds and state.step % RECENT_STEPS == 0:
                state.total_steps = ranks.share(_steps_in_budget(state, config, metrics.recent_seconds_per_step))
                bar.total = state.total_steps
            if state.step % config.checkpoint_every_steps == 0 or state.step == state.total_steps:
                state.validation_loss = _validation_loss(learner, validation, ranks, precision)
                if config.validation_sequences:
                    metrics.add_event(step=state.step, validation_loss=state.validation_loss)
                tensors = checkpoint.snapshot(model, optimizer)  # all ranks have a part in it
                state.scaler = scaler.state_dict()
                if ranks.is_first:
                    metrics.flush()
                    writer.write(tensors, dataclasses.asdict(state))
        writer.wait()
        ranks.wait()  # until the last checkpoint is there
    return {
        "steps": state.step,
        "tokens": state.num_tokens,
        "seconds": state.seconds,
        "parameters": num_parameters(model),
        "precision": precision,
        "device": str(device),
        "ranks": ranks.size,
        "skipped_steps": state.skipped,
        "damaged_shards": list(dataset.damage.values()),
        "validation_loss": state.validation_loss,
        "checkpoint": str(checkpoint.latest(run)),
    }


def _sums(parts: Sequence[Batch], shape: ModelConfig, ranks: Ranks) -> tuple[torch.Tensor, int, float]:
    """Weight of the targets, tokens and operations of a step, over all its parts and ranks."""
    facts = [
        sum(part.total_weight for part in parts),
        float(sum(part.work.tokens for part in parts)),
        sum(training_flops(shape, part.work) for part in parts),
    ]
    weight, tokens, flops = ranks.sum(torch.tensor(facts, dtype=torch.float64, device=ranks.device))
    return weight.float().clamp_min(1e-6), int(tokens), float(flops)


def _accumulate(
    learner: nn.Module,
    parts: Sequence[Batch],
    total_weight: torch.Tensor,
    ranks: Ranks,
    scaler: torch.amp.GradScaler,
    precision: str,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Gradients of all parts of a step; returns its loss over all ranks, and the targets' losses part by part."""
    shares, all_losses = [], []
    for number, part in enumerate(parts, start=1):
        with averaging(learner, wanted=number == len(parts)):
            with autocast(precision, ranks.device):
                losses, share = learner(part, total_weight)
            # Gradients are averaged over the ranks; the shares are to be added.
            scaler.scale(share * ranks.size).backward()
        shares.append(share.detach())
        all_losses.append(losses.detach())
    return ranks.sum(torch.stack(shares).sum()), all_losses


def _moved(parts: Sequence[Batch], device: torch.device) -> tuple[Batch, ...]:
    return tuple(part.to(device) for part in parts)


def _check(config: TrainConfig, ranks: Ranks) -> None:
    """Refuses what cannot work before anything is read."""
    choices = {"non_finite": ("stop", "skip"), "damaged_shards": ("stop", "skip"), "attention": ("segmented", "flex")}
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            raise UserError(f"{name} {getattr(config, name)!r}: expected {' or '.join(allowed)}")
    if config.accumulation_steps < 1 or config.batch_size < ranks.size * config.accumulation_steps:
        raise UserError(
            f"batch_size {config.batch_size}: expected a row or more for each of the {ranks.size} ranks and each of "
            f"the {config.accumulation_steps} accumulation_steps"
        )
    if config.sharding == "fsdp" and ranks.size > 1 and config.optimizer.matrix_optimizer == "muon":
        raise UserError(
            "sharding fsdp: Muon needs whole matrices and each rank has a part; use --set "
            "optimizer.matrix_optimizer=adamw, or sharding=ddp"
        )


def _attention(config: TrainConfig, device: torch.device) -> type[PackedAttention]:
    if config.attention == "segmented":
        return SegmentedAttention
    if device.type != "cuda":
        raise UserError(f"attention flex: its kernel needs CUDA, got {device.type}; leave it at segmented")
    from trainer.flex_attention import FlexAttention

    return FlexAttention


def _validation_batches(dataset: Dataset, config: TrainConfig, ranks: Ranks) -> list[Batch]:
    """This rank's held-out sequences, the same at every checkpoint."""
    if not config.validation_sequences:
        return []
    data = dataset.load("validation", damaged=config.damaged_shards)
    sampler = Sampler(data, config.sampler, config.seed)
    rows = [sampler.sequence(number) for number in range(ranks.rank, config.validation_sequences, ranks.size)]
    size = max(1, config.batch_size // ranks.size // config.accumulation_steps)
    kind = _attention(config, ranks.device)
    return [collate(rows[start : start + size], kind).to(ranks.device) for start in range(0, len(rows), size)]


@torch.no_grad()
def _validation_loss(learner: nn.Module, parts: Sequence[Batch], ranks: Ranks, precision: str) -> float | None:
    """Mean by weight over the held-out targets of all ranks, in nats; None where there are none or it is not finite."""
    one = torch.ones((), device=ranks.device)
    sums = torch.zeros(2, dtype=torch.float64, device=ranks.device)
    learner.eval()
    for part in parts:
        with autocast(precision, ranks.device):
            sums += torch.stack([learner(part, one)[1].double(), part.targets.weights.sum().double()])
    learner.train()
    total, weight = ranks.sum(sums)
    return float(total / weight) if weight and bool(total.isfinite()) else None


def _first_broken(task_ids: Sequence[str], parts: Sequence[Batch], losses: Sequence[torch.Tensor], ranks: Ranks) -> str:
    """Where a step that is not finite comes from; all ranks call it."""
    counts = torch.zeros(len(task_ids), device=ranks.device)
    for part, values in zip(parts, losses, strict=True):
        counts.index_add_(0, part.targets.tasks, (~values.isfinite()).float())
    counts = ranks.sum(counts)
    if not bool(counts.any()):
        return "every target's loss is finite"
    return f"first in task {task_ids[int(counts.nonzero()[0])]}"


def _broken_gradient(model: nn.Module) -> str:
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not bool(whole(parameter.grad).isfinite().all()):
            return f", in the gradient of {name}"
    return ""


def _skip_or_stop(state: _TrainingState, metrics: Metrics, said: str, *, may_skip: bool) -> None:
    """Counts and tells a step that is not finite.

    Raises:
      NonFiniteLossError: it may not be skipped, or too many were in a row.
    """
    state.skipped += 1
    state.skipped_in_a_row += 1
    if not may_skip or state.skipped_in_a_row >= _MOST_SKIPPED_IN_A_ROW:
        metrics.add_event(step=state.step, skipped=said)
        raise NonFiniteLossError(f"step {state.step}: {said}; lower optimizer.learning_rate and run again")
    metrics.tell(state.step, "skipped", f"{said}; the step is skipped")


def _tell_damage(dataset: Dataset, state: _TrainingState, metrics: Metrics) -> None:
    """What is trained without, and whether it was so when the checkpoint was written."""
    before, now = state.damaged_shards, sorted(dataset.damage)
    step = state.step + 1  # the first one that this is about
    for said in dataset.damage.values():
        metrics.tell(step, "damaged_shard", f"{said}; it is left out")
    for task_id in dataset.lost_tasks():
        metrics.tell(step, "lost_task", f"every shard of {task_id} is damaged: the task is not trained")
    if before is not None and before != now:
        changed = f"damaged shards were {before} when the checkpoint was written and are {now} now"
        metrics.tell(step, "changed_damage", f"{changed}: the samples are no longer those of an undisturbed run")
    state.damaged_shards = now


def _extend(state: _TrainingState, config: TrainConfig, metrics: Metrics) -> None:
    """Goes on to the steps that the settings say now."""
    before, state.total_steps = state.total_steps, config.steps
    old, new = (learning_rate(state.step, total, config.optimizer) for total in (before, config.steps))
    metrics.tell(
        state.step + 1,
        "extended",
        f"extended from {before} to {config.steps} steps: the learning rate is that of the longer schedule, {new:.3g} "
        f"instead of {old:.3g}; a run begun with {config.steps} steps would have other weights",
    )


@dataclasses.dataclass(kw_only=True)
class _TrainingState:
    """What a resumed run needs besides weights and moments; the sampler needs the step alone."""

    step: int
    total_steps: int
    seconds: float
    num_tokens: int
    precision: str
    skipped: int = 0
    skipped_in_a_row: int = 0
    validation_loss: float | None = None
    scaler: dict[str, Any] = dataclasses.field(default_factory=dict)  # of fp16, else empty
    damaged_shards: list[str] | None = None  # files that were left out; None in older checkpoints


class Learner(nn.Module):
    """The forward pass as one module, for compilation and for the averaging of gradients."""

    def __init__(self, model: Generalist, sigma_bins: float) -> None:
        super().__init__()
        self.model, self.sigma_bins = model, sigma_bins

    def forward(self, batch: Batch, total_weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses of the targets [K], and what they add to the mean by weight over `total_weight`."""
        hidden = self.model(batch.inputs, batch.attention)
        losses = target_losses(self.model, hidden, batch.targets, self.sigma_bins)
        share = weighted_mean(losses, batch.targets, total_weight)
        # Ranks must agree on which parameters have a gradient, and not every batch has a picture.
        unused = sum(weight.sum() for weight in self.model.embedding.picture_parameters())
        return losses, share + 0.0 * unused


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


def _begin(run: Path, config: TrainConfig, dataset: Dataset, *, extend: bool) -> None:
    """Records the settings, or checks that they are those the run was begun with, but for more steps with `extend`."""
    run.mkdir(parents=True, exist_ok=True)
    body = {**config.to_json(), "shards": {"path": str(dataset.path), "fingerprint": dataset.info.get("fingerprint")}}
    file = run / checkpoint.CONFIG_FILE
    if checkpoint.list_checkpoints(run):
        try:
            before = json.loads(file.read_text())
            # A setting that is newer than the run has its default.
            before |= json.loads(json.dumps(checkpoint.load_config(run).to_json()))
        except (FileNotFoundError, ValueError) as error:
            raise UserError(f"{file}: unreadable ({error}); use another --output") from None
        old, new = by_name(before), by_name(json.loads(json.dumps(body)))
        for name in sorted({*old, *new} - {"shards.path"}):
            if old.get(name) == new.get(name):
                continue
            advice = "use the same settings to resume, or another --output"
            if name in ("steps", "budget_seconds") and before["budget_seconds"]:
                advice = "a run with --minutes cannot be made longer; begin another one with another --output"
            elif name == "steps" and config.steps > before["steps"]:
                if extend:
                    continue
                advice = f"`--resume --steps {config.steps}` extends it"
            raise UserError(f"{run}: begun with {name}={old.get(name)}, now {new.get(name)}; {advice}")
    else:
        (run / METRICS_FILE).unlink(missing_ok=True)
    write_json(file, body)
