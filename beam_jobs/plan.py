"""The plan of a job: which episodes go into which shard, as a pure function of the store's metadata and the seed.

    split   = "validation" for a share of a corpus, by hash of the split group (or of the content); else "train"
    shard   = hash(seed, episode id) mod n, with n from the estimated size of the task's split
    order   = by hash(seed, episode id) inside a shard

Nothing here reads an episode. Driver, scanning worker and commit all compute the same plan.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from beam_jobs.content_filter import CONTENT_FILTER_VERSION, PersonalData
from beam_jobs.return_filter import FilterReport, FilterRule, TaskScore, filter_task, keep_corpus
from episode_store.command_line import near_misses
from episode_store.errors import UserError
from episode_store.spec import ArraySpec, Modality
from episode_store.store import EpisodeStore
from episode_store.task import TaskSpec, task_file_name

TRAIN = "train"
VALIDATION = "validation"

# Raise when the same plan would give other bytes for a reason that no other part of the fingerprint shows.
BUILDER_VERSION = 1

# For sizing only; a shard that grows past its bound goes on in a further file.
_ESTIMATED_TEXT_TOKENS = 64
_ESTIMATED_PATCH_BYTES = 64
_TARGET_SHARE_OF_MAX = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """Everything that decides the bytes of a set of shards, and where they go.

    Attributes:
      store: folder of the episode store.
      output: folder of the shards.
      text_model: SentencePiece model; None when no task has text.
      task_ids: tasks to build, sorted.
      seed: decides shard membership and order.
      rule: of the return filter.
      scores: task id -> measured returns; the normalized rule needs the random one of every control task.
      scores_file: where they came from, for messages.
      holdout: share of a corpus that becomes the split "validation", 0 <= holdout < 1.
      personal_data: what the content filter does to corpora.
      max_shard_bytes: no file grows beyond this, but for a single sample that is larger.
      max_pack_tokens, max_pack_episodes: a sample is closed when it reaches either.
      max_rejected_share: the job fails when more of the episodes than this cannot be read or tokenized.
    """

    store: Path
    output: Path
    text_model: Path | None
    task_ids: tuple[str, ...]
    seed: int = 0
    rule: FilterRule = FilterRule.NORMALIZED
    scores: Mapping[str, TaskScore] = dataclasses.field(default_factory=dict)
    scores_file: str = ""
    holdout: float = 0.05
    personal_data: PersonalData = PersonalData.MASK
    max_shard_bytes: int = 32 * 2**20
    max_pack_tokens: int = 65_536
    max_pack_episodes: int = 256
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
            "max_pack_episodes": self.max_pack_episodes,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """One shard: `episode_ids` in the order in which they are written."""

    name: str
    task_id: str
    split: str
    episode_ids: tuple[str, ...]


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
        return sum(len(shard.episode_ids) for shard in self.shards)


def select_tasks(store: EpisodeStore, patterns: Sequence[str] | None) -> tuple[str, ...]:
    """The store's tasks that match any of the patterns, sorted; all of them without patterns.

    Raises:
      UserError: a pattern matches nothing; near names are suggested.
    """
    known = sorted(store.tasks)
    if not patterns:
        return tuple(known)
    chosen: set[str] = set()
    for pattern in patterns:
        matches = fnmatch.filter(known, pattern)
        if not matches:
            raise UserError(f"store {store.path}: no task {pattern!r}{near_misses(pattern, known)}")
        chosen.update(matches)
    return tuple(sorted(chosen))


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
            score=config.scores.get(task_id),
            scores_file=config.scores_file,
        )
    rows = table.filter(kept)
    episode_ids = rows["episode_id"].to_pylist()
    num_steps = rows["num_steps"].to_numpy()
    splits = [TRAIN] * len(episode_ids)
    if spec.is_corpus and config.holdout:
        groups = zip(rows["split_group"].to_pylist(), rows["content_hash"].to_pylist(), strict=True)
        splits = [VALIDATION if _fraction(group or content) < config.holdout else TRAIN for group, content in groups]
    shards: list[ShardPlan] = []
    for split in (TRAIN, VALIDATION):
        members = [row for row, its_split in enumerate(splits) if its_split == split]
        num_bytes = estimate_bytes(spec, num_steps[members])
        num_shards = max(1, math.ceil(num_bytes / (_TARGET_SHARE_OF_MAX * config.max_shard_bytes)))
        shards += divide(spec.task_id, split, [episode_ids[row] for row in members], num_shards, config.seed)
    attributions = sorted(set(rows["attribution"].to_pylist()) - {"", None})
    return TaskPlan(task_id=task_id, report=report, shards=tuple(shards), attributions=tuple(attributions))


def divide(task_id: str, split: str, episode_ids: Iterable[str], num_shards: int, seed: int) -> list[ShardPlan]:
    """Spreads episodes over shards by hash(seed, episode id) and sorts each shard by the same hash."""
    buckets: dict[int, list[tuple[int, str]]] = {}
    for episode_id in episode_ids:
        order = order_hash(seed, episode_id)
        buckets.setdefault(order % num_shards, []).append((order, episode_id))
    return [
        ShardPlan(
            name=f"{task_file_name(task_id)}-{split}-{index:06d}",
            task_id=task_id,
            split=split,
            episode_ids=tuple(episode_id for _, episode_id in sorted(buckets[index])),
        )
        for index in sorted(buckets)
    ]


def order_hash(seed: int, episode_id: str) -> int:
    """64 bits that place an episode."""
    digest = hashlib.blake2b(f"{seed}:{episode_id}".encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def _fraction(group: str) -> float:
    """A number in [0, 1) that depends on the group alone: a group is on one side whatever the seed or the task."""
    digest = hashlib.blake2b(f"holdout:{group}".encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "little") / 2**64


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


def fingerprint(*parts: Any) -> str:
    """32 hex digits of JSON-able parts."""
    digest = hashlib.blake2b(json.dumps(parts, sort_keys=True, allow_nan=False).encode(), digest_size=16)
    return digest.hexdigest()
