"""The plan of a job: which episodes go into which shard, as a pure function of the store's metadata and the seed.

    split   = episode_store/splits.py
    shard   = hash(seed, episode id) mod n, with n from the estimated size of the task's split
    order   = by hash(seed, episode id) inside a shard

Nothing here reads an episode. Driver, scanning worker and commit all compute the same plan.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from beam_jobs.content_filter import CONTENT_FILTER_VERSION, PersonalData
from beam_jobs.files import AnyPath
from beam_jobs.return_filter import FilterReport, FilterRule, filter_task, keep_corpus
from episode_store.errors import UserError
from episode_store.spec import ArraySpec, Modality
from episode_store.splits import DEFAULT_HOLDOUT, TRAIN, VALIDATION, split_of
from episode_store.storage import StorePath
from episode_store.store import EpisodeStore
from episode_store.task import TaskSpec, task_file_name

# Raise when the same plan would give other bytes for a reason that no other part of the fingerprint shows.
BUILDER_VERSION = 1

# (episode id, content hash): all that travels between workers of an episode.
Reference = tuple[str, str]

# For sizing only; a shard that grows past its bound goes on in a further file.
_ESTIMATED_TEXT_TOKENS = 64
_ESTIMATED_PATCH_BYTES = 64
_TARGET_SHARE_OF_MAX = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """Everything that decides the bytes of a set of shards, and where they go.

    Attributes:
      store: folder of the episode store, or its place behind a URL.
      output: folder of the shards, or its place in an object store.
      text_model: SentencePiece model; None when no task has text.
      task_ids: tasks to build, sorted.
      seed: decides shard membership and order.
      rule: of the return filter.
      random_returns: task id -> mean return of a random policy; the normalized rule needs it for control tasks.
      holdout: share of a corpus that becomes the split "validation", 0 <= holdout < 1.
      personal_data: what the content filter does to corpora.
      max_shard_bytes: no file grows beyond this, but for a single sample that is larger.
      max_pack_tokens, max_pack_patch_bytes, max_pack_episodes: a sample is closed when it reaches any of them.
      max_rejected_share: the job fails when more of the episodes than this cannot be read or tokenized.
    """

    store: StorePath
    output: AnyPath
    text_model: AnyPath | None
    task_ids: tuple[str, ...]
    seed: int = 0
    rule: FilterRule = FilterRule.NORMALIZED
    random_returns: Mapping[str, float] = dataclasses.field(default_factory=dict)
    holdout: float = DEFAULT_HOLDOUT
    personal_data: PersonalData = PersonalData.MASK
    max_shard_bytes: int = 32 * 2**20
    max_pack_tokens: int = 262_144
    max_pack_patch_bytes: int = 4 * 2**20
    max_pack_episodes: int = 1_024
    max_rejected_share: float = 0.05

    def settings(self) -> dict[str, Any]:
        """The part that is recorded and hashed, without paths."""
        return {
            "builder_version": BUILDER_VERSION,
            "content_filter_version": CONTENT_FILTER_VERSION,
            "seed": self.seed,
            "filter": str(self.rule),
            "holdout": self.holdout,
            "personal_data": str(self.personal_data),
            "max_shard_bytes": self.max_shard_bytes,
            "max_pack_tokens": self.max_pack_tokens,
            "max_pack_patch_bytes": self.max_pack_patch_bytes,
            "max_pack_episodes": self.max_pack_episodes,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """One shard: `references` in the order in which they are written."""

    name: str
    task_id: str
    split: str
    references: tuple[Reference, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskPlan:
    """The shards of one task, what the filter left out of them, and where its data come from."""

    task_id: str
    report: FilterReport
    shards: tuple[ShardPlan, ...]
    attributions: tuple[str, ...]

    @property
    def num_episodes(self) -> int:
        """Episodes in all shards."""
        return sum(len(shard.references) for shard in self.shards)


def plan_task(store: EpisodeStore, task_id: str, config: BuildConfig) -> TaskPlan:
    """Filters the episodes of one task, divides them into splits and shards.

    Raises:
      UserError: the task has no episodes, its random return is missing, or the filter would drop everything.
    """
    spec = store.tasks[task_id]
    table = store.table(task_id)
    if table.num_rows == 0:
        raise UserError(f"task {task_id}: expected episodes in the store {config.store}, got none; collect some first")
    episode_returns = table["episode_return"].to_numpy()
    if spec.is_corpus:
        kept, report = keep_corpus(task_id, table["content_hash"].to_pylist(), episode_returns)
    else:
        kept, report = filter_task(
            task_id,
            episode_returns,
            table["agent_id"].to_pylist(),
            rule=config.rule,
            random_return=config.random_returns.get(task_id),
        )
    rows = table.filter(kept)
    references = list(zip(rows["episode_id"].to_pylist(), rows["content_hash"].to_pylist(), strict=True))
    num_steps = rows["num_steps"].to_numpy()
    splits = np.array(
        [
            split_of(is_corpus=spec.is_corpus, split_group=group, content_hash=content_hash, holdout=config.holdout)
            for group, (_, content_hash) in zip(rows["split_group"].to_pylist(), references, strict=True)
        ]
    )
    shards: list[ShardPlan] = []
    for split in (TRAIN, VALIDATION):
        members = np.flatnonzero(splits == split)
        num_bytes = estimate_bytes(spec, num_steps[members])
        num_shards = max(1, math.ceil(num_bytes / (_TARGET_SHARE_OF_MAX * config.max_shard_bytes)))
        shards += divide(spec.task_id, split, [references[row] for row in members], num_shards, config.seed)
    attributions = sorted(set(rows["attribution"].to_pylist()) - {"", None})
    return TaskPlan(task_id=task_id, report=report, shards=tuple(shards), attributions=tuple(attributions))


def divide(task_id: str, split: str, references: Iterable[Reference], num_shards: int, seed: int) -> list[ShardPlan]:
    """Spreads episodes over shards by hash(seed, episode id); each shard is in the order of `sort_references`."""
    buckets: dict[int, list[Reference]] = {}
    for reference in references:
        buckets.setdefault(order_hash(seed, reference[0]) % num_shards, []).append(reference)
    return [
        ShardPlan(
            name=f"{task_file_name(task_id)}-{split}-{index:06d}",
            task_id=task_id,
            split=split,
            references=sort_references(seed, buckets[index]),
        )
        for index in sorted(buckets)
    ]


def sort_references(seed: int, references: Iterable[Reference]) -> tuple[Reference, ...]:
    """Each reference once, by hash(seed, episode id)."""
    unique = {(episode_id, content_hash) for episode_id, content_hash in references}
    return tuple(sorted(unique, key=lambda each: (order_hash(seed, each[0]), each)))


def order_hash(seed: int, episode_id: str) -> int:
    """64 bits that place an episode."""
    digest = hashlib.blake2b(f"{seed}:{episode_id}".encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def estimate_bytes(spec: TaskSpec, num_steps: np.ndarray) -> int:
    """About how many bytes of shard these episodes take, from their lengths alone."""
    tokens, patches = 1, 0
    for field in (*spec.observation_spec.values(), *spec.action_spec.values()):
        patches += _num_patches(field)
        tokens += _ESTIMATED_TEXT_TOKENS if field.modality == Modality.TEXT else 0
        tokens += field.size if field.modality in (Modality.DISCRETE, Modality.CONTINUOUS) else 0
    # uint16 tokens and uint8 targets; patches have an int32 index and four uint8 bounds beside their pixels.
    bytes_per_step = 3 * (tokens + patches) + 8 + patches * (8 + _ESTIMATED_PATCH_BYTES)
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
