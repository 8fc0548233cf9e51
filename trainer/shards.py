"""The shards on disk become arrays per task: tars are memory-mapped and checked once, their packs joined in memory.

A loaded set takes `BYTES_PER_TOKEN` in every rank.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from episode_store.command_line import progress
from episode_store.errors import UserError
from episode_store.spec import Modality
from episode_store.splits import VALIDATION
from episode_store.task import TaskSpec
from tokenization.return_tokens import ReturnRange, put_first
from tokenization.shard_format import FORMAT, READABLE_FORMATS, Pack, decode_pack
from tokenization.text import TextTokenizer
from tokenization.token_sequence import TokenSequence, observation_positions
from tokenization.vocabulary import PATCH_PLACEHOLDER, VOCABULARY_SIZE
from trainer.tar_index import tar_members

DATASET_FILE = "dataset.json"
TEXT_MODEL_FILE = "text.model"
# Measured on shards of the demo: 8.7 million tokens in 43 MB of tars became 131 MB. A token takes 5 bytes with its
# target and place, a patch 768; the rest is steps and the facts of episodes.
BYTES_PER_TOKEN = 15


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TaskData:
    """All packs of one task and split, end to end.

    Attributes:
      task: its spec.
      tokens, targets: [N], see `TokenSequence`.
      local_positions: int16 [N], -1 for action tokens.
      timestep_offsets: int64 [S + 1], token range of each timestep.
      episode_offsets: int64 [E + 1], timestep range of each episode.
      agents: int32 [E], one number for each agent.
      episodes: facts of each episode, as in `Pack.episodes`.
      patch_slots: int64 [M], places of the patch tokens in `tokens`, ascending.
      patch_index: int64 [M], row of `patches` of each.
      patch_intervals: uint8 [M, 4].
      patches: uint8 [U, 16, 16, 3].
      returns_to_go: float32 [S]; empty for a corpus, and in shards of version 2.
      return_range: of the return filter.
      weight: share of the training tokens that the mixture gives it, relative to the others.
    """

    task: TaskSpec
    tokens: np.ndarray
    targets: np.ndarray
    local_positions: np.ndarray
    timestep_offsets: np.ndarray
    episode_offsets: np.ndarray
    agents: np.ndarray
    episodes: list[dict[str, Any]]
    patch_slots: np.ndarray
    patch_index: np.ndarray
    patch_intervals: np.ndarray
    patches: np.ndarray
    returns_to_go: np.ndarray
    return_range: ReturnRange
    weight: float = 1.0

    @property
    def num_episodes(self) -> int:
        """E."""
        return len(self.episode_offsets) - 1

    @property
    def num_timesteps(self) -> int:
        """S."""
        return len(self.timestep_offsets) - 1

    @functools.cached_property
    def acts_in_text(self) -> bool:
        """Whether any part of its actions is text."""
        return any(spec.modality == Modality.TEXT for spec in self.task.action_spec.values())

    def with_return_tokens(self) -> TaskData:
        """The same with a return token before each timestep (`return_tokens`); a corpus stays as it is.

        Raises:
          UserError: the shards have no returns-to-go.
        """
        if self.task.is_corpus:
            return self
        if len(self.returns_to_go) != self.num_timesteps:
            raise UserError(
                f"task {self.task.task_id}: sampler.condition_on_return needs the returns-to-go of shards of format "
                f"{FORMAT}; run `beam_jobs build-shards` again"
            )
        ids = self.return_range.to_ids(self.returns_to_go)
        tokens, targets, offsets = put_first(ids, self.tokens, self.targets, self.timestep_offsets)
        return dataclasses.replace(
            self,
            tokens=tokens,
            targets=targets,
            timestep_offsets=offsets,
            local_positions=observation_positions(tokens, offsets),
            patch_slots=np.flatnonzero(tokens == PATCH_PLACEHOLDER),
        )

    def window(self, first_timestep: int, last_timestep: int) -> TokenSequence:
        """The timesteps [first, last) as a token sequence."""
        start, end = int(self.timestep_offsets[first_timestep]), int(self.timestep_offsets[last_timestep])
        low, high = np.searchsorted(self.patch_slots, (start, end))
        return TokenSequence(
            task_id=self.task.task_id,
            episode_id="",
            tokens=self.tokens[start:end],
            targets=self.targets[start:end],
            timestep_offsets=self.timestep_offsets[first_timestep : last_timestep + 1] - start,
            patches=self.patches,
            patch_index=self.patch_index[low:high],
            patch_intervals=self.patch_intervals[low:high],
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """A shard folder that was completed, opened for reading."""

    path: Path
    info: Mapping[str, Any]
    # What `load` left out: file of the shard -> what is wrong with it.
    damage: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def open(cls, path: str | Path) -> Dataset:
        """Reads `dataset.json`.

        Raises:
          UserError: when the folder holds no complete shards, or those of another format or vocabulary.
        """
        path = Path(path)
        file = path / DATASET_FILE
        if not file.is_file():
            raise UserError(
                f"{path}: no {DATASET_FILE} there, so no finished shards; run `beam_jobs build-shards --output {path}`"
            )
        try:
            info = json.loads(file.read_text())
        except ValueError as error:
            raise UserError(f"{file}: not JSON ({error}); build the shards again") from None
        if not isinstance(info, dict):
            raise UserError(f"{file}: expected a JSON object, got {type(info).__name__}; build the shards again")
        if info.get("format") not in READABLE_FORMATS:
            raise UserError(
                f"{file}: expected format {FORMAT}, got {info.get('format')}; run `beam_jobs build-shards` again"
            )
        if info.get("vocabulary_size") != VOCABULARY_SIZE:
            raise UserError(f"{file}: expected vocabulary {VOCABULARY_SIZE}, got {info.get('vocabulary_size')}")
        return cls(path=path, info=info)

    def lost_tasks(self, split: str = "train") -> list[str]:
        """Tasks whose shards of a split are all in `damage`."""
        shards = [shard for shard in self.info["shards"] if shard["split"] == split]
        left = {shard["task_id"] for shard in shards if shard["file"] not in self.damage}
        return sorted({shard["task_id"] for shard in shards} - left)

    @property
    def tasks(self) -> dict[str, TaskSpec]:
        """Task id -> spec."""
        return {task_id: TaskSpec.from_json(task["spec"]) for task_id, task in self.info["tasks"].items()}

    def num_tokens(self, split: str) -> int:
        """Of all tasks."""
        return sum(shard["num_tokens"] for shard in self.info["shards"] if shard["split"] == split)

    def text_tokenizer(self) -> TextTokenizer:
        """The SentencePiece model that the shards were made with."""
        return TextTokenizer.load(self.path / TEXT_MODEL_FILE)

    def packs(self, split: str = "train", task_id: str | None = None, *, damaged: str = "stop") -> Iterator[Pack]:
        """Every pack of a split, in the order of the shards; a damaged shard is left out whole with "skip"."""
        for shard in self.info["shards"]:
            if shard["split"] == split and task_id in (None, shard["task_id"]):
                packs = read_shard(
                    self.path / shard["file"], num_samples=shard["num_samples"], num_bytes=shard["bytes"]
                )
                if damaged == "skip":
                    try:
                        packs = iter(list(packs))
                    except UserError as error:
                        self.damage[shard["file"]] = str(error)
                        continue
                yield from packs

    @property
    def has_text_model(self) -> bool:
        """Whether any task has text."""
        return (self.path / TEXT_MODEL_FILE).is_file()

    def load_task(self, split: str, task_id: str) -> TaskData:
        """The data of one task."""
        packs = list(self.packs(split, task_id))
        if not packs:
            raise UserError(f"{self.path}: no {split} data of {task_id}; there is {sorted(self.tasks)}")
        return self._join(self.tasks[task_id], packs)

    def load(self, split: str = "train", *, damaged: str = "stop") -> dict[str, TaskData]:
        """Task id -> its data, in lexicographic order.

        Args:
          split: "train" or "validation".
          damaged: "stop" raises at a damaged shard, "skip" leaves it out and notes it in `damage`.

        Raises:
          UserError: a shard is damaged, or with "skip" all of them; nothing was held out and "validation" is asked for.
        """
        if split == VALIDATION and not any(shard["split"] == split for shard in self.info["shards"]):
            raise UserError(
                f"{self.path}: no held-out data for validation_sequences; only corpora are held out (`beam_jobs "
                "build-shards --holdout`): leave it at 0, or build shards with a corpus"
            )
        packs: dict[str, list[Pack]] = {}
        total = sum(shard["num_samples"] for shard in self.info["shards"] if shard["split"] == split)
        for pack in progress(
            self.packs(split, damaged=damaged), description=f"reading {split} shards", total=total, unit="packs"
        ):
            packs.setdefault(pack.task_id, []).append(pack)
        if total and not packs:
            raise UserError(f"{self.path}: every {split} shard is damaged; the last: {[*self.damage.values()][-1]}")
        tasks = self.tasks
        return {task_id: self._join(tasks[task_id], packs[task_id]) for task_id in sorted(packs)}

    def return_range(self, task_id: str) -> ReturnRange:
        """What the return filter saw of a task."""
        facts = self.info["tasks"][task_id]
        expert, random = facts.get("expert_return"), facts.get("random_return")
        return ReturnRange(random=random or 0.0, expert=math.nan if expert is None else expert)

    def _join(self, task: TaskSpec, packs: list[Pack]) -> TaskData:
        weight = float(self.info["tasks"][task.task_id].get("weight", 1.0))
        return _join(task, packs, self.return_range(task.task_id), weight)


def read_shard(path: Path, *, num_samples: int, num_bytes: int) -> Iterator[Pack]:
    """The packs of one tar.

    Raises:
      UserError: when the file is missing, cut short, or holds another number of samples than the manifest says.
    """
    samples: dict[str, dict[str, Any]] = {}
    try:
        with path.open("rb") as file:
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        if len(view) != num_bytes:
            raise ValueError(f"expected {num_bytes} bytes, got {len(view)}")
        for name, start, stop in tar_members(view):
            key, _, extension = name.partition(".")
            samples.setdefault(key, {})[extension] = view[start:stop]
    except FileNotFoundError:
        raise UserError(f"{path}: shard missing; run the same `beam_jobs build-shards` again to restore it") from None
    except ValueError as error:
        raise UserError(f"{path}: shard damaged ({error}); run `beam_jobs build-shards` again to restore it") from None
    if len(samples) != num_samples:
        raise UserError(
            f"{path}: shard cut short: expected {num_samples} samples, got {len(samples)}; "
            "run `beam_jobs build-shards` again to restore it"
        )
    for key, members in samples.items():
        yield decode_pack(members, where=f"{path}: sample {key}")


def _join(task: TaskSpec, packs: list[Pack], return_range: ReturnRange, weight: float) -> TaskData:
    agents: dict[str, int] = {}
    episodes = [episode for pack in packs for episode in pack.episodes]
    tokens = np.concatenate([pack.tokens for pack in packs])
    timestep_offsets = _join_offsets([pack.timestep_offsets for pack in packs])
    patch_base = np.cumsum([0] + [len(pack.patches) for pack in packs])
    return TaskData(
        task=task,
        tokens=tokens,
        targets=np.concatenate([pack.targets for pack in packs]),
        local_positions=observation_positions(tokens, timestep_offsets),
        timestep_offsets=timestep_offsets,
        episode_offsets=_join_offsets([pack.episode_offsets for pack in packs]),
        agents=np.array([agents.setdefault(episode["agent_id"], len(agents)) for episode in episodes], dtype=np.int32),
        episodes=episodes,
        patch_slots=np.flatnonzero(tokens == PATCH_PLACEHOLDER),
        patch_index=np.concatenate(
            [pack.patch_index.astype(np.int64) + base for pack, base in zip(packs, patch_base, strict=False)]
        ),
        patch_intervals=np.concatenate([pack.patch_intervals for pack in packs]),
        patches=np.concatenate([pack.patches for pack in packs]),
        returns_to_go=np.concatenate([pack.returns_to_go for pack in packs]),
        return_range=return_range,
        weight=weight,
    )


def _join_offsets(offsets: list[np.ndarray]) -> np.ndarray:
    bases = np.cumsum([0] + [int(part[-1]) for part in offsets])
    parts = [part[:-1].astype(np.int64) + base for part, base in zip(offsets, bases, strict=False)]
    return np.concatenate([*parts, bases[-1:]])
