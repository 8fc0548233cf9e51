"""The return filter against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_jobs.return_filter import (
    FilterRule,
    ReturnFilter,
    corpus_report,
    expert_return,
    expert_return_of_agents,
    filter_task,
    kept_by,
    return_threshold,
    return_window,
)
from episode_store.errors import UserError

NORMALIZED, PAPER = ReturnFilter(rule=FilterRule.NORMALIZED), ReturnFilter(rule=FilterRule.PAPER)


def test_return_window() -> None:
    assert [return_window(n) for n in (1, 9, 10, 19, 20, 999, 9_990, 10_000, 1_000_000)] == [
        1, 1, 1, 1, 2, 99, 999, 1000, 1000,
    ]  # fmt: skip


def test_expert_return_is_the_best_window() -> None:
    # 20 episodes, so windows of two: the best pair is (9, 7), though 10 stands alone.
    returns = np.array([0, 10, 0, 0, 9, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], float)
    assert expert_return(returns) == pytest.approx(8.0, abs=1e-12)
    # Order matters: the same returns sorted have the pair (9, 10).
    assert expert_return(np.sort(returns)) == pytest.approx(9.5, abs=1e-12)


def test_expert_return_of_few_episodes_is_their_best() -> None:
    assert expert_return(np.array([3.0])) == 3.0
    assert expert_return(np.array([-5.0, -2.0, -9.0])) == pytest.approx(-2.0)


def test_expert_return_against_the_plain_definition() -> None:
    returns = np.random.default_rng(0).normal(-200, 50, 137)
    window = 13
    plain = max(returns[j : j + window].mean() for j in range(len(returns) - window + 1))
    assert expert_return(returns) == pytest.approx(plain, rel=1e-12)


def test_windows_do_not_mix_agents() -> None:
    # Twenty episodes each; mixed, a window of four would hold both of the good runs.
    returns = np.concatenate([np.zeros(18), [10.0, 10.0], [20.0, 20.0], np.zeros(18)])
    expert, rows = expert_return_of_agents(returns, ["a"] * 20 + ["b"] * 20)
    assert expert == pytest.approx(20.0)
    assert rows.tolist() == [20, 21]
    assert expert_return(returns) == pytest.approx(15.0)


@pytest.mark.parametrize(
    ("rule", "expert", "random", "expected"),
    [
        (FilterRule.PAPER, 100.0, None, 80.0),
        (FilterRule.PAPER, -100.0, None, -80.0),  # above the expert: the trap
        (FilterRule.NORMALIZED, 100.0, 0.0, 80.0),
        (FilterRule.NORMALIZED, -200.0, -1200.0, -400.0),
        (FilterRule.NORMALIZED, -80.0, -500.0, -164.0),
        (FilterRule.NONE, 5.0, None, None),
    ],
)
def test_threshold(rule: FilterRule, expert: float, random: float | None, expected: float | None) -> None:
    assert return_threshold(rule, expert, random) == pytest.approx(expected)


def test_filter_keeps_at_the_threshold_and_reports() -> None:
    returns = np.array([-1200.0, -401.0, -400.0, -300.0, -200.0])
    kept, report = filter_task("Pendulum-v1", returns, ["ppo"] * 5, return_filter=NORMALIZED, random_return=-1200.0)
    assert kept.tolist() == [False, False, True, True, True]
    assert (report.expert_return, report.threshold) == (pytest.approx(-200.0), pytest.approx(-400.0))
    assert (report.num_episodes, report.num_kept, report.num_duplicates) == (5, 3, 0)
    assert (report.min_return, report.max_return) == (-1200.0, -200.0)
    assert report.histogram_edges[0] == -1200.0
    assert report.histogram_edges[-1] == -200.0
    assert report.histogram_dropped == (1, *[0] * 14, 1, *[0] * 4)
    assert report.histogram_kept == (*[0] * 16, 1, 0, 1, 1)


def test_equal_returns_all_stay() -> None:
    returns = np.full(1000, 0.1)
    for rule in ("normalized", "paper", "quantile:0.9", "top:1000", "none"):
        which = ReturnFilter.parse(rule)
        kept, report = filter_task("Same-v0", returns, ["a"] * 1000, return_filter=which, random_return=0.1)
        assert kept.all()
        assert sum(report.histogram_kept) == 1000


def test_paper_rule_on_negative_returns_is_refused_with_advice() -> None:
    with pytest.raises(UserError) as error:
        filter_task("Acrobot-v1", np.array([-90.0, -80.0]), ["a"] * 2, return_filter=PAPER, random_return=None)
    assert str(error.value) == (
        "task Acrobot-v1: the paper filter would drop all 2 episodes (threshold -64, best return -80, expert return "
        "-80); use --filter normalized, which admits negative returns"
    )


def test_missing_random_return() -> None:
    with pytest.raises(UserError, match="run `collectors score --tasks CartPole-v1 --output FILE` and pass --scores"):
        filter_task("CartPole-v1", np.ones(3), ["a"] * 3, return_filter=NORMALIZED, random_return=None)
    filter_task("CartPole-v1", np.ones(3), ["a"] * 3, return_filter=PAPER, random_return=None)


def test_corpus_report() -> None:
    report = corpus_report("text/x-v0", np.zeros(5), num_duplicates=2, num_rejected=1)
    assert (report.num_duplicates, report.num_rejected, report.num_kept, report.threshold) == (2, 1, 2, None)


@pytest.mark.parametrize(
    ("rule", "kept", "threshold"),
    [
        ("quantile:0.0", [1, 1, 1, 1, 1, 1], -3.0),
        ("quantile:0.5", [0, 1, 1, 0, 0, 1], 5.0),
        ("quantile:0.8", [0, 1, 0, 0, 0, 1], 7.0),
        ("quantile:0.81", [0, 1, 0, 0, 0, 0], 9.0),
        ("top:1", [0, 1, 0, 0, 0, 0], 9.0),
        ("top:4", [0, 1, 1, 1, 0, 1], 2.0),  # of the two with return 2 the earlier
        ("top:100", [1, 1, 1, 1, 1, 1], -3.0),
        ("none", [1, 1, 1, 1, 1, 1], None),
    ],
)
def test_quantile_and_top(rule: str, kept: list[int], threshold: float | None) -> None:
    returns = np.array([-3.0, 9.0, 5.0, 2.0, 2.0, 7.0])
    mask, lowest = kept_by(ReturnFilter.parse(rule), returns, 9.0, None)
    assert mask.tolist() == [bool(each) for each in kept]
    assert lowest == threshold


@pytest.mark.parametrize(
    "text", ["", "best", "quantile", "quantile:1", "quantile:-0.1", "quantile:nan", "top", "top:0", "top:2.5", "none:1"]
)
def test_rules_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match=f"filter '{text}': expected normalized, paper, none, quantile:Q"):
        ReturnFilter.parse(text)


def test_rules_are_written_as_they_are_read() -> None:
    for text in ("normalized", "paper", "none", "quantile:0.75", "top:500"):
        assert str(ReturnFilter.parse(text)) == text


def test_the_guard_stops_a_filter_that_keeps_luck_alone() -> None:
    # A lucky start, and then a specialist whose best ten episodes have -100 each: the paper's threshold is -80, and
    # what it keeps is the luck.
    returns = np.array([-50.0] + [-300.0] * 89 + [-100.0] * 10)
    with pytest.raises(UserError) as error:
        filter_task("Luck-v0", returns, ["a"] * 100, return_filter=PAPER, random_return=None)
    assert str(error.value) == (
        "task Luck-v0: the paper filter would drop all 10 episodes of its specialist's best (threshold -80, best "
        "return -50, expert return -100); use --filter normalized, which admits negative returns"
    )
    with pytest.raises(UserError, match="the top:1 filter would drop all 10 episodes of its specialist's best"):
        filter_task("Luck-v0", returns, ["a"] * 100, return_filter=ReturnFilter.parse("top:1"), random_return=None)
    kept, report = filter_task("Luck-v0", returns, ["a"] * 100, return_filter=NORMALIZED, random_return=-300.0)
    assert (report.num_kept, report.num_best, report.num_best_kept) == (11, 10, 10)
    assert kept.tolist() == [True] + [False] * 89 + [True] * 10


def _plainly(returns: list[float], agents: list[str], rule: str, random: float) -> list[bool]:
    """The filter written again in loops, from the paper's words alone."""
    best = -float("inf")
    for agent in set(agents):
        own = [value for value, who in zip(returns, agents, strict=True) if who == agent]
        window = min(1000, max(1, len(own) // 10))
        best = max(best, *(sum(own[j : j + window]) / window for j in range(len(own) - window + 1)), -float("inf"))
    threshold = 0.8 * best if rule == "paper" else random + 0.8 * (best - random)
    return [value >= threshold - 1e-9 * max(1.0, abs(best)) for value in returns]


@given(
    returns=st.lists(st.integers(-1000, 1000).map(float), min_size=1, max_size=120),
    agents=st.integers(1, 3),
    random=st.integers(-1200, 100).map(float),
    rule=st.sampled_from(["paper", "normalized"]),
)
def test_against_an_independent_computation(returns: list[float], agents: int, random: float, rule: str) -> None:
    names = [f"agent{index % agents}" for index in range(len(returns))]
    expected = _plainly(returns, names, rule, random)
    which = ReturnFilter.parse(rule)
    try:
        kept, _ = filter_task("a-v0", np.array(returns), names, return_filter=which, random_return=random)
    except UserError:
        _, best = expert_return_of_agents(np.array(returns), names)
        assert not any(expected[row] for row in best)
    else:
        assert kept.tolist() == expected
