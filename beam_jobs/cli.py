"""`python -m beam_jobs`: from an episode store to shards."""

from __future__ import annotations

import argparse
import difflib
import fnmatch
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from beam_jobs.content_filter import PersonalData
from beam_jobs.files import output_path, read_json
from beam_jobs.return_filter import FilterRule
from episode_store.command_line import (
    CommandLine,
    add_holdout,
    add_output,
    add_seed,
    add_store,
    add_tasks,
    positive_int,
    print_json,
    print_table,
    progress,
    share,
)
from episode_store.errors import UserError

_BAR_BLOCKS = " ▁▂▃▄▅▆▇█"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code."""
    command = CommandLine("beam_jobs", "Filters the episodes of a store by return, tokenizes them and writes shards.")
    _add_build_shards(command)
    report = command.verb(
        "filter-report",
        _filter_report,
        help="shows what the return filter kept of each task",
        example="python -m beam_jobs filter-report --shards runs/demo/shards",
    )
    report.add_argument("--shards", required=True, metavar="DIR", help="folder of finished shards")
    add_tasks(report)
    pool = command.verb(
        "worker-pool",
        _worker_pool,
        help="starts Python workers on a host of a cluster when the cluster asks for them (EXTERNAL environment)",
        example="python -m beam_jobs worker-pool --port 50000",
    )
    pool.add_argument("--port", type=positive_int, required=True, metavar="N", help="where the cluster asks")
    pool.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="interface to listen on (127.0.0.1)")
    return command.main(arguments)


def _add_build_shards(command: CommandLine) -> None:
    build = command.verb(
        "build-shards",
        _build_shards,
        help="filters, tokenizes and shards episodes with Beam; run again it finishes only what is missing. "
        "Flags that are not listed go to Beam unchanged, for example --runner=FlinkRunner --flink_master=HOST:PORT",
        example="python -m beam_jobs build-shards --store runs/demo/store --scores runs/demo/baselines.json \\\n"
        "    --text-model runs/demo/text.model --output runs/demo/shards --workers 2",
    )
    add_store(build)
    add_output(build, "folder of the shards")
    add_tasks(build)
    add_seed(build)
    build.add_argument("--text-model", metavar="FILE", help="SentencePiece model; needed when a task has text")
    build.add_argument(
        "--filter",
        choices=[str(rule) for rule in FilterRule],
        default=str(FilterRule.NORMALIZED),
        help="episodes kept of control tasks: R >= random + 0.8 (expert - random); the paper's R >= 0.8 expert; all",
    )
    build.add_argument("--scores", metavar="FILE", help="random returns, as `collectors score` writes them")
    add_holdout(build)
    build.add_argument(
        "--personal-data",
        choices=[str(handling) for handling in PersonalData],
        default=str(PersonalData.MASK),
        help="mail addresses and telephone numbers in corpora (mask)",
    )
    build.add_argument("--workers", type=positive_int, default=1, metavar="N", help="processes of the local runner (1)")
    build.add_argument(
        "--max-shard-bytes", type=positive_int, default=32 * 2**20, metavar="N", help="largest file (32 MiB)"
    )
    build.add_argument(
        "--max-rejected", type=share, default=0.05, metavar="SHARE", help="share of broken episodes endured (0.05)"
    )
    build.add_argument("--timeout", type=positive_int, metavar="SECONDS", help="give the job up after this time")
    _keep_unknown_flags(build)


def _build_shards(arguments: argparse.Namespace) -> int:
    # Beam is slow to import and says things on the way: only when it is needed.
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    from beam_jobs.build_shards import build_shards
    from beam_jobs.plan import BuildConfig, read_random_returns
    from episode_store.store import EpisodeStore

    store = EpisodeStore.open(arguments.store)
    config = BuildConfig(
        store=store.path.resolve() if isinstance(store.path, Path) else store.path,
        output=output_path(arguments.output),
        text_model=Path(arguments.text_model).resolve() if arguments.text_model else None,
        task_ids=tuple(sorted(store.find_tasks(arguments.tasks))),
        seed=arguments.seed,
        rule=FilterRule(arguments.filter),
        random_returns=read_random_returns(Path(arguments.scores)) if arguments.scores else {},
        holdout=arguments.holdout,
        personal_data=PersonalData(arguments.personal_data),
        max_shard_bytes=arguments.max_shard_bytes,
        max_rejected_share=arguments.max_rejected,
    )
    start = time.monotonic()
    bars: list[Any] = []

    def show(done: int, total: int) -> None:
        if not bars:
            bars.append(progress(description="building shards", total=total, unit="shards"))
        bars[0].update(done - bars[0].n)

    try:
        manifest, built = build_shards(
            config,
            workers=arguments.workers,
            beam_flags=arguments.beam_flags,
            timeout_seconds=arguments.timeout,
            on_progress=show,
        )
    finally:
        for bar in bars:
            bar.close()
    seconds = time.monotonic() - start
    if arguments.json:
        print_json({"built": built, "seconds": round(seconds, 2), **manifest})
        return 0
    if not built:
        print(f"{config.output}: finished before with the same input and settings; nothing to do")
    _print_summary(manifest)
    if built:
        print(f"shards in {config.output}, {seconds:.1f} s")
    return 0


def _print_summary(manifest: Mapping[str, Any]) -> None:
    shards = manifest["shards"]
    rows = []
    for task_id, task in manifest["tasks"].items():
        files = [shard for shard in shards if shard["task_id"] == task_id]
        rows.append(
            (
                task_id,
                task["episodes_in"],
                task["episodes_kept"],
                task["episodes_rejected"],
                task["num_timesteps"],
                task["num_tokens"],
                task["num_targets"],
                len(files),
                sum(shard["bytes"] for shard in files) / 1e6,
            )
        )
    print_table(rows, ("task", "episodes", "kept", "rejected", "steps", "tokens", "targets", "shards", "MB"))
    reasons: dict[str, int] = {}
    for entry in manifest["rejected"]:
        reasons[entry["reason"]] = reasons.get(entry["reason"], 0) + 1
    for reason, count in sorted(reasons.items(), key=lambda item: -item[1])[:5]:
        print(f"rejected {count}: {reason}")
    for task_id, task in manifest["tasks"].items():
        if task["changes"]:
            changes = ", ".join(f"{count} x {name}" for name, count in task["changes"].items())
            print(f"masked in {task_id}: {changes}")


def _filter_report(arguments: argparse.Namespace) -> int:
    from beam_jobs.commit import DATASET_FILE

    manifest = read_json(output_path(arguments.shards) / DATASET_FILE)
    if manifest is None or "filter_report" not in manifest:
        raise UserError(
            f"--shards {arguments.shards}: expected a folder of finished shards with {DATASET_FILE}, got none; "
            f"run `beam_jobs build-shards --output {arguments.shards}` to its end"
        )
    reports = manifest["filter_report"]
    if arguments.tasks:
        reports = _matching(reports, arguments.tasks)
    if arguments.json:
        print_json(reports)
        return 0
    rows = [
        (
            report["task_id"],
            report["rule"],
            report["num_episodes"],
            report["num_duplicates"],
            report["num_kept"],
            _number(report["random_return"]),
            _number(report["expert_return"]),
            _number(report["threshold"]),
            _number(report["min_return"]),
            _number(report["max_return"]),
            _sparkline(report["histogram_dropped"], report["histogram_kept"]),
        )
        for report in reports
    ]
    header = ("task", "rule", "episodes", "copies", "kept", "random", "expert", "threshold", "min", "max")
    print_table(rows, (*header, "returns, min to max"))
    return 0


def _worker_pool(arguments: argparse.Namespace) -> int:
    from beam_jobs.worker_pool import serve

    print(f"worker pool at {arguments.host}:{arguments.port}", file=sys.stderr)
    serve(arguments.host, arguments.port)
    return 0


def _matching(reports: Sequence[Mapping[str, Any]], patterns: Sequence[str]) -> list[Mapping[str, Any]]:
    known = [report["task_id"] for report in reports]
    for pattern in patterns:
        if not fnmatch.filter(known, pattern):
            near = difflib.get_close_matches(pattern, known, n=3) or known[:8]
            raise UserError(f"--tasks {pattern}: no such task in the shards; did you mean {' or '.join(near)}?")
    return [report for report in reports if any(fnmatch.fnmatchcase(report["task_id"], each) for each in patterns)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"


def _sparkline(dropped: Sequence[int], kept: Sequence[int]) -> str:
    """A bar for each bin of the histogram, on a square-root scale so that small ones show."""
    totals = [a + b for a, b in zip(dropped, kept, strict=True)]
    top = max(totals, default=0)
    steps = len(_BAR_BLOCKS) - 1
    return "".join(_BAR_BLOCKS[-int(-((total / top) ** 0.5) * steps // 1)] for total in totals) if top else ""


def _keep_unknown_flags(parser: argparse.ArgumentParser) -> None:
    """Collects flags that the verb does not have in `beam_flags` instead of refusing them."""
    parse = parser.parse_known_args

    def parse_and_keep(args: Any = None, namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:
        result, unknown = parse(args, namespace)
        result.beam_flags = unknown
        return result, []

    parser.parse_known_args = parse_and_keep  # type: ignore[method-assign, assignment]
