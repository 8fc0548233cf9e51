"""`python -m trainer export`: a trained network for others."""

from __future__ import annotations

import argparse
from pathlib import Path

from episode_store.command_line import CommandLine, add_output, print_json
from trainer import scores_file
from trainer.cli_acting import add_trained, trained_checkpoint


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
    add_output(parser, "folder for the model")


def _export(arguments: argparse.Namespace) -> int:
    from trainer.export import export
    from trainer.shards import Dataset

    done = export(
        Path(arguments.run),
        Dataset.open(arguments.shards),
        Path(arguments.output),
        scores=scores_file.read(Path(arguments.scores)) if arguments.scores else None,
        source=trained_checkpoint(arguments),
    )
    if arguments.json:
        print_json(done)
    else:
        print(f"{done['output']}: {done['parameters']:,} parameters of step {done['step']}")
    return 0
