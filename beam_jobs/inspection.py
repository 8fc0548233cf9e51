"""What the content filter and the search for copies find in the corpora of a job, kept in one file a task.

A worker looks at one block of episodes after the other; what it finds is put into buckets, a bucket tells what it knows
of each task, and the parts of a task make its `Verdict`. From then on the plan of the job is again a pure function of
files: `plan_task` reads the verdict. No Beam here; `build_locally` calls the same functions.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from beam_jobs.content_filter import ContentFilter, ContentSettings
from beam_jobs.duplicates import Entry, buckets, copies
from beam_jobs.files import AnyPath, read_json, write_json
from beam_jobs.stores import Stores
from episode_store.errors import UserError
from episode_store.task import task_file_name

BLOCK_EPISODES = 1024
MAX_SAMPLES_PER_REASON = 5

# What a broken episode raises when it is read. Anything else is a defect and stops the job.
POISON = (UserError, ValueError, LookupError, ArithmeticError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is left out of one corpus.

    Attributes:
      fingerprint: of everything that decided it.
      copies: episode id -> id of the episode that says the same and stays.
      near_copies: episode id -> id of the one that says nearly the same.
      rejected: episode id -> reason.
      samples: bounded: {"episode_id", "reason", "excerpt"}.
    """

    fingerprint: str
    copies: Mapping[str, str]
    near_copies: Mapping[str, str]
    rejected: Mapping[str, str]
    samples: Sequence[Mapping[str, str]]

    @property
    def dropped(self) -> set[str]:
        """Ids of all episodes that are left out."""
        return {*self.copies, *self.near_copies, *self.rejected}

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return dataclasses.asdict(self)

    def summary(self) -> dict[str, Any]:
        """Counts and samples, for the manifest."""
        reasons = collections.Counter(self.rejected.values())
        return {
            "copies": len(self.copies),
            "near_copies": len(self.near_copies),
            "rejected": dict(sorted(reasons.items())),
            "samples": [dict(sample) for sample in self.samples],
        }


# A block of a task: (task id, first row, row after the last). An empty one stands for a task with nothing to look at.
Block = tuple[str, int, int]
# The bucket of what a worker found in the blocks of a task.
_TASK = "task:"


def blocks(stores: Stores, task_ids: Sequence[str]) -> list[Block]:
    """The work: blocks of each corpus, and an empty one of every task."""
    result: list[Block] = []
    for task_id in task_ids:
        result.append((task_id, 0, 0))
        if stores.tasks[task_id].is_corpus:
            num_rows = len(stores.episode_ids(task_id))
            starts = range(0, num_rows, BLOCK_EPISODES)
            result += [(task_id, start, min(start + BLOCK_EPISODES, num_rows)) for start in starts]
    return result


def inspect_block(
    stores: Stores, content: ContentFilter, block: Block, settings: ContentSettings
) -> Iterator[tuple[str, Entry | str]]:
    """(bucket, entry) of every episode that passes, and one report of those that do not.

    An episode that cannot be read passes: the shard that it belongs to says so.
    """
    task_id, start, end = block
    rejected: dict[str, str] = {}
    samples: dict[str, list[dict[str, str]]] = collections.defaultdict(list)
    store = stores.of(task_id)
    for row, episode_id in enumerate(stores.episode_ids(task_id).slice(start, end - start).to_pylist(), start):
        try:
            episode = store.read(episode_id)
        except POISON:
            continue
        rejection = content(episode)
        if rejection is None:
            near = settings.similarity < 1
            yield from buckets(episode, task_id=task_id, row=row, episode_id=episode_id, near=near)
            continue
        rejected[episode_id] = rejection.reason
        if rejection.excerpt and len(samples[rejection.reason]) < MAX_SAMPLES_PER_REASON:
            facts = {"episode_id": episode_id, "reason": rejection.reason, "excerpt": rejection.excerpt}
            samples[rejection.reason].append(facts)
    found = {"rejected": rejected, "samples": [sample for group in samples.values() for sample in group]}
    yield f"{_TASK}{task_id}", json.dumps(found) if end > start else ""


def judge_bucket(bucket: str, entries: Iterable[Entry | str], similarity: float) -> Iterator[tuple[str, str]]:
    """(task id, what its bucket knows as JSON)."""
    if bucket.startswith(_TASK):
        for report in entries:
            yield bucket.removeprefix(_TASK), str(report)
        return
    for (task_id, _, episode_id, signature), (_, _, original, _) in copies(entries, similarity):  # type: ignore[arg-type]
        yield task_id, json.dumps({"near_copies" if signature else "copies": {episode_id: original}})


def gather(parts: Iterable[str], fingerprint: str) -> Verdict | None:
    """The verdict of a task from all that its buckets know, in any order, perhaps repeated; None of empty blocks."""
    parts = [part for part in parts if part]
    if not parts:
        return None
    copied: dict[str, str] = {}
    near: dict[str, str] = {}
    rejected: dict[str, str] = {}
    samples: dict[str, Mapping[str, str]] = {}
    for part in parts:
        facts = json.loads(part)
        copied.update(facts.get("copies", {}))
        for episode_id, original in facts.get("near_copies", {}).items():
            near[episode_id] = min(original, near.get(episode_id, original))
        rejected.update(facts.get("rejected", {}))
        samples.update((sample["episode_id"], sample) for sample in facts.get("samples", ()))
    shown: dict[str, list[Mapping[str, str]]] = collections.defaultdict(list)
    for _, sample in sorted(samples.items()):  # ids are hashes: a fixed choice that nobody made
        if len(shown[sample["reason"]]) < MAX_SAMPLES_PER_REASON:
            shown[sample["reason"]].append(sample)
    return Verdict(
        fingerprint=fingerprint,
        copies=dict(sorted(copied.items())),
        near_copies=dict(sorted((key, value) for key, value in near.items() if key not in copied)),
        rejected=dict(sorted(rejected.items())),
        samples=[sample for _, of_reason in sorted(shown.items()) for sample in of_reason],
    )


def inspect_locally(
    stores: Stores, task_ids: Sequence[str], settings: ContentSettings, fingerprint: str
) -> dict[str, Verdict]:
    """Task id -> verdict of every corpus, without Beam."""
    content = ContentFilter(settings)
    by_bucket: dict[str, list[Entry | str]] = collections.defaultdict(list)
    by_task: dict[str, list[str]] = collections.defaultdict(list)
    for block in blocks(stores, [each for each in task_ids if stores.tasks[each].is_corpus]):
        for bucket, entry in inspect_block(stores, content, block, settings):
            by_bucket[bucket].append(entry)
    for bucket, entries in by_bucket.items():
        for task_id, part in judge_bucket(bucket, entries, settings.similarity):
            by_task[task_id].append(part)
    verdicts = {task_id: gather(parts, fingerprint) for task_id, parts in by_task.items()}
    return {task_id: verdict for task_id, verdict in verdicts.items() if verdict is not None}


def verdict_folder(records: AnyPath) -> AnyPath:
    """Where verdicts are kept; it may not exist."""
    return records / "content"


def verdict_file(records: AnyPath, task_id: str) -> AnyPath:
    """Where the verdict of a task is kept."""
    return verdict_folder(records) / f"{task_file_name(task_id)}.json"


def write_verdict(records: AnyPath, task_id: str, verdict: Verdict) -> None:
    """Keeps the verdict of a task."""
    verdict_folder(records).mkdir(parents=True, exist_ok=True)
    write_json(verdict_file(records, task_id), verdict.to_json())


def read_verdict(records: AnyPath, task_id: str, fingerprint: str) -> Verdict | None:
    """The verdict of a task; None while it is not there, or when something that decided it has changed."""
    data = read_json(verdict_file(records, task_id))
    return Verdict(**data) if data is not None and data.get("fingerprint") == fingerprint else None


@functools.cache
def code_fingerprint() -> str:
    """Of the source that decides what is left out: corpora are inspected again when it changes."""
    here = Path(__file__).parent
    names = ("content_filter", "duplicates", "inspection", "personal_data", "word_lists")
    return hashlib.blake2b(b"\0".join((here / f"{name}.py").read_bytes() for name in names), digest_size=16).hexdigest()
