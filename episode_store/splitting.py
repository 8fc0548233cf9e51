"""Parts of a store that cannot leak into each other: what belongs together is never divided.

Episodes belong together when their content is equal, when they have the same seed of the same task (they begin alike),
or when they are of one split group; and then with all that belongs to any of these. Each such family goes to one part,
decided by a hash of its name: not by order, not by chance, and for most not by which other episodes there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from episode_store import splits
from episode_store.errors import UserError

COLUMNS = ("task_id", "seed", "split_group", "content_hash")


def families(table: pa.Table) -> np.ndarray:
    """The family of each row: int64 [n], the number of the family's first row.

    Args:
      table: has `COLUMNS`.
    """
    labels = np.arange(table.num_rows)
    seeds = pc.fill_null(table["seed"], 0)
    pairs = _codes(table["task_id"]) * (table.num_rows + 1) + _codes(seeds)
    keys = [
        (_codes(table["content_hash"]), np.ones(table.num_rows, bool)),
        (np.unique(pairs, return_inverse=True)[1], _bools(pc.is_valid(table["seed"]))),
        (_codes(table["split_group"]), _bools(pc.not_equal(table["split_group"], ""))),
    ]
    while True:
        before = labels
        for codes, known in keys:
            smallest = np.full(table.num_rows + 1, table.num_rows)
            np.minimum.at(smallest, codes[known], labels[known])
            labels = np.where(known, np.minimum(labels, smallest[codes]), labels)
        labels = labels[labels]
        if (labels == before).all():
            return labels


def assign(table: pa.Table, parts: Mapping[str, float]) -> np.ndarray:
    """The part of each row: int64 [n], a place in `parts`.

    Args:
      table: has `COLUMNS`.
      parts: name -> share, which sum to 1. A split group "validation/..." goes to the part of that name.

    Raises:
      UserError: the shares do not sum to 1, or one family declares two parts.
    """
    check_parts(parts)
    labels = families(table)
    names = list(parts)
    ends = np.cumsum([parts[name] for name in reversed(names)])
    result = np.empty(table.num_rows, np.int64)
    order = np.argsort(labels, kind="stable")
    edges = np.flatnonzero(np.diff(labels[order], prepend=-1))
    columns = [table[name].to_pylist() for name in COLUMNS]
    for family in np.split(order, edges[1:]) if len(order) else []:
        members = [_Member(*(column[row] for column in columns)) for row in family.tolist()]
        declared = {name for member in members if (name := member.declared) in parts}
        if len(declared) > 1:
            raise UserError(
                f"split: a family of {len(members)} episodes declares parts {', '.join(sorted(declared))}: equal "
                f"content, seed or group in both, such as content {members[0].content_hash} of {members[0].task_id}"
            )
        if declared:
            part = names.index(declared.pop())
        else:
            # The last part takes the lowest fractions, as validation data does in splits.py.
            place = int(np.searchsorted(ends, splits.fraction_of(_family_name(members)), side="right"))
            part = len(names) - 1 - min(place, len(names) - 1)
        result[family] = part
    return result


class _Member(NamedTuple):
    """What matters of one episode; fields as `COLUMNS`."""

    task_id: str
    seed: int | None
    split_group: str
    content_hash: str

    @property
    def declared(self) -> str:
        """What comes before the '/' of its group."""
        name, slash, _ = self.split_group.partition("/")
        return name if slash else ""


def check_parts(parts: Mapping[str, float]) -> None:
    """Raises a UserError unless there are two parts or more whose shares sum to 1."""
    if len(parts) < 2 or any(not 0 < share < 1 for share in parts.values()) or abs(sum(parts.values()) - 1) > 1e-6:
        got = ", ".join(f"{name}={share:g}" for name, share in parts.items())
        raise UserError(f"split: expected two parts or more with shares that sum to 1, got {got or 'none'}")


def _family_name(members: list[_Member]) -> str:
    groups = [member.split_group for member in members if member.split_group]
    if groups:
        return min(groups)
    seeds = [f"seed:{member.task_id}:{member.seed}" for member in members if member.seed is not None]
    return min(seeds or [member.content_hash for member in members])


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    """Equal values, equal numbers: int64 [n], all below n."""
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _bools(column: pa.ChunkedArray) -> np.ndarray:
    return column.combine_chunks().to_numpy(zero_copy_only=False).astype(bool)
