"""The return filter against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from beam_jobs.return_filter import (
    FilterRule,
    expert_return,
    expert_return_of_agents,
    filter_task,
    keep_corpus,
    return_threshold,
    return_window,
)
from episode_store.errors import UserError


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
    assert expert_return_of_agents(returns, ["a"] * 20 + ["b"] * 20) == pytest.approx(20.0)
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
    kept, report = filter_task("Pendulum-v1", returns, ["ppo"] * 5, rule=FilterRule.NORMALIZED, random_return=-1200.0)
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
    for rule in FilterRule:
        kept, report = filter_task("Same-v0", returns, ["a"] * 1000, rule=rule, random_return=0.1)
        assert kept.all()
        assert sum(report.histogram_kept) == 1000


def test_paper_rule_on_negative_returns_is_refused_with_advice() -> None:
    with pytest.raises(UserError) as error:
        filter_task("Acrobot-v1", np.array([-90.0, -80.0]), ["a"] * 2, rule=FilterRule.PAPER, random_return=None)
    assert str(error.value) == (
        "task Acrobot-v1: the paper filter would drop all 2 episodes (threshold -64, best return -80, expert return "
        "-80); use --filter normalized, which admits negative returns"
    )


def test_missing_random_return() -> None:
    with pytest.raises(UserError, match="run `collectors score --tasks CartPole-v1 --output FILE` and pass --scores"):
        filter_task("CartPole-v1", np.ones(3), ["a"] * 3, rule=FilterRule.NORMALIZED, random_return=None)
    filter_task("CartPole-v1", np.ones(3), ["a"] * 3, rule=FilterRule.PAPER, random_return=None)


def test_corpus_keeps_the_first_of_equal_contents() -> None:
    kept, report = keep_corpus("text/x-v0", ["b", "a", "b", "c", "a"], np.zeros(5))
    assert kept.tolist() == [True, True, False, True, False]
    assert (report.num_duplicates, report.num_kept, report.threshold) == (2, 3, None)
