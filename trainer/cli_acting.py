"""The flags of verbs that act: which tasks, and by which rule."""

from __future__ import annotations

import argparse
import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from episode_store.command_line import positive_int
from episode_store.errors import UserError

if TYPE_CHECKING:
    from trainer.policy import ActingConfig
    from trainer.shards import Dataset

_SETTINGS = (
    "temperature", "bin_temperature", "top_k", "prompt_steps", "history_steps", "rolling_tokens", "return_scale",
    "target_return",
)  # fmt: skip


def add_trained(parser: argparse.ArgumentParser) -> None:
    """`--run`, `--shards`, `--best`: a network, what it was trained on, and which of its checkpoints."""
    parser.add_argument("--run", required=True, metavar="DIR", help="the --output folder of `trainer train`")
    parser.add_argument("--shards", required=True, metavar="DIR", help="the shards it was trained on")
    parser.add_argument(
        "--best", action="store_true", help="the checkpoint with the lowest validation loss, not the newest"
    )


def add_acting(parser: argparse.ArgumentParser) -> None:
    """The flags of `ActingConfig`."""
    parser.add_argument("--temperature", type=float, metavar="T", help="of sampling discrete actions (1)")
    parser.add_argument("--bin-temperature", type=float, metavar="T", help="of continuous ones (0.3)")
    parser.add_argument("--top-k", type=int, metavar="K", help="sample among the K most likely only; 0 for all (0)")
    parser.add_argument("--prompt-steps", type=int, metavar="N", help="steps of prompt; 0 for none (2)")
    parser.add_argument("--history-steps", type=positive_int, metavar="N", help="past steps it sees (3)")
    parser.add_argument(
        "--rolling-tokens",
        type=positive_int,
        metavar="N",
        help="instead of --history-steps: it sees the last N tokens, at most the context of its training",
    )
    parser.add_argument(
        "--return-scale",
        type=float,
        metavar="X",
        help="return to ask for, 0 as random, 1 as the expert, where it was trained with condition_on_return (1)",
    )
    parser.add_argument("--target-return", type=float, metavar="G", help="instead of --return-scale: the return itself")


def trained_checkpoint(arguments: argparse.Namespace) -> Path:
    """The checkpoint that `add_trained` asks for.

    Raises:
      UserError: the run has none, or no validation loss.
    """
    from trainer import checkpoint

    return checkpoint.choose(Path(arguments.run), prefer_best=arguments.best)


def acting_config(arguments: argparse.Namespace) -> ActingConfig:
    """What `add_acting` read.

    Raises:
      UserError: for a value without sense, or that the network of `--run` was not trained for.
    """
    from trainer import checkpoint
    from trainer.policy import ActingConfig

    given = {name: getattr(arguments, name) for name in _SETTINGS}
    if given["history_steps"] is not None and given["rolling_tokens"] is not None:
        raise UserError("--history-steps and --rolling-tokens are two rules of what is seen; give one of them")
    if given["return_scale"] is not None and given["target_return"] is not None:
        raise UserError("--return-scale and --target-return both say what to ask for; give one of them")
    acting = ActingConfig(**{name: value for name, value in given.items() if value is not None})
    acting.check(checkpoint.load_config(Path(arguments.run)).sampler)
    return acting


def control_tasks(dataset: Dataset, patterns: list[str] | None) -> list[str]:
    """Ids of the tasks with actions that match a pattern; all of them without patterns.

    Raises:
      UserError: a pattern matches none.
    """
    control = sorted(task_id for task_id, task in dataset.tasks.items() if not task.is_corpus)
    if patterns is None:
        return control
    for pattern in patterns:
        if not fnmatch.filter(control, pattern):
            raise UserError(f"{dataset.path}: no control task matches {pattern!r}; there are {', '.join(control)}")
    return [task_id for task_id in control if any(fnmatch.fnmatchcase(task_id, p) for p in patterns)]
