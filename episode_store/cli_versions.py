"""Verbs that query a store and that change what it shows: `stats query filter delete restore merge split repair
compact`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from episode_store import change, command_line, layout
from episode_store.command_line import CommandLine
from episode_store.compact import compact
from episode_store.errors import UserError
from episode_store.merge import merge
from episode_store.repair import repair
from episode_store.spec import Modality
from episode_store.statistics import GROUPS, episode_statistics, field_statistics, lossy_statistics
from episode_store.store import EpisodeStore

_WHERE = "condition over the episode table, such as \"episode_return > 100 and task_id == 'CartPole-v1'\""


def add_verbs(program: CommandLine) -> None:
    """Registers the verbs."""
    _stats_verb(program)
    _query_verb(program)
    _filter_verb(program)
    _delete_verb(program)
    _restore_verb(program)
    _merge_verb(program)
    _split_verb(program)
    _repair_verb(program)
    _compact_verb(program)


def add_version(parser: argparse.ArgumentParser) -> None:
    """`--version`: which version of the store to look at."""
    parser.add_argument(
        "--version", metavar="VERSION", help="number or name of a version; `list` shows them (the newest)"
    )


def _add_dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only tell what would be done; change nothing")


def _add_note(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--note", default="", metavar="TEXT", help="why; `list` shows it")


# --- looking -------------------------------------------------------------------------------------------------------


def _stats_verb(program: CommandLine) -> None:
    parser = program.verb(
        "stats",
        _stats,
        help="returns, lengths, sizes, ends and success by task and agent, and which columns are lossy; with --fields "
        "the range of each field",
        example="python -m episode_store stats --store runs/demo/store --by task_id agent_id",
    )
    command_line.add_store(parser)
    command_line.add_tasks(parser)
    add_version(parser)
    parser.add_argument(
        "--by", nargs="+", choices=GROUPS, default=["task_id"], metavar="COLUMN", help=f"{', '.join(GROUPS)} (task_id)"
    )
    parser.add_argument("--fields", action="store_true", help="read episodes: min, max and mean of every field")
    parser.add_argument(
        "--episodes",
        type=command_line.positive_int,
        metavar="N",
        help="look into only so many a task, for --fields and lossy images (all)",
    )


def _stats(namespace: argparse.Namespace) -> int:
    store = EpisodeStore.open(namespace.store, version=namespace.version)
    tasks = store.find_tasks(namespace.tasks)
    groups = episode_statistics(store, namespace.by, tasks)
    fields: dict[str, Any] = {}
    lossy: dict[str, Any] = {}
    looked_at: dict[str, int] = {}
    for task_id in tasks:
        # Only images are ever lossy.
        has_images = any(spec.modality == Modality.IMAGE for spec in store.tasks[task_id].observation_spec.values())
        if not has_images and not namespace.fields:
            continue
        episode_ids = store.table(task_id, ["episode_id"])["episode_id"].to_pylist()[: namespace.episodes]
        looked_at[task_id] = len(episode_ids)
        if has_images:
            lossy[task_id] = lossy_statistics(store, episode_ids)
        if namespace.fields:
            if not namespace.json:
                episode_ids = command_line.progress(episode_ids, description=task_id, unit="episodes")
            fields[task_id] = field_statistics(store, episode_ids)
    lossy = {task_id: columns for task_id, columns in lossy.items() if columns}
    if namespace.json:
        result = {"store": str(store.path), "version": store.view.number, "groups": groups, "fields": fields}
        command_line.print_json({**result, "lossy_columns": lossy})
        return 0
    rows = [
        (
            *(group[name] for name in namespace.by),
            group["episodes"],
            group["steps"],
            *(f"{group['return'][name]:.2f}" for name in ("mean", "std", "min", "max")),
            f"{group['length']['mean']:.1f}",
            group["stored_bytes"] / 1e6,
            "-" if group["success_rate"] is None else f"{group['success_rate']:.0%}",
        )
        for group in groups
    ]
    header = (*namespace.by, "episodes", "steps", "mean return", "std", "min", "max", "mean length", "MB", "success")
    command_line.print_table(rows, header)
    for task_id, columns in lossy.items():
        for path, column in columns.items():
            least, greatest = column["min_quality"], column["max_quality"]
            quality = str(least) if least == greatest else f"{least} to {greatest}"
            print(
                f"{task_id}: {path}: lossy WebP of quality {quality} in {column['episodes']} of {looked_at[task_id]} "
                "episodes, as their writer was asked"
            )
    for task_id, found in fields.items():
        print(f"\n{task_id}")
        lines = [
            (
                path,
                *("-" if one[name] is None else f"{one[name]:.6g}" for name in ("min", "max", "mean")),
                one["values"],
            )
            for path, one in found.items()
        ]
        command_line.print_table(lines, ("field", "min", "max", "mean", "values"))
    return 0


def _query_verb(program: CommandLine) -> None:
    parser = program.verb(
        "query",
        _query,
        help="rows of the episode table that a condition chooses; reads no frame",
        example=(
            'python -m episode_store query --store runs/demo/store --where "episode_return > 100 and '
            "task_id == 'CartPole-v1'\" --columns episode_id episode_return seed --sort=-episode_return --limit 10"
        ),
    )
    command_line.add_store(parser)
    add_version(parser)
    parser.add_argument("--where", metavar="CONDITION", help=f"{_WHERE} (all)")
    parser.add_argument("--columns", nargs="+", metavar="COLUMN", help="of the result (the most telling ones)")
    parser.add_argument(
        "--sort", nargs="+", default=[], metavar="COLUMN", help="sort by; --sort=-COLUMN for the largest first"
    )
    parser.add_argument("--limit", type=command_line.positive_int, metavar="N", help="at most so many rows (all)")


_COLUMNS = ["episode_id", "task_id", "agent_id", "seed", "num_steps", "episode_return", "terminated", "success"]


def _query(namespace: argparse.Namespace) -> int:
    store = EpisodeStore.open(namespace.store, version=namespace.version)
    table = store.query(
        namespace.where, columns=namespace.columns or _COLUMNS, sort=namespace.sort, limit=namespace.limit
    )
    rows = table.to_pylist()
    if namespace.json:
        command_line.print_json({"store": str(store.path), "version": store.view.number, "rows": rows})
        return 0
    cells = [["-" if value is None else value for value in row.values()] for row in rows]
    command_line.print_table(cells, table.schema.names)
    print(f"{table.num_rows} of {len(store)} episodes")
    return 0


# --- new versions --------------------------------------------------------------------------------------------------


def _filter_verb(program: CommandLine) -> None:
    parser = program.verb(
        "filter",
        _filter,
        help="a new version with only the episodes that a condition chooses; no data is removed",
        example=("python -m episode_store filter --store runs/demo/store --where 'episode_return > 100' --name good"),
    )
    command_line.add_store(parser)
    parser.add_argument("--where", required=True, metavar="CONDITION", help=_WHERE)
    parser.add_argument(
        "--name", default="", metavar="NAME", help="make a view of this name and leave the newest version as it is"
    )
    _add_note(parser)
    _add_dry_run(parser)


def _filter(namespace: argparse.Namespace) -> int:
    result = change.filter_store(
        namespace.store, where=namespace.where, name=namespace.name, note=namespace.note, dry_run=namespace.dry_run
    )
    return _print_change(namespace, result)


def _delete_verb(program: CommandLine) -> None:
    parser = program.verb(
        "delete",
        _delete,
        help="a new version without some episodes; they stay readable in older versions until `compact`",
        example="python -m episode_store delete --store runs/demo/store --where 'num_steps < 5' --dry-run",
    )
    command_line.add_store(parser)
    parser.add_argument("--where", metavar="CONDITION", help=_WHERE)
    parser.add_argument("--episodes", nargs="+", default=[], metavar="ID", help="these: ids, or beginnings of ids")
    _add_note(parser)
    _add_dry_run(parser)


def _delete(namespace: argparse.Namespace) -> int:
    result = change.delete(
        namespace.store,
        where=namespace.where,
        episode_ids=namespace.episodes,
        note=namespace.note,
        dry_run=namespace.dry_run,
    )
    return _print_change(namespace, result)


def _restore_verb(program: CommandLine) -> None:
    parser = program.verb(
        "restore",
        _restore,
        help="a new version that shows again what an older one shows; nothing is taken away",
        example="python -m episode_store restore --store runs/demo/store --version 0",
    )
    command_line.add_store(parser)
    parser.add_argument("--version", required=True, metavar="VERSION", help="number or name of the older version")
    _add_note(parser)
    _add_dry_run(parser)


def _restore(namespace: argparse.Namespace) -> int:
    result = change.restore(namespace.store, namespace.version, note=namespace.note, dry_run=namespace.dry_run)
    if not namespace.json and result.version is not None:
        print(f"version {result.version}: shows {result.kept} episodes")
        return 0
    return _print_change(namespace, result)


def _print_change(namespace: argparse.Namespace, result: change.Change) -> int:
    if namespace.json:
        command_line.print_json({**result.to_json(), "dry_run": namespace.dry_run})
        return 0
    for task_id, count in result.tasks.items():
        print(f"  {task_id}: {count} episodes out")
    name = f" named {result.name}" if result.name else ""
    if result.version is not None:
        print(f"version {result.version}{name}: {result.removed} episodes out, {result.kept} left")
    elif namespace.dry_run:
        print(f"would make a version{name}: {result.removed} episodes out, {result.kept} left; nothing was changed")
    else:
        print("nothing to do: the store shows just these episodes already")
    return 0


def _split_verb(program: CommandLine) -> None:
    parser = program.verb(
        "split",
        _split,
        help="named views that cannot leak: equal content, one seed of a task, one group are never divided",
        example="python -m episode_store split --store runs/demo/store --parts train=0.9 validation=0.1",
    )
    command_line.add_store(parser)
    parser.add_argument(
        "--parts", nargs="+", required=True, type=_part, metavar="NAME=SHARE", help="names and shares that sum to 1"
    )
    parser.add_argument(
        "--output", metavar="DIR", help="also make a store of each part, DIR/NAME, that shares the data by hard links"
    )
    _add_dry_run(parser)


def _part(text: str) -> tuple[str, float]:
    name, equals, share = text.partition("=")
    try:
        if not equals:
            raise ValueError
        return name, float(share)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected NAME=SHARE, such as train=0.9, got {text!r}") from None


def _split(namespace: argparse.Namespace) -> int:
    parts = dict(namespace.parts)
    if len(parts) < len(namespace.parts):
        raise UserError("split: a part is named twice")
    results = change.split(namespace.store, parts, dry_run=namespace.dry_run)
    stores = []
    if namespace.output and not namespace.dry_run:
        for name in parts:
            stores.append(str(Path(namespace.output) / name))
            merge(stores[-1], [(namespace.store, name)], progress=not namespace.json)
    if namespace.json:
        parts_json = [result.to_json() for result in results]
        command_line.print_json({"parts": parts_json, "stores": stores, "dry_run": namespace.dry_run})
        return 0
    total = sum(result.kept for result in results)
    for result in results:
        share = result.kept / total if total else 0.0
        where = f"version {result.version}" if result.version is not None else "would be"
        print(f"{result.name}: {where}, {result.kept} episodes ({share:.1%})")
    for store in stores:
        print(f"store {store}")
    return 0


def _merge_verb(program: CommandLine) -> None:
    parser = program.verb(
        "merge",
        _merge,
        help="bring the episodes of other stores into one, by hard link or copy; duplicates are left out",
        example="python -m episode_store merge --store runs/all --sources runs/monday runs/tuesday",
    )
    parser.add_argument("--store", required=True, metavar="DIR", help="the store that grows; made when missing")
    parser.add_argument("--sources", nargs="+", required=True, metavar="DIR", help="stores to bring in")
    parser.add_argument(
        "--source-version", metavar="VERSION", help="number or name of the sources' version to take (the newest)"
    )
    parser.add_argument("--copy", action="store_true", help="copy the data also where a hard link would do")
    _add_dry_run(parser)


def _merge(namespace: argparse.Namespace) -> int:
    report = merge(
        namespace.store,
        [(source, namespace.source_version) for source in namespace.sources],
        copy=namespace.copy,
        dry_run=namespace.dry_run,
        progress=not namespace.json,
    )
    if namespace.json:
        command_line.print_json({**report.to_json(), "dry_run": namespace.dry_run})
        return 0
    done = "would bring" if namespace.dry_run else "brought"
    print(
        f"{done} {report.episodes} episodes in {report.segments} segments ({report.bytes / 1e6:.1f} MB, "
        f"{report.linked} by hard link), {len(report.tasks)} new tasks; {report.duplicates} duplicates left out"
    )
    return 0


# --- care ----------------------------------------------------------------------------------------------------------


def _repair_verb(program: CommandLine) -> None:
    parser = program.verb(
        "repair",
        _repair,
        help="make indexes again from the data, set damaged records aside with reasons; exit code 1 if any are lost",
        example="python -m episode_store repair --store runs/demo/store --dry-run",
    )
    command_line.add_store(parser)
    _add_dry_run(parser)


def _repair(namespace: argparse.Namespace) -> int:
    report = repair(namespace.store, dry_run=namespace.dry_run, progress=not namespace.json)
    if namespace.json:
        command_line.print_json({**report.to_json(), "dry_run": namespace.dry_run})
        return 1 if report.lost else 0
    for sentence in report.repaired:
        print(f"{'would repair' if namespace.dry_run else 'repaired'}: {sentence}")
    for sentence in report.lost:
        print(f"LOST {sentence}")
    where = f"; kept in {Path(namespace.store) / layout.QUARANTINE_FOLDER}" if report.moved else ""
    print(f"{len(report.repaired)} repairs, {len(report.lost)} losses, {len(report.moved)} things set aside{where}")
    return 1 if report.lost else 0


def _compact_verb(program: CommandLine) -> None:
    parser = program.verb(
        "compact",
        _compact,
        help="free what the newest version does not show, remove older versions and views, join small segments",
        example="python -m episode_store compact --store runs/demo/store --dry-run",
    )
    command_line.add_store(parser)
    _add_dry_run(parser)


def _compact(namespace: argparse.Namespace) -> int:
    report = compact(namespace.store, dry_run=namespace.dry_run, progress=not namespace.json)
    if namespace.json:
        command_line.print_json({**report.to_json(), "dry_run": namespace.dry_run})
        return 0
    verb = "would free" if namespace.dry_run else "freed"
    print(
        f"{verb} {report.freed_bytes / 1e6:.1f} MB: {report.removed} records out, {report.dropped} segments dropped, "
        f"{report.rewritten} written again; {report.episodes} episodes stay"
    )
    if report.gone:
        print(f"versions that {'would go' if namespace.dry_run else 'went'}: {', '.join(report.gone)}")
    if report.waiting:
        print(f"{len(report.waiting)} segments are still being written: run it again when their writers are done")
    return 0
