"""Membership and order of shards are a pure function of data and seed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from beam_jobs.inspection import Verdict
from beam_jobs.plan import (
    BuildConfig,
    divide,
    estimate_bytes,
    order_hash,
    plan_task,
    read_random_returns,
    sort_references,
)
from beam_jobs.stores import Stores
from episode_store.errors import UserError
from episode_store.spec import ArraySpec, Modality
from episode_store.task import TaskSpec

MakeConfig = Callable[..., BuildConfig]


def test_order_hash_is_fixed_for_ever() -> None:
    # Literal: another value would move every episode of every data set to another shard.
    assert order_hash(0, "00" * 16) == 12_198_031_602_842_326_771
    assert order_hash(1, "00" * 16) == 13_014_067_540_703_597_019


def test_divide_is_complete_disjoint_and_ordered_by_hash() -> None:
    references = [(f"{index:032x}", f"{index:x}") for index in range(500)]
    shards = divide("toy/Task-v0", "train", references, 7, seed=3)
    assert [shard.name for shard in shards] == [f"toy--Task-v0-train-{index:06d}" for index in range(7)]
    assert sorted(reference for shard in shards for reference in shard.references) == references
    for index, shard in enumerate(shards):
        orders = [order_hash(3, episode_id) for episode_id, _ in shard.references]
        assert orders == sorted(orders)
        assert {order % 7 for order in orders} == {index}


def test_divide_ignores_the_order_of_its_input_and_heeds_the_seed() -> None:
    references = [(f"{index:032x}", "") for index in range(100)]
    assert divide("a-v0", "train", references, 3, seed=0) == divide("a-v0", "train", references[::-1], 3, seed=0)
    assert divide("a-v0", "train", references, 3, seed=0) != divide("a-v0", "train", references, 3, seed=1)


def test_sort_references_drops_repetitions() -> None:
    assert len(sort_references(0, [("a", "1"), ("b", "2"), ("a", "1")])) == 2


def test_control_tasks_are_all_training_data(make_config: MakeConfig) -> None:
    config = make_config()
    plan = plan_task(Stores.open(config.sources), "Swing-v1", config)
    assert {shard.split for shard in plan.shards} == {"train"}
    # Returns -1000, -980 ... -220; windows of 4, so E = -250; threshold -1000 + 0.8 * 750 = -400: the last ten.
    assert plan.report.expert_return == pytest.approx(-250.0)
    assert plan.report.threshold == pytest.approx(-400.0)
    assert plan.num_episodes == 10


def test_corpus_is_held_out_by_group_whatever_the_seed(make_config: MakeConfig) -> None:
    stores = Stores.open(make_config().sources)
    ids = stores.episode_ids("dialogue/chat-v0").to_pylist()
    verdict = Verdict(
        fingerprint="",
        copies=dict.fromkeys(ids[:3], ids[5]),
        near_copies={ids[3]: ids[5]},
        rejected={ids[4]: "word list mine"},
        samples=[],
    )

    def held_out(seed: int) -> set[tuple[str, str]]:
        plan = plan_task(stores, "dialogue/chat-v0", make_config(seed=seed), verdict)
        return {reference for shard in plan.shards if shard.split == "validation" for reference in shard.references}

    plan = plan_task(stores, "dialogue/chat-v0", make_config(), verdict)
    report = plan.report
    assert (report.num_episodes, report.num_duplicates, report.num_rejected, report.num_kept) == (60, 4, 1, 55)
    assert plan.num_episodes == 55
    assert plan.content["rejected"] == {"word list mine": 1}
    assert plan.attributions == ("a made-up chat",)
    assert held_out(0) == held_out(1)
    assert 0 < len(held_out(0)) < 27
    everything = plan_task(stores, "dialogue/chat-v0", make_config(holdout=0.0), verdict)
    assert {shard.split for shard in everything.shards} == {"train"}


def test_size_estimate() -> None:
    spec = TaskSpec(
        task_id="a-v0",
        observation_spec={
            "image": ArraySpec(modality=Modality.IMAGE, shape=(32, 40, 3), dtype="uint8"),
            "state": ArraySpec(modality=Modality.CONTINUOUS, shape=(5,)),
        },
        action_spec={"action": ArraySpec(modality=Modality.DISCRETE, dtype="int64", num_values=(2,))},
    )
    # 5 + separator + 1 tokens and 2 x 3 patches: 3 * 13 + 8 + 4 + 6 * 72 bytes a step.
    assert estimate_bytes(spec, np.array([10, 90])) == 100 * 483


def test_read_random_returns(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({"a-v0": {"random_return": 1, "expert_return": 2}, "b-v0": {"random_return": None}}))
    assert read_random_returns(path) == {"a-v0": 1.0}
    for text in ("[1]", '{"a-v0": 3}', '{"a-v0": {"random_return": "x"}}', "{"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"scores\.json: "):
            read_random_returns(path)
    with pytest.raises(UserError, match="no such file; run `collectors score"):
        read_random_returns(tmp_path / "missing.json")
