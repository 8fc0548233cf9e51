"""Makes the demonstrations of every expert again from nothing, and measures the experts.

    python examples/experts.py                    # hours; everything under runs/experts
    python examples/experts.py --tasks 'babyai/*' --episodes 5

Specialists of at most --train-steps are trained first. Interrupted, run it again: what is done is quick, what was cut
goes on. The scores go to runs/experts/scores.json; --keep also puts them into the project and into docs/experts.md.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

from collectors import registry, scores
from collectors.experts import report
from collectors.task import CorpusSource, Sb3Expert, Task
from episode_store.command_line import OneLineParser, guarded, positive_int, print_table
from episode_store.errors import UserError
from episode_store.store import EpisodeStore

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "collectors" / "data" / "scores.json"
PAGE = ROOT / "docs" / "experts.md"


def main() -> int:
    """Runs the stages; returns the exit code, of a stage that failed its own."""
    parser = OneLineParser(
        prog="experts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output", default="runs/experts", metavar="DIR", help="folder of the results (runs/experts)")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these ids, families, tags or patterns")
    parser.add_argument("--episodes", type=positive_int, default=10, metavar="N", help="demonstrations a task (10)")
    parser.add_argument("--train-steps", type=int, default=200_000, metavar="N", help="longest training (200000)")
    parser.add_argument(
        "--workers", type=positive_int, default=os.cpu_count() or 1, metavar="N", help="processes (all cores)"
    )
    parser.add_argument("--keep", action="store_true", help="put the scores into the project and the page")
    arguments = parser.parse_args()
    return guarded(parser.prog, lambda: _make(arguments))


def _make(arguments: argparse.Namespace) -> int:
    output = Path(arguments.output)
    names = [task.task_id for task in registry.find(arguments.tasks) if _has_expert(task, arguments.train_steps)]
    if not names:
        raise UserError(
            f"--tasks {' '.join(arguments.tasks or [])}: none of them has an expert that is a program or trains in at "
            f"most {arguments.train_steps} steps; raise --train-steps, or see `collectors list`"
        )
    workers = ["--workers", str(arguments.workers)]
    collect = ["collect", "--train", "--tasks", *names, "--episodes", str(arguments.episodes), *workers]
    measured = output / "scores.json"
    for words in (
        [*collect, "--store", str(output / "store"), "--output", str(output)],
        ["score", "--tasks", *names, "--agents", str(output), "--output", str(measured), *workers],
    ):
        if code := _run("collectors", words):
            return code  # it has said what was wrong
    if arguments.keep:
        known = scores.load(KEPT) | scores.load(measured)
        scores.save(KEPT, known)
        report.write(PAGE, known)
    store = EpisodeStore.open(output / "store")
    size = sum(file.stat().st_size for file in (output / "store").rglob("*") if file.is_file())
    print_table(report.summary(scores.load(measured)), report.SUMMARY_HEADER)
    print(f"{output / 'store'}: {len(store)} episodes, {size / 1e6:.0f} MB")
    return 0


def _has_expert(task: Task, train_steps: int) -> bool:
    """Whether the task's expert can be had here; twins that only look or reward otherwise are left out."""
    if task.expert is None or isinstance(task.expert, CorpusSource) or task.variant_of:
        return False
    return not isinstance(task.expert, Sb3Expert) or task.expert.steps <= train_steps


def _run(package: str, words: list[str]) -> int:
    print("$", shlex.join(["python", "-m", package, *words])[:200], flush=True)
    return subprocess.run([sys.executable, "-m", package, *words], check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
