"""The table of measured experts: for the documentation and the command line."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from pathlib import Path

from collectors import pages, registry
from collectors.scores import Score
from collectors.task import Sb3Expert, ScriptedExpert

SUMMARY_HEADER = ["family", "experts", "measured", "with a return below 0"]


def counted(scores: Mapping[str, Score]) -> dict[str, Score]:
    """Experts that count: better than random by the test, on tasks that are no twin of another."""
    return {
        task_id: score
        for task_id, score in sorted(scores.items())
        if score.is_expert and not registry.get(task_id).variant_of
    }


def summary(scores: Mapping[str, Score]) -> list[list[object]]:
    """A line for each family, and one for all."""
    families: dict[str, list[Score]] = collections.defaultdict(list)
    for task_id, score in scores.items():
        task = registry.get(task_id)
        if score.expert_return is not None and not task.variant_of:
            families[task.family].append(score)
    lines: list[list[object]] = []
    for family, measured in sorted(families.items()):
        good = [score for score in measured if score.is_expert]
        below = sum(score.expert_return is not None and score.expert_return < 0 for score in good)
        lines.append([family, len(good), len(measured), below])
    return [*lines, ["all", *(sum(int(str(line[place])) for line in lines) for place in (1, 2, 3))]]


def markdown(scores: Mapping[str, Score]) -> str:
    """The two tables of docs/experts.md."""
    lines = _table(SUMMARY_HEADER, summary(scores))
    header = ["task", "random", "expert", "gain at least", "made by", "training", "50 episodes"]
    rows: list[list[object]] = []
    for task_id, score in counted(scores).items():
        assert score.expert_return is not None
        assert score.expert_std is not None
        assert score.gain_low is not None
        training = f"{score.train_steps:,} steps, {score.train_seconds:.0f} s" if score.train_steps else ""
        rows.append(
            [
                task_id,
                f"{score.random_return:.2f} ± {score.random_std:.2f}",
                f"{score.expert_return:.2f} ± {score.expert_std:.2f}",
                f"{score.gain_low:.2f}",
                _maker(task_id),
                training,
                f"{score.expert_steps:,} steps, {score.expert_seconds:.1f} s",
            ]
        )
    return "\n".join([*lines, "", *_table(header, rows)])


def write(page: Path, scores: Mapping[str, Score]) -> None:
    """Puts the tables into docs/experts.md.

    Raises:
      UserError: the page has no marks for them.
    """
    pages.write_tables(page, "experts", markdown(scores))


def _maker(task_id: str) -> str:
    match registry.get(task_id).expert:
        case ScriptedExpert(name=name):
            return name
        case Sb3Expert(algorithm=algorithm):
            return algorithm
    return ""


def _table(header: list[str], rows: list[list[object]]) -> list[str]:
    lines: list[list[object]] = [list(header), ["---"] * len(header), *rows]
    return [f"| {' | '.join(str(cell) for cell in line)} |" for line in lines]
