"""`scores.json`: what `trainer evaluate` found, of which checkpoint, on which seeds. `report` and `export` read it.

    {"format", "purpose": "test", "seed", "episodes", "checkpoint": {"step", "weights"}, "acting", "shards",
     "yardsticks": SHA-256 of the file of `--scores`, or null,
     "scores": [an `EvaluationResult` a task], "summary": {of them all}, "language": {`language.json` without samples}}

One file holds the scores of one evaluation: everything before "scores" is the same for all of them. Another evaluation
with the same facts adds its tasks; one with others sets the file aside under a name that says what it holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from episode_store.errors import UserError

SCORES_FILE = "scores.json"
LANGUAGE_FILE = "language.json"
FORMAT = "gato-scores-v1"
DEVELOPMENT = "Choices may have been made on these episodes: they are of development seeds, and no result."
_FACTS = ("format", "purpose", "seed", "episodes", "checkpoint", "acting", "shards", "yardsticks")
_ROW = (
    "task_id", "episode_returns", "expert_return", "random_return", "nearest_neighbour_return", "normalized_score",
    "score_interval",
)  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    """The scores in a file.

    Raises:
      UserError: it holds something else.
    """
    try:
        return checked(json.loads(path.read_text()), path)
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); `trainer evaluate` writes it") from None


def checked(scores: Any, where: Path | str) -> dict[str, Any]:
    """`scores`, if it has the form of this page.

    Raises:
      UserError: it has not.
    """
    if not isinstance(scores, dict) or scores.get("format") != FORMAT:
        raise UserError(
            f"{where}: expected scores of the generalist in format {FORMAT}; `trainer evaluate` writes {SCORES_FILE}"
        )
    whole = scores.keys() >= {*_FACTS, "scores", "summary", "language"} and isinstance(scores["scores"], list)
    if not whole or not all(isinstance(row, dict) and row.keys() >= set(_ROW) for row in scores["scores"]):
        raise UserError(f"{where}: damaged; run `trainer evaluate` again")
    return scores


def label(scores: Mapping[str, Any]) -> str:
    """In words, what the scores are of."""
    seeds = "test" if scores["purpose"] == "test" else "DEVELOPMENT"
    return (
        f"step {scores['checkpoint']['step']:,}, {scores['episodes']} episodes a task on {seeds} seeds "
        f"(seed {scores['seed']})"
    )


def key(facts: Mapping[str, Any]) -> str:
    """A short name of an evaluation; with other facts it is another."""
    digest = hashlib.sha256(json.dumps([facts.get(name) for name in _FACTS], sort_keys=True).encode()).hexdigest()
    return f"{facts['purpose']}-step{facts['checkpoint']['step']}-{digest[:8]}"


def before(folder: Path, facts: Mapping[str, Any]) -> tuple[dict[str, Any] | None, Path | None]:
    """What the folder holds of the same evaluation; the files of another one are set aside.

    Returns:
      The scores, None without any; where the scores of another evaluation are now, None where there were none.
    """
    wanted, held, aside = key(facts), _held(folder / SCORES_FILE), None
    if held not in (None, wanted):
        _rename(folder, "", f"-{held}")
        aside = folder / SCORES_FILE.replace(".json", f"-{held}.json")
    if held != wanted:
        _rename(folder, f"-{wanted}", "")  # it was set aside itself
    file = folder / SCORES_FILE
    return read(file) if file.exists() else None, aside


def _held(file: Path) -> str | None:
    """The key of the scores in a file."""
    if not file.exists():
        return None
    try:
        return key(read(file))
    except UserError:  # of a version before
        return f"before-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}"


def _rename(folder: Path, old: str, new: str) -> None:
    for name in (LANGUAGE_FILE, SCORES_FILE):
        file = folder / name.replace(".json", f"{old}.json")
        if file.exists():
            file.replace(folder / name.replace(".json", f"{new}.json"))
