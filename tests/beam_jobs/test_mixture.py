"""A mixture file: what it may say, imports made once, and shards of several sources with their weights and splits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_jobs import mixture
from beam_jobs.build_shards import build_locally
from beam_jobs.cli import main
from beam_jobs.plan import BuildConfig
from beam_jobs.stores import Source, Stores
from episode_store.errors import UserError
from episode_store.splits import split_of
from episode_store.store import EpisodeStore
from trainer.config import SamplerConfig
from trainer.sampler import Sampler
from trainer.shards import Dataset

MakeConfig = Callable[..., BuildConfig]


def _texts(path: Path, name: str, number: int) -> Path:
    rows = [{"text": f"{name} text number {index}"} for index in range(number)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def mixture_file(tmp_path: Path, store_path: Path) -> Path:
    """The small store and two sets of texts, one with a broken line."""
    lines = _texts(tmp_path / "good.jsonl", "good", 12)
    lines.write_text(lines.read_text() + "{broken\n")
    pq.write_table(pa.table({"text": [f"held out number {index}" for index in range(6)]}), tmp_path / "held.parquet")
    path = tmp_path / "mixture.toml"
    path.write_text(
        f"""
        stores = "imported"

        [[source]]
        path = "{store_path}"
        name = "demo"
        weight = 3
        tasks = ["Swing-v1", "toy/*"]

        [[source]]
        path = "good.jsonl"
        licence = "CC0-1.0"
        weight = 0.5
        split = "train"

        [[source]]
        path = "held.parquet"
        kind = "text"
        licence = "MIT"
        weight = 0
        split = "validation"
        task_id = "text/other-v3"
        """
    )
    return path


def test_read(mixture_file: Path, store_path: Path) -> None:
    demo, good, held = mixture.read(mixture_file)
    assert (demo.name, demo.kind, demo.path, demo.store) == ("demo", "store", store_path, store_path)
    assert (demo.tasks, demo.weight, demo.split, demo.licence) == (("Swing-v1", "toy/*"), 3.0, "by-content", "")
    assert (good.name, good.kind, good.store.name, good.store.parent.name) == ("good", "text", "good", "imported")
    assert (held.task_id, held.split, held.weight) == ("text/other-v3", "validation", 0.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[source]", "is not TOML"),
        ("", r"expected at least one \[\[source\]\], got none"),
        ("source = 3", r"expected at least one \[\[source\]\], got none"),
        ("sources = 3", "'sources': expected only stores and source; did you mean 'source'"),
        ("[[source]]\nweight = 1", "source 1: expected a path, got none"),
        ('[[source]]\npath = "nowhere"', "nowhere: no such file or folder"),
        ('[[source]]\npath = "good.jsonl"\nwieght = 1', "'wieght': expected one of .*; did you mean 'weight'"),
        ('[[source]]\npath = "good.jsonl"\nweight = "1"', "weight: expected a number, got '1'"),
        ('[[source]]\npath = "good.jsonl"\nweight = true', "weight: expected a number, got True"),
        ('[[source]]\npath = "good.jsonl"\nlicence = "MIT"\nweight = -1', "weight: expected a number of at least 0"),
        ('[[source]]\npath = "good.jsonl"\nlicence = "MIT"\nsplit = "test"', "split 'test': expected one of"),
        ('[[source]]\npath = "good.jsonl"', "expected the licence of 'good', as SPDX names it, or licence"),
        ('[[source]]\npath = "good.jsonl"\nkind = "txt"', "format 'txt': expected one of"),
        ('[[source]]\npath = "good.jsonl"\nname = "../up"', "name '../up': expected letters, digits"),
        ('[[source]]\npath = "mixture.toml"', "no known format; say which with kind"),
        ('[[source]]\npath = "good.jsonl"\nlicence = "MIT"\n' * 2, "two sources are called 'good'"),
        ('[[source]]\npath = "good.jsonl"\nlicence = "MIT"\nweight = 0', "every source has weight 0"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, message: str) -> None:
    _texts(tmp_path / "good.jsonl", "good", 2)
    path = tmp_path / "mixture.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        mixture.read(path)
    assert "\n" not in str(error.value)


def test_sets_are_imported_once(mixture_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = mixture.read(mixture_file)
    seen: list[str] = []

    def bar(name: str, items: Any, total: int | None) -> Any:
        seen.append(name)
        return items

    sources = mixture.prepare(entries, progress=bar)
    assert seen == ["good", "held"]
    assert len(EpisodeStore.open(sources[1].store)) == 12
    (dead,) = sources[1].dead
    assert (dead["task_id"], dead["episode_id"], dead["stage"]) == ("text/good-v0", "good.jsonl line 13", "import")
    assert mixture.prepare(entries, progress=bar) == sources
    assert seen == ["good", "held"]
    entries[1].path.write_text("changed")
    with pytest.raises(UserError, match=r"source 'good': .*good\.jsonl or its settings changed since it was imported"):
        mixture.prepare(entries)


def test_shards_of_a_mixture(mixture_file: Path, make_config: MakeConfig) -> None:
    sources = mixture.prepare(mixture.read(mixture_file))
    tasks = tuple(Stores.open(sources).tasks)
    assert tasks == ("Swing-v1", "text/good-v0", "text/other-v3", "toy/Picture-v0")
    config = make_config(sources=sources, task_ids=tasks)
    manifest, _ = build_locally(config)
    assert {task_id: task["weight"] for task_id, task in manifest["tasks"].items()} == {
        "Swing-v1": 1.5, "text/good-v0": 0.5, "text/other-v3": 0.0, "toy/Picture-v0": 1.5,
    }  # fmt: skip
    assert {task_id: task["source"] for task_id, task in manifest["tasks"].items()} == {
        "Swing-v1": "demo", "text/good-v0": "good", "text/other-v3": "held", "toy/Picture-v0": "demo",
    }  # fmt: skip
    splits = {(shard["task_id"], shard["split"]) for shard in manifest["shards"]}
    assert {split for task_id, split in splits if task_id == "text/good-v0"} == {"train"}
    assert {split for task_id, split in splits if task_id == "text/other-v3"} == {"validation"}
    assert [entry["licence"] for entry in manifest["licences"]] == ["", "CC0-1.0", "MIT", ""]
    (letter,) = (json.loads(line) for line in (config.output / "dead_letters.jsonl").read_text().splitlines())
    assert letter["episode_id"] == "good.jsonl line 13"
    assert [source["name"] for source in manifest["sources"]] == ["demo", "good", "held"]
    assert str(mixture_file.parent) not in json.dumps(manifest)

    data = Dataset.open(config.output).load("train")
    assert {task_id: task.weight for task_id, task in data.items()} == {
        "Swing-v1": 1.5, "text/good-v0": 0.5, "toy/Picture-v0": 1.5,
    }  # fmt: skip
    sampler = Sampler(data, SamplerConfig(context_tokens=128, prompt_share=0.0), seed=0)
    counts = dict.fromkeys(sampler.task_ids, 0)
    for number in range(1_500):
        for index, task_id in enumerate(sampler.task_ids):
            counts[task_id] += int((sampler.sequence(number).target_tasks == index).sum())
    assert counts["text/good-v0"] > 0
    one = Sampler(data, SamplerConfig(context_tokens=128, task_weights={"text/*": 0.0}), seed=0)
    assert all((one.sequence(number).target_tasks != 1).all() for number in range(50))


def test_two_sources_with_one_task(store_path: Path, make_config: MakeConfig) -> None:
    one, two = (Source(name=name, store=store_path) for name in ("one", "two"))
    with pytest.raises(UserError, match="task Swing-v1: it is in source 'one' and in 'two'; leave it out of one"):
        Stores.open((one, two))


def test_the_command_line_takes_a_mixture(
    mixture_file: Path, text_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "build-shards", "--mixture", str(mixture_file), "--text-model", str(text_model), "--filter", "paper",
        "--filter-for", "Swing-v1=top:5", "--output", str(tmp_path / "shards"), "--max-dead-share",
    ]  # fmt: skip
    assert main([*arguments, "0.01"]) == 2
    assert "1 of 44 episodes could not be imported, read or tokenized" in capsys.readouterr().err
    assert main([*arguments, "0.1"]) == 0
    out = capsys.readouterr().out
    assert "dead 1 x import: is not JSON in UTF-8; see dead_letters.jsonl" in out
    page = tmp_path / "filters.html"
    assert main(["filter-report", "--shards", str(tmp_path / "shards"), "--html", str(page)]) == 0
    assert page.read_text().startswith("<!doctype html>")
    with pytest.raises(SystemExit) as error:
        main([*arguments, "0.1", "--store", "x"])
    assert error.value.code == 2


@given(
    groups=st.lists(st.text("abc", max_size=2), min_size=1, max_size=40),
    holdout=st.floats(0, 0.99),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=200)
def test_a_group_is_never_on_both_sides(groups: list[str], holdout: float, order: Any) -> None:
    """Whatever the order, the number of episodes and the task: the split is a function of group or content alone."""
    episodes = [(group, f"{index % 7:032x}") for index, group in enumerate(groups)]

    def splits(listed: list[tuple[str, str]]) -> dict[tuple[str, str], str]:
        return {
            each: split_of(is_corpus=True, split_group=each[0], content_hash=each[1], holdout=holdout)
            for each in listed
        }

    shuffled = list(episodes)
    order.shuffle(shuffled)
    assert splits(episodes) == splits(shuffled)
    sides: dict[str, set[str]] = {}
    for (group, content_hash), split in splits(episodes).items():
        sides.setdefault(group or content_hash, set()).add(split)
    assert all(len(found) == 1 for found in sides.values())
