"""RLDS/TFDS sets, read and written without TensorFlow: the functions that the registry calls."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from episode_store.errors import UserError
from episode_store.formats.format import ExportResult, Finding, Progress
from episode_store.formats.rlds_export import export_rlds
from episode_store.formats.rlds_folder import find_folder
from episode_store.formats.rlds_import import RldsImporter
from episode_store.formats.transfer import Bar, examine_importer, no_bar
from episode_store.store import EpisodeStore


def detect(source: Path) -> bool:
    """Whether a features.json lies in the folder or up to three folders down."""
    try:
        return find_folder(source) is not None
    except UserError:
        return True


def open_importer(source: Path, *, task_id: str | None = None, options: Mapping[str, str]) -> RldsImporter:
    """Opens a set; see `RldsImporter`."""
    return RldsImporter(source, task_id=task_id, options=options)


def export(
    store: EpisodeStore, task_id: str, destination: Path, *, options: Mapping[str, str], progress: Progress
) -> ExportResult:
    """Writes one task; see `export_rlds`."""
    return export_rlds(store, task_id, destination, options=options, progress=progress)


def doctor(source: Path, progress: Bar = no_bar) -> list[Finding]:
    """Reads every record of the set and holds every episode against the contract."""
    return examine_importer(lambda: RldsImporter(source, task_id=None, options={}), source, progress)
