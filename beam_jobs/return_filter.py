"""The return filter: which episodes of a task are good enough to imitate (Gato paper, section 2.2 and appendix).

An agent is recorded while it trains, so its episodes have an order. Its expert return is the best mean over a window
of consecutive episodes,

    E = max over j of mean(R[j : j + W]),    W = min(1000, max(1, 0.1 * N)),

and a task's expert return is that of its best agent. The paper keeps R >= 0.8 * E. With E < 0 that threshold lies
above E and nothing survives, so the default is the same rule on the normalised scale,

    R >= random + 0.8 * (E - random),

with `random` the mean return of a uniform random policy; both agree where random = 0.
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
    """How the threshold follows from the expert return."""

    NORMALIZED = "normalized"
    PAPER = "paper"
    NONE = "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterReport:
    """What the filter did to one task.

    Attributes:
      task_id: the task.
      rule: the rule in force; NONE for a corpus.
      expert_return: E above; None where returns mean nothing (a corpus).
      random_return: of a uniform random policy; None when unknown.
      threshold: the lowest return kept; None when nothing is filtered.
      num_episodes: episodes in the store.
      num_duplicates: exact copies left out before the filter (corpora only).
      num_kept: episodes that passed.
      min_return, max_return: over all episodes.
      histogram_edges: [NUM_HISTOGRAM_BINS + 1] edges of equal bins; empty for a corpus.
      histogram_kept, histogram_dropped: episodes of each bin.
    """

    task_id: str
    rule: FilterRule
    expert_return: float | None
    random_return: float | None
    threshold: float | None
    num_episodes: int
    num_duplicates: int = 0
    num_kept: int
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
    returns = np.asarray(episode_returns, np.float64)
    window = return_window(len(returns))
    centre = returns.mean()  # running sums of small numbers lose fewer digits
    sums = np.cumsum(np.concatenate([[0.0], returns - centre]))
    return float(centre + np.max(sums[window:] - sums[:-window]) / window)


def expert_return_of_agents(episode_returns: np.ndarray, agent_ids: Sequence[str]) -> float:
    """E of a task: that of its best agent, since a window never mixes agents.

    Args:
      episode_returns: float [N], each agent's episodes in the order of collection.
      agent_ids: [N].
    """
    _, agents = np.unique(np.asarray(agent_ids, dtype=object).astype(str), return_inverse=True)
    return max(expert_return(episode_returns[agents == agent]) for agent in range(agents.max() + 1))


def return_threshold(rule: FilterRule, expert: float, random: float | None) -> float | None:
    """The lowest return kept; None keeps everything."""
    if rule == FilterRule.PAPER:
        return KEPT_SHARE_OF_EXPERT * expert
    if rule == FilterRule.NORMALIZED:
        if random is None:
            raise ValueError("the normalized rule needs the random return")
        return random + KEPT_SHARE_OF_EXPERT * (expert - random)
    return None


def filter_task(
    task_id: str,
    episode_returns: np.ndarray,
    agent_ids: Sequence[str],
    *,
    rule: FilterRule,
    random_return: float | None,
) -> tuple[np.ndarray, FilterReport]:
    """Decides for every episode of a control task.

    Args:
      task_id: of the task.
      episode_returns: float64 [N], N >= 1, each agent's episodes in the order of collection.
      agent_ids: [N].
      rule: how the threshold is found.
      random_return: mean return of a uniform random policy; the normalized rule needs it.

    Returns:
      bool [N], true for an episode that stays, and the report.

    Raises:
      UserError: the random return is missing, or nothing would stay.
    """
    if rule == FilterRule.NORMALIZED and random_return is None:
        raise UserError(
            f"task {task_id}: the normalized filter needs the return of a random policy and --scores has none; "
            f"run `collectors score --tasks {task_id} --output FILE` and pass --scores FILE, or use --filter paper"
        )
    expert = expert_return_of_agents(episode_returns, agent_ids)
    threshold = return_threshold(rule, expert, random_return)
    # The mean of equal returns may differ from them in the last bit: without slack an agent that always
    # gets the same return could be dropped whole.
    slack = 1e-9 * max(1.0, abs(expert))
    kept = np.ones(len(episode_returns), bool) if threshold is None else episode_returns >= threshold - slack
    if not kept.any():
        advice = (
            "use --filter normalized, which admits negative returns"
            if rule == FilterRule.PAPER
            else "its demonstrations are no better than a random policy: collect better ones or use --filter none"
        )
        raise UserError(
            f"task {task_id}: the {rule} filter would drop all {len(kept)} episodes (threshold {threshold:.6g}, best "
            f"return {episode_returns.max():.6g}, expert return {expert:.6g}); {advice}"
        )
    edges, histogram_kept, histogram_dropped = histogram(episode_returns, kept)
    return kept, FilterReport(
        task_id=task_id,
        rule=rule,
        expert_return=expert,
        random_return=random_return,
        threshold=threshold,
        num_episodes=len(kept),
        num_kept=int(kept.sum()),
        min_return=float(episode_returns.min()),
        max_return=float(episode_returns.max()),
        histogram_edges=edges,
        histogram_kept=histogram_kept,
        histogram_dropped=histogram_dropped,
    )


def keep_corpus(
    task_id: str, content_hashes: Sequence[str], episode_returns: np.ndarray
) -> tuple[np.ndarray, FilterReport]:
    """Decides for every episode of a corpus: all stay but exact copies of an earlier one. Returns mean nothing here.

    Returns:
      bool [N] and the report.
    """
    _, first = np.unique(np.asarray(content_hashes, dtype=object).astype(str), return_index=True)
    kept = np.zeros(len(content_hashes), bool)
    kept[first] = True
    return kept, FilterReport(
        task_id=task_id,
        rule=FilterRule.NONE,
        expert_return=None,
        random_return=None,
        threshold=None,
        num_episodes=len(kept),
        num_duplicates=int((~kept).sum()),
        num_kept=int(kept.sum()),
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
