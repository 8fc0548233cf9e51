"""`python -m beam_jobs`: from an episode store to shards."""

from __future__ import annotations

import argparse
import difflib
import fnmatch
import logging
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from beam_jobs.files import output_path, read_json
from beam_jobs.personal_data import PersonalData
from beam_jobs.return_filter import FilterRule, ReturnFilter
from episode_store.command_line import (
    CommandLine,
    add_holdout,
    add_output,
    add_seed,
    add_tasks,
    positive_int,
    print_json,
    print_table,
    progress,
    share,
)
from episode_store.episode import Episode
from episode_store.errors import UserError
from episode_store.storage import StorePath, locate


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code."""
    command = CommandLine("beam_jobs", "Filters the episodes of a store by return, tokenizes them and writes shards.")
    _add_build_shards(command)
    report = command.verb(
        "filter-report",
        _filter_report,
        help="shows what the return filter and the content filter kept of each task, as a table, JSON or a page",
        example="python -m beam_jobs filter-report --shards runs/demo/shards --html runs/demo/filters.html",
    )
    report.add_argument("--shards", required=True, metavar="DIR", help="folder of finished shards")
    add_tasks(report)
    report.add_argument("--html", metavar="FILE", help="write a page that needs nothing else")
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
    source = build.add_mutually_exclusive_group(required=True)
    source.add_argument("--store", metavar="DIR", help="folder of the episode store")
    source.add_argument("--mixture", metavar="FILE", help="TOML file of several sources (docs/sources.md)")
    add_output(build, "folder of the shards")
    add_tasks(build)
    add_seed(build)
    build.add_argument("--text-model", metavar="FILE", help="SentencePiece model; needed when a task has text")
    build.add_argument(
        "--filter",
        type=_return_filter,
        default=ReturnFilter(rule=FilterRule.NORMALIZED),
        metavar="RULE",
        help="episodes kept of control tasks. normalized (the default): R >= random + 0.8 (expert - random); paper: "
        "R >= 0.8 expert; quantile:Q: R >= that quantile; top:K: the K best; none: all",
    )
    build.add_argument(
        "--filter-for",
        type=_filter_for,
        action="append",
        default=[],
        metavar="TASK=RULE",
        help="another rule for a task or pattern, such as 'babyai/*=top:500'; may be given several times, the first "
        "match decides",
    )
    build.add_argument("--scores", metavar="FILE", help="random returns, as `collectors score` writes them")
    add_holdout(build)
    _add_content(build)
    build.add_argument("--workers", type=positive_int, default=1, metavar="N", help="processes of the local runner (1)")
    build.add_argument(
        "--max-shard-bytes", type=positive_int, default=32 * 2**20, metavar="N", help="largest file (32 MiB)"
    )
    build.add_argument(
        "--max-dead-share",
        type=share,
        default=0.05,
        metavar="SHARE",
        help="share of broken episodes endured (0.05); they are listed in dead_letters.jsonl",
    )
    build.add_argument("--timeout", type=positive_int, metavar="SECONDS", help="give the job up after this time")
    _keep_unknown_flags(build)


def _add_content(build: argparse.ArgumentParser) -> None:
    """What texts, captions and dialogues have to pass."""
    build.add_argument(
        "--personal-data",
        choices=[str(handling) for handling in PersonalData],
        default=str(PersonalData.MASK),
        help="mail addresses and telephone numbers in corpora (mask)",
    )
    build.add_argument(
        "--word-lists",
        nargs="+",
        default=[],
        metavar="LIST",
        help="leave out texts with a word of these lists: ldnoobw, cuss (fetched with npm at the first use), or files "
        "with one word a line",
    )
    build.add_argument(
        "--languages",
        nargs="+",
        default=[],
        metavar="CODE",
        help="leave out texts of 200 characters or more in another language, such as en fr (needs the extra content)",
    )
    build.add_argument(
        "--classifier",
        action="append",
        default=[],
        metavar="MODULE:FUNCTION",
        help="leave out episodes for which this function gives a reason; may be given several times. For images: "
        "beam_jobs.unsafe_images:unsafe_image (needs the extra content-images)",
    )
    build.add_argument(
        "--similarity",
        type=_similarity,
        default=0.8,
        metavar="SHARE",
        help="texts at least so alike are copies (0.8); 1 leaves out equal ones only",
    )
    build.add_argument(
        "--samples",
        choices=["masked", "full", "none"],
        default="masked",
        help="what the report shows of texts that were left out (masked)",
    )


def _return_filter(text: str) -> ReturnFilter:
    try:
        return ReturnFilter.parse(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _filter_for(text: str) -> tuple[str, ReturnFilter]:
    pattern, equals, rule = text.rpartition("=")
    if not equals or not pattern:
        raise argparse.ArgumentTypeError(f"expected TASK=RULE, got {text!r}")
    return pattern, _return_filter(rule)


def _similarity(text: str) -> float:
    return 1.0 if text in ("1", "1.0") else share(text)


def _build_shards(arguments: argparse.Namespace) -> int:
    # Beam is slow to import and says things on the way: only when it is needed.
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    from beam_jobs import mixture
    from beam_jobs.build_shards import build_shards
    from beam_jobs.content_filter import ContentSettings, Samples
    from beam_jobs.plan import BuildConfig, read_random_returns
    from beam_jobs.stores import Source, Stores
    from beam_jobs.word_lists import KNOWN

    sources: tuple[Source, ...]
    if arguments.mixture:
        sources = mixture.prepare(mixture.read(Path(arguments.mixture)), progress=_import_bar)
    else:
        sources = (Source(name="store", store=_store_place(arguments.store)),)
    stores = Stores.open(sources)
    task_ids = tuple(stores.find_tasks(arguments.tasks))
    for pattern, _ in arguments.filter_for:
        stores.find_tasks([pattern])
    lists = [name if name in KNOWN else str(Path(name).resolve()) for name in arguments.word_lists]
    config = BuildConfig(
        sources=sources,
        output=output_path(arguments.output),
        text_model=Path(arguments.text_model).resolve() if arguments.text_model else None,
        task_ids=task_ids,
        seed=arguments.seed,
        return_filter=arguments.filter,
        filters=tuple(arguments.filter_for),
        random_returns=read_random_returns(Path(arguments.scores)) if arguments.scores else {},
        holdout=arguments.holdout,
        content=ContentSettings(
            personal_data=PersonalData(arguments.personal_data),
            word_lists=tuple(lists),
            languages=tuple(sorted(arguments.languages)),
            classifiers=tuple(arguments.classifier),
            similarity=arguments.similarity,
            samples=Samples(arguments.samples),
        ),
        max_shard_bytes=arguments.max_shard_bytes,
        max_dead_share=arguments.max_dead_share,
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


def _store_place(text: str) -> StorePath:
    place = locate(text)
    return place.resolve() if isinstance(place, Path) else place


def _import_bar(name: str, items: Iterable[Episode], total: int | None) -> Iterable[Episode]:
    return progress(items, description=f"importing {name}", total=total, unit="episodes")


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
                task["episodes_dead"],
                task["num_timesteps"],
                task["num_tokens"],
                task["num_targets"],
                len(files),
                sum(shard["bytes"] for shard in files) / 1e6,
            )
        )
    print_table(rows, ("task", "episodes", "kept", "dead", "steps", "tokens", "targets", "shards", "MB"))
    for task_id, task in manifest["tasks"].items():
        for what, count in task["content"].get("rejected", {}).items():
            print(f"left out of {task_id}: {count} x {what}")
        if task["changes"]:
            changes = ", ".join(f"{count} x {name}" for name, count in task["changes"].items())
            print(f"masked in {task_id}: {changes}")
    for reason, count in sorted(manifest["dead_letters"]["reasons"].items(), key=lambda item: -item[1])[:5]:
        print(f"dead {count} x {reason}; see {manifest['dead_letters']['file']}")


def _filter_report(arguments: argparse.Namespace) -> int:
    from beam_jobs import filter_report
    from beam_jobs.commit import DATASET_FILE
    from episode_store.files import write_bytes

    manifest = read_json(output_path(arguments.shards) / DATASET_FILE)
    if manifest is None or "filter_report" not in manifest:
        raise UserError(
            f"--shards {arguments.shards}: expected a folder of finished shards with {DATASET_FILE}, got none; "
            f"run `beam_jobs build-shards --output {arguments.shards}` to its end"
        )
    reports = manifest["filter_report"]
    if arguments.tasks:
        reports = _matching(reports, arguments.tasks)
    reports = [{**report, "content": manifest["tasks"][report["task_id"]]["content"]} for report in reports]
    if arguments.html:
        write_bytes(Path(arguments.html), filter_report.page(reports).encode())
    if arguments.json:
        print_json(reports)
        return 0
    print_table(filter_report.rows(reports), filter_report.HEADER)
    for line in filter_report.notes(reports):
        print(line)
    if arguments.html:
        print(f"page: {arguments.html}")
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


def _keep_unknown_flags(parser: argparse.ArgumentParser) -> None:
    """Collects flags that the verb does not have in `beam_flags` instead of refusing them."""
    parse = parser.parse_known_args

    def parse_and_keep(args: Any = None, namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:
        result, unknown = parse(args, namespace)
        result.beam_flags = unknown
        return result, []

    parser.parse_known_args = parse_and_keep  # type: ignore[method-assign, assignment]
