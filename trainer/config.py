"""Every setting of the trainer. These frozen dataclasses are the only truth; presets fill them in."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from episode_store.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of the network (Gato, appendix C).

    Attributes:
      width: of the residual stream.
      num_blocks: transformer blocks.
      num_heads: attention heads.
      key_size: width of one head.
      feed_forward_size: hidden width of the GEGLU counting both halves, so the gate and the value have half each.
      patch_channels: channels of the ResNet block that embeds image patches; a multiple of 32 (GroupNorm groups).
      positions: "rotary", or "relative" as in the paper (Transformer-XL's); docs/model.md compares them.
      dropout: on the residual branches.
      stochastic_depth: probability that a sub-layer is left out in a training step (the paper: 0.1).
    """

    width: int = 128
    num_blocks: int = 4
    num_heads: int = 4
    key_size: int = 32
    feed_forward_size: int = 1024
    patch_channels: int = 32
    positions: str = "rotary"
    dropout: float = 0.0
    stochastic_depth: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How training sequences are drawn from the shards.

    A sequence of `context_tokens` is packed with segments: consecutive timesteps of one episode, a quarter of them
    behind a prompt. Attention never crosses from one segment into another. Short segments keep the model from
    predicting an action by copying the ones before it (docs/experiments.md).

    Attributes:
      context_tokens: length of a packed sequence.
      short_segment_share: share of the control segments that have 1 to `short_segment_steps` steps; the others take
        what fits into `long_segment_tokens`.
      early_start_share: share of the control segments that begin at a log-uniform step of a uniform episode, so mostly
        early; the others begin at a uniform step of all.
      prompt_share: share of the segments that begin with a prompt (the paper: 25%).
      prompt_steps: most steps of a prompt; half of the prompts come from the end of their episode.
      text_observation_weight: weight in the loss of text tokens inside observations (the paper: 1).
      observation_weight: weight in the loss of the numbers in observations (the paper: 0), to learn how a task reacts.
      past_action_dropout: probability that the network does not see a past action, so that it cannot copy it: its
        tokens read as the separator, and only the first of them is a target.
      condition_on_return: puts a token of the return that is still to come before each timestep of a control task
        (`tokenization/return_tokens.py`), so that the policy can be asked for a return.
      image_jitter: most change of contrast and brightness of a segment's pictures; 0.2 is a fifth. 0 for none.
      action_weight_exponent: an action of a control task weighs (tokens / action tokens of the task) to this power
        in the loss. 0 is the paper's: each target counts once. At 1 a task's share of the loss is its share of the
        tokens, so one action behind a picture or a grid of cells is not drowned by many that cost a few tokens each.
      task_weights: task id or pattern -> share of the tokens, relative to the others; the first match wins; tasks
        without a match have the weight of the shards' mixture, 1 without one.
    """

    context_tokens: int = 256
    short_segment_share: float = 0.8
    short_segment_steps: int = 3
    long_segment_tokens: int = 256
    early_start_share: float = 0.5
    prompt_share: float = 0.25
    prompt_steps: int = 2
    text_observation_weight: float = 1.0
    observation_weight: float = 0.0
    past_action_dropout: float = 0.0
    condition_on_return: bool = False
    image_jitter: float = 0.0
    action_weight_exponent: float = 0.0
    task_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with the paper's constants; a linear warm-up, then a cosine to `final_learning_rate_share` (a tenth).

    Attributes:
      initial_learning_rate: where the warm-up starts (the paper: 1e-7).
      final_learning_rate_share: of the learning rate, at the end; 1 keeps it constant, as the paper's fine-tuning does.
      matrix_optimizer: of the blocks' matrices: "adamw", as in the paper, or "muon", which needs fewer steps.
      muon_learning_rate_share: of the learning rate for those matrices under Muon.
      bin_learning_rate_share: of the learning rate for the rows of the continuous bins. A bin is seen rarely, and
        Adam's first steps have full size: at the full rate a row would soon be unlike its neighbours.
    """

    learning_rate: float = 2e-3
    initial_learning_rate: float = 0.0
    matrix_optimizer: str = "adamw"
    muon_learning_rate_share: float = 1.0
    final_learning_rate_share: float = 0.1
    bin_learning_rate_share: float = 0.1
    warmup_steps: int = 100
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    gradient_clip_norm: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run.

    Attributes:
      steps: optimizer steps; fewer if `budget_seconds` would be exceeded.
      budget_seconds: when set, every 50 steps the speed of the last 50 decides anew how many steps fit, and with them
        the schedule of the learning rate. The number so far is kept in the checkpoint, but a resumed run measures
        again: it need not end with the bits of one that was never disturbed.
      batch_size: packed sequences a step, over all ranks.
      accumulation_steps: parts that each rank computes its share of a batch in, one after the other, to need less
        memory; the gradients are added, so the result is the same.
      action_label_sigma_bins: spread of the soft labels of continuous actions, in bins; 0 gives one-hot labels.
      keep_checkpoints: the newest ones that stay; with a validation loss the best one stays too.
      validation_sequences: sequences of held-out data whose loss is measured with each checkpoint; 0 for none.
      non_finite: what a loss or a gradient that is not finite does: "stop" ends the run, "skip" leaves the step out.
        Gradients that overflow in fp16 lower the loss scale and are left out in both. Ten steps in a row end the run.
      damaged_shards: "stop", or "skip" to train without them; they are named and counted.
      loader_timeout_seconds: without a batch for so long, a run ends.
      precision: "auto", "fp32", "bf16" or "fp16".
      attention: "segmented" gathers segments into buckets of equal length; "flex" takes FlexAttention's kernel, on CUDA
        only (`attention.py`, `flex_attention.py`).
      tf32: whether a GPU may round the factors of fp32 products to 10 bits.
      device: "auto", "cpu" or "cuda".
      sharding: over several ranks: "ddp" keeps the whole network on each, "fsdp" a part of each tensor.
      compile: torch.compile the forward and backward pass.
      checkpoint_activations: computes the blocks twice instead of keeping what is inside them.
    """

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    sampler: SamplerConfig = dataclasses.field(default_factory=SamplerConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    steps: int = 2000
    budget_seconds: float | None = None
    batch_size: int = 16
    accumulation_steps: int = 1
    seed: int = 0
    action_label_sigma_bins: float = 0.0
    checkpoint_every_steps: int = 200
    keep_checkpoints: int = 2
    validation_sequences: int = 0
    log_every_steps: int = 10
    non_finite: str = "stop"
    damaged_shards: str = "stop"
    loader_timeout_seconds: float = 600.0
    precision: str = "auto"
    attention: str = "segmented"
    tf32: bool = True
    device: str = "auto"
    sharding: str = "ddp"
    compile: bool = False
    checkpoint_activations: bool = False

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrainConfig:
        """The inverse of `to_json`.

        Raises:
          UserError: for an unknown setting, or a value without sense.
        """
        config: TrainConfig = _from_json(cls, data)
        check(config)
        return config


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Range:
    """Finite numbers from `least` to `most`, or to below it where it is `open`."""

    least: float
    most: float = math.inf
    open: bool = False
    multiple_of: int | None = None

    def __contains__(self, value: float) -> bool:
        inside = math.isfinite(value) and self.least <= value <= self.most and not (self.open and value == self.most)
        return inside and not (self.multiple_of and value % self.multiple_of)

    def __str__(self) -> str:
        if self.multiple_of:
            return f"a multiple of {self.multiple_of}, at least {self.least}"
        if self.most == math.inf:
            return f"at least {self.least}"
        return f"from {self.least} to {'below ' * self.open}{self.most}"


_POSITIVE, _NOT_NEGATIVE = _Range(least=1), _Range(least=0)
_SHARE, _BELOW_1 = _Range(least=0, most=1), _Range(least=0, most=1, open=True)
_RANGES = {
    "model.width": _POSITIVE,
    "model.num_blocks": _POSITIVE,
    "model.num_heads": _POSITIVE,
    "model.key_size": _Range(least=2, multiple_of=2),  # rotary positions turn pairs
    "model.feed_forward_size": _Range(least=2, multiple_of=2),
    "model.patch_channels": _Range(least=32, multiple_of=32),
    "model.dropout": _BELOW_1,
    "model.stochastic_depth": _BELOW_1,
    "sampler.context_tokens": _Range(least=3),
    "sampler.short_segment_share": _SHARE,
    "sampler.short_segment_steps": _POSITIVE,
    "sampler.long_segment_tokens": _POSITIVE,
    "sampler.early_start_share": _SHARE,
    "sampler.prompt_share": _SHARE,
    "sampler.prompt_steps": _POSITIVE,
    "sampler.text_observation_weight": _NOT_NEGATIVE,
    "sampler.observation_weight": _NOT_NEGATIVE,
    "sampler.past_action_dropout": _SHARE,
    "sampler.image_jitter": _SHARE,
    "sampler.action_weight_exponent": _NOT_NEGATIVE,
    "optimizer.learning_rate": _NOT_NEGATIVE,
    "optimizer.initial_learning_rate": _NOT_NEGATIVE,
    "optimizer.muon_learning_rate_share": _NOT_NEGATIVE,
    "optimizer.final_learning_rate_share": _NOT_NEGATIVE,
    "optimizer.bin_learning_rate_share": _NOT_NEGATIVE,
    "optimizer.warmup_steps": _NOT_NEGATIVE,
    "optimizer.beta1": _BELOW_1,
    "optimizer.beta2": _BELOW_1,
    "optimizer.epsilon": _NOT_NEGATIVE,
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "optimizer.gradient_clip_norm": _NOT_NEGATIVE,
    "steps": _POSITIVE,
    "budget_seconds": _NOT_NEGATIVE,
    "batch_size": _POSITIVE,
    "accumulation_steps": _POSITIVE,
    "seed": _Range(least=0, most=2**32 - 1),
    "action_label_sigma_bins": _NOT_NEGATIVE,
    "checkpoint_every_steps": _POSITIVE,
    "keep_checkpoints": _POSITIVE,
    "validation_sequences": _NOT_NEGATIVE,
    "log_every_steps": _POSITIVE,
    "loader_timeout_seconds": _POSITIVE,
}
_CHOICES = {
    "model.positions": ("rotary", "relative"),
    "optimizer.matrix_optimizer": ("adamw", "muon"),
    "non_finite": ("stop", "skip"),
    "damaged_shards": ("stop", "skip"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
    "attention": ("segmented", "flex"),
    "device": ("auto", "cpu", "cuda"),
    "sharding": ("ddp", "fsdp"),
}


def check(config: TrainConfig) -> None:
    """Refuses settings without sense, whatever machine and data they meet; all that come from outside pass here.

    Raises:
      UserError: names the first setting whose value is of another type, outside of its range, or none of its choices.
    """
    defaults = by_name(TrainConfig().to_json())
    for name, value in by_name(config.to_json()).items():
        kind = type(defaults[name])
        if name in _CHOICES:
            expected, fits = " or ".join(_CHOICES[name]), value in _CHOICES[name]
        elif kind is dict:
            expected = "a number of 0 or more for each task"
            fits = isinstance(value, Mapping) and all(_is_number(v) and v in _NOT_NEGATIVE for v in value.values())
        elif name in _RANGES:
            expected = f"{'a whole number, ' if kind is int else ''}{_RANGES[name]}"
            fits = _is_number(value, whole=kind is int) and value in _RANGES[name]
            fits = fits or (value is None and defaults[name] is None)
        else:
            expected, fits = "true or false", isinstance(value, bool)
        if not fits:
            raise UserError(f"{name} {value!r}: expected {expected}")


def by_name(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in their JSON form, as `--set` names them: {"model.width": 128, ...}."""
    named: dict[str, Any] = {}
    for key, value in settings.items():
        named |= {f"{key}.{name}": inner for name, inner in value.items()} if isinstance(value, dict) else {key: value}
    return named


def _is_number(value: Any, *, whole: bool = False) -> bool:
    return isinstance(value, int if whole else int | float) and not isinstance(value, bool)


_NESTED = {"model": ModelConfig, "sampler": SamplerConfig, "optimizer": OptimizerConfig}
# Before the id or pattern of a task.
TASK_WEIGHT = "sampler.task_weights."


def _from_json(cls: Any, data: Mapping[str, Any]) -> Any:
    if not isinstance(data, Mapping):
        raise UserError(f"{cls.__name__}: expected a JSON object, got {type(data).__name__}")
    names = {field.name for field in dataclasses.fields(cls)}
    unknown = sorted(set(data) - names)
    if unknown:
        raise UserError(f"{cls.__name__}: unknown settings {unknown}; it has {sorted(names)}")
    return cls(**{key: _from_json(_NESTED[key], value) if key in _NESTED else value for key, value in data.items()})


def override(config: TrainConfig, assignments: Mapping[str, str]) -> TrainConfig:
    """Applies `section.name=value` strings, as the command line's `--set` gives them.

    Weights of tasks are put before those that were there, since the first match wins.

    Raises:
      UserError: for an unknown name, a value of the wrong type or without sense.
    """
    data = config.to_json()
    weights: dict[str, Any] = {}
    for path, text in assignments.items():
        if path.startswith(TASK_WEIGHT):
            weights[path.removeprefix(TASK_WEIGHT)] = _parse(path, text, 0.0)
            continue
        section, _, name = path.rpartition(".")
        target = data[section] if section in _NESTED else data if not section else {}
        if name not in target:
            known = sorted(f"{s}.{k}" for s in _NESTED for k in data[s]) + sorted(set(data) - set(_NESTED))
            raise UserError(f"--set {path}: unknown setting; known: {', '.join(known)}")
        target[name] = _parse(path, text, target[name])
    if weights:
        before = data["sampler"]["task_weights"]
        data["sampler"]["task_weights"] = weights | {key: before[key] for key in before if key not in weights}
    return TrainConfig.from_json(data)


def _parse(path: str, text: str, current: Any) -> Any:
    try:
        if isinstance(current, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(current, int):
            return int(text)
        if isinstance(current, float) or current is None:
            return float(text)
        if isinstance(current, dict):
            return {str(key): float(value) for key, value in dict(json.loads(text)).items()}
    except (KeyError, TypeError, ValueError):
        kind = "JSON object of numbers" if isinstance(current, dict) else type(current).__name__
        raise UserError(f"--set {path}: expected a {kind}, got {text!r}") from None
    return text
