"""The end of a job: check that nothing is lost or doubled, remove what the manifest does not name, write it last.

Episodes that could not be imported, read or tokenized are in the dead-letter table, one JSON object a line:
{"task_id", "episode_id", "stage": "import" or "build", "reason"}.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from beam_jobs.files import AnyPath, read_json, sync_folder, write_bytes, write_json
from beam_jobs.inspection import verdict_folder
from beam_jobs.plan import TaskPlan, column_hash, fingerprint
from beam_jobs.shard_builder import RECORDS_FOLDER, TEXT_MODEL_FILE, ShardBuilder, code_fingerprint
from beam_jobs.wids_index import WIDS_FILE, wids_index
from episode_store.errors import UserError
from episode_store.files import TEMPORARY_SUFFIX
from tokenization.shard_format import FORMAT
from tokenization.vocabulary import ID_RANGES, VOCABULARY_SIZE

DATASET_FILE = "dataset.json"
FILTER_REPORT_FILE = "filter_report.json"
DEAD_LETTERS_FILE = "dead_letters.jsonl"
JOB_FILE = "job"

_COUNTS = ("num_episodes", "num_timesteps", "num_tokens", "num_targets")


def dataset_fingerprint(builder: ShardBuilder, plans: Sequence[TaskPlan]) -> str:
    """Of everything that goes into the folder; equal fingerprints mean equal bytes."""
    return fingerprint(
        [builder.fingerprint(shard) for plan in plans for shard in plan.shards],
        [[plan.report.to_json(), plan.content] for plan in plans],
        builder.config.settings(),
        builder.config.max_dead_share,
        _sources(builder, plans),
    )


def dead_letters(builder: ShardBuilder, records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, str]]:
    """What no shard has because it is broken, in the order of tasks and episodes."""
    imported = [letter for source in builder.config.sources for letter in source.dead]
    built = [letter for record in records for letter in record["rejected"]]
    return sorted(imported + built, key=lambda letter: (letter["task_id"], letter["stage"], letter["episode_id"]))


def manifest(builder: ShardBuilder, plans: Sequence[TaskPlan], records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The content of dataset.json: no times, no paths, so equal input gives equal bytes.

    Raises:
      UserError: more episodes were rejected than the job allows, a task lost all of its episodes, or a shard is
        missing or of another plan.
      RuntimeError: written and rejected episodes do not add up to the planned ones, which is a defect.
    """
    config = builder.config
    record_of = {record["name"]: record for record in records}
    shards: list[dict[str, Any]] = []
    tasks: dict[str, dict[str, Any]] = {}
    for plan in plans:
        task_records = []
        for shard in plan.shards:
            record = record_of.get(shard.name)
            if record is None or record["fingerprint"] != builder.fingerprint(shard):
                raise UserError(
                    f"shard {shard.name}: "
                    + ("not built" if record is None else "built by a worker with other code or settings")
                    + "; run the same command again"
                )
            task_records.append(record)
        task_shards = [file for record in task_records for file in record["files"]]
        task_rejected = [entry for record in task_records for entry in record["rejected"]]
        totals = {name: sum(file[name] for file in task_shards) for name in _COUNTS}
        if plan.num_episodes != totals["num_episodes"] + len(task_rejected):
            raise RuntimeError(
                f"task {plan.task_id}: {plan.num_episodes} episodes planned, {totals['num_episodes']} written, "
                f"{len(task_rejected)} rejected"
            )
        if not totals["num_episodes"]:
            raise UserError(
                f"task {plan.task_id}: all {len(task_rejected)} episodes were rejected, the first because "
                f"{task_rejected[0]['reason']}"
            )
        report = plan.report
        tasks[plan.task_id] = {
            "spec": builder.stores.tasks[plan.task_id].to_json(),
            "layout": builder.tokenizer(plan.task_id).layout.to_json(),
            "source": builder.stores.source(plan.task_id).name,
            "weight": builder.stores.weight(plan.task_id),
            "expert_return": report.expert_return,
            "random_return": report.random_return,
            "threshold": report.threshold,
            "episodes_in": report.num_episodes,
            "episodes_duplicate": report.num_duplicates,
            "episodes_rejected": report.num_rejected,
            "episodes_below_threshold": (
                report.num_episodes - report.num_duplicates - report.num_rejected - report.num_kept
            ),
            "episodes_dead": len(task_rejected),
            "episodes_kept": totals.pop("num_episodes"),
            **totals,
            "tokens_per_step": task_records[0]["tokens_per_step"],
            "statistics": plan.statistics,
            "content": plan.content,
            "changes": dict(sorted(sum((Counter(record["changes"]) for record in task_records), Counter()).items())),
        }
        shards += task_shards
    dead = dead_letters(builder, record_of.values())
    _check_dead(dead, sum(plan.num_episodes for plan in plans), config.max_dead_share)
    return {
        "format": FORMAT,
        "vocabulary_size": VOCABULARY_SIZE,
        "vocabulary": {name: list(ids) for name, ids in ID_RANGES.items()},
        "text_model_sha256": builder.text_model_sha256,
        "seed": config.seed,
        "settings": config.settings(),
        "code": code_fingerprint(),
        "fingerprint": dataset_fingerprint(builder, plans),
        "sources": _sources(builder, plans),
        "shards": shards,
        "tasks": tasks,
        "filter_report": [plan.report.to_json() for plan in plans],
        "licences": [
            {
                "task_id": plan.task_id,
                "licence": builder.stores.tasks[plan.task_id].licence,
                "attributions": list(plan.attributions),
            }
            for plan in plans
        ],
        "dead_letters": {
            "file": DEAD_LETTERS_FILE,
            "count": len(dead),
            "sha256": hashlib.sha256(_lines(dead)).hexdigest(),
            "reasons": dict(sorted(Counter(_kind(letter) for letter in dead).items())),
        },
    }


def _sources(builder: ShardBuilder, plans: Sequence[TaskPlan]) -> list[dict[str, Any]]:
    """What went in, without paths."""
    stores = builder.stores
    result = []
    for source in builder.config.sources:
        task_ids = [plan.task_id for plan in plans if stores.source(plan.task_id).name == source.name]
        result.append(
            {
                "name": source.name,
                "kind": source.kind,
                "weight": source.weight,
                "split": source.split,
                "licence": source.licence,
                "tasks": task_ids,
                "episodes": column_hash(column_hash(stores.episode_ids(task_id)) for task_id in task_ids),
                "imported": dict(source.imported),
            }
        )
    return result


def _kind(letter: Mapping[str, str]) -> str:
    """What a reason begins with: the kind of error, without the place."""
    return f"{letter['stage']}: {letter['reason'].partition(':')[0][:60]}"


def _lines(letters: Iterable[Mapping[str, str]]) -> bytes:
    return "".join(json.dumps(dict(letter), sort_keys=True) + "\n" for letter in letters).encode()


def commit(builder: ShardBuilder, plans: Sequence[TaskPlan], records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Writes the indices, removes files that the manifest does not name, then writes it. Raises as `manifest` does."""
    output = builder.config.output
    records = list(records)
    data = manifest(builder, plans, records)
    write_json(output / FILTER_REPORT_FILE, data["filter_report"])
    write_bytes(output / DEAD_LETTERS_FILE, _lines(dead_letters(builder, records)))
    indices = set()
    for split in sorted({shard["split"] for shard in data["shards"]}):
        indices.add(WIDS_FILE.format(split=split))
        write_json(output / WIDS_FILE.format(split=split), wids_index(data["shards"], split))
    # Before the manifest: a job that is killed in between finishes this when it is run again.
    for path in _leftovers(output, {shard["file"] for shard in data["shards"]} | indices, plans):
        path.unlink(missing_ok=True)
    write_json(output / DATASET_FILE, data)
    sync_folder(output)
    return data


def _leftovers(output: AnyPath, named: set[str], plans: Sequence[TaskPlan]) -> list[AnyPath]:
    """Shards, indices and records of other plans, and what killed processes had begun to write."""
    records, found = output / RECORDS_FOLDER, list[AnyPath]()
    for path in output.iterdir():
        is_ours = path.suffix in (".tar", TEMPORARY_SUFFIX) or path.match(WIDS_FILE.format(split="*"))
        if is_ours and path.name not in named:
            found.append(path)
    planned = {f"{shard.name}.json" for plan in plans for shard in plan.shards}
    for path in records.iterdir():
        if path.suffix in (".json", TEMPORARY_SUFFIX) and path.name not in planned:
            found.append(path)
    verdicts = verdict_folder(records)
    if verdicts.is_dir():
        for path in verdicts.iterdir():
            if path.suffix == TEMPORARY_SUFFIX:
                found.append(path)
    return found


def take_over(output: AnyPath) -> str:
    """Makes a new job the owner of the folder; returns its name.

    A cluster goes on with a job whose driver was killed. When another driver comes, maybe with other settings, the old
    job must not write any more.
    """
    job = secrets.token_hex(8)
    write_bytes(output / RECORDS_FOLDER / JOB_FILE, job.encode())
    return job


def is_owner(output: AnyPath, job: str) -> bool:
    """Whether no later job has taken the folder over."""
    try:
        return (output / RECORDS_FOLDER / JOB_FILE).read_bytes() == job.encode()
    except FileNotFoundError:
        return False


def finished(output: AnyPath, expected_fingerprint: str | None) -> dict[str, Any] | None:
    """The manifest of a finished folder with this fingerprint whose files all have their sizes; else None."""
    data = read_json(output / DATASET_FILE)
    if data is None or expected_fingerprint is None or data.get("fingerprint") != expected_fingerprint:
        return None
    files = [(shard["file"], shard["bytes"]) for shard in data["shards"]]
    files.append((DEAD_LETTERS_FILE, None))
    if data["text_model_sha256"]:
        files.append((TEXT_MODEL_FILE, None))
    for name, size in files:
        path = output / name
        if not path.is_file() or size not in (None, path.stat().st_size):
            return None
    return data


def _check_dead(dead: Sequence[Mapping[str, str]], num_planned: int, max_share: float) -> None:
    num_all = num_planned + sum(letter["stage"] == "import" for letter in dead)
    if len(dead) > max_share * num_all:
        first = dead[0]
        raise UserError(
            f"{len(dead)} of {num_all} episodes could not be imported, read or tokenized, more than the allowed share "
            f"of {max_share:g} (--max-dead-share); the first, {first['episode_id']} of {first['task_id']}: "
            f"{first['reason']}"
        )
