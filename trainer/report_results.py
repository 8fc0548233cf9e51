"""The numbers of a run in the report: scores, training curves, what the return filter kept."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from collectors.scores import normalized_score
from trainer import scores_file
from trainer.metrics import METRICS_FILE
from trainer.report_charts import Curve, ScoreBar, curve_color, histogram, line_chart, score_bars
from trainer.report_html import MissingInputError, card, note, number, percent, read_json, terms
from trainer.scores_file import SCORES_FILE
from trainer.statistics import mean_interval

DATASET_FILE = "shards/dataset.json"


def dataset(run: Path) -> Mapping[str, Any]:
    """The manifest of the shards."""
    return read_json(run, DATASET_FILE, "`beam_jobs build-shards`")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Score:
    """A line of the score table: mean returns, and normalised scores in percent."""

    expert: float
    random: float
    generalist: float
    neighbour: float | None
    bar: ScoreBar


def _evaluation(run: Path) -> Mapping[str, Any]:
    scores = scores_file.checked(read_json(run, SCORES_FILE, "`trainer evaluate`"), SCORES_FILE)
    if not scores["scores"]:
        raise MissingInputError(f"{SCORES_FILE} holds no task.")
    return scores


def are_of_test_seeds(run: Path) -> bool:
    """Whether no choice was made on the episodes that the scores are of."""
    return bool(_evaluation(run)["purpose"] == "test")


def read_scores(run: Path) -> list[_Score]:
    """The best first."""
    rows = [_score(row) for row in _evaluation(run)["scores"]]
    return sorted(rows, key=lambda row: (-row.bar.score, row.bar.name))


def _score(row: Mapping[str, Any]) -> _Score:
    expert, random, neighbour = row["expert_return"], row["random_return"], row["nearest_neighbour_return"]
    returns = np.asarray(row["episode_returns"], np.float64)

    def score(value: float) -> float:
        return normalized_score(value, expert=expert, random=random)

    low, high = mean_interval(returns)
    bar = ScoreBar(
        name=row["task_id"],
        score=score(float(returns.mean())),
        interval=(score(low), score(high)),
        neighbour=None if neighbour is None else score(neighbour),
    )
    return _Score(expert=expert, random=random, generalist=float(returns.mean()), neighbour=neighbour, bar=bar)


def mean(values: Iterable[float | None]) -> float | None:
    """Of the values that are known."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def scores(run: Path) -> str:
    """What they are of, and bars of the normalised scores."""
    evaluation = _evaluation(run)
    summary = evaluation["summary"]
    low, high = summary["interquartile_interval"]
    facts = [
        scores_file.label(evaluation),
        f"interquartile mean of all episodes {percent(summary['interquartile_mean'])}, 95% interval {number(low)} to "
        f"{number(high)}",
    ]
    line = "".join(f"<span>{escape(fact)}</span>" for fact in facts)
    warning = "" if are_of_test_seeds(run) else note(scores_file.DEVELOPMENT)
    return f'<p class="facts">{line}</p>{warning}{score_bars([row.bar for row in read_scores(run)])}'


def score_rows(run: Path) -> str:
    """Lines of the score table, the mean last."""
    rows = read_scores(run)
    lines = ""
    for row in rows:
        low, high = row.bar.interval
        cells = [escape(row.bar.name), *map(number, (row.expert, row.random, row.generalist))]
        cells += [f"<b>{percent(row.bar.score)}</b>", f"<small>{number(low)} to {number(high)}</small>"]
        cells += [number(row.neighbour), percent(row.bar.neighbour)]
        lines += f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    own = percent(mean(row.bar.score for row in rows))
    neighbour = percent(mean(row.bar.neighbour for row in rows))
    ends = f'<td colspan="4">Mean</td><td>{own}</td><td colspan="2"></td><td>{neighbour}</td>'
    return f'{lines}<tr class="mean">{ends}</tr>'


def _read_metrics(run: Path) -> list[Mapping[str, Any]]:
    path = run / "train" / METRICS_FILE
    if not path.exists():
        raise MissingInputError(f"there is no train/{METRICS_FILE} yet; `trainer train` writes it.")
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # cut short by a kill
        if "loss" in row:  # others tell of single events
            rows.append(row)
    return rows


def training(run: Path) -> str:
    """Curves of the losses and the speed."""
    rows = _read_metrics(run)

    def values(read: Callable[[Mapping[str, Any]], float]) -> np.ndarray:
        return np.array([read(row) for row in rows], np.float64)

    def chart(title: str, field: str) -> str:
        curve = Curve(name=title, color="var(--accent)", values=values(lambda row: row[field]))
        return f"<figure><h3>{title}</h3>{line_chart(steps, [curve])}</figure>"

    steps = values(lambda row: row["step"])
    tasks = [
        Curve(
            name=task_id,
            color=curve_color(index),
            values=values(lambda row, task_id=task_id: row["task_losses"].get(task_id, math.nan)),  # type: ignore[misc]
            dashed=index % 2 == 1,
        )
        for index, task_id in enumerate(sorted({task_id for row in rows for task_id in row["task_losses"]}))
    ]
    return (
        f'<div class="charts">{chart("Loss", "loss")}{chart("Tokens a second", "tokens_per_second")}</div><figure '
        f'class="curves"><h3>Loss of each task (logarithmic)</h3>{line_chart(steps, tasks, logarithmic=True)}</figure>'
    )


def return_filter(run: Path) -> str:
    """What the return filter kept of each task."""
    return f'<div class="cards">{"".join(map(_filter_card, dataset(run)["filter_report"]))}</div>'


def _filter_card(report: Mapping[str, Any]) -> str:
    num_in, num_kept, copies = (report[name] for name in ("num_episodes", "num_kept", "num_duplicates"))
    body = f"<p>{num_kept:,} of {num_in:,} episodes kept ({100 * num_kept / max(num_in, 1):.0f}%)</p>"
    if not report["histogram_edges"]:
        return card(report["task_id"], f'{body}<p class="muted">A corpus: copies are left out ({copies:,}).</p>')
    marks = {"expert": report["expert_return"], "random": report["random_return"], "threshold": report["threshold"]}
    body += histogram(report["histogram_edges"], report["histogram_kept"], report["histogram_dropped"], marks)
    facts = {name: number(value) for name, value in marks.items()} | {"rule": str(report["rule"])}
    return card(report["task_id"], body + terms(facts))
