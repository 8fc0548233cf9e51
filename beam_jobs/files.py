"""What shards are known by, and their JSON files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

BLOCK_BYTES = 1 << 20


def file_facts(path: Path) -> dict[str, object]:
    """`bytes`, `sha256` and `md5` (the index of the wids reader wants it) of a file, read once."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    size = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            sha256.update(block)
            md5.update(block)
            size += len(block)
    return {"bytes": size, "sha256": sha256.hexdigest(), "md5": md5.hexdigest()}


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object; None when the file is missing or not one."""
    try:
        data = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return data if isinstance(data, dict) else None
