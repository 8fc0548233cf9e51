"""`python -m trainer`: train the generalist, evaluate it, report."""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from episode_store.command_line import (
    CommandLine,
    add_episodes,
    add_output,
    add_seed,
    add_tasks,
    not_negative_float,
    positive_int,
    print_json,
    print_table,
    progress,
)
from episode_store.errors import UserError
from episode_store.files import write_json
from trainer import presets, scores_file
from trainer.cli_acting import acting_config, add_acting, add_trained, control_tasks, trained_checkpoint
from trainer.cli_collect import add_collect
from trainer.cli_export import add_export
from trainer.cli_plan import add_plan
from trainer.cli_serve import add_serve
from trainer.config import TASK_WEIGHT, TrainConfig, override
from trainer.scores_file import LANGUAGE_FILE, SCORES_FILE


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code."""
    command = CommandLine("trainer", "Fits one generalist on shards, judges it against the specialists, reports.")
    _add_train(command, sys.argv[1:] if arguments is None else arguments)
    add_plan(command)
    _add_evaluate(command)
    add_collect(command)
    add_serve(command)
    add_export(command)
    report = command.verb(
        "report",
        _report,
        help="writes one HTML page of a run: scores, curves, films, samples",
        example="trainer report --run runs/demo",
    )
    report.add_argument("--run", required=True, metavar="DIR", help="folder with scores.json, shards/, train/, ...")
    return command.main(arguments)


def _add_train(command: CommandLine, command_line: Sequence[str]) -> None:
    train = command.verb(
        "train",
        _train,
        help="trains the generalist on shards; run again after an interruption it goes on from the last checkpoint",
        example="trainer train --shards runs/demo/shards --output runs/demo/train --preset demo --minutes 9 \\\n"
        "    --set optimizer.learning_rate=0.001",
    )
    train.add_argument("--shards", required=True, metavar="DIR", help="folder that `beam_jobs build-shards` wrote")
    add_output(train, "folder of the run: checkpoints, metrics, settings")
    train.add_argument("--preset", metavar="NAME", help=f"settings: {', '.join(presets.PRESETS)} (demo)")
    train.add_argument(
        "--resume",
        action="store_true",
        help="go on with the settings of the run in --output, which other flags may not contradict; --steps extends it",
    )
    train.add_argument("--steps", type=positive_int, metavar="N", help="optimizer steps at most (the preset's)")
    train.add_argument(
        "--minutes", type=not_negative_float, metavar="M", help="steps are chosen so that training takes about M"
    )
    add_seed(train)
    # The command line is for each rank; a seed that is not given is no contradiction to a run's.
    train.set_defaults(command_line=command_line, seed=None)
    train.add_argument(
        "--ranks", default="1", metavar="N", help="processes that share the work on this machine, or auto (1)"
    )
    train.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="any setting, for example model.width=256"
    )


def _train(arguments: argparse.Namespace) -> int:
    from trainer.parallel import launch, number_of_ranks
    from trainer.precision import choose_device, choose_precision
    from trainer.shards import Dataset
    from trainer.train import train

    config = _settings(arguments)
    device = choose_device(config.device)
    if config.precision != "auto":  # which is measured, later
        choose_precision(config.precision, device)
    ranks = 1 if "RANK" in os.environ else number_of_ranks(arguments.ranks)
    dataset = Dataset.open(arguments.shards)
    for name in assignments(arguments.set):
        if name.startswith(TASK_WEIGHT) and not fnmatch.filter(dataset.tasks, name.removeprefix(TASK_WEIGHT)):
            known = ", ".join(sorted(dataset.tasks))
            raise UserError(f"--set {name}: no task of {dataset.path} matches; there are {known}")
    if ranks > 1:
        return launch(ranks, arguments.command_line)
    summary = train(dataset, Path(arguments.output), config, extend=arguments.resume and arguments.steps is not None)
    if int(os.environ.get("RANK", "0")):
        return 0  # the first rank speaks for all
    if arguments.json:
        print_json(summary)
    else:
        line = (
            f"{summary['checkpoint']}: {summary['parameters']:,} parameters, {summary['steps']} steps, "
            f"{summary['tokens']:,} tokens in {summary['seconds']:.0f} s, {summary['precision']} on {summary['device']}"
        )
        for count, what in (
            (summary["skipped_steps"], "steps skipped"),
            (len(summary["damaged_shards"]), "damaged shards left out"),
        ):
            line += f", {count} {what}" if count else ""
        print(line)
    return 0


def _settings(arguments: argparse.Namespace) -> TrainConfig:
    """What the flags ask for: changes of the preset, or of the settings of the run that is resumed."""
    from trainer import checkpoint

    base = presets.get(arguments.preset or "demo")
    if arguments.resume:
        run = Path(arguments.output)
        checkpoint.latest(run)  # there must be one
        base = base if arguments.preset else checkpoint.load_config(run)
    given = assignments(arguments.set)
    if arguments.seed is not None:
        given["seed"] = str(arguments.seed)
    if arguments.steps:
        given["steps"] = str(arguments.steps)
    if arguments.minutes is not None:
        if not arguments.minutes:
            raise UserError(f"--minutes {arguments.minutes}: expected more than 0")
        given["budget_seconds"] = str(60.0 * arguments.minutes)
        if base.budget_seconds is None:
            given.setdefault("steps", "1000000")
    return override(base, given)


def assignments(texts: Sequence[str]) -> dict[str, str]:
    """What `--set` gives: name -> value.

    Raises:
      UserError: for a text without an equals sign.
    """
    for text in texts:
        if "=" not in text:
            raise UserError(f"--set {text}: expected NAME=VALUE")
    return dict(text.split("=", 1) for text in texts)


def _add_evaluate(command: CommandLine) -> None:
    evaluate = command.verb(
        "evaluate",
        _evaluate,
        help="scores the generalist on control tasks and on held-out language, and films it",
        example="trainer evaluate --run runs/demo/train --shards runs/demo/shards --output runs/demo --workers 2",
    )
    add_trained(evaluate)
    add_output(evaluate, f"folder for {SCORES_FILE}, {LANGUAGE_FILE} and videos/")
    add_tasks(evaluate)
    add_episodes(evaluate, 50)
    add_seed(evaluate)
    evaluate.add_argument("--workers", type=positive_int, default=1, metavar="N", help="processes (1)")
    add_acting(evaluate)
    evaluate.add_argument(
        "--purpose", choices=("test", "develop"), default="test", help="which seeds: make choices on develop only"
    )
    evaluate.add_argument(
        "--films", metavar="TASK", nargs="*", default=None, help="tasks to film beside their specialist"
    )
    evaluate.add_argument("--agents", metavar="DIR", help="the --output folder of `collectors train`, for the films")
    evaluate.add_argument("--scores", metavar="FILE", help="what specialists and random reach, of `collectors score`")
    evaluate.add_argument("--no-language", action="store_true", help="leave out captions, questions, texts")


def _evaluate(arguments: argparse.Namespace) -> int:
    from collectors.seeds import Purpose
    from trainer.evaluate import EvaluationJob, EvaluationResult, evaluate, film, summarize
    from trainer.language import LanguageConfig, evaluate_language
    from trainer.shards import Dataset

    run, shards, output = Path(arguments.run), Path(arguments.shards), Path(arguments.output)
    job = EvaluationJob(
        run=run,
        checkpoint=trained_checkpoint(arguments),
        shards=shards,
        acting=acting_config(arguments),
        purpose=Purpose[arguments.purpose.upper()],
        seed=arguments.seed,
        episodes=arguments.episodes,
        scores=Path(arguments.scores) if arguments.scores else None,
    )
    dataset = Dataset.open(shards)
    chosen = control_tasks(dataset, arguments.tasks)
    output.mkdir(parents=True, exist_ok=True)
    results = evaluate(job, chosen, partial=output / "evaluation", workers=arguments.workers)
    facts = job.facts()
    before, aside = scores_file.before(output, facts)
    if aside is not None:
        print(f"trainer: the scores of another evaluation are now in {aside}", file=sys.stderr)
    rows = {row["task_id"]: EvaluationResult(**row) for row in before["scores"]} if before else {}
    rows |= {result.task_id: result for result in results}
    merged = [rows[task_id] for task_id in sorted(rows)]
    scores = {
        **facts,
        "scores": [result.to_json() for result in merged],
        "summary": summarize(merged),
        "language": before["language"] if before else {},
    }
    write_json(output / SCORES_FILE, scores)
    if not arguments.no_language:
        language = evaluate_language(dataset, run, LanguageConfig(seed=arguments.seed), job.checkpoint)
        write_json(output / LANGUAGE_FILE, language)
        scores["language"] = _without_samples(language)
        write_json(output / SCORES_FILE, scores)
    for task_id in progress(arguments.films or [], description="filming", unit="tasks"):
        film(job, task_id, output / "videos", Path(arguments.agents) if arguments.agents else None)
    if arguments.json:
        print_json(scores)
    else:
        _print_scores(scores)
    return 0


def _without_samples(language: Mapping[str, Any]) -> dict[str, Any]:
    return {kind: {key: value for key, value in part.items() if key != "samples"} for kind, part in language.items()}


def _print_scores(scores: Mapping[str, Any]) -> None:
    from collectors.scores import normalized_score

    rows = []
    for score in scores["scores"]:
        expert, random = score["expert_return"], score["random_return"]
        neighbour = normalized_score(score["nearest_neighbour_return"] or random, expert=expert, random=random)
        mean = sum(score["episode_returns"]) / len(score["episode_returns"])
        rows.append((score["task_id"], random, expert, mean, score["normalized_score"], neighbour))
    print(scores_file.label(scores))
    print_table(rows, ("task", "random", "specialist", "generalist", "score %", "nearest neighbour %"))
    if summary := scores["summary"]:
        low, high = summary["interquartile_interval"]
        print(
            f"mean score {summary['mean']:.1f}%, lowest {summary['lowest']:.1f}%, "
            f"{summary['tasks_at_half_of_the_specialist']} of {summary['num_tasks']} tasks at 50% of their specialist "
            f"or more\ninterquartile mean {summary['interquartile_mean']:.1f}% ({low:.1f} to {high:.1f})"
        )
    for kind, part in scores["language"].items():
        print(f"{kind}: {json.dumps(part)}")


def _report(arguments: argparse.Namespace) -> int:
    from trainer.report import build_report

    path = build_report(Path(arguments.run))
    if arguments.json:
        print_json({"report": str(path)})
        return 0
    with contextlib.suppress(FileNotFoundError, UserError):  # the page says what it left out
        _print_scores(scores_file.read(Path(arguments.run) / SCORES_FILE))
    print(f"report: {path.resolve()}")
    return 0
