"""Flags that choose episodes, for verbs that read them."""

from __future__ import annotations

import argparse

from episode_store import command_line
from episode_store.errors import UserError
from episode_store.store import EpisodeStore


def add_choice(parser: argparse._ActionsContainer, *, default: int | None) -> None:
    """`--tasks`, `--where`, `--episode` and `--episodes`.

    Args:
      parser: to add them to.
      default: of `--episodes`; None for all.
    """
    command_line.add_tasks(parser)
    parser.add_argument("--where", metavar="CONDITION", help="only these; a condition such as `query` takes")
    parser.add_argument("--episode", metavar="ID", help="only this one: an id, or the beginning of one")
    parser.add_argument(
        "--episodes",
        type=command_line.positive_int,
        metavar="N",
        default=default,
        help=f"at most so many a task ({'all' if default is None else default})",
    )


def choose_episodes(store: EpisodeStore, namespace: argparse.Namespace) -> list[str]:
    """The ids that the flags choose, in the store's order.

    Raises:
      UserError: they choose none.
    """
    if namespace.episode is not None:
        return [store.find_episode(namespace.episode)]
    chosen = None
    if namespace.where is not None:
        chosen = set(store.query(namespace.where, columns=["episode_id"])["episode_id"].to_pylist())
    result = []
    for task_id in store.find_tasks(namespace.tasks):
        ids = store.table(task_id, ["episode_id"])["episode_id"].to_pylist()
        result += [one for one in ids if chosen is None or one in chosen][: namespace.episodes]
    if not result:
        raise UserError(f"store {store.path}: no episode is chosen; check --tasks and --where, or collect some first")
    return result
