"""The return filter: which episodes of a task are good enough to imitate (Gato paper, section 2.2 and appendix).

An agent is recorded while it trains, so its episodes have an order. Its expert return is the best mean over a window
of consecutive episodes,

    E = max over j of mean(R[j : j + W]),    W = min(1000, max(1, 0.1 * N)),

and a task's expert return is that of its best agent. The paper keeps R >= 0.8 * E. With E < 0 that threshold lies
above E and nothing survives, so the default is the same rule on the normalised scale,

    R >= random + 0.8 * (E - random),

with `random` the mean return of a uniform random policy; both agree where random = 0. Where returns say little about
quality, a share of the best (`quantile`) or a number of them (`top`) may be kept instead.

Whatever the rule, a task that would lose every episode, or every episode of the window that E is the mean of, stops the
job: what remains would not be what its specialist does.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from episode_store.errors import UserError

KEPT_SHARE_OF_EXPERT = 0.8
MAX_RETURN_WINDOW = 1000
RETURN_WINDOW_SHARE = 0.1
NUM_HISTOGRAM_BINS = 20


class FilterRule(enum.StrEnum):
    """How it is decided which episodes stay.

    Attributes:
      NORMALIZED, PAPER: the two thresholds above.
      QUANTILE: returns at least as high as that quantile of all of them.
      TOP: so many of the best; among equal ones the earlier.
      NONE: all.
    """

    NORMALIZED = "normalized"
    PAPER = "paper"
    QUANTILE = "quantile"
    TOP = "top"
    NONE = "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReturnFilter:
    """A rule with its number.

    Attributes:
      rule: see `FilterRule`.
      amount: of QUANTILE the quantile, 0 <= q < 1; of TOP the number of episodes; else None.
    """

    rule: FilterRule
    amount: float | None = None

    @classmethod
    def parse(cls, text: str) -> ReturnFilter:
        """From "normalized", "paper", "none", "quantile:0.8" or "top:100".

        Raises:
          UserError: anything else.
        """
        name, colon, number = text.partition(":")
        try:
            rule = FilterRule(name)
            if rule == FilterRule.QUANTILE and 0 <= float(number) < 1:
                return cls(rule=rule, amount=float(number))
            if rule == FilterRule.TOP and int(number) >= 1:
                return cls(rule=rule, amount=int(number))
            if rule not in (FilterRule.QUANTILE, FilterRule.TOP) and not colon:
                return cls(rule=rule)
        except ValueError:
            pass
        raise UserError(
            f"filter {text!r}: expected normalized, paper, none, quantile:Q with 0 <= Q < 1, or top:K with K >= 1"
        )

    def __str__(self) -> str:
        return str(self.rule) if self.amount is None else f"{self.rule}:{self.amount:g}"


_ADVICE = {
    FilterRule.PAPER: "use --filter normalized, which admits negative returns",
    FilterRule.NORMALIZED: "its demonstrations are no better than a random policy: collect better ones or use "
    "--filter none",
    FilterRule.QUANTILE: "use a lower quantile",
    FilterRule.TOP: "keep more of them",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterReport:
    """What the filter did to one task.

    Attributes:
      task_id: the task.
      rule: the rule in force, as `ReturnFilter.parse` reads it; "none" for a corpus.
      expert_return: E above; None where returns mean nothing (a corpus).
      random_return: of a uniform random policy; None when unknown.
      threshold: the lowest return kept; None when nothing is filtered.
      num_episodes: episodes in the store.
      num_duplicates: copies left out before the filter (corpora only).
      num_rejected: episodes that the content filter left out (corpora only).
      num_kept: episodes that passed.
      num_best, num_best_kept: episodes of the window that the expert return is the mean of, and how many stay.
      min_return, max_return: over all episodes.
      histogram_edges: [NUM_HISTOGRAM_BINS + 1] edges of equal bins; empty for a corpus.
      histogram_kept, histogram_dropped: episodes of each bin.
    """

    task_id: str
    rule: str
    expert_return: float | None
    random_return: float | None
    threshold: float | None
    num_episodes: int
    num_duplicates: int = 0
    num_rejected: int = 0
    num_kept: int
    num_best: int = 0
    num_best_kept: int = 0
    min_return: float
    max_return: float
    histogram_edges: tuple[float, ...] = ()
    histogram_kept: tuple[int, ...] = ()
    histogram_dropped: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return dataclasses.asdict(self)


def return_window(num_episodes: int) -> int:
    """W, the number of consecutive episodes that the expert return averages over."""
    return min(MAX_RETURN_WINDOW, max(1, int(RETURN_WINDOW_SHARE * num_episodes)))


def expert_return(episode_returns: np.ndarray) -> float:
    """E of one agent: the best mean of W consecutive returns.

    Args:
      episode_returns: float [N], N >= 1, in the order of collection.
    """
    return _best_window(episode_returns)[0]


def _best_window(episode_returns: np.ndarray) -> tuple[float, int]:
    """E of one agent, and where its window begins."""
    returns = np.asarray(episode_returns, np.float64)
    window = return_window(len(returns))
    centre = returns.mean()  # running sums of small numbers lose fewer digits
    sums = np.cumsum(np.concatenate([[0.0], returns - centre]))
    means = (sums[window:] - sums[:-window]) / window
    start = int(np.argmax(means))
    return float(centre + means[start]), start


def expert_return_of_agents(episode_returns: np.ndarray, agent_ids: Sequence[str]) -> tuple[float, np.ndarray]:
    """E of a task: that of its best agent, since a window never mixes agents.

    Args:
      episode_returns: float [N], each agent's episodes in the order of collection.
      agent_ids: [N].

    Returns:
      E, and the rows of the window that it is the mean of.
    """
    _, agents = np.unique(np.asarray(agent_ids, dtype=object).astype(str), return_inverse=True)
    best, best_rows = -math.inf, np.zeros(0, np.int64)
    for agent in range(agents.max() + 1):
        rows = np.flatnonzero(agents == agent)
        expert, start = _best_window(episode_returns[rows])
        if expert > best:
            best, best_rows = expert, rows[start : start + return_window(len(rows))]
    return best, best_rows


def return_threshold(rule: FilterRule, expert: float, random: float | None) -> float | None:
    """The lowest return that the paper's or the normalised rule keeps; None for the others."""
    if rule == FilterRule.PAPER:
        return KEPT_SHARE_OF_EXPERT * expert
    if rule == FilterRule.NORMALIZED:
        if random is None:
            raise ValueError("the normalized rule needs the random return")
        return random + KEPT_SHARE_OF_EXPERT * (expert - random)
    return None


def kept_by(
    return_filter: ReturnFilter, episode_returns: np.ndarray, expert: float, random: float | None
) -> tuple[np.ndarray, float | None]:
    """Which episodes a rule keeps, bool [N], and the lowest return it admits; None where it admits all."""
    if return_filter.rule == FilterRule.NONE:
        return np.ones(len(episode_returns), bool), None
    if return_filter.rule == FilterRule.TOP:
        assert return_filter.amount is not None
        best = np.argsort(-episode_returns, kind="stable")[: int(return_filter.amount)]
        kept = np.zeros(len(episode_returns), bool)
        kept[best] = True
        return kept, float(episode_returns[best[-1]])
    if return_filter.rule == FilterRule.QUANTILE:
        assert return_filter.amount is not None
        # One of the returns, never a number between two: nothing is lost to rounding.
        threshold = float(np.quantile(episode_returns, return_filter.amount, method="higher"))
        return episode_returns >= threshold, threshold
    lowest = return_threshold(return_filter.rule, expert, random)
    assert lowest is not None
    # The mean of equal returns may differ from them in the last bit: without slack an agent that always
    # gets the same return could be dropped whole.
    return episode_returns >= lowest - 1e-9 * max(1.0, abs(expert)), lowest


def filter_task(
    task_id: str,
    episode_returns: np.ndarray,
    agent_ids: Sequence[str],
    *,
    return_filter: ReturnFilter,
    random_return: float | None,
) -> tuple[np.ndarray, FilterReport]:
    """Decides for every episode of a control task.

    Args:
      task_id: of the task.
      episode_returns: float64 [N], N >= 1, each agent's episodes in the order of collection.
      agent_ids: [N].
      return_filter: what stays.
      random_return: mean return of a uniform random policy; the normalized rule needs it.

    Returns:
      bool [N], true for an episode that stays, and the report.

    Raises:
      UserError: the random return is missing, nothing would stay, or nothing of the specialist's best.
    """
    rule = return_filter.rule
    if rule == FilterRule.NORMALIZED and random_return is None:
        raise UserError(
            f"task {task_id}: the normalized filter needs the return of a random policy and --scores has none; "
            f"run `collectors score --tasks {task_id} --output FILE` and pass --scores FILE, or use --filter paper"
        )
    expert, best = expert_return_of_agents(episode_returns, agent_ids)
    kept, threshold = kept_by(return_filter, episode_returns, expert, random_return)
    if not kept[best].any():
        loss = f"all {len(kept)} episodes" if not kept.any() else f"all {len(best)} episodes of its specialist's best"
        raise UserError(
            f"task {task_id}: the {return_filter} filter would drop {loss} (threshold {threshold:.6g}, best "
            f"return {episode_returns.max():.6g}, expert return {expert:.6g}); {_ADVICE[rule]}"
        )
    edges, histogram_kept, histogram_dropped = histogram(episode_returns, kept)
    return kept, FilterReport(
        task_id=task_id,
        rule=str(return_filter),
        expert_return=expert,
        random_return=random_return,
        threshold=threshold,
        num_episodes=len(kept),
        num_kept=int(kept.sum()),
        num_best=len(best),
        num_best_kept=int(kept[best].sum()),
        min_return=float(episode_returns.min()),
        max_return=float(episode_returns.max()),
        histogram_edges=edges,
        histogram_kept=histogram_kept,
        histogram_dropped=histogram_dropped,
    )


def corpus_report(task_id: str, episode_returns: np.ndarray, *, num_duplicates: int, num_rejected: int) -> FilterReport:
    """The report of a corpus, whose returns mean nothing: all stay but copies and what the content filter rejects."""
    return FilterReport(
        task_id=task_id,
        rule=str(FilterRule.NONE),
        expert_return=None,
        random_return=None,
        threshold=None,
        num_episodes=len(episode_returns),
        num_duplicates=num_duplicates,
        num_rejected=num_rejected,
        num_kept=len(episode_returns) - num_duplicates - num_rejected,
        min_return=float(np.min(episode_returns)),
        max_return=float(np.max(episode_returns)),
    )


def histogram(
    episode_returns: np.ndarray, kept: np.ndarray
) -> tuple[tuple[float, ...], tuple[int, ...], tuple[int, ...]]:
    """Edges of equal bins from the lowest to the highest return, and the episodes kept and dropped in each."""
    low, high = float(episode_returns.min()), float(episode_returns.max())
    if not high > low or not math.isfinite(high - low):
        low, high = low - 0.5, low + 0.5
    edges = np.linspace(low, high, NUM_HISTOGRAM_BINS + 1)
    counts_kept, _ = np.histogram(episode_returns[kept], edges)
    counts_dropped, _ = np.histogram(episode_returns[~kept], edges)
    return tuple(edges.tolist()), tuple(counts_kept.tolist()), tuple(counts_dropped.tolist())
