"""One self-contained page about a run: scores, videos, words, curves, the filter, how to do it again.

Reads what is there of the following below the run's folder, and says in the page what is missing:

scores.json              written by `trainer evaluate`, see scores_file.py
shards/dataset.json      written by `beam_jobs build-shards`
train/                   config.json, metrics.jsonl and checkpoints/, written by `trainer train`
timings.json             {stage: seconds}
videos/, language.json   see report_samples.py
"""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import importlib.resources
import json
import math
import os
import platform
import re
import string
import subprocess
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path

import safetensors
import torch

from episode_store.errors import UserError
from episode_store.files import write_bytes
from trainer import checkpoint, report_results, report_samples
from trainer.report_charts import curve_color
from trainer.report_html import MissingInputError, note, percent, read_json, terms
from trainer.report_results import DATASET_FILE, dataset, mean, read_scores

REPORT_FILE = "report.html"
TEMPLATE_FILE = "report_template.html"
TIMINGS_FILE = "timings.json"

_PACKAGES = ("torch", "numpy", "gymnasium", "stable-baselines3", "apache-beam", "webdataset", "sentencepiece")
_SHOWN_CREDITS = 3
# What reading a damaged input raises: it costs its own part of the page, not the whole page.
_DAMAGED = (MissingInputError, UserError, KeyError, TypeError, ValueError, AttributeError, IndexError, OSError)


def build_report(run: Path) -> Path:
    """Writes `<run>/report.html` from whatever the run has and returns its path.

    Raises:
      UserError: there is no such run.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no such folder; check --run, or make one with `make demo`")
    template = importlib.resources.files("trainer").joinpath(TEMPLATE_FILE).read_text(encoding="utf-8")
    page = string.Template(template).substitute({name: _part(make, run) for name, make in _PARTS.items()})
    path = run / REPORT_FILE
    write_bytes(path, page.encode("utf-8", "replace"))
    return path


def _part(make: Callable[[Path], str], run: Path) -> str:
    try:
        return make(run)
    except MissingInputError as missing:
        return note(f"Left out: {missing}")
    except _DAMAGED as error:
        return note(f"Left out: its input does not have the expected form ({type(error).__name__}: {error})")


def _timings(run: Path) -> Mapping[str, float]:
    return read_json(run, TIMINGS_FILE, "`make demo`")


# The top of the page


def _tiles(run: Path) -> str:
    tiles = ""
    for fact in (_mean_fact, _passed_fact, _size_fact, _data_fact, _time_fact):
        try:
            value, label = fact(run)
        except _DAMAGED:
            continue  # the part that is made of this input says what is wrong with it
        tiles += f"<div><b>{value}</b><span>{label}</span></div>"
    return f'<div class="tiles">{tiles}</div>'


def _mean_fact(run: Path) -> tuple[str, str]:
    seeds = "" if report_results.are_of_test_seeds(run) else " of development seeds"
    return percent(mean(row.bar.score for row in read_scores(run))), f"of the specialists' score, on average{seeds}"


def _passed_fact(run: Path) -> tuple[str, str]:
    rows = read_scores(run)
    return f"{sum(row.bar.score >= 50 for row in rows)} of {len(rows)}", "control tasks reach 50% of their specialist"


def _size_fact(run: Path) -> tuple[str, str]:
    with safetensors.safe_open(checkpoint.latest(run / "train") / "model.safetensors", "np") as file:
        size = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 - no mapping
    return f"{size / 1e6:,.1f} M", "weights, the same for every task"


def _data_fact(run: Path) -> tuple[str, str]:
    tokens, episodes = (sum(shard[name] for shard in dataset(run)["shards"]) for name in ("num_tokens", "num_episodes"))
    return f"{tokens / 1e6:,.1f} M", f"tokens in {episodes:,} episodes"


def _time_fact(run: Path) -> tuple[str, str]:
    return _duration(sum(_timings(run).values())), "from nothing to this page"


def _machine(run: Path) -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    facts = [now, f"{cores} CPU cores", gpu, f"{platform.system()} {platform.machine()}", f"commit {commit()}"]
    return "".join(f"<span>{escape(fact)}</span>" for fact in facts)


@functools.cache
def commit() -> str:
    """The commit of this code, with "-dirty" after it when files differ; "unknown" outside of a clone."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return result.stdout.strip()


def _stages(run: Path) -> str:
    bars = key = ""
    for index, (stage, seconds) in enumerate(_timings(run).items()):
        title, color = f"{escape(stage)} {_duration(seconds)}", f"background:{curve_color(index)}"
        bars += f'<i style="flex:{max(float(seconds), 0.001):.3f};{color}" title="{title}"></i>'
        key += f'<span><i style="{color}"></i>{title}</span>'
    return f'<div class="stages">{bars}</div><div class="key">{key}</div>'


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


# How to do it again


def _checkout(run: Path) -> str:
    revision = commit().removesuffix("-dirty")
    return "" if revision == "unknown" else f"git checkout {escape(revision)}\n"


def _versions(run: Path) -> str:
    facts = {"Python": platform.python_version()}
    for package in _PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return terms(facts)


def _data_facts(run: Path) -> str:
    facts = dataset(run)
    return terms({
        "seed of the shards": str(facts["seed"]),
        "fingerprint of the shards": facts["fingerprint"],
        "SHA-256 of the text model": facts["text_model_sha256"] or "none",
    })  # fmt: skip


def _settings(run: Path) -> str:
    config = read_json(run, f"train/{checkpoint.CONFIG_FILE}", "`trainer train`")
    settings = f"<summary>All settings of the training</summary><pre>{escape(json.dumps(config, indent=1))}</pre>"
    return f"{terms({'seed of the training': str(config['seed'])})}<details>{settings}</details>"


def _licences(run: Path) -> str:
    """Tasks with the same licence and credits together."""
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for entry in dataset(run)["licences"]:
        groups.setdefault((entry["licence"] or "no licence named", tuple(entry["attributions"])), []).append(
            entry["task_id"]
        )
    page = ""
    for (licence, credits), task_ids in sorted(groups.items()):
        lines = [_linked(line) for line in credits[:_SHOWN_CREDITS]]
        if len(credits) > _SHOWN_CREDITS:
            lines.append(f"and {len(credits) - _SHOWN_CREDITS:,} more, in {DATASET_FILE}")
        names = f"<b>{escape(licence)}</b>: {escape(', '.join(task_ids))}"
        page += f'<p class="licence">{"<br>".join([names, *lines])}</p>'
    return page


def _linked(text: str) -> str:
    """Escaped, with web addresses as links (which load nothing until they are followed)."""
    return re.sub(r"https?://[^\s<>&;,()]+", r'<a href="\g<0>" rel="noreferrer">\g<0></a>', escape(text))


# By their names in the template.
_PARTS: Mapping[str, Callable[[Path], str]] = {
    "tiles": _tiles,
    "machine": _machine,
    "stages": _stages,
    "scores": report_results.scores,
    "score_rows": report_results.score_rows,
    "videos": report_samples.videos,
    "captions": report_samples.captions,
    "vqa": report_samples.vqa,
    "text": report_samples.text,
    "dialogue": report_samples.dialogue,
    "training": report_results.training,
    "filter": report_results.return_filter,
    "checkout": _checkout,
    "versions": _versions,
    "data_facts": _data_facts,
    "settings": _settings,
    "licences": _licences,
}
