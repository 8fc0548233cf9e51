"""The plan of a job: which episodes go into which shard, as a pure function of the store's metadata and the seed.

    split   = episode_store/splits.py, or what the source says
    shard   = hash(seed, episode id) mod n, with n from the estimated size of the task's split
    order   = by hash(seed, episode id) inside a shard

Nothing here reads an episode; what a look at the texts of a corpus found is in its `Verdict`. Driver, scanning worker
and commit all compute the same plan.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from beam_jobs import inspection
from beam_jobs.content_filter import ContentSettings
from beam_jobs.files import AnyPath
from beam_jobs.inspection import Verdict
from beam_jobs.personal_data import PersonalData
from beam_jobs.return_filter import FilterReport, FilterRule, ReturnFilter, corpus_report, filter_task
from beam_jobs.stores import BY_CONTENT, Source, Stores
from episode_store.errors import UserError
from episode_store.spec import ArraySpec, Modality
from episode_store.splits import DEFAULT_HOLDOUT, TRAIN, VALIDATION, split_of
from episode_store.task import TaskSpec, task_file_name

# Raise when the same plan would give other bytes for a reason that no other part of the fingerprint shows.
BUILDER_VERSION = 2

# (episode id, content hash): all that travels between workers of an episode.
Reference = tuple[str, str]

# All that a plan reads of the index.
_COLUMNS = ("episode_id", "content_hash", "agent_id", "episode_return", "num_steps", "split_group", "attribution")

# For sizing only; a shard that grows past its bound goes on in a further file.
_ESTIMATED_TEXT_TOKENS = 64
_ESTIMATED_PATCH_BYTES = 64
_TARGET_SHARE_OF_MAX = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """Everything that decides the bytes of a set of shards, and where they go.

    Attributes:
      sources: the episode stores, each with its weight, split and licence.
      output: folder of the shards, or its place in an object store.
      text_model: SentencePiece model; None when no task has text.
      task_ids: tasks to build, sorted.
      seed: decides shard membership and order.
      return_filter: which episodes of a control task stay.
      filters: (task id or pattern, another filter) each; the first that matches a task decides.
      random_returns: task id -> mean return of a random policy; the normalized rule needs it for control tasks.
      holdout: share of a corpus that becomes the split "validation", 0 <= holdout < 1.
      content: what the content filter does to corpora.
      max_shard_bytes: no file grows beyond this, but for a single sample that is larger.
      max_pack_tokens, max_pack_patch_bytes, max_pack_episodes: a sample is closed when it reaches any of them.
      max_dead_share: the job fails when more of the episodes than this cannot be imported, read or tokenized.
    """

    sources: tuple[Source, ...]
    output: AnyPath
    text_model: AnyPath | None
    task_ids: tuple[str, ...]
    seed: int = 0
    return_filter: ReturnFilter = ReturnFilter(rule=FilterRule.NORMALIZED)
    filters: tuple[tuple[str, ReturnFilter], ...] = ()
    random_returns: Mapping[str, float] = dataclasses.field(default_factory=dict)
    holdout: float = DEFAULT_HOLDOUT
    content: ContentSettings = ContentSettings()
    max_shard_bytes: int = 32 * 2**20
    max_pack_tokens: int = 262_144
    max_pack_patch_bytes: int = 4 * 2**20
    max_pack_episodes: int = 1_024
    max_dead_share: float = 0.05

    def settings(self) -> dict[str, Any]:
        """The part that is recorded and hashed, without paths."""
        return {
            "builder_version": BUILDER_VERSION,
            "seed": self.seed,
            "filter": str(self.return_filter),
            "filters": [[pattern, str(other)] for pattern, other in self.filters],
            "holdout": self.holdout,
            "content": self.content.facts(),
            "max_shard_bytes": self.max_shard_bytes,
            "max_pack_tokens": self.max_pack_tokens,
            "max_pack_patch_bytes": self.max_pack_patch_bytes,
            "max_pack_episodes": self.max_pack_episodes,
        }

    def shard_settings(self) -> dict[str, Any]:
        """The part that the bytes of a shard depend on, beside its episodes and the code."""
        return {
            "builder_version": BUILDER_VERSION,
            "seed": self.seed,
            "masks_personal_data": self.content.personal_data == PersonalData.MASK,
            "max_shard_bytes": self.max_shard_bytes,
            "max_pack_tokens": self.max_pack_tokens,
            "max_pack_patch_bytes": self.max_pack_patch_bytes,
            "max_pack_episodes": self.max_pack_episodes,
        }

    def filter_of(self, task_id: str) -> ReturnFilter:
        """The return filter of one task."""
        matching = (other for pattern, other in self.filters if fnmatch.fnmatchcase(task_id, pattern))
        return next(matching, self.return_filter)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """One shard: `references` in the order in which they are written."""

    name: str
    task_id: str
    split: str
    references: tuple[Reference, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskPlan:
    """The shards of one task, what the filters left out of them, and where its data come from.

    Attributes:
      task_id: the task.
      report: of the return filter.
      content: summary of what the content filter found; {} of a control task.
      shards: in order of name.
      attributions: whose work it is.
      statistics: of the episodes that stay: mean, spread and range of returns and lengths.
    """

    task_id: str
    report: FilterReport
    content: Mapping[str, Any]
    shards: tuple[ShardPlan, ...]
    attributions: tuple[str, ...]
    statistics: Mapping[str, Any]

    @property
    def num_episodes(self) -> int:
        """Episodes in all shards."""
        return sum(len(shard.references) for shard in self.shards)


def plan_task(stores: Stores, task_id: str, config: BuildConfig, verdict: Verdict | None = None) -> TaskPlan:
    """Filters the episodes of one task, divides them into splits and shards.

    Args:
      stores: where its episodes are.
      task_id: the task.
      config: of the job.
      verdict: of the content filter; a corpus needs one.

    Raises:
      UserError: the random return is missing, or a filter would drop everything.
    """
    spec = stores.tasks[task_id]
    table = stores.table(task_id, _COLUMNS)
    episode_returns = table["episode_return"].to_numpy()
    if spec.is_corpus:
        if verdict is None:
            raise ValueError(f"corpus {task_id} was not inspected")
        kept, report = _keep_corpus(task_id, table["episode_id"].to_pylist(), episode_returns, verdict)
    else:
        kept, report = filter_task(
            task_id,
            episode_returns,
            table["agent_id"].to_pylist(),
            return_filter=config.filter_of(task_id),
            random_return=config.random_returns.get(task_id),
        )
    rows = table.filter(kept)
    references = list(zip(rows["episode_id"].to_pylist(), rows["content_hash"].to_pylist(), strict=True))
    num_steps = rows["num_steps"].to_numpy()
    splits = _splits(stores, task_id, rows["split_group"].to_pylist(), references, config.holdout)
    shards: list[ShardPlan] = []
    for split in (TRAIN, VALIDATION):
        members = np.flatnonzero(splits == split)
        num_bytes = estimate_bytes(spec, num_steps[members])
        num_shards = max(1, math.ceil(num_bytes / (_TARGET_SHARE_OF_MAX * config.max_shard_bytes)))
        shards += divide(spec.task_id, split, [references[row] for row in members], num_shards, config.seed)
    attributions = sorted(set(rows["attribution"].to_pylist()) - {"", None})
    return TaskPlan(
        task_id=task_id,
        report=report,
        content=verdict.summary() if verdict else {},
        shards=tuple(shards),
        attributions=tuple(attributions),
        statistics={"episode_return": _summary(episode_returns[kept]), "num_steps": _summary(num_steps)},
    )


def _keep_corpus(
    task_id: str, episode_ids: list[str], episode_returns: np.ndarray, verdict: Verdict
) -> tuple[np.ndarray, FilterReport]:
    dropped = verdict.dropped
    kept = np.array([episode_id not in dropped for episode_id in episode_ids])
    num_rejected = len(verdict.rejected)
    if not kept.any():
        first = next(iter(verdict.rejected.values()), "all are copies of what other tasks have")
        raise UserError(
            f"task {task_id}: the content filter would drop all {len(kept)} episodes ({num_rejected} rejected, the "
            f"first: {first}); allow more, or leave the task out"
        )
    num_duplicates = len(kept) - int(kept.sum()) - num_rejected
    return kept, corpus_report(task_id, episode_returns, num_duplicates=num_duplicates, num_rejected=num_rejected)


def content_fingerprint(stores: Stores, config: BuildConfig) -> str:
    """Of everything that decides what the content filter and the search for copies find."""
    corpora = [task_id for task_id in config.task_ids if stores.tasks[task_id].is_corpus]
    return fingerprint(
        inspection.code_fingerprint(),
        config.content.facts(),
        [[task_id, column_hash(stores.episode_ids(task_id))] for task_id in corpora],
    )


def column_hash(ids: Iterable[Any]) -> str:
    """32 hex digits of ids in their order."""
    digest = hashlib.blake2b(digest_size=16)
    # Whole chunks: pyarrow's own iterator makes an object of each value.
    for chunk in ids.chunks if isinstance(ids, pa.ChunkedArray) else [ids]:
        values = chunk.to_pylist() if isinstance(chunk, pa.Array) else chunk
        digest.update("".join(f"{value}\n" for value in values).encode())
    return digest.hexdigest()


def _splits(
    stores: Stores, task_id: str, groups: list[str | None], references: list[Reference], holdout: float
) -> np.ndarray:
    """The split of each episode."""
    declared = stores.source(task_id).split
    if declared != BY_CONTENT:
        return np.full(len(references), declared)
    is_corpus = stores.tasks[task_id].is_corpus
    return np.array(
        [
            split_of(is_corpus=is_corpus, split_group=group, content_hash=content_hash, holdout=holdout)
            for group, (_, content_hash) in zip(groups, references, strict=True)
        ]
    )


def _summary(values: np.ndarray) -> dict[str, float]:
    numbers = values.astype(np.float64)
    return {
        "mean": float(numbers.mean()),
        "std": float(numbers.std()),
        "min": float(numbers.min()),
        "max": float(numbers.max()),
    }


def divide(task_id: str, split: str, references: Iterable[Reference], num_shards: int, seed: int) -> list[ShardPlan]:
    """Spreads episodes over shards by hash(seed, episode id); each shard is in the order of `sort_references`."""
    buckets: dict[int, list[tuple[int, Reference]]] = {}
    for place, reference in _placed(seed, references):
        buckets.setdefault(place % num_shards, []).append((place, reference))
    return [
        ShardPlan(
            name=f"{task_file_name(task_id)}-{split}-{index:06d}",
            task_id=task_id,
            split=split,
            references=_sorted_once(buckets[index]),
        )
        for index in sorted(buckets)
    ]


def sort_references(seed: int, references: Iterable[Reference]) -> tuple[Reference, ...]:
    """Each reference once, by hash(seed, episode id)."""
    return _sorted_once(_placed(seed, references))


def _placed(seed: int, references: Iterable[Reference]) -> Iterator[tuple[int, Reference]]:
    """Each with its `order_hash`, which decides its shard and its place there: computed once."""
    for episode_id, content_hash in references:
        yield order_hash(seed, episode_id), (episode_id, content_hash)


def order_hash(seed: int, episode_id: str) -> int:
    """64 bits that place an episode."""
    digest = hashlib.blake2b(f"{seed}:{episode_id}".encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def _sorted_once(placed: Iterable[tuple[int, Reference]]) -> tuple[Reference, ...]:
    return tuple(reference for _, reference in sorted(set(placed)))


def estimate_bytes(spec: TaskSpec, num_steps: np.ndarray) -> int:
    """About how many bytes of shard these episodes take, from their lengths alone."""
    tokens, patches = 1, 0
    for field in (*spec.observation_spec.values(), *spec.action_spec.values()):
        patches += _num_patches(field)
        tokens += _ESTIMATED_TEXT_TOKENS if field.modality == Modality.TEXT else 0
        tokens += field.size if field.modality in (Modality.DISCRETE, Modality.CONTINUOUS) else 0
    # uint16 tokens and uint8 targets; an int64 offset and a float32 return a step; patches have an int32 index and four
    # uint8 bounds beside their pixels.
    bytes_per_step = 3 * (tokens + patches) + 8 + (0 if spec.is_corpus else 4)
    bytes_per_step += patches * (8 + _ESTIMATED_PATCH_BYTES)
    return int(np.sum(num_steps, dtype=np.int64)) * bytes_per_step


def _num_patches(field: ArraySpec) -> int:
    if field.modality != Modality.IMAGE:
        return 0
    height, width = field.shape[:2]
    return math.ceil(height / 16) * math.ceil(width / 16)


def read_random_returns(path: Path) -> dict[str, float]:
    """Task id -> random return, from the file that `collectors score` writes.

    Raises:
      UserError: the file is missing, or is not {task id: {"random_return": number, ...}}.
    """
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"--scores {path}: no such file; run `collectors score --output {path}` first") from None
    except ValueError as error:
        raise UserError(f"--scores {path}: not JSON ({error}); write it with `collectors score`") from None
    try:
        returns = {task: score["random_return"] for task, score in data.items()}
        return {task: float(value) for task, value in returns.items() if value is not None}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(
            f'--scores {path}: expected {{task id: {{"random_return": number}}}}; see `collectors score`'
        ) from None


def fingerprint(*parts: Any) -> str:
    """32 hex digits of JSON-able parts."""
    digest = hashlib.blake2b(json.dumps(parts, sort_keys=True, allow_nan=False).encode(), digest_size=16)
    return digest.hexdigest()
