"""The core that every runner calls: references of one shard in, finished tar files and a record out. No Beam here."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenization
from beam_jobs.files import AnyPath, file_facts, new_file, read_json, sync_folder, write_json
from beam_jobs.inspection import POISON
from beam_jobs.personal_data import PersonalData, mask_episode
from beam_jobs.plan import BuildConfig, ShardPlan, fingerprint
from beam_jobs.stores import Stores
from beam_jobs.write_shards import TarShard, sample_size
from episode_store.errors import RemoteError
from tokenization.episode_tokenizer import EpisodeTokenizer
from tokenization.shard_format import encode_pack
from tokenization.text import TextTokenizer
from tokenization.token_sequence import TokenSequence

RECORDS_FOLDER = ".records"
TEXT_MODEL_FILE = "text.model"

# Files of `tokenization` that no shard depends on.
_NOT_IN_SHARDS = {"__init__.py", "__main__.py", "cli.py", "testing.py"}


@dataclasses.dataclass(kw_only=True)
class _Tally:
    """Counts of the file being written."""

    num_episodes: int = 0
    num_timesteps: int = 0
    num_tokens: int = 0
    num_targets: int = 0


class ShardBuilder:
    """Builds shards of one job in one process; loads models once."""

    def __init__(self, config: BuildConfig, stores: Stores) -> None:
        self.config = config
        self.stores = stores
        self._settings = config.shard_settings()
        model = config.text_model
        self._text = TextTokenizer(model.read_bytes(), where=str(model)) if model else None
        self._tokenizers: dict[str, EpisodeTokenizer] = {}

    @property
    def text_model_sha256(self) -> str | None:
        """Of the text model; None without one."""
        return self._text.model_sha256 if self._text else None

    def fingerprint(self, plan: ShardPlan) -> str:
        """Changes when the shard's bytes would."""
        return fingerprint(
            self._settings,
            code_fingerprint(),
            self.text_model_sha256,
            self.stores.tasks[plan.task_id].to_json(),
            plan.name,
            plan.references,
        )

    def build(self, plan: ShardPlan) -> dict[str, Any]:
        """Writes the shard's files unless they are there already.

        Returns:
          the shard's record: name, fingerprint, files with their counts and hashes, rejected episodes, changes made.
        """
        record_path = self.config.output / RECORDS_FOLDER / f"{plan.name}.json"
        shard_fingerprint = self.fingerprint(plan)
        record = read_json(record_path)
        if record and record.get("fingerprint") == shard_fingerprint and _files_are_there(self.config.output, record):
            return record
        record = self._write(plan, shard_fingerprint)
        self.stores.of(plan.task_id).unmap()
        # The record comes after the files it vouches for.
        sync_folder(self.config.output)
        write_json(record_path, record)
        return record

    def _write(self, plan: ShardPlan, shard_fingerprint: str) -> dict[str, Any]:
        rejected: list[dict[str, str]] = []
        changes: Counter[str] = Counter()
        packs = packs_of(self._sequences(plan, rejected, changes), self.config)
        files: list[dict[str, Any]] = []
        pack = next(packs, None)
        while pack is not None:
            file_name = f"{plan.name}.tar" if not files else f"{plan.name}-{len(files):02d}.tar"
            tally = _Tally()
            with new_file(self.config.output / file_name) as path, TarShard(path) as tar:
                while pack is not None:
                    key = f"{file_name.removesuffix('.tar')}-{tar.num_samples:06d}"
                    members = encode_pack(pack)
                    if tar.num_samples and tar.num_bytes + sample_size(members) > self.config.max_shard_bytes:
                        break
                    tar.write(key, members)
                    for sequence in pack:
                        tally.num_episodes += 1
                        tally.num_timesteps += sequence.num_steps
                        tally.num_tokens += sequence.num_tokens
                        tally.num_targets += sequence.num_targets
                    pack = next(packs, None)
                facts = tar.close()
            files.append(
                {
                    "file": file_name,
                    "split": plan.split,
                    "task_id": plan.task_id,
                    "num_samples": tar.num_samples,
                    **dataclasses.asdict(tally),
                    **facts,
                }
            )
        return {
            "name": plan.name,
            "fingerprint": shard_fingerprint,
            "task_id": plan.task_id,
            "split": plan.split,
            "num_planned": len(plan.references),
            "files": files,
            "rejected": rejected,
            "changes": dict(sorted(changes.items())),
            "tokens_per_step": self.tokenizer(plan.task_id).tokens_per_step,
        }

    def _sequences(
        self, plan: ShardPlan, rejected: list[dict[str, str]], changes: Counter[str]
    ) -> Iterator[TokenSequence]:
        """Reads, masks and tokenizes; appends what fails to `rejected` and counts what was masked."""
        is_masked = self.stores.tasks[plan.task_id].is_corpus and self.config.content.personal_data == PersonalData.MASK
        store = self.stores.of(plan.task_id)
        tokenizer = self.tokenizer(plan.task_id)
        for episode_id, content_hash in plan.references:
            try:
                episode = store.read(episode_id)
                if is_masked:
                    episode, found = mask_episode(episode)
                    changes.update(found)
                # Id and hash are the store's, also where a text was masked.
                yield tokenizer.encode(episode, episode_id=episode_id, content_hash=content_hash)
            except RemoteError:
                raise  # nothing is wrong with the episode: the engine tries again
            except POISON as error:
                # Where the store lies is no fact of the shards.
                reason = str(error).replace(f"{store.path}/", "")
                rejected.append(_rejection(plan, episode_id, f"{type(error).__name__}: {reason}"))

    def tokenizer(self, task_id: str) -> EpisodeTokenizer:
        """Of one task. Raises UserError when its fields cannot be tokenized, or it has text and there is no model."""
        if task_id not in self._tokenizers:
            self._tokenizers[task_id] = EpisodeTokenizer(self.stores.tasks[task_id], self._text)
        return self._tokenizers[task_id]


def packs_of(sequences: Iterator[TokenSequence], config: BuildConfig) -> Iterator[list[TokenSequence]]:
    """Groups sequences into samples; each holds at least one."""
    pack: list[TokenSequence] = []
    num_tokens = num_patch_bytes = 0
    for sequence in sequences:
        pack.append(sequence)
        num_tokens += sequence.num_tokens
        num_patch_bytes += sequence.patches.nbytes
        if (
            num_tokens >= config.max_pack_tokens
            or num_patch_bytes >= config.max_pack_patch_bytes
            or len(pack) >= config.max_pack_episodes
        ):
            yield pack
            pack, num_tokens, num_patch_bytes = [], 0, 0
    if pack:
        yield pack


def _rejection(plan: ShardPlan, episode_id: str, reason: str) -> dict[str, str]:
    return {
        "task_id": plan.task_id,
        "episode_id": episode_id,
        "stage": "build",
        "reason": " ".join(reason.split())[:500],
    }


def _files_are_there(output: AnyPath, record: Mapping[str, Any]) -> bool:
    """Whether every file has the size and the hash that its record states."""
    for entry in record["files"]:
        path = output / entry["file"]
        if not path.is_file() or path.stat().st_size != entry["bytes"] or file_facts(path)["sha256"] != entry["sha256"]:
            return False
    return True


@functools.cache
def code_fingerprint() -> str:
    """Of the source that turns episodes into bytes: shards are rebuilt when it changes."""
    here = Path(__file__).parent
    paths = [path for path in Path(tokenization.__path__[0]).glob("*.py") if path.name not in _NOT_IN_SHARDS]
    paths += [here / "personal_data.py", here / "shard_builder.py", here / "write_shards.py"]
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(paths):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
