"""The verbs that cross the border to foreign formats: `import`, `export`, `doctor`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from episode_store import command_line
from episode_store.command_line import CommandLine
from episode_store.errors import CorruptionError, UserError
from episode_store.formats import format as formats
from episode_store.formats import transfer
from episode_store.formats.format import Finding, Loss
from episode_store.store import EpisodeStore


def add_verbs(program: CommandLine) -> None:
    """Adds `import`, `export` and `doctor`."""
    _import_verb(program)
    _export_verb(program)
    _doctor_verb(program)


def _import_verb(program: CommandLine) -> None:
    parser = program.verb(
        "import",
        _import,
        help="add the episodes of a foreign set to a store, and say what the set lacked; run again after a kill to "
        f"go on. Formats: {_names('reads')}",
        example="python -m episode_store import --from rlds --source data/bridge/1.0.0 --store runs/robots/store",
    )
    parser.add_argument("--from", dest="format", metavar="FORMAT", help="the set's format (default: found out)")
    parser.add_argument("--source", required=True, metavar="PATH", help="folder or file of the set")
    command_line.add_store(parser)
    command_line.add_tasks(parser)
    parser.add_argument("--task-id", metavar="NAME", help="task id for a set that holds one task (default: its name)")
    _add_options(parser, "import_options")


def _export_verb(program: CommandLine) -> None:
    parser = program.verb(
        "export",
        _export,
        help=f"write tasks of a store in a foreign format, and say what it cannot hold. Formats: {_names('writes')}",
        example="python -m episode_store export --to rlds --store runs/demo/store --tasks CartPole-v1 --output data",
    )
    parser.add_argument("--to", dest="format", required=True, metavar="FORMAT", help="the format to write")
    command_line.add_store(parser)
    command_line.add_tasks(parser)
    command_line.add_output(parser, "folder in which the set is made; it must not hold one of that name yet")
    _add_options(parser, "export_options")


def _doctor_verb(program: CommandLine) -> None:
    parser = program.verb(
        "doctor",
        _doctor,
        help="check a set before anyone relies on it and say in plain words what is wrong; exit code 1 for errors. "
        f"Formats: {_names('reads')}, or a store of ours",
        example="python -m episode_store doctor --source data/bridge/1.0.0",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--source", metavar="PATH", help="folder or file of a foreign set")
    what.add_argument("--store", metavar="DIR", help="folder of an episode store")
    parser.add_argument("--format", metavar="FORMAT", help="the set's format (default: found out)")


def _names(attribute: str) -> str:
    return ", ".join(name for name, entry in formats.FORMATS.items() if getattr(entry, attribute))


def _add_options(parser: argparse.ArgumentParser, attribute: str) -> None:
    known = "; ".join(
        f"{name}: {', '.join(f'{option} = {text}' for option, text in getattr(entry, attribute).items())}"
        for name, entry in formats.FORMATS.items()
        if getattr(entry, attribute)
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"a setting of the format; may be given several times. {known}".replace("%", "%%"),
    )


def _options(items: Sequence[str]) -> dict[str, str]:
    options = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"--option {item!r}: expected NAME=VALUE")
        options[name] = value
    return options


def _import(namespace: argparse.Namespace) -> int:
    source = formats.existing_source(namespace.source)
    name = namespace.format or formats.detect_format(source)
    if name is None:
        raise UserError(f"source {source}: no known format; say which with --from ({_names('reads')})")
    importer = formats.open_importer(name, source, task_id=namespace.task_id, options=_options(namespace.option))
    bar = transfer.no_bar if namespace.json else _episode_bar("import")
    report = transfer.import_set(importer, source, namespace.store, tasks=namespace.tasks, progress=bar)
    if namespace.json:
        command_line.print_json(report.to_json())
    else:
        _print_losses(report.losses, "the set lacked")
        _print_findings(report.findings)
        print(
            f"{report.num_added} episodes added, {report.num_known} there already, {report.num_refused} refused: "
            f"{len(report.tasks)} tasks from {report.source} ({report.format}) to {report.store}"
        )
    return 0 if report.ok else 1


def _export(namespace: argparse.Namespace) -> int:
    store = EpisodeStore.open(namespace.store)
    options = _options(namespace.option)
    results = []
    damages = []
    for task_id in store.find_tasks(namespace.tasks):
        try:
            result = formats.export_task(
                namespace.format, store, task_id, namespace.output, options=options, progress=_bar(namespace, task_id)
            )
        except CorruptionError as error:
            remedy = f"nothing of {task_id} was written; run verify"
            damages.append(Finding(severity="error", where=task_id, what=str(error), remedy=remedy))
            continue
        results.append(result.to_json())
        if not namespace.json:
            _print_losses(result.losses, f"{task_id}: the format cannot hold")
            print(
                f"{result.num_episodes} episodes, {result.num_steps} steps, {result.num_bytes / 1e6:.1f} MB of "
                f"{task_id} in {result.destination}"
            )
    if namespace.json:
        command_line.print_json({"exports": results, "findings": [damage.to_json() for damage in damages]})
    else:
        _print_findings(damages)
    return 1 if damages else 0


def _episode_bar(description: str) -> transfer.Bar:
    return lambda items, total: command_line.progress(items, description=description, total=total, unit="ep")


def _bar(namespace: argparse.Namespace, task_id: str) -> Callable[[Sequence[str]], Iterable[str]]:
    def bar(ids: Sequence[str]) -> Iterable[str]:
        return ids if namespace.json else command_line.progress(ids, description=task_id, total=len(ids), unit="ep")

    return bar


def _doctor(namespace: argparse.Namespace) -> int:
    name = "store" if namespace.store else namespace.format
    progress = transfer.no_bar if namespace.json else _episode_bar("doctor")
    name, findings = transfer.examine(namespace.store or namespace.source, name, progress=progress)
    counts = {severity: sum(finding.severity == severity for finding in findings) for severity in _SEVERITIES}
    if namespace.json:
        result: dict[str, Any] = {"format": name, "findings": [finding.to_json() for finding in findings], **counts}
        command_line.print_json(result)
    else:
        _print_findings(findings)
        print(f"{name}: " + ", ".join(f"{count} {severity}s" for severity, count in counts.items()))
    return 1 if counts["error"] else 0


_SEVERITIES = ("error", "warning", "note")


def _print_losses(losses: Sequence[Loss], heading: str) -> None:
    sys.stderr.flush()
    for loss in losses:
        print(f"{heading}: {loss.describe()}")


def _print_findings(findings: Sequence[Finding]) -> None:
    for severity in _SEVERITIES:
        for finding in findings:
            if finding.severity == severity:
                print(finding.describe())
