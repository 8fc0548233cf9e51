"""The command line: `python -m episode_store list|show|verify` and the verbs of cli_*.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc

from episode_store import cli_formats, cli_replay, cli_versions, cli_view, command_line, layout, provenance, versions
from episode_store.command_line import CommandLine
from episode_store.episode import Episode
from episode_store.spec import FieldValues
from episode_store.store import EpisodeStore
from episode_store.verify import verify_store


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code."""
    program = CommandLine("episode_store", "Look into a store of episodes and check it.")
    _list_verb(program)
    _show_verb(program)
    _verify_verb(program)
    cli_versions.add_verbs(program)
    cli_formats.add_verbs(program)
    cli_replay.add_verbs(program)
    cli_view.add_verbs(program)
    return program.main(arguments)


def _list_verb(program: CommandLine) -> None:
    parser = program.verb(
        "list",
        _list,
        help="one line a task: episodes, steps, returns, agents; then the versions",
        example="python -m episode_store list --store runs/demo/store --tasks 'metaworld/*'",
    )
    command_line.add_store(parser)
    command_line.add_tasks(parser)
    cli_versions.add_version(parser)


def _show_verb(program: CommandLine) -> None:
    parser = program.verb(
        "show",
        _show,
        help="the fields of tasks and their first episodes, or one episode",
        example="python -m episode_store show --store runs/demo/store --tasks CartPole-v1",
    )
    command_line.add_store(parser)
    command_line.add_tasks(parser)
    cli_versions.add_version(parser)
    parser.add_argument("--episode", metavar="ID", help="one episode: an id, or the beginning of one")
    command_line.add_episodes(parser, default=5)


def _verify_verb(program: CommandLine) -> None:
    parser = program.verb(
        "verify",
        _verify,
        help="read every byte and compare every checksum; exit code 1 names each damaged episode or file",
        example="python -m episode_store verify --store runs/demo/store",
    )
    command_line.add_store(parser)
    command_line.add_tasks(parser)


def task_summary(store: EpisodeStore, task_id: str) -> dict[str, Any]:
    """What `list` says of one task."""
    table = store.table(task_id)
    returns = table["episode_return"].to_numpy()
    return {
        "task_id": task_id,
        "episodes": table.num_rows,
        "steps": int(pc.sum(table["num_steps"]).as_py() or 0),
        "return_mean": float(returns.mean()) if len(returns) else None,
        "return_min": float(returns.min()) if len(returns) else None,
        "return_max": float(returns.max()) if len(returns) else None,
        "terminated": int(pc.sum(table["terminated"]).as_py() or 0),
        "truncated": int(pc.sum(table["truncated"]).as_py() or 0),
        "agents": sorted(set(table["agent_id"].to_pylist())),
        "stored_bytes": int(pc.sum(table["record_bytes"]).as_py() or 0),
        "licence": store.tasks[task_id].licence,
    }


def _list(namespace: argparse.Namespace) -> int:
    store = EpisodeStore.open(namespace.store, version=namespace.version)
    tasks = [task_summary(store, task_id) for task_id in store.find_tasks(namespace.tasks)]
    quarantined = store.quarantine().num_rows
    found = versions.read_versions(store.path)
    if namespace.json:
        command_line.print_json(
            {
                "store": str(store.path),
                "version": store.view.number,
                "tasks": tasks,
                "quarantined": quarantined,
                "versions": [version.to_json() for version in found],
            }
        )
        return 0
    rows = [
        (
            task["task_id"],
            task["episodes"],
            task["steps"],
            *(
                "-" if task[name] is None else f"{task[name]:.2f}"
                for name in ("return_mean", "return_min", "return_max")
            ),
            task["stored_bytes"] / 1e6,
            len(task["agents"]),
        )
        for task in tasks
    ]
    command_line.print_table(rows, ("task", "episodes", "steps", "mean return", "min", "max", "MB", "agents"))
    total, stored = (sum(task[name] for task in tasks) for name in ("episodes", "stored_bytes"))
    print(f"{total} episodes in {len(tasks)} tasks, {stored / 1e6:.1f} MB, {quarantined} quarantined")
    if found:
        print()
        facts = [
            (
                version.number,
                version.name or "-",
                version.operation,
                version.created,
                version.num_excluded,
                layout.shorten(" ".join(f"{name}={value}" for name, value in version.detail.items())),
            )
            for version in found
        ]
        command_line.print_table(facts, ("version", "name", "made by", "when (UTC)", "left out", "detail"))
        print(f"shown: version {store.view.number}" + ("" if found[0].oldest else "; 0 is all that was ever written"))
    return 0


def _show(namespace: argparse.Namespace) -> int:
    store = EpisodeStore.open(namespace.store, version=namespace.version)
    if namespace.episode is not None:
        result = episode_summary(store, store.find_episode(namespace.episode))
        if namespace.json:
            command_line.print_json(result)
        else:
            _print_episode(result)
        return 0
    results = []
    columns = ["episode_id", "num_steps", "episode_return", "terminated", "truncated", "agent_id", "seed"]
    for task_id in store.find_tasks(namespace.tasks):
        episodes = store.table(task_id).select(columns).slice(0, namespace.episodes).to_pylist()
        results.append({"task": store.tasks[task_id].to_json(), "episodes": episodes})
    if namespace.json:
        command_line.print_json(results)
        return 0
    for result in results:
        _print_task(result["task"])
        command_line.print_table([list(row.values()) for row in result["episodes"]], columns)
        print()
    return 0


def _print_task(task: dict[str, Any]) -> None:
    print(f"{task['task_id']}  licence: {task['licence'] or '-'}  tags: {' '.join(task['tags']) or '-'}")
    for kind in ("observation_spec", "action_spec"):
        for name, spec in task[kind].items():
            bounds = "".join(
                f" {key}={layout.shorten(spec[key], 40)}" for key in ("low", "high", "num_values") if key in spec
            )
            print(f"  {kind[:-5]} {name}: {spec['modality']} {spec['dtype']} {tuple(spec['shape'])}{bounds}")


def episode_summary(store: EpisodeStore, episode_id: str) -> dict[str, Any]:
    """What `show --episode` says: provenance, and of each field its shape and some values."""
    episode = store.read(episode_id)
    return {
        "episode_id": episode_id,
        "content_hash": episode.content_hash(),
        "task_id": episode.task_id,
        "num_steps": episode.num_steps,
        "episode_return": episode.episode_return,
        "terminated": episode.terminated,
        "truncated": episode.truncated,
        "metadata": episode.metadata.to_json(),
        "provenance": provenance.provenance(episode.metadata, store.tasks[episode.task_id]),
        "lossy_columns": store.lossy_columns(episode_id),
        "columns": {path: _values_summary(values) for path, values in _columns(episode).items()},
    }


def _columns(episode: Episode) -> dict[str, FieldValues]:
    columns: dict[str, FieldValues] = {f"observations/{key}": values for key, values in episode.observations.items()}
    columns |= {f"actions/{key}": values for key, values in episode.actions.items()}
    columns["rewards"] = episode.rewards
    return columns | {f"step_columns/{key}": values for key, values in episode.step_columns.items()}


def _values_summary(values: FieldValues) -> dict[str, Any]:
    if isinstance(values, list):
        return {"dtype": "str", "shape": [len(values)], "first": layout.shorten(values[0], 200)}
    summary: dict[str, Any] = {"dtype": str(values.dtype), "shape": list(values.shape)}
    if values.size:
        numbers = values.astype(np.float64)
        statistics = {"min": float(numbers.min()), "max": float(numbers.max()), "mean": float(numbers.mean())}
        summary |= {name: value if np.isfinite(value) else None for name, value in statistics.items()}
        summary["first"] = [value if np.isfinite(value) else str(value) for value in values[0].reshape(-1)[:8].tolist()]
    return summary


def _print_episode(result: dict[str, Any]) -> None:
    for name in ("episode_id", "task_id", "num_steps", "episode_return", "terminated", "truncated"):
        print(f"{name}: {result[name]}")
    for name, text in provenance.lines(result["provenance"]):
        print(f"{name}: {layout.shorten(text, 200)}")
    for path, quality in result["lossy_columns"].items():
        print(f"{path}: lossy WebP of quality {quality}, as its writer was asked")
    for path, column in result["columns"].items():
        facts = "  ".join(f"{name} {column[name]!r}" for name in ("min", "max", "first") if name in column)
        print(f"{path}: {column['dtype']} {tuple(column['shape'])}  {facts}")


def _verify(namespace: argparse.Namespace) -> int:
    report = verify_store(namespace.store, namespace.tasks, progress=not namespace.json)
    if namespace.json:
        command_line.print_json(report.to_json())
    else:
        for damage in report.damages:
            print(f"DAMAGED {damage.describe()}")
        for note in report.notes:
            print(f"note: {note}")
        print(
            f"{report.num_episodes} episodes and {report.num_files} files checked, {report.num_bytes / 1e6:.1f} MB: "
            + (f"{len(report.damages)} damages" if report.damages else "no damage")
        )
    return 1 if report.damages else 0
