"""Moves episodes between a store and a foreign set, and checks sets before anyone migrates."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from episode_store import layout
from episode_store.episode import Episode
from episode_store.errors import EpisodeError, UserError
from episode_store.formats import format as formats
from episode_store.formats.format import Finding, Importer, Loss
from episode_store.task import TaskSpec
from episode_store.verify import verify_store
from episode_store.writer import EpisodeWriter


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What an import did.

    Attributes:
      format, source, store: from where to where.
      tasks: ids of the tasks that were imported.
      num_added: episodes written by this run.
      num_known: episodes that the store had already, for example from a run that was killed.
      num_refused: episodes that break the contract; `findings` has the reason of each.
      losses: what the foreign set lacked, and what was assumed.
      findings: what was damaged or refused.
    """

    format: str
    source: str
    store: str
    tasks: Sequence[str]
    num_added: int
    num_known: int
    num_refused: int
    losses: Sequence[Loss]
    findings: Sequence[Finding]

    @property
    def ok(self) -> bool:
        """Whether nothing was damaged or refused."""
        return not any(finding.severity == "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
            "tasks": list(self.tasks),
            "losses": [loss.to_json() for loss in self.losses],
            "findings": [finding.to_json() for finding in self.findings],
            "ok": self.ok,
        }


# Wraps episodes that are read, of which there are so many, if that is known, to show how far it is.
Bar = Callable[[Iterable[Episode], int | None], Iterable[Episode]]


def no_bar(items: Iterable[Episode], total: int | None) -> Iterable[Episode]:
    """Shows nothing."""
    return items


def import_set(
    importer: Importer,
    source: str | Path,
    store: str | Path,
    *,
    tasks: Sequence[str] | None = None,
    progress: Bar = no_bar,
) -> ImportReport:
    """Adds a foreign set's episodes to a store, making the store if need be.

    A run that was killed is finished by running it again: ids are made of the content, so what is there is skipped.

    Args:
      importer: an opened set.
      source: where it lies, for the report.
      store: the store's folder.
      tasks: patterns of the ids of the tasks to import; all by default.
      progress: wraps the episodes.

    Raises:
      UserError: the set or the store cannot be used, or no task matches.
    """
    wanted = _matching(importer.tasks(), tasks)
    findings: list[Finding] = []
    num_added = num_known = num_refused = 0
    with EpisodeWriter(store) as writer:
        for task in wanted.values():
            writer.add_task(task)
        for index, episode in enumerate(progress(importer.episodes(), importer.num_episodes())):
            if episode.task_id not in wanted:
                continue
            try:
                known = writer.num_known
                writer.add_episode(episode)
            except EpisodeError as error:
                num_refused += 1
                findings.append(_refused(episode, index, error))
                continue
            added = writer.num_known - known
            num_added += added
            num_known += 1 - added
    return ImportReport(
        format=importer.name,
        source=str(source),
        store=str(store),
        tasks=list(wanted),
        num_added=num_added,
        num_known=num_known,
        num_refused=num_refused,
        losses=importer.losses(),
        findings=[*importer.findings(), *findings],
    )


def _matching(tasks: Sequence[TaskSpec], patterns: Sequence[str] | None) -> dict[str, TaskSpec]:
    known = {task.task_id: task for task in tasks}
    if not patterns:
        return known
    wanted: dict[str, TaskSpec] = {}
    for pattern in patterns:
        matches = fnmatch.filter(known, pattern)
        if not matches:
            raise UserError(
                f"no task {pattern!r} in the set; it has {layout.shorten(', '.join(known))}"
                f"{layout.near(pattern, known)}"
            )
        wanted.update((name, known[name]) for name in matches)
    return wanted


def _refused(episode: Episode, index: int, error: EpisodeError) -> Finding:
    return Finding(
        severity="error",
        where=_place(episode, index),
        what=f"refused: {error}",
        remedy="mend the source and import again, or go on without it",
    )


def _place(episode: Episode, index: int) -> str:
    return str(episode.metadata.environment_config.get("source", "")) or f"episode {index}"


def _doubled(where: str, first: str) -> Finding:
    return Finding(
        severity="warning",
        where=where,
        what=f"the same content as {first}",
        remedy="remove one of them: doubled episodes leak between splits and weigh twice",
    )


def examine(source: str | Path, name: str | None = None, *, progress: Bar = no_bar) -> tuple[str, list[Finding]]:
    """What is wrong with a set: the name of its format, and findings.

    Args:
      source: a folder or a file; an episode store of ours, which may be a URL then, is verified.
      name: the format; found out by default.
      progress: wraps the episodes of a foreign set; of a store of ours any but `no_bar` shows the bar of `verify`.

    Raises:
      UserError: nothing there, or no format fits.
    """
    shown = progress is not no_bar
    if name == "store":
        return name, examine_store(source, progress=shown)
    path = formats.existing_source(source)
    if name is None and (path / layout.MARKER).exists():
        return "store", examine_store(path, progress=shown)
    name = name or formats.detect_format(path)
    if name is None:
        raise UserError(
            f"source {path}: no known format; expected a set of one of {', '.join(sorted(formats.FORMATS))}; "
            "say which with --format"
        )
    return name, formats.load_module(name).doctor(path, progress)


def examine_importer(open_set: Callable[[], Importer], source: Path, progress: Bar) -> list[Finding]:
    """Findings from reading a whole set and holding each episode against the contract; nothing is written.

    What the set lacks is a warning, what would be refused an error.

    Args:
      open_set: opens the importer; its `UserError` becomes a finding.
      source: where the set lies.
      progress: wraps the episodes.
    """
    try:
        importer = open_set()
        tasks = {task.task_id: task for task in importer.tasks()}
        refused = []
        num_episodes = num_steps = 0
        first_places: dict[str, str] = {}
        for index, episode in enumerate(progress(importer.episodes(), importer.num_episodes())):
            content_hash = episode.content_hash()
            where = _place(episode, index)
            if content_hash in first_places:
                refused.append(_doubled(where, first_places[content_hash]))
            first_places.setdefault(content_hash, where)
            try:
                episode.validate(tasks[episode.task_id])
            except EpisodeError as error:
                refused.append(_refused(episode, index, error))
            num_episodes += 1
            num_steps += episode.num_steps
    except UserError as error:
        remedy = "an import would stop here"
        return [Finding(severity="error", where=str(source), what=str(error), remedy=remedy)]
    lacking = [
        Finding(severity="warning", where=str(source), what=loss.describe(), remedy="") for loss in importer.losses()
    ]
    fields = sum(len(task.observation_spec) + len(task.action_spec) for task in tasks.values())
    facts = f"{num_episodes} episodes, {num_steps} steps, {len(tasks)} tasks, {fields} fields read"
    fact = Finding(severity="note", where=str(source), what=facts)
    return [*importer.findings(), *refused, *lacking, fact]


def examine_store(path: str | Path, *, progress: bool = False) -> list[Finding]:
    """The findings of `verify` on a store of ours.

    Raises:
      StoreError: the folder is not a store.
    """
    report = verify_store(path, progress=progress)
    damages = [
        Finding(
            severity="error",
            where=damage.file + (f" episode {damage.episode_id}" if damage.episode_id else ""),
            what=damage.problem,
            remedy="restore the file from a copy, or leave the episode out",
        )
        for damage in report.damages
    ]
    notes = [Finding(severity="note", where=str(path), what=note) for note in report.notes]
    facts = f"{report.num_episodes} episodes in {report.num_files} files, {report.num_bytes / 1e6:.1f} MB checked"
    return [*damages, *notes, Finding(severity="note", where=str(path), what=facts)]
