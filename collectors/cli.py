"""The command line `python -m collectors`."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collectors import packages, pages, registry
from collectors.task import CorpusSource, Sb3Expert, Task
from episode_store.command_line import (
    CommandLine,
    add_output,
    add_seed,
    add_store,
    add_tasks,
    positive_int,
    print_json,
    print_table,
    progress,
)
from episode_store.errors import UserError
from episode_store.files import check_can_write
from episode_store.spec import Modality
from episode_store.writer import EpisodeWriter

if TYPE_CHECKING:
    from collectors import jobs


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    line = CommandLine("collectors", "Tasks, their experts, and demonstrations of them in a store.")
    _add_list(line)
    _add_describe(line)
    _add_train(line)
    _add_collect(line)
    _add_play(line)
    _add_score(line)
    return line.main(arguments)


def _add_list(line: CommandLine) -> None:
    parser = line.verb(
        "list",
        _list,
        help="show the tasks: kinds of observation and action, tokens a step, expert, returns where measured, licence",
        example="collectors list --tasks 'metaworld/*' toy_text --modality text",
    )
    add_tasks(parser)
    parser.add_argument(
        "--modality", choices=[str(modality) for modality in Modality], help="only tasks whose observations have it"
    )
    parser.add_argument("--count", action="store_true", help="only the number of tasks in each family")
    parser.add_argument("--markdown", action="store_true", help="as the tables of the documentation")
    parser.add_argument("--page", metavar="FILE", help="put those tables into a page, between its marks for them")


def _list(arguments: argparse.Namespace) -> None:
    from collectors import catalogue

    tasks = registry.find(arguments.tasks)
    if arguments.modality:
        tasks = catalogue.with_modality(tasks, arguments.modality)
    number = catalogue.counts(tasks)
    if arguments.json:
        print_json(number if arguments.count else [catalogue.facts(task) for task in tasks])
    elif arguments.page:
        pages.write_tables(Path(arguments.page), "catalogue", catalogue.markdown(tasks))
    elif arguments.markdown:
        print(catalogue.markdown(tasks), end="")
    elif arguments.count:
        print_table([[family, *kinds.values()] for family, kinds in number.items()], ["family", *number["total"]])
    else:
        print_table([catalogue.row(task) for task in tasks], catalogue.HEADER)
        total = number["total"]
        print(
            f"{len(tasks)} entries in {len(number) - 1} families: {total['counted']} tasks, {total['variants']} "
            f"variants that only show or reward one of them differently, {total['corpora']} corpora"
        )


def _add_describe(line: CommandLine) -> None:
    parser = line.verb(
        "describe",
        _describe,
        help="make each environment once and keep the kinds of its observations and actions for `collectors list`",
        example="collectors describe --tasks 'atari/*' --output collectors/data/spaces.json",
    )
    add_tasks(parser)
    add_output(parser, "JSON file to add the spaces to; what it has is not measured again")


@packages.named()
def _describe(arguments: argparse.Namespace) -> None:
    from collectors import catalogue

    check_can_write(Path(arguments.output))
    found = catalogue.load(arguments.output)
    todo = [task for task in registry.find(arguments.tasks) if task.task_id not in found]
    for task in progress(todo, description="describing", unit="tasks"):
        found[task.task_id] = catalogue.measure(task)
        catalogue.save(arguments.output, found)
    if arguments.json:
        print_json({task.task_id: dataclasses.asdict(found[task.task_id]) for task in todo})
    else:
        print(f"{len(todo)} tasks described, {len(found)} in {arguments.output}")


def _add_train(line: CommandLine) -> None:
    parser = line.verb(
        "train",
        functools.partial(_collect, train=True, collect=False),
        help="train specialists with stable-baselines3 and record them while they train; goes on where it stopped",
        example="collectors train --tasks CartPole-v1 Acrobot-v1 --store runs/store --output runs --workers 2",
    )
    add_store(parser)
    add_tasks(parser)
    add_output(parser, "folder for the specialists: PATH/agents/")
    add_seed(parser)
    _add_workers(parser)
    parser.add_argument("--steps", type=positive_int, metavar="N", help="steps of training at most (each task's own)")
    parser.add_argument("--tensorboard", metavar="DIR", default="", help="folder for TensorBoard's curves (none)")


def _add_collect(line: CommandLine) -> None:
    parser = line.verb(
        "collect",
        functools.partial(_collect, train=False, collect=True),
        help="record demonstrations by specialists, scripts, corpora or random actions; goes on where it stopped",
        example="collectors collect --tasks MountainCar-v0=20000 'babyai/GoTo*' --steps 8000 --store runs/store",
    )
    add_store(parser)
    add_tasks(parser)
    add_output(parser, "folder that has the specialists in PATH/agents/", required=False)
    add_seed(parser)
    _add_workers(parser)
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument(
        "--steps",
        type=positive_int,
        metavar="N",
        help="at least so many steps a task, in whole batches of episodes, the first of 16; a task's own: TASK=N",
    )
    amount.add_argument(
        "--episodes",
        type=positive_int,
        metavar="N",
        help="episodes a task, where it has no steps of its own: TASK=N (100; corpora: all)",
    )
    parser.add_argument("--agent", choices=("expert", "random"), default="expert", help="who acts (expert)")
    parser.add_argument("--train", action="store_true", help="first train the specialists that are not trained yet")
    parser.add_argument(
        "--no-disturbance", action="store_true", help="leave out the bursts of noise from which experts recover"
    )


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=positive_int, default=1, metavar="N", help="processes (1)")


@packages.named()
def _collect(arguments: argparse.Namespace, *, train: bool, collect: bool) -> None:
    from collectors import collection, jobs

    train = train or getattr(arguments, "train", False)
    amounts = _amounts(arguments.tasks, arguments.steps)
    for flag in ("steps", "episodes"):
        if getattr(arguments, flag, None) is not None and all("=" in word for word in arguments.tasks):
            raise UserError(f"--{flag} changes nothing: every task has its own steps (TASK=N); leave one of them out")
    tasks = [registry.get(task_id) for task_id in amounts]
    trained = [task for task in tasks if isinstance(task.expert, Sb3Expert)]
    if train and not collect and len(trained) < len(tasks):
        others = [task.task_id for task in tasks if task not in trained]
        raise UserError(f"no specialist to train for {', '.join(others)}: use `collectors collect`")
    if trained and arguments.output is None and getattr(arguments, "agent", "expert") == "expert":
        raise UserError(f"--output is needed: the folder that has the specialist of {trained[0].task_id} in agents/")
    if train and arguments.output is not None:
        check_can_write(Path(arguments.output), folder=True)
    if getattr(arguments, "tensorboard", ""):
        check_can_write(Path(arguments.tensorboard), folder=True)
        importlib.import_module("tensorboard")  # asked for now: stable-baselines3 looks for it when training begins
    todo = [
        collection.CollectionJob(
            task_id=task.task_id,
            store=arguments.store,
            output=arguments.output or "",
            train=train,
            collect=collect,
            agent=getattr(arguments, "agent", "expert"),
            steps=amounts[task.task_id] if collect else None,
            episodes=getattr(arguments, "episodes", None) if amounts[task.task_id] is None else None,
            train_steps=None if collect else amounts[task.task_id],
            seed=arguments.seed,
            disturb=not getattr(arguments, "no_disturbance", False),
            tensorboard=getattr(arguments, "tensorboard", ""),
        )
        # The longest first, so that processes end together.
        for task in sorted(tasks, key=lambda task: -isinstance(task.expert, Sb3Expert))
    ]
    _announce_licences(tasks)
    # Made before any process starts: a folder that is no store is told at once, and only one process makes it.
    EpisodeWriter(arguments.store).close()
    runner: jobs.JobRunner = jobs.JobRunner(
        collection.run,
        unit="step",
        describe=lambda job: job.task_id,
        done=lambda result: result.line(),
    )
    total = sum(collection.expected_work(job) for job in todo)
    title = "training and recording" if train else "collecting"
    results, failure = _outcome(runner, todo, workers=arguments.workers, total=total, title=title)
    if arguments.json:
        print_json([dataclasses.asdict(result) for result in results])
    elif results:
        header = ["task", "agent", "training episodes", "episodes", "steps", "return", "std", "new", "seconds"]
        print_table(
            [
                [
                    result.task_id,
                    result.agent_id,
                    result.train_episodes,
                    result.episodes,
                    result.steps,
                    result.mean_return,
                    result.std_return,
                    result.new_episodes,
                    result.train_seconds + result.collect_seconds,
                ]
                for result in results
            ],
            header,
        )
    if failure:
        raise failure


def _outcome(runner: jobs.JobRunner, todo: Sequence[Any], **how: Any) -> tuple[list[Any], jobs.JobsFailedError | None]:
    """The results, and what to raise once they are shown: one task's mistake does not cost the others theirs."""
    from collectors import jobs

    try:
        return runner.run(todo, **how), None
    except jobs.JobsFailedError as failure:
        return failure.results, failure


def _amounts(patterns: Sequence[str] | None, default: int | None) -> dict[str, int | None]:
    """Task id -> steps, from words like "CartPole-v1" and "babyai/*=20000"."""
    if not patterns:
        raise UserError("--tasks is needed: task ids or patterns; `collectors list` shows them")
    amounts: dict[str, int | None] = {}
    for word in patterns:
        pattern, separator, number = word.partition("=")
        if separator and not (number.isdecimal() and int(number) > 0):
            raise UserError(f"--tasks {word}: expected TASK=STEPS with a whole number of steps, got {number!r}")
        amounts |= {task.task_id: int(number) if separator else default for task in registry.find([pattern])}
    return amounts


def _announce_licences(tasks: Sequence[Task]) -> None:
    corpora = [task.task_id for task in tasks if isinstance(task.expert, CorpusSource)]
    if corpora:
        from collectors.corpora import attributions

        for attribution in attributions(corpora):
            print(attribution.line(), file=sys.stderr)


def _add_play(line: CommandLine) -> None:
    parser = line.verb(
        "play",
        _play,
        help="play a task with the keyboard, in the browser or a window; an episode begins with a key, whole ones stay",
        example="collectors play --tasks minigrid/DoorKey-6x6-v0 --store runs/store --player ada",
    )
    add_store(parser)
    add_tasks(parser)
    add_seed(parser)
    parser.add_argument("--player", default="anonymous", metavar="NAME", help="who plays; recorded (anonymous)")
    parser.add_argument("--episodes", type=positive_int, metavar="N", help="episodes at most (until you stop)")
    parser.add_argument("--fps", type=float, metavar="N", help="steps a second (the environment's own)")
    parser.add_argument("--window", action="store_true", help="in a window of its own instead of the browser")
    parser.add_argument("--port", type=int, default=0, metavar="N", help="of the page, on this machine only (any)")


@packages.named()
def _play(arguments: argparse.Namespace) -> None:
    from collectors.play import PLAYER, next_place, play

    tasks = registry.find(arguments.tasks) if arguments.tasks else []
    if len(tasks) != 1:
        raise UserError(f"--tasks: expected one task to play, got {len(tasks)}")
    if not PLAYER.fullmatch(arguments.player):
        raise UserError(f"--player {arguments.player}: expected letters, digits, '_' and '-'")
    if arguments.fps is not None and not arguments.fps > 0:
        raise UserError(f"--fps {arguments.fps}: expected more than 0")
    (task,) = tasks
    screen: Any
    if arguments.window:
        from collectors.window_screen import WindowScreen

        screen = WindowScreen()
    else:
        from collectors.browser_screen import BrowserScreen

        # Announced at its first picture: not before the task, the store and the keyboard are known to do.
        screen = BrowserScreen(port=arguments.port, announce=_announce_page)
    try:
        with EpisodeWriter(arguments.store) as writer:
            writer.add_task(task.spec())
            played = play(
                task,
                screen,
                writer.add_episode,
                player=arguments.player,
                num_episodes=arguments.episodes,
                seed=arguments.seed,
                first=next_place(arguments.store, task, arguments.player),
                frames_per_second=arguments.fps,
            )
    finally:
        screen.close()
    if arguments.json:
        print_json({"task_id": task.task_id, "episodes": played})
    elif played:
        print(f"{played} episodes of {task.task_id} were played to their end and are in {arguments.store}")
    else:
        print(f"nothing is stored: no episode of {task.task_id} was played to its end; each begins with a key")


def _announce_page(address: str) -> None:
    print(f"open {address} to play; close the page or press Ctrl-C to stop", file=sys.stderr, flush=True)


def _add_score(line: CommandLine) -> None:
    parser = line.verb(
        "score",
        _score,
        help="measure the random and the expert return of tasks, each over 50 episodes; goes on where it stopped",
        example="collectors score --tasks toy_text --output runs/scores.json --workers 2",
    )
    add_tasks(parser)
    parser.add_argument(
        "--agents", metavar="DIR", default="", help="the --output folder of `collectors train`, for specialists"
    )
    add_output(parser, "JSON file to add the scores to", required=False)
    parser.add_argument("--episodes", type=positive_int, default=50, metavar="N", help="episodes each (50)")
    parser.add_argument("--random-only", action="store_true", help="leave the expert out")
    parser.add_argument("--again", action="store_true", help="measure again what --output has already")
    parser.add_argument("--known", action="store_true", help="measure nothing: take the scores kept in the project")
    add_seed(parser)
    _add_workers(parser)


@packages.named()
def _score(arguments: argparse.Namespace) -> None:
    from collectors import scores

    if not (arguments.tasks or arguments.known):
        raise UserError("--tasks is needed: task ids or patterns; `collectors list` shows them")
    tasks = registry.find(arguments.tasks)
    corpora = [task.task_id for task in tasks if task.is_corpus]
    tasks = [task for task in tasks if not task.is_corpus]
    failure: UserError | None = None
    if arguments.known:
        measured = {task.task_id: scores.known()[task.task_id] for task in tasks if task.task_id in scores.known()}
    else:
        measured, failure = _measure(tasks, arguments)
    if arguments.tasks and not failure:
        unknown = [task.task_id for task in tasks if task.task_id not in measured]
        reasons = [
            f"{_some(left_out)}: {why}"
            for left_out, why in (
                (corpora, "nobody acts in a corpus, so it has no return to score"),
                (unknown, "not scored yet, leave --known out to measure"),
            )
            if left_out
        ]
        if reasons and not measured:
            raise UserError("; ".join(reasons))
        for reason in reasons:
            print(reason, file=sys.stderr)
    if arguments.json:
        print_json({task_id: dataclasses.asdict(score) for task_id, score in measured.items()})
    elif measured:
        print_table(
            [
                [task_id, score.random_return, score.random_std, *_expert_columns(score), score.expert]
                for task_id, score in measured.items()
            ],
            ["task", "random", "std", "expert", "std", "by"],
        )
    if failure:
        raise failure


def _some(task_ids: Sequence[str]) -> str:
    """Their names; of many the first ones."""
    return ", ".join(task_ids[:3]) + (f" and {len(task_ids) - 3} more" if len(task_ids) > 3 else "")


def _measure(tasks: Sequence[Task], arguments: argparse.Namespace) -> tuple[dict[str, Any], UserError | None]:
    """Scores of the tasks, and what to raise in the end.

    Each goes to --output as soon as it is there, and what that has already is not repeated.
    """
    from collectors import jobs, scores

    output = Path(arguments.output) if arguments.output else None
    if output:
        check_can_write(output)
    kept = scores.load(output) if output and output.exists() else {}
    todo = [
        scores.ScoreJob(
            task_id=task.task_id,
            output=arguments.agents,
            episodes=arguments.episodes,
            seed=arguments.seed,
            expert=not arguments.random_only,
        )
        for task in tasks
    ]
    if not arguments.again:
        todo = [job for job in todo if not scores.is_measured(job, kept.get(job.task_id))]

    done: set[str] = set()

    def keep(result: tuple[str, scores.Score]) -> str:
        task_id, score = result
        done.add(task_id)
        kept[task_id] = score
        if output:
            scores.save(output, kept)
        return f"{task_id}: random {score.random_return}, expert {score.expert_return}"

    runner: jobs.JobRunner = jobs.JobRunner(scores.measure, unit="episode", describe=lambda job: job.task_id, done=keep)
    total = len(todo) * arguments.episodes * (1 if arguments.random_only else 2)
    _, failure = _outcome(runner, todo, workers=arguments.workers, total=total, title="scoring")
    failed = {job.task_id for job in todo} - done
    return {task.task_id: kept[task.task_id] for task in tasks if task.task_id not in failed}, failure


def _expert_columns(score: Any) -> list[Any]:
    return ["", ""] if score.expert_return is None else [score.expert_return, score.expert_std]
