"""Some episodes in one file that needs no server: the same answers, taken beforehand, and what had to be left out."""

from __future__ import annotations

import base64
import datetime
import json
from collections.abc import Iterable, Sequence
from typing import Any

from episode_store.errors import CorruptionError
from episode_store.viewer.content import MAX_STEPS, Content
from episode_store.viewer.table import COLUMNS

# Of one episode; what is beyond is said in the page where it is missing.
MAX_FRAMES = 128
_MAX_STEPS = 1_024
_TOKEN_STEPS = 32
_NAMED = 5


def gather(content: Content, episode_ids: Iterable[str], *, max_bytes: int) -> dict[str, Any]:
    """What `page.build` puts into a file.

    Args:
      content: of the store.
      episode_ids: to take, in the order of the table; those that do not fit any more are left out and named.
      max_bytes: of all that is taken, about.
    """
    rows, episodes, too_much = [], {}, []
    size = 0
    for episode_id in episode_ids:
        entry = _entry(content, episode_id)
        entry_size = len(json.dumps(entry, allow_nan=False))
        if size + entry_size > max_bytes:
            too_much.append(episode_id)
            continue
        size += entry_size
        episodes[episode_id] = entry
        rows.append({name: entry["episode"][name] for name in (*COLUMNS, "damaged")})
    now = datetime.datetime.now(datetime.UTC)
    return {
        "made": f"taken on {now:%Y-%m-%d %H:%M} UTC",
        "left_out": _left_out(too_much, len(rows), max_bytes),
        "summary": _summary(content.summary(), rows),
        "rows": rows,
        "episodes": episodes,
    }


def _left_out(episode_ids: Sequence[str], num_kept: int, max_bytes: int) -> list[str]:
    if not episode_ids:
        return []
    names = ", ".join(episode_id[:12] for episode_id in episode_ids[:_NAMED])
    more = f" and {len(episode_ids) - _NAMED} more" if len(episode_ids) > _NAMED else ""
    return [
        f"{len(episode_ids)} of the {len(episode_ids) + num_kept} episodes chosen are left out, as this file would "
        f"exceed {max_bytes / 1e6:g} MB: {names}{more}"
    ]


def _summary(summary: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """With the counts of what is in the file."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["task_id"]] = counts.get(row["task_id"], 0) + 1
    tasks = [{**task, "episodes": counts[task["task_id"]]} for task in summary["tasks"] if task["task_id"] in counts]
    return {**summary, "episodes": len(rows), "tasks": tasks}


def _entry(content: Content, episode_id: str) -> dict[str, Any]:
    """All answers about one episode, by the names under which the page asks for them."""
    facts = content.episode(episode_id)
    if facts["damaged"]:
        return {"episode": facts}
    num_steps, fields = facts["num_steps"], facts["fields"]
    of_kind = {
        kind: [field for field in fields if field["kind"] == kind and all(field["shape"])]
        for kind in ("numbers", "picture")
    }
    return {
        "episode": facts,
        "texts": content.texts(episode_id),
        "series": {field["path"]: content.series(episode_id, field["path"]) for field in of_kind["numbers"]},
        "steps": [
            content.steps(episode_id, start, MAX_STEPS) for start in range(0, min(num_steps + 1, _MAX_STEPS), MAX_STEPS)
        ],
        "tokens": [content.tokens(episode_id, step) for step in range(min(num_steps, _TOKEN_STEPS))],
        "frames": {field["path"]: _frames(content, episode_id, field) for field in of_kind["picture"]},
    }


def _frames(content: Content, episode_id: str, field: dict[str, Any]) -> dict[str, Any]:
    """Pictures of each `every`-th step as addresses that hold them; "" for a damaged one, with its sentence."""
    every = -(-field["rows"] // MAX_FRAMES)
    urls, damaged = [], {}
    for place, step in enumerate(range(0, field["rows"], every)):
        try:
            picture = base64.b64encode(content.frame(episode_id, field["path"], step)).decode()
        except CorruptionError as error:
            urls.append("")
            damaged[place] = str(error)
        else:
            urls.append(f"data:image/png;base64,{picture}")
    return {"every": every, "urls": urls, "damaged": damaged}
