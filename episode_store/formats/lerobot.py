"""LeRobot v3.0 sets, read and written without LeRobot: the functions that the registry calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from episode_store.errors import UserError
from episode_store.formats import lerobot_files as files
from episode_store.formats.folders import read_json_object
from episode_store.formats.format import ExportResult, Finding, Progress
from episode_store.formats.lerobot_export import export_lerobot
from episode_store.formats.lerobot_files import LeRobotFolder
from episode_store.formats.lerobot_import import LeRobotImporter
from episode_store.formats.transfer import Bar, examine_importer, no_bar
from episode_store.store import EpisodeStore


def detect(source: Path) -> bool:
    """Whether the folder has meta/info.json with features."""
    return files.is_lerobot(source)


def open_importer(source: Path, *, task_id: str | None = None, options: Mapping[str, str]) -> LeRobotImporter:
    """Opens a set; see `LeRobotImporter`."""
    return LeRobotImporter(source, task_id=task_id, options=options)


def export(
    store: EpisodeStore, task_id: str, destination: Path, *, options: Mapping[str, str], progress: Progress
) -> ExportResult:
    """Writes one task; see `export_lerobot`."""
    return export_lerobot(store, task_id, destination, options=options, progress=progress)


def doctor(source: Path, progress: Bar = no_bar) -> list[Finding]:
    """Reads the whole set, holds every episode against the contract, and compares the metadata with each other."""
    findings = examine_importer(lambda: LeRobotImporter(source, task_id=None, options={}), source, progress)
    try:
        folder = files.open_folder(source)
    except UserError:
        return findings
    return [*_metadata_findings(folder), *_stats_findings(folder), *findings]


def _metadata_findings(folder: LeRobotFolder) -> Iterator[Finding]:
    info = folder.info
    said = info.get("total_tasks")
    if said != len(folder.instructions):
        what = f"says total_tasks {said}, {files.TASKS_FILE} has {len(folder.instructions)}"
        yield Finding(severity="error", where=files.INFO_FILE, what=what, remedy="copy meta/ again")
    start = 0
    for index in sorted(folder.episodes):
        row = folder.episodes[index]
        begin, end, length = (row.get(name) for name in ("dataset_from_index", "dataset_to_index", "length"))
        if not (isinstance(begin, int) and isinstance(end, int) and isinstance(length, int)):
            what, remedy = "lacks dataset_from_index, dataset_to_index or length", "LeRobot's reader fails there"
            yield Finding(severity="error", where=f"{files.EPISODES_FOLDER} episode {index}", what=what, remedy=remedy)
            continue
        if begin != start or end - begin != length:
            what = f"frames {begin} to {end} for length {length}, expected from {start}: windows mix episodes"
            remedy = "write the table anew from the data"
            yield Finding(severity="error", where=f"{files.EPISODES_FOLDER} episode {index}", what=what, remedy=remedy)
        start = end
    if folder.episodes and sorted(folder.episodes) != list(range(len(folder.episodes))):
        what = f"{len(folder.episodes)} episodes, the last is {max(folder.episodes)}: their numbers have gaps"
        remedy = "LeRobot looks episodes up by their place: write the numbers anew"
        yield Finding(severity="error", where=files.EPISODES_FOLDER, what=what, remedy=remedy)
    for key, feature in folder.features.items():
        if feature.dtype == "video":
            yield from _video_findings(folder, key)


def _video_findings(folder: LeRobotFolder, key: str) -> Iterator[Finding]:
    """Videos that are missing, and episodes whose share of the video is not as long as their frames."""
    seen = set()
    for index, row in folder.episodes.items():
        where = f"{files.EPISODES_FOLDER} episode {index}"
        try:
            file = folder.video_file(key, row)
        except UserError as error:
            yield Finding(severity="error", where=where, what=str(error), remedy="copy the set again")
            continue
        if file not in seen and not file.is_file():
            what = f"the video {file.name} of {key} is missing"
            yield Finding(severity="error", where=where, what=what, remedy="copy the set again, with its videos")
        seen.add(file)
        begin, end = row.get(f"videos/{key}/from_timestamp"), row.get(f"videos/{key}/to_timestamp")
        if isinstance(begin, float) and isinstance(end, float) and isinstance(row.get("length"), int):
            frames = (end - begin) * folder.fps
            if abs(frames - row["length"]) > 0.5:
                what = (
                    f"{key} has {frames:.1f} frames of video at fps {folder.fps:g} for {row['length']} frames of data"
                )
                remedy = "fps in info.json is not the rate of the recording, or frames were dropped"
                yield Finding(severity="error", where=where, what=what, remedy=remedy)


def _stats_findings(folder: LeRobotFolder) -> Iterator[Finding]:
    """stats.json: is it there, of these features, of this many frames, with bounds that the episodes' own fit."""
    where = files.STATS_FILE
    try:
        stats = read_json_object(folder.path / where)
    except UserError as error:
        yield Finding(severity="warning", where=where, what=str(error), remedy="training normalizes by it: compute it")
        return
    for key, feature in folder.features.items():
        if feature.dtype == "string":
            continue
        own = stats.get(key)
        if not isinstance(own, dict) or not {"min", "max", "mean", "std"} <= set(own):
            what, remedy = f"has no min, max, mean and std of {key}", "training normalizes by it: compute it anew"
            yield Finding(severity="warning", where=where, what=what, remedy=remedy)
            continue
        bad = [name for name in ("min", "max", "mean", "std") if not _is_finite(own[name])]
        if bad:
            what = f"{key}: {', '.join(bad)} is not finite: frames with NaN or Inf"
            yield Finding(
                severity="error", where=where, what=what, remedy="mend the frames, compute the statistics anew"
            )
        counted = own.get("count")
        if feature.dtype not in ("image", "video") and counted not in (None, [folder.info.get("total_frames")]):
            what = f"{key}: of {counted} frames, info.json says {folder.info.get('total_frames')}"
            remedy = "the statistics are of another state of the set: compute them anew"
            yield Finding(severity="warning", where=where, what=what, remedy=remedy)


def _is_finite(value: Any) -> bool:
    try:
        return bool(np.isfinite(np.array(value, np.float64)).all())
    except (TypeError, ValueError):
        return False
