"""Corpora are looked at before the plan: the same verdicts on every way to run, kept for the next run."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from beam_jobs import filter_report, inspection
from beam_jobs.build_shards import build_locally, build_shards
from beam_jobs.content_filter import ContentSettings
from beam_jobs.inspection import gather
from beam_jobs.plan import BuildConfig
from beam_jobs.stores import Source
from episode_store import corpus
from episode_store.episode import EpisodeMetadata
from episode_store.errors import UserError
from episode_store.store import EpisodeStore
from episode_store.writer import EpisodeWriter

MakeConfig = Callable[..., BuildConfig]
WORDS = [f"word{number}" for number in range(2_000)]


def _text(seed: int, length: int = 120) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=length))


def _write_corpus(path: Path, task_id: str, texts: list[str]) -> Path:
    with EpisodeWriter(path) as writer:
        writer.add_task(
            corpus.corpus_spec(task_id, observation={"text": corpus.TEXT}, kind="text", max_steps=1, licence="MIT")
        )
        for index, text in enumerate(texts):
            metadata = EpisodeMetadata(agent_id="test", collection_index=index)
            writer.add_episode(
                corpus.corpus_episode(
                    task_id, observations={"text": ["", ""]}, actions=[text], terminated=True, metadata=metadata
                )
            )
    return path


@pytest.fixture
def config(make_config: MakeConfig, store_path: Path, tmp_path: Path) -> BuildConfig:
    """Two corpora with copies inside and across them, made-up bad words, and a control task; blocks of 16."""
    first = [_text(seed) for seed in range(40)]
    second = [_text(seed) for seed in range(100, 130)]
    first[7] = first[3]  # an exact copy
    first[9] = first[4].replace(first[4].split()[50], "changed", 1)  # a near copy
    second[5] = first[11]  # copies across the corpora
    second[6] = first[12] + " and more"
    first[20] += " blorp"
    second[21] += " BLORP a@b.org"
    sources = (
        Source(name="one", store=_write_corpus(tmp_path / "one", "text/one-v0", first)),
        Source(name="two", store=_write_corpus(tmp_path / "two", "text/two-v0", second)),
        Source(name="demo", store=store_path, tasks=("Swing-v1",)),
    )
    words = tmp_path / "mine.txt"
    words.write_text("blorp\n")
    return make_config(
        sources=sources,
        task_ids=("Swing-v1", "text/one-v0", "text/two-v0"),
        content=ContentSettings(word_lists=(str(words),)),
    )


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "BLOCK_EPISODES", 16)


def _files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in (".tar", ".json", ".jsonl", ".model", ".tmp")
    }


def _with_output(config: BuildConfig, output: Path) -> BuildConfig:
    import dataclasses

    return dataclasses.replace(config, output=output)


def test_copies_and_words_are_left_out_and_told(config: BuildConfig) -> None:
    manifest, _ = build_locally(config)
    one, two = (manifest["tasks"][name] for name in ("text/one-v0", "text/two-v0"))
    assert (one["content"]["copies"], one["content"]["near_copies"]) == (1, 1)
    assert (two["content"]["copies"], two["content"]["near_copies"]) == (1, 1)
    assert (one["content"]["rejected"], two["content"]["rejected"]) == ({"word list mine": 1}, {"word list mine": 1})
    assert (one["episodes_kept"], one["episodes_duplicate"], one["episodes_rejected"]) == (37, 2, 1)
    assert (two["episodes_kept"], two["episodes_duplicate"], two["episodes_rejected"]) == (27, 2, 1)
    (sample,) = two["content"]["samples"]
    assert sample["excerpt"].endswith("B*** [mail]")
    assert manifest["tasks"]["Swing-v1"]["content"] == {}
    kept = {facts for shard in manifest["shards"] for facts in [shard["task_id"]]}
    assert kept == {"Swing-v1", "text/one-v0", "text/two-v0"}
    assert manifest["settings"]["content"]["word_lists"][0]["name"] == "mine"
    ids = EpisodeStore.open(config.sources[0].store).table("text/one-v0")["episode_id"].to_pylist()
    verdict = json.loads(inspection.verdict_file(config.output / ".records", "text/one-v0").read_text())
    assert verdict["copies"] == {ids[7]: ids[3]}
    assert verdict["near_copies"] == {ids[9]: ids[4]}
    assert list(verdict["rejected"]) == [ids[20]]


@pytest.mark.parametrize("flags", [[], ["--direct_runner_bundle_repeat=1"]])
def test_beam_gives_the_bytes_of_the_plain_loop(config: BuildConfig, tmp_path: Path, flags: list[str]) -> None:
    plain, _ = build_locally(_with_output(config, tmp_path / "plain"))
    manifest, _ = build_shards(config, beam_flags=flags)
    assert manifest == plain
    assert _files(config.output) == _files(tmp_path / "plain")


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_the_plain_loop(
    config: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_locally(_with_output(config, tmp_path / "plain"))
    # Workers are new processes with blocks of their own size: that must not show in the bytes either.
    build_shards(config, workers=2, timeout_seconds=300)
    assert _files(config.output) == _files(tmp_path / "plain")


def test_verdicts_are_kept_for_the_next_run(config: BuildConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, _ = build_locally(config)
    before = _files(config.output)
    (config.output / "dataset.json").unlink()

    def fail(*_: object) -> None:
        raise AssertionError("nothing should be looked at again")

    with monkeypatch.context() as patch:
        patch.setattr(inspection, "buckets", fail)
        assert build_shards(config) == (manifest, True)
    assert _files(config.output) == before
    # Another list is another verdict.
    Path(config.content.word_lists[0]).write_text("blorp\nword7\n")
    changed, built = build_shards(config)
    assert built
    assert changed["tasks"]["text/one-v0"]["episodes_rejected"] > 1


def test_a_filter_that_leaves_nothing_is_an_error(config: BuildConfig) -> None:
    Path(config.content.word_lists[0]).write_text("\n".join(WORDS))
    with pytest.raises(
        UserError, match=r"task text/one-v0: the content filter would drop all 40 episodes \(40 rejected"
    ):
        build_locally(config)
    with pytest.raises(UserError, match="task text/one-v0: the content filter would drop all 40 episodes"):
        build_shards(config)


def test_an_unreadable_text_is_a_dead_letter_of_its_shard(config: BuildConfig) -> None:
    store = EpisodeStore.open(config.sources[0].store)
    row = store.table("text/one-v0").slice(2, 1).to_pylist()[0]
    (data,) = (segment.files.data for segment in store.segments().values())
    raw = bytearray(data.read_bytes())
    for place in range(row["offset"] + row["record_bytes"] // 4, row["offset"] + row["record_bytes"] * 3 // 4):
        raw[place] ^= 0x10
    data.write_bytes(raw)
    build_shards(config)
    (letter,) = (json.loads(line) for line in (config.output / "dead_letters.jsonl").read_text().splitlines())
    assert (letter["task_id"], letter["episode_id"], letter["stage"]) == ("text/one-v0", row["episode_id"], "build")


def test_gather_takes_parts_in_any_order_and_twice() -> None:
    samples = [{"episode_id": f"{number}", "reason": "r", "excerpt": "x"} for number in range(9)]
    parts = [
        json.dumps({"rejected": {"a": "r"}, "samples": samples[4:]}),
        json.dumps({"rejected": {"b": "r"}, "samples": samples[:4]}),
        json.dumps({"near_copies": {"c": "z"}}),
        json.dumps({"near_copies": {"c": "y"}}),
        json.dumps({"copies": {"d": "x"}}),
        json.dumps({"near_copies": {"d": "w"}}),
        "",
    ]
    verdict = gather(parts, "f")
    assert verdict is not None
    assert gather([*parts[::-1], parts[0]], "f") == verdict
    assert (verdict.copies, verdict.near_copies) == ({"d": "x"}, {"c": "y"})
    assert verdict.dropped == {"a", "b", "c", "d"}
    assert [sample["episode_id"] for sample in verdict.samples] == ["0", "1", "2", "3", "4"]
    assert gather(["", ""], "f") is None


def test_the_page_is_whole_and_escapes_what_it_shows(config: BuildConfig) -> None:
    manifest, _ = build_locally(config)
    reports: list[dict[str, Any]] = [
        {**report, "content": manifest["tasks"][report["task_id"]]["content"]} for report in manifest["filter_report"]
    ]
    reports[1]["content"]["samples"][0]["excerpt"] = "<script>alert(1)</script>"
    page = filter_report.page(reports)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "http" not in page  # nothing is fetched
    assert page.count("<svg") == 1
    assert 'class="kept"' in page
    assert "word list mine" in page
    lines = list(filter_report.notes(reports))
    assert "text/two-v0: 1 rejected: word list mine" in lines
