"""One job for all engines: a store with a damaged episode, copies and foul words, a command line as driver, and the
bytes that it must give.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from processes import ROOT

from beam_jobs.build_shards import build_locally
from beam_jobs.content_filter import ContentSettings
from beam_jobs.plan import BuildConfig
from beam_jobs.return_filter import ReturnFilter
from beam_jobs.stores import Source
from episode_store.episode import Episode, EpisodeMetadata
from episode_store.spec import ArraySpec, Modality
from episode_store.store import EpisodeStore
from episode_store.task import TaskSpec
from episode_store.writer import EpisodeWriter
from tokenization.text import TextTokenizer

MAX_SHARD_BYTES = 120_000
_FILTER = "quantile:0.2"
_NUM_ARMS, _NUM_PICTURES, _NUM_CHATS = 1_500, 120, 400
_TIMEOUT_SECONDS = 300
_ARM = TaskSpec(
    task_id="Arm-v0",
    observation_spec={"observation": ArraySpec(modality=Modality.CONTINUOUS, shape=(8,))},
    action_spec={"action": ArraySpec(modality=Modality.CONTINUOUS, shape=(2,), low=(-1.0,) * 2, high=(1.0,) * 2)},
)
_PICTURE = TaskSpec(
    task_id="toy/Picture-v0",
    observation_spec={"image": ArraySpec(modality=Modality.IMAGE, shape=(64, 64, 3), dtype="uint8")},
    action_spec={"action": ArraySpec(modality=Modality.DISCRETE, dtype="int64", num_values=(4,))},
)
_CHAT = TaskSpec(
    task_id="dialogue/chat-v0",
    observation_spec={"text": ArraySpec(modality=Modality.TEXT, dtype="str")},
    action_spec={"text": ArraySpec(modality=Modality.TEXT, dtype="str")},
    tags=("corpus",),
    licence="MIT",
)


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be built.

    Attributes:
      store: with one damaged episode.
      text_model: for its text.
      word_list: for the content filter.
      expected: name -> SHA-256 of every file that the plain loop makes.
      manifest: that it makes.
    """

    store: Path
    text_model: Path
    word_list: Path
    expected: dict[str, str]
    manifest: dict[str, Any]

    def command(self, output: str | Path, *flags: str, store: str | Path | None = None) -> list[str]:
        """The command line of a driver."""
        own = ["--store", store or self.store, "--output", output, "--text-model", self.text_model]
        own += [
            "--word-lists",
            self.word_list,
            "--filter",
            _FILTER,
            "--holdout",
            "0.2",
            "--max-shard-bytes",
            MAX_SHARD_BYTES,
            "--json",
        ]
        return [sys.executable, "-m", "beam_jobs", "build-shards", *map(str, own), "--timeout=250", *flags]

    def start(
        self,
        output: str | Path,
        *flags: str,
        store: str | Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Starts a driver, a process apart."""
        return subprocess.Popen(
            self.command(output, *flags, store=store), cwd=ROOT, env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def check(self, driver: subprocess.Popen[str], output: Path) -> None:
        """Waits for a driver and compares all that it made, and what it says."""
        told, errors = driver.communicate(timeout=_TIMEOUT_SECONDS)
        assert driver.returncode == 0, errors[-3000:]
        summary = json.loads(told)
        assert summary.pop("built")
        summary.pop("seconds")
        assert summary == self.manifest
        assert files(output) == self.expected


def make(folder: Path) -> Job:
    """Writes the store, damages an episode, and builds the shards in a plain loop."""
    store, text_model, word_list = folder / "store", folder / "text.model", folder / "rude.txt"
    with EpisodeWriter(store) as writer:
        for task in (_ARM, _PICTURE, _CHAT):
            writer.add_task(task)
        for index in range(_NUM_ARMS):
            writer.add_episode(_arm(index))
        for index in range(_NUM_PICTURES):
            writer.add_episode(_picture(index))
        for index in range(_NUM_CHATS):
            writer.add_episode(_chat(index))
    _damage(store)
    word_list.write_text("dolt\n")
    TextTokenizer.train([f"question {n}, answer {n} of many" for n in range(500)], text_model, num_pieces=400)
    config = BuildConfig(
        sources=(Source(name="store", store=store),),
        output=folder / "plain",
        text_model=text_model,
        task_ids=tuple(sorted(task.task_id for task in (_ARM, _PICTURE, _CHAT))),
        return_filter=ReturnFilter.parse(_FILTER),
        content=ContentSettings(word_lists=(str(word_list),)),
        holdout=0.2,
        max_shard_bytes=MAX_SHARD_BYTES,
    )
    manifest, _ = build_locally(config)
    assert manifest["dead_letters"]["count"] == 1
    chats = manifest["tasks"][_CHAT.task_id]
    assert chats["episodes_rejected"] == _NUM_CHATS // 20
    assert chats["episodes_duplicate"] == _NUM_CHATS // 10
    assert manifest["tasks"][_ARM.task_id]["episodes_below_threshold"] == _NUM_ARMS // 5
    assert len(manifest["shards"]) > 40
    return Job(store, text_model, word_list, files(folder / "plain"), manifest)


def files(folder: Path) -> dict[str, str]:
    """Every file of a finished folder, but for locks and logs: name -> SHA-256; verdicts and dead letters too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in (".tar", ".json", ".jsonl", ".model", ".tmp")
    }


def wait_for_records(output: Path, least: int) -> dict[Path, int]:
    """Until so many shards are done: their records -> when they were written."""
    end = time.monotonic() + _TIMEOUT_SECONDS
    while time.monotonic() < end:
        found = list((output / ".records").glob("*.json"))
        if len(found) >= least:
            return {path: path.stat().st_mtime_ns for path in found}
        time.sleep(0.005)
    raise AssertionError(f"not even {least} shards in {_TIMEOUT_SECONDS} s")


def _damage(store: Path) -> None:
    """Flips a bit of one picture episode."""
    row = EpisodeStore.open(store).table("toy/Picture-v0").slice(3, 1).to_pylist()[0]
    data = max((path for path in store.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    raw = bytearray(data.read_bytes())
    raw[row["offset"] + row["record_bytes"] - 40] ^= 0x10
    data.write_bytes(raw)


def _arm(index: int) -> Episode:
    rng = np.random.default_rng(index)
    num_steps = 60
    return Episode(
        task_id=_ARM.task_id,
        observations={"observation": rng.normal(size=(num_steps + 1, 8)).astype(np.float32)},
        actions={"action": rng.uniform(-1, 1, (num_steps, 2)).astype(np.float32)},
        rewards=rng.normal(size=num_steps),
        terminated=False,
        truncated=True,
        metadata=EpisodeMetadata(agent_id="ppo", seed=index, collection_index=index),
    )


def _picture(index: int) -> Episode:
    rng = np.random.default_rng(10_000 + index)
    num_steps = 8
    return Episode(
        task_id=_PICTURE.task_id,
        observations={"image": rng.integers(0, 256, (num_steps + 1, 64, 64, 3), dtype=np.uint8)},
        actions={"action": rng.integers(0, 4, num_steps)},
        rewards=np.full(num_steps, 0.25),
        terminated=True,
        truncated=False,
        metadata=EpisodeMetadata(agent_id="script", seed=index, collection_index=index),
    )


def _chat(index: int) -> Episode:
    """Every tenth says what the one before says, every twentieth is rude, every seventh tells an address."""
    said = index - 1 if index % 10 == 9 else index
    words = np.random.default_rng(20_000 + said).integers(0, 500, 12)
    answer = "answer " + " ".join(f"n{word}" for word in words)
    answer += " you dolt" * (said % 20 == 3) + " write to ann@example.org" * (said % 7 == 0)
    return Episode(
        task_id=_CHAT.task_id,
        observations={"text": [f"question {said}", ""]},
        actions={"text": [answer]},
        rewards=np.zeros(1),
        terminated=True,
        truncated=False,
        metadata=EpisodeMetadata(agent_id="people", collection_index=index),
    )
