"""`python -m trainer export`: a trained network for others."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from episode_store.command_line import CommandLine, add_output, print_json
from episode_store.errors import UserError
from trainer.cli_acting import add_trained


def add_export(command: CommandLine) -> None:
    """Registers the verb."""
    parser = command.verb(
        "export",
        _export,
        help="writes weights, a program for plain PyTorch and a model card",
        example="trainer export --run runs/demo/train --shards runs/demo/shards --scores runs/demo/scores.json \\\n"
        "    --output runs/demo/model",
    )
    add_trained(parser)
    parser.add_argument("--scores", metavar="FILE", help="scores.json of `trainer evaluate`, for the card")
    parser.add_argument("--best", action="store_true", help="the checkpoint with the lowest validation loss")
    add_output(parser, "folder for the model")


def _export(arguments: argparse.Namespace) -> int:
    from trainer.export import export
    from trainer.shards import Dataset

    scores = None
    if arguments.scores:
        try:
            scores = json.loads(Path(arguments.scores).read_text())
        except ValueError as error:
            raise UserError(f"{arguments.scores}: not JSON ({error}); `trainer evaluate` writes it") from None
    done = export(
        Path(arguments.run),
        Dataset.open(arguments.shards),
        Path(arguments.output),
        scores=scores,
        best=arguments.best,
    )
    if arguments.json:
        print_json(done)
    else:
        print(f"{done['output']}: {done['parameters']:,} parameters of step {done['step']}")
    return 0
