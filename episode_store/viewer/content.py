"""What the page shows of a store, as JSON and pictures; the server and the file give out the same.

Damage is content: what cannot be read is told in the sentence of its `CorruptionError`, and the rest is shown.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from episode_store import layout
from episode_store.episode import Episode
from episode_store.errors import CorruptionError, StoreError, UserError
from episode_store.provenance import lines, provenance
from episode_store.record_format import Column, Group
from episode_store.spec import ArraySpec, Modality
from episode_store.store import EpisodeStore
from episode_store.task import TaskSpec
from episode_store.viewer import pictures, plots
from episode_store.viewer.table import COLUMNS, EpisodeTable, number

MAX_STEPS = 64
_MAX_ELEMENTS = 64
_MAX_CHARACTERS = 4_000
_MAX_TEXTS = 400
_MAX_TOKENS = 2_000


class TokenView(Protocol):
    """Says what the network sees of a step; lent from above, see extensions.py."""

    def __call__(self, task: TaskSpec, episode: Episode, episode_id: str) -> Sequence[Mapping[str, Any]]:
        """One mapping a token, or several of a kind; all with the same keys. The episode is cut to one step.

        Raises:
          UserError: the tokens cannot be made, and why.
        """


class Content:
    """A store for the page. Safe to share among threads.

    Args:
      path: the store's folder.
      version: which version to show.
      token_view: None when nobody lends one.
      no_tokens: why there is none.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        version: int | str | None = None,
        token_view: TokenView | None = None,
        no_tokens: str = "No token view was given.",
    ) -> None:
        self._path = path
        self._version = version
        self._token_view = token_view
        self._no_tokens = no_tokens
        self._lock = threading.RLock()
        self.reopen()

    def reopen(self) -> None:
        """Shows what writers added since; damaged files are left out and named."""
        store = EpisodeStore.open(self._path, version=self._version, damaged="skip")
        with self._lock:
            self.store = store
            self._table = EpisodeTable(store)

    def summary(self) -> dict[str, Any]:
        """The store as a whole."""
        with self._lock:
            store = self.store
            quarantined, damage = 0, store.damage
            if (store.path / layout.QUARANTINE_FOLDER).exists():
                try:
                    quarantined = store.quarantine().num_rows
                except CorruptionError as error:
                    damage = [*damage, str(error)]
            counts = {task_id: len(store.index.task_rows(task_id)) for task_id in store.tasks}
            return {
                "store": str(store.path),
                "version": store.view.number,
                "episodes": len(store),
                "tasks": [
                    {"task_id": task_id, "episodes": counts[task_id], "licence": task.licence, "tags": list(task.tags)}
                    for task_id, task in store.tasks.items()
                ],
                "quarantined": quarantined,
                "damage": damage,
            }

    def episodes(self, **asked: Any) -> dict[str, Any]:
        """A page of the table, see `EpisodeTable.page`."""
        with self._lock:
            return self._table.page(**asked)

    def episode(self, episode_id: str) -> dict[str, Any]:
        """An episode's facts, provenance and fields."""
        with self._lock:
            facts = self.store.facts(episode_id)
            result: dict[str, Any] = {name: facts[name] for name in (*COLUMNS, "content_hash")}
            result["seed"] = number(result["seed"])
            result["episode_return"] = number(result["episode_return"])
            try:
                columns = self.store.columns(episode_id)
                metadata = self.store.read_metadata(episode_id)
            except CorruptionError as error:
                return {**result, "damaged": str(error), "fields": [], "provenance": []}
            task = self.store.tasks[facts["task_id"]]
            fields = [self._field(column, task) for column in columns]
            known = lines(provenance(metadata, task))
            return {**result, "damaged": "", "fields": fields, "provenance": known}

    def _field(self, column: Column, task: TaskSpec) -> dict[str, Any]:
        spec = _spec(column, task)
        kind = "text" if column.dtype == "str" else "picture" if _is_picture(column) else "numbers"
        modality = str(spec.modality) if spec is not None else ""
        colours = spec is not None and spec.modality == Modality.IMAGE
        return {
            "path": column.path,
            "kind": kind,
            "modality": modality,
            "dtype": column.dtype.lstrip("<|"),
            "shape": list(column.shape),
            "rows": column.num_rows,
            "apart": kind == "picture" and not (colours and column.shape[2] in (1, 3)),
        }

    def series(self, episode_id: str, path: str) -> dict[str, Any]:
        """A field of numbers as a plot needs it, see `plots.series`; {"damaged": sentence} when it cannot be read."""
        with self._lock:
            column = self._column(episode_id, path)
            if column.dtype == "str":
                raise UserError(f"{path}: is text, expected numbers")

            def read(start: int, stop: int) -> np.ndarray:
                return np.asarray(self._rows(episode_id, column, start, stop))

            return _or_damage(lambda: plots.series(read, column.num_rows, column.shape))

    def steps(self, episode_id: str, start: int, count: int) -> dict[str, Any]:
        """Values of steps [start, start + count): for each field, numbers [steps][elements] or texts [steps].

        After the last step there are only observations: rows T of the others are missing.
        """
        with self._lock:
            columns = self.store.columns(episode_id)
            start, count = max(0, start), max(1, min(count, MAX_STEPS))
            fields = {}
            for column in columns:
                if not _is_picture(column):
                    stop = min(start + count, column.num_rows)
                    fields[column.path] = _or_damage(functools.partial(self._values, episode_id, column, start, stop))
            return {"start": start, "count": count, "fields": fields}

    def _values(self, episode_id: str, column: Column, start: int, stop: int) -> dict[str, Any]:
        rows = self._rows(episode_id, column, start, stop) if start < stop else []
        if column.dtype == "str":
            return {"texts": [_short(text) for text in rows], "elements": 1}
        elements = int(np.prod(column.shape))
        values = np.asarray(rows).reshape(len(rows), elements)[:, :_MAX_ELEMENTS]
        return {"values": [[number(value) for value in row] for row in values.tolist()], "elements": elements}

    def texts(self, episode_id: str) -> dict[str, Any]:
        """All texts in the order in which they were said; what is seen unchanged over several steps is one entry."""
        with self._lock:
            found: list[dict[str, Any]] = []
            damaged = {}
            left_out = False
            for column in self.store.columns(episode_id):
                if column.dtype != "str":
                    continue
                try:
                    entries = list(self._runs(episode_id, column))
                except CorruptionError as error:
                    damaged[column.path] = str(error)
                    continue
                left_out = left_out or len(entries) > _MAX_TEXTS
                found += entries[:_MAX_TEXTS]
            found.sort(key=lambda entry: (entry["first"], entry["path"].startswith("actions/")))
            return {"entries": found, "left_out": left_out, "damaged": damaged}

    def _runs(self, episode_id: str, column: Column) -> Iterator[dict[str, Any]]:
        """Runs of equal texts of an observation, each text of an action; one more than are shown at most."""
        seen = column.group == Group.OBSERVATION
        entry: dict[str, Any] | None = None
        number = 0
        for start in range(0, column.num_rows, 256):
            for step, text in enumerate(
                self._rows(episode_id, column, start, min(start + 256, column.num_rows)), start=start
            ):
                if seen and entry is not None and entry["whole"] == text:
                    entry["last"] = step
                    continue
                if entry is not None:
                    yield {key: value for key, value in entry.items() if key != "whole"}
                    number += 1
                    if number > _MAX_TEXTS:
                        return
                entry = {"path": column.path, "first": step, "last": step, "text": _short(text), "whole": text}
        if entry is not None:
            yield {key: value for key, value in entry.items() if key != "whole"}

    def frame(self, episode_id: str, path: str, step: int) -> bytes:
        """A picture as PNG.

        Raises:
          UserError: no such field or step, or the field is no picture.
          CorruptionError: it is damaged.
        """
        with self._lock:
            column = self._column(episode_id, path)
            if not _is_picture(column):
                raise UserError(f"{path}: is no picture")
            if not 0 <= step < column.num_rows:
                raise UserError(f"{path}: step {step}: expected one from 0 to {column.num_rows - 1}")
            pixels = np.asarray(self._rows(episode_id, column, step, step + 1))[0]
            spec = _spec(column, self.store.tasks[self.store.facts(episode_id)["task_id"]])
        return pictures.encode_png(pictures.displayable(pixels, scale_to=_highest(spec)))

    def tokens(self, episode_id: str, step: int) -> dict[str, Any]:
        """The tokens of one step, or {"message": why there are none}."""
        if self._token_view is None:
            return {"message": self._no_tokens}
        with self._lock:
            try:
                window = self.store.read_window(episode_id, step, 1)
                assert window.rewards is not None
                episode = Episode(
                    task_id=window.task_id,
                    observations=window.observations,
                    actions=window.actions,
                    rewards=window.rewards,
                    terminated=window.terminated,
                    truncated=window.truncated,
                    step_columns=window.step_columns,
                )
                rows = self._token_view(self.store.tasks[window.task_id], episode, episode_id)
            except UserError as error:
                return {"message": str(error)}
        return {"rows": [dict(row) for row in rows[:_MAX_TOKENS]], "left_out": max(0, len(rows) - _MAX_TOKENS)}

    def _column(self, episode_id: str, path: str) -> Column:
        for column in self.store.columns(episode_id):
            if column.path == path:
                return column
        raise StoreError(f"episode {episode_id}: no column {path!r}")

    def _rows(self, episode_id: str, column: Column, start: int, stop: int) -> Any:
        """Rows [start, stop) of a field; observations have one more than there are steps."""
        num_steps = column.num_rows - (column.group == Group.OBSERVATION)
        first = min(start, num_steps - 1)
        window = self.store.read_window(episode_id, first, max(1, min(stop, num_steps) - first), [column.path])
        groups: dict[Group, Any] = {
            Group.OBSERVATION: window.observations,
            Group.ACTION: window.actions,
            Group.STEP_COLUMN: window.step_columns,
            Group.REWARD: {"rewards": window.rewards},
        }
        return groups[column.group][column.name][start - first : stop - first]


def _spec(column: Column, task: TaskSpec) -> ArraySpec | None:
    specs = {Group.OBSERVATION: task.observation_spec, Group.ACTION: task.action_spec}.get(column.group, {})
    return specs.get(column.name)


def _is_picture(column: Column) -> bool:
    return column.dtype == "|u1" and len(column.shape) == 3 and 0 not in column.shape


def _highest(spec: ArraySpec | None) -> int | None:
    """The highest value of a field that has the form of a picture and is none."""
    if spec is None or spec.modality == Modality.IMAGE:
        return None
    if spec.num_values:
        return min(255, max(spec.num_values) - 1 + int(max(spec.low, default=0)))
    return int(min(255, max(spec.high))) if spec.high and math.isfinite(max(spec.high)) else 255


def _or_damage(make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return make()
    except CorruptionError as error:
        return {"damaged": str(error)}


def _short(text: str) -> str:
    if len(text) <= _MAX_CHARACTERS:
        return text
    return f"{text[:_MAX_CHARACTERS]} … ({len(text) - _MAX_CHARACTERS} more characters)"
