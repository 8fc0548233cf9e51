"""The job end to end: equal bytes on every way to run it, nothing lost, nothing twice, restarts."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beam_jobs import shard_builder
from beam_jobs.build_shards import build_locally, build_shards
from beam_jobs.content_filter import ContentSettings
from beam_jobs.personal_data import PersonalData
from beam_jobs.plan import BuildConfig
from beam_jobs.return_filter import FilterRule, ReturnFilter
from beam_jobs.write_shards import TarShard
from episode_store.errors import UserError
from episode_store.store import EpisodeStore
from tokenization.episode_tokenizer import EpisodeTokenizer
from tokenization.shard_format import decode_pack
from tokenization.text import TextTokenizer

MakeConfig = Callable[..., BuildConfig]
ROOT = Path(__file__).resolve().parents[2]


def _files(folder: Path) -> dict[str, str]:
    """Every file that a finished folder holds, but for lock and log: name -> hash."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in (".tar", ".json", ".model", ".tmp")
    }


@pytest.fixture
def plain(make_config: MakeConfig, tmp_path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Manifest and files of the plain loop."""
    manifest, built = build_locally(make_config(output=tmp_path / "plain"))
    assert built
    return manifest, _files(tmp_path / "plain")


@pytest.mark.parametrize("flags", [[], ["--direct_runner_bundle_repeat=1"]])
def test_beam_gives_the_bytes_of_the_plain_loop(
    make_config: MakeConfig, plain: tuple[dict[str, Any], dict[str, str]], flags: list[str]
) -> None:
    config = make_config()
    manifest, built = build_shards(config, beam_flags=flags)
    assert built
    assert manifest == plain[0]
    assert _files(config.output) == plain[1]


def test_two_processes_give_the_bytes_of_the_plain_loop(
    make_config: MakeConfig, plain: tuple[dict[str, Any], dict[str, str]]
) -> None:
    config = make_config()
    progress: list[tuple[int, int]] = []
    build_shards(config, workers=2, timeout_seconds=120, on_progress=lambda done, total: progress.append((done, total)))
    assert _files(config.output) == plain[1]
    num_shards = len(list((config.output / ".records").glob("*.json")))
    assert progress[-1] == (num_shards, num_shards)
    assert (config.output / ".records" / "workers.log").is_file()


def test_manifest_adds_up(plain: tuple[dict[str, Any], dict[str, str]], tmp_path: Path, store_path: Path) -> None:
    manifest, files = plain
    assert (manifest["format"], manifest["vocabulary_size"], manifest["seed"]) == ("gato-shards-v3", 33_025, 0)
    swing, chat, picture = (manifest["tasks"][task] for task in ("Swing-v1", "dialogue/chat-v0", "toy/Picture-v0"))
    assert (swing["episodes_in"], swing["episodes_kept"], swing["episodes_below_threshold"]) == (40, 10, 30)
    assert (swing["num_timesteps"], swing["num_tokens"], swing["num_targets"]) == (100, 500, 100)
    assert (swing["tokens_per_step"], chat["tokens_per_step"], picture["tokens_per_step"]) == (5, None, 6)
    assert swing["random_return"] == -1000.0
    assert (chat["episodes_in"], chat["episodes_duplicate"], chat["episodes_kept"]) == (60, 6, 54)
    assert chat["changes"] == {"mail address": 1, "telephone number": 1}
    assert (picture["episodes_kept"], picture["num_timesteps"]) == (20, 80)
    assert manifest["licences"][1] == {
        "task_id": "dialogue/chat-v0", "licence": "MIT", "attributions": ["a made-up chat"],
    }  # fmt: skip
    assert manifest["dead_letters"]["count"] == 0
    assert (tmp_path / "plain" / "dead_letters.jsonl").read_bytes() == b""
    for shard in manifest["shards"]:
        data = (tmp_path / "plain" / shard["file"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
        assert shard["bytes"] <= 12_000 or shard["num_samples"] == 1
        assert shard["file"].startswith(f"{shard['task_id'].replace('/', '--')}-{shard['split']}-0000")
    assert {name for name in files if name.endswith(".tar")} == {shard["file"] for shard in manifest["shards"]}
    assert json.loads((tmp_path / "plain" / "filter_report.json").read_text()) == manifest["filter_report"]
    wids = json.loads((tmp_path / "plain" / "wids-validation.json").read_text())
    assert wids["__kind__"] == "wids-shard-index-v1"
    held_out = [shard for shard in manifest["shards"] if shard["split"] == "validation"]
    assert [entry["nsamples"] for entry in wids["shardlist"]] == [shard["num_samples"] for shard in held_out]


def test_every_episode_is_there_once_with_the_tokens_of_the_tokenizer(
    make_config: MakeConfig, store_path: Path, text_model: Path
) -> None:
    config = make_config(content=ContentSettings(personal_data=PersonalData.KEEP))
    manifest, _ = build_locally(config)
    store, text = EpisodeStore.open(store_path), TextTokenizer.load(text_model)
    seen: list[str] = []
    for shard in manifest["shards"]:
        tokenizer = EpisodeTokenizer(store.tasks[shard["task_id"]], text)
        for members in _samples(config.output / shard["file"]).values():
            pack = decode_pack(members)
            for index, facts in enumerate(pack.episodes):
                expected, sequence = tokenizer.encode(store.read(facts["episode_id"])), pack.sequence(index)
                assert facts["content_hash"] == expected.content_hash
                np.testing.assert_array_equal(sequence.tokens, expected.tokens)
                np.testing.assert_array_equal(sequence.targets, expected.targets)
                np.testing.assert_array_equal(
                    sequence.patches[sequence.patch_index], expected.patches[expected.patch_index]
                )
                seen.append(facts["episode_id"])
    assert len(seen) == len(set(seen)) == 10 + 54 + 20


def test_personal_data_does_not_reach_the_shards(
    plain: tuple[dict[str, Any], dict[str, str]], tmp_path: Path, text_model: Path
) -> None:
    text, said = TextTokenizer.load(text_model), ""
    for shard in plain[0]["shards"]:
        if shard["task_id"] == "dialogue/chat-v0":
            for members in _samples(tmp_path / "plain" / shard["file"]).values():
                pack = decode_pack(members)
                said += text.decode(pack.tokens[pack.tokens < text.num_pieces])
    assert "write to [mail]" in said
    assert "call [telephone] now" in said
    assert "jane" not in said
    assert "0123" not in said


def _samples(path: Path) -> dict[str, dict[str, bytes]]:
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            file = tar.extractfile(member)
            assert file is not None
            samples.setdefault(key, {})[extension] = file.read()
    return samples


def test_stock_readers_open_the_shards(plain: tuple[dict[str, Any], dict[str, str]], tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    shards = [shard for shard in plain[0]["shards"] if shard["task_id"] == "toy/Picture-v0"]
    urls = [str(tmp_path / "plain" / shard["file"]) for shard in shards]
    steps, keys = 0, set()
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        tokens = np.load(io.BytesIO(sample["tokens.npy"]), allow_pickle=False)
        assert tokens.dtype == np.uint16
        offsets = np.load(io.BytesIO(sample["timestep_offsets.npy"]), allow_pickle=False)
        assert offsets[-1] == len(tokens)
        steps += len(offsets) - 1
        keys.add(sample["__key__"])
    assert steps == 80
    assert len(keys) == sum(shard["num_samples"] for shard in shards)
    listing = subprocess.run(["tar", "tvf", urls[0]], capture_output=True, text=True, check=True).stdout
    assert "toy--Picture-v0-train-000000-000000.tokens.npy" in listing
    assert "1970-01-01" in listing


def test_another_seed_gives_another_order(make_config: MakeConfig, tmp_path: Path) -> None:
    one, _ = build_locally(make_config(output=tmp_path / "one"))
    other, _ = build_locally(make_config(output=tmp_path / "other", seed=1))
    assert one["tasks"]["Swing-v1"]["num_tokens"] == other["tasks"]["Swing-v1"]["num_tokens"]
    assert {s["sha256"] for s in one["shards"]}.isdisjoint(s["sha256"] for s in other["shards"])


def test_a_finished_folder_is_left_alone(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config()
    first, built = build_locally(config)
    assert built
    before = {path: path.stat().st_mtime_ns for path in config.output.glob("*")}
    monkeypatch.setattr(TarShard, "__init__", _fail)
    assert build_shards(config) == (first, False)
    assert {path: path.stat().st_mtime_ns for path in config.output.glob("*")} == before


def _fail(*_: object) -> None:
    raise AssertionError("nothing should be written")


@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_a_damaged_shard_is_rebuilt_alone(
    make_config: MakeConfig, plain: tuple[dict[str, Any], dict[str, str]], damage: str
) -> None:
    config = make_config()
    build_locally(config)
    victim = config.output / plain[0]["shards"][0]["file"]
    data = victim.read_bytes()
    others = {path: path.stat().st_mtime_ns for path in config.output.glob("toy--*.tar")}
    if damage == "cut":
        victim.write_bytes(data[: len(data) // 2])
    elif damage == "remove":
        victim.unlink()
    else:
        victim.write_bytes(data[:600] + bytes([data[600] ^ 1]) + data[601:])
        # A size tells nothing here; a run that has something else to do compares hashes.
        (config.output / "dataset.json").unlink()
    assert build_locally(config)[1]
    assert _files(config.output) == plain[1]
    assert {path: path.stat().st_mtime_ns for path in config.output.glob("toy--*.tar")} == others


def test_other_settings_rebuild_what_changed_and_remove_the_rest(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config()
    build_locally(config)
    kept = {path: path.stat().st_mtime_ns for path in config.output.glob("dialogue--*.tar")}
    (config.output / "Swing-v1-train-000009.tar").write_bytes(b"orphan")
    (config.output / "Swing-v1-train-000000.tar.1-abc.tmp").write_bytes(b"orphan")
    changed = dataclasses.replace(config, random_returns={"Swing-v1": -3000.0, "toy/Picture-v0": 0.0})
    manifest, built = build_locally(changed)
    assert built
    assert manifest["tasks"]["Swing-v1"]["episodes_kept"] > 10
    assert {path: path.stat().st_mtime_ns for path in config.output.glob("dialogue--*.tar")} == kept
    build_locally(dataclasses.replace(changed, output=tmp_path / "fresh"))
    assert _files(config.output) == _files(tmp_path / "fresh")


def test_a_failed_write_leaves_no_manifest_and_a_rerun_finishes(
    make_config: MakeConfig, plain: tuple[dict[str, Any], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()
    write, calls = TarShard.write, []

    def full_disk(self: TarShard, *arguments: Any) -> None:
        calls.append(1)
        if len(calls) > 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TarShard, "write", full_disk)
        with pytest.raises(OSError) as error:
            build_shards(config)
        assert error.value.errno == errno.ENOSPC
    assert not (config.output / "dataset.json").exists()
    assert list(config.output.glob("*.tmp")) == []
    done = {path: path.stat().st_mtime_ns for path in (config.output / ".records").glob("*.json")}
    assert done
    build_shards(config)
    assert _files(config.output) == plain[1]
    assert {path: path.stat().st_mtime_ns for path in done} == done


def test_poison_is_carried_and_counted(make_config: MakeConfig, store_path: Path, tmp_path: Path) -> None:
    poisoned = tmp_path / "poisoned"
    shutil.copytree(store_path, poisoned)
    store = EpisodeStore.open(poisoned)
    row = store.table("toy/Picture-v0").slice(3, 1).to_pylist()[0]
    data = next(path for path in poisoned.rglob("*") if path.is_file() and path.stat().st_size > 100_000)
    raw = bytearray(data.read_bytes())
    raw[row["offset"] + row["record_bytes"] - 40] ^= 0x10
    data.write_bytes(raw)
    config = make_config(store=poisoned)
    manifest, _ = build_shards(config)
    table = (config.output / "dead_letters.jsonl").read_bytes()
    (letter,) = (json.loads(line) for line in table.splitlines())
    assert (letter["episode_id"], letter["task_id"]) == (row["episode_id"], "toy/Picture-v0")
    assert letter["stage"] == "build"
    assert letter["reason"].startswith("CorruptionError: ")
    assert str(tmp_path) not in letter["reason"]
    assert manifest["dead_letters"] == {
        "file": "dead_letters.jsonl",
        "count": 1,
        "sha256": hashlib.sha256(table).hexdigest(),
        "reasons": {"build: CorruptionError": 1},
    }
    assert manifest["tasks"]["toy/Picture-v0"]["episodes_kept"] == 19
    assert manifest["tasks"]["toy/Picture-v0"]["episodes_dead"] == 1
    with pytest.raises(UserError, match=r"1 of 84 episodes could not be imported, read or tokenized, more .* 0.01"):
        build_shards(dataclasses.replace(config, max_dead_share=0.01))
    assert not (config.output / "dataset.json").exists()


def test_rejecting_personal_data_is_counted_apart(make_config: MakeConfig) -> None:
    content = ContentSettings(personal_data=PersonalData.REJECT)
    manifest, _ = build_locally(make_config(content=content, max_dead_share=0.0))
    chat = manifest["tasks"]["dialogue/chat-v0"]
    assert chat["content"]["rejected"] == {"personal data: mail address": 1, "personal data: telephone number": 1}
    assert [sample["excerpt"] for sample in chat["content"]["samples"]] == [
        "question number 5 / write to [mail]",
        "question number 7 / call [telephone] now",
    ]
    assert (chat["episodes_kept"], chat["episodes_rejected"], chat["episodes_duplicate"]) == (52, 2, 6)


def test_what_cannot_be_built_is_told_before_any_work(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="task dialogue/chat-v0: its field 'text' is text: expected --text-model FILE"):
        build_shards(make_config(text_model=None))
    with pytest.raises(UserError, match="task Swing-v1: the normalized filter needs the return of a random policy"):
        build_shards(make_config(random_returns={}))
    with pytest.raises(UserError, match="task Swing-v1: the paper filter would drop all 40 episodes"):
        build_shards(make_config(return_filter=ReturnFilter(rule=FilterRule.PAPER)))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("do not lose me")
    with pytest.raises(UserError, match=r"expected an empty folder or one with shards, got thesis.tex in it"):
        build_shards(make_config(output=tmp_path / "mine"))
    assert not (tmp_path / "shards").exists()


def test_a_defect_in_a_worker_is_not_hidden(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*_: object) -> None:
        raise TypeError("a defect")

    monkeypatch.setattr(shard_builder, "encode_pack", defect)
    with pytest.raises(Exception, match="a defect") as error:
        build_shards(make_config())
    assert not isinstance(error.value, UserError)


def _start_job(config: BuildConfig, workers: int) -> subprocess.Popen[bytes]:
    """The job in a process group of its own, slowed down so that it can be killed in the middle."""
    program = f"""
import pickle, sys, time
sys.path.insert(0, {str(ROOT)!r})
from beam_jobs import build_shards
from episode_store import files
config = pickle.loads(bytes.fromhex({pickle.dumps(config).hex()!r}))
real = files.write_json
def slow(path, data):
    real(path, data)
    time.sleep(0.15)
if {workers} == 1:
    from beam_jobs import shard_builder
    shard_builder.write_json = slow
build_shards.build_shards(config, workers={workers})
"""
    return subprocess.Popen([sys.executable, "-c", program], start_new_session=True, stderr=subprocess.DEVNULL)


def test_kill_9_in_the_middle_and_run_again(
    make_config: MakeConfig, plain: tuple[dict[str, Any], dict[str, str]]
) -> None:
    config = make_config()
    job = _start_job(config, workers=1)
    records = config.output / ".records"
    deadline = time.monotonic() + 60
    while len(list(records.glob("*.json"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    done = {path: path.stat().st_mtime_ns for path in records.glob("*.json")}
    assert 4 <= len(done) < 10
    assert not (config.output / "dataset.json").exists()
    build_shards(config)
    assert _files(config.output) == plain[1]
    assert {path: path.stat().st_mtime_ns for path in done} == done


_RUN_AND_KILL = """
import os, pickle, signal, sys, time
sys.path.insert(0, sys.argv[1])
from beam_jobs import build_shards, shard_builder

real = shard_builder.write_json
def slow(path, data):
    real(path, data)
    time.sleep(0.15)
shard_builder.write_json = slow  # forked workers have it too
config = pickle.loads(bytes.fromhex(sys.argv[2]))
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        build_shards.build_shards(config, workers=2)
        os._exit(0)
    os.setpgid(pid, pid)  # whichever of the two comes first
    time.sleep(float(line))
    ended, status = os.waitpid(pid, os.WNOHANG)
    if not ended:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    print("killed" if not ended else "finished" if status == 0 else "failed", flush=True)
"""


@pytest.mark.slow
def test_kill_9_of_driver_and_workers_at_random(
    make_config: MakeConfig, plain: tuple[dict[str, Any], dict[str, str]]
) -> None:
    """Six kills of the whole process group, whatever it is doing; KILL_SEED repeats them."""
    seed = os.environ.get("KILL_SEED") or str(random.SystemRandom().randrange(10**6))
    print(f"KILL_SEED={seed}")
    rng = random.Random(seed)
    config = make_config()
    # One process that has imported Beam and forks each job: otherwise most of the time would go by importing.
    command = [sys.executable, "-c", _RUN_AND_KILL, str(ROOT), pickle.dumps(config).hex()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as jobs:
        assert jobs.stdin
        assert jobs.stdout

        def run_for(seconds: float) -> str:
            jobs.stdin.write(f"{seconds}\n")
            jobs.stdin.flush()
            return jobs.stdout.readline().strip()

        kills, seen = 0, []
        while kills < 6:
            outcome = run_for(rng.uniform(0.05, 1.2))
            seen.append((outcome, len(list(config.output.glob(".records/*.json")))))
            if outcome == "finished":
                assert _files(config.output) == plain[1]
                shutil.rmtree(config.output)
            else:
                assert outcome == "killed", seen
                kills += 1
        jobs.stdin.close()
    print(seen)
    build_shards(config, workers=2, timeout_seconds=60)
    assert _files(config.output) == plain[1]
