"""The verb `replay`."""

from __future__ import annotations

import argparse
import collections
import contextlib
import sys

from episode_store import cli_versions, command_line, extensions
from episode_store.cli_choice import add_choice, choose_episodes
from episode_store.command_line import CommandLine
from episode_store.replay import ReplayResult, replay
from episode_store.store import EpisodeStore

_REMEDY = "pip install 'generalist-agent[collect]', and the extra of the task's family ('[box2d]', '[grid]', ...)"
_STATUSES = ("match", "differs", "damaged", "skipped")


def add_verbs(program: CommandLine) -> None:
    """Adds `replay`."""
    parser = program.verb(
        "replay",
        _replay,
        help="simulate episodes again from their seeds and compare every bit; exit code 1 names the first difference "
        "of each that is not what was stored, and when none could be replayed",
        example="python -m episode_store replay --store runs/demo/store --tasks LunarLander-v3 --episodes 10",
    )
    command_line.add_store(parser)
    cli_versions.add_version(parser)
    add_choice(parser, default=None)


def _replay(namespace: argparse.Namespace) -> int:
    store = EpisodeStore.open(namespace.store, version=namespace.version)
    simulator = extensions.load("simulator", remedy=_REMEDY)()
    episode_ids = choose_episodes(store, namespace)
    with contextlib.closing(simulator):
        found = replay(store, episode_ids, simulator)
        if namespace.json:
            results = list(found)
        else:
            watched = command_line.progress(found, description="replay", total=len(episode_ids), unit="episodes")
            results = list(watched)
    counts = {status: sum(result.status == status for result in results) for status in _STATUSES}
    if namespace.json:
        episodes = [result.to_json() for result in results]
        command_line.print_json(
            {"store": str(store.path), "version": store.view.number, **counts, "episodes": episodes}
        )
    else:
        sys.stderr.flush()
        _print(results, counts)
    return 0 if counts["match"] and not counts["differs"] and not counts["damaged"] else 1


def _print(results: list[ReplayResult], counts: dict[str, int]) -> None:
    for result in results:
        if result.status == "differs":
            print(f"DIFFERS {result.episode_id} of {result.task_id}: {result.reason}")
            for warning in result.warnings:
                print(f"  perhaps because {warning}")
        elif result.status == "damaged":
            print(f"DAMAGED {result.reason}")
    skipped = collections.Counter((result.task_id, result.reason) for result in results if result.status == "skipped")
    for (task_id, reason), count in skipped.items():
        print(f"cannot be replayed: {count} episodes of {task_id}: {reason}")
    noted = collections.Counter(
        (result.task_id, warning) for result in results if result.status == "match" for warning in result.warnings
    )
    for (task_id, warning), count in noted.items():
        print(f"note: {count} episodes of {task_id} match although {warning}")
    matched = f"{counts['match']} of {len(results)} episodes happen again, bit by bit"
    others = ", ".join(f"{counts[status]} {word}" for status, word in _WORDS.items() if counts[status])
    print(matched + (f"; {others}" if others else ""))


_WORDS = {"differs": "differ", "damaged": "are damaged", "skipped": "cannot be replayed"}
