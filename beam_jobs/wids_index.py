"""The index that the wids reader of WebDataset opens; random access to samples by number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

WIDS_FILE = "wids-{split}.json"


def wids_index(shards: Iterable[Mapping[str, Any]], split: str) -> dict[str, Any]:
    """The index of the shards of one split, from their entries in the manifest."""
    return {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "shardlist": [
            {
                "url": shard["file"],
                "md5sum": shard["md5"],
                "nsamples": shard["num_samples"],
                "filesize": shard["bytes"],
            }
            for shard in shards
            if shard["split"] == split
        ],
    }
