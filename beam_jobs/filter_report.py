"""What the filters did, for people: rows of a table, lines of text, and one page that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Report = Mapping[str, Any]

HEADER = (
    "task", "rule", "episodes", "copies", "rejected", "kept", "best kept", "random", "expert", "threshold", "min",
    "max", "returns, min to max",
)  # fmt: skip
_RETURNS = ("random_return", "expert_return", "threshold", "min_return", "max_return")
_BAR_BLOCKS = " ▁▂▃▄▅▆▇█"
_BAR_WIDTH, _BAR_HEIGHT = 12, 60
_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 90em; color: #222; background: #fff }
table { border-collapse: collapse } th, td { padding: .3em .7em; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child, td.text, th.text { text-align: left } svg { vertical-align: bottom }
.kept { fill: #2a7 } .dropped { fill: #bbb } .line { stroke: #c33; stroke-width: 1.5 }
"""


def rows(reports: Sequence[Report]) -> list[tuple[object, ...]]:
    """One row a task, in the columns of `HEADER`."""
    return [(*_cells(report), _sparkline(report["histogram_dropped"], report["histogram_kept"])) for report in reports]


def notes(reports: Sequence[Report]) -> Iterator[str]:
    """A line for each reason that the content filter gave, and for each sample."""
    for report in reports:
        for reason, count in report["content"].get("rejected", {}).items():
            yield f"{report['task_id']}: {count} rejected: {reason}"
        for sample in report["content"].get("samples", ()):
            yield f"{report['task_id']}: {sample['reason']}: {sample['episode_id'][:12]}: {sample['excerpt']}"


def page(reports: Sequence[Report]) -> str:
    """A page with the table, a histogram of the returns of each task, and the samples."""
    header = "".join(f"<th>{html.escape(name)}</th>" for name in HEADER)
    lines = []
    for report in reports:
        cells = "".join(f"<td>{html.escape(str(cell))}</td>" for cell in _cells(report))
        lines.append(f"<tr>{cells}<td>{_histogram(report)}</td></tr>")
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>What the filters kept</title>'
        f"<style>{_STYLE}</style><h1>What the filters kept</h1>"
        '<p>Green: kept; grey: dropped; the red line: the lowest return kept. "Best kept": how many stay of the '
        "episodes in the window that the expert return is the mean of.</p>"
        f"<table><tr>{header}</tr>{''.join(lines)}</table>{_content(reports)}</html>\n"
    )


def _cells(report: Report) -> tuple[object, ...]:
    return (
        report["task_id"],
        report["rule"],
        report["num_episodes"],
        report["num_duplicates"],
        report["num_rejected"],
        report["num_kept"],
        f"{report['num_best_kept']}/{report['num_best']}" if report["num_best"] else "-",
        *(
            _number(report[name])
            for name in ("random_return", "expert_return", "threshold", "min_return", "max_return")
        ),
    )


def _content(reports: Sequence[Report]) -> str:
    parts = []
    for report in reports:
        content = report["content"]
        if not content:
            continue
        counts = [("copies", content["copies"]), ("near copies", content["near_copies"]), *content["rejected"].items()]
        body = "".join(f'<tr><td class="text">{html.escape(name)}</td><td>{count}</td></tr>' for name, count in counts)
        samples = "".join(
            f'<tr><td class="text">{html.escape(sample["reason"])}</td>'
            f'<td class="text"><code>{html.escape(sample["episode_id"][:12])}</code></td>'
            f'<td class="text">{html.escape(sample["excerpt"])}</td></tr>'
            for sample in content["samples"]
        )
        shown = f"<details><summary>samples of what was left out</summary><table>{samples}</table></details>"
        parts.append(f"<h3>{html.escape(report['task_id'])}</h3><table>{body}</table>{shown if samples else ''}")
    return f"<h2>Content</h2>{''.join(parts)}" if parts else ""


def _histogram(report: Report) -> str:
    kept, dropped = report["histogram_kept"], report["histogram_dropped"]
    top = max((a + b for a, b in zip(kept, dropped, strict=True)), default=0)
    if not top:
        return ""
    bars = []
    for index, (stays, goes) in enumerate(zip(kept, dropped, strict=True)):
        # A square-root scale, so that small bins show.
        total = _BAR_HEIGHT * ((stays + goes) / top) ** 0.5
        green = total * stays / (stays + goes) if stays + goes else 0.0
        x, width = index * _BAR_WIDTH, _BAR_WIDTH - 1
        for name, height, y in (("kept", green, _BAR_HEIGHT - green), ("dropped", total - green, _BAR_HEIGHT - total)):
            if height:
                bars.append(f'<rect class="{name}" x="{x}" y="{y:.1f}" width="{width}" height="{height:.1f}"/>')
    edges = report["histogram_edges"]
    total_width = len(kept) * _BAR_WIDTH
    if report["threshold"] is not None and edges[0] <= report["threshold"] <= edges[-1]:
        x = (report["threshold"] - edges[0]) / (edges[-1] - edges[0]) * total_width
        bars.append(f'<line class="line" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{_BAR_HEIGHT}"/>')
    return f'<svg width="{total_width}" height="{_BAR_HEIGHT}" role="img">{"".join(bars)}</svg>'


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"


def _sparkline(dropped: Sequence[int], kept: Sequence[int]) -> str:
    """A bar for each bin of the histogram, on a square-root scale so that small ones show."""
    totals = [a + b for a, b in zip(dropped, kept, strict=True)]
    top = max(totals, default=0)
    steps = len(_BAR_BLOCKS) - 1
    return "".join(_BAR_BLOCKS[-int(-((total / top) ** 0.5) * steps // 1)] for total in totals) if top else ""
