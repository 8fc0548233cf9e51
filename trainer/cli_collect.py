"""`trainer collect`: a checkpoint of the generalist fills a store with its own episodes."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from episode_store.command_line import (
    CommandLine,
    add_episodes,
    add_seed,
    add_store,
    add_tasks,
    print_json,
    print_table,
    progress,
)
from trainer.cli_acting import acting_config, add_acting, add_trained, control_tasks, trained_checkpoint

_NUM_ENVS = 16


def add_collect(command: CommandLine) -> None:
    """Adds the verb."""
    collect = command.verb(
        "collect",
        _collect,
        help="records episodes of a checkpoint of the generalist in a store, as `collectors collect` does of experts",
        example="trainer collect --run runs/demo/train --shards runs/demo/shards --tasks Taxi-v4 --store runs/store",
    )
    add_trained(collect)
    add_store(collect)
    add_tasks(collect)
    add_episodes(collect, 50)
    add_seed(collect)
    add_acting(collect)


def _collect(arguments: argparse.Namespace) -> int:
    from collectors.collection import CollectionJob, collect_with
    from trainer.evaluate import generalist_policy
    from trainer.shards import Dataset

    source, acting = trained_checkpoint(arguments), acting_config(arguments)
    dataset = Dataset.open(Path(arguments.shards))
    chosen = control_tasks(dataset, arguments.tasks)
    results = []
    with progress(description="collecting", total=len(chosen) * arguments.episodes, unit="episodes") as bar:
        for task_id in chosen:
            policy = generalist_policy(Path(arguments.run), dataset, task_id, acting, source)
            job = CollectionJob(
                task_id=task_id,
                store=arguments.store,
                episodes=arguments.episodes,
                seed=arguments.seed,
                disturb=False,
            )
            results.append(
                collect_with(policy, job, lambda steps, doing: None, num_envs=min(arguments.episodes, _NUM_ENVS))
            )
            bar.update(arguments.episodes)
    if arguments.json:
        print_json([dataclasses.asdict(result) for result in results])
    else:
        rows = [
            (r.task_id, r.agent_id, r.episodes, r.steps, r.mean_return, r.std_return, r.new_episodes) for r in results
        ]
        print_table(rows, ("task", "agent", "episodes", "steps", "return", "std", "new"))
    return 0
