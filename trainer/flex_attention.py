"""Attention inside packed segments as one kernel, for CUDA (FlexAttention, Dong et al. 2024, arXiv 2412.05496).

Imported where it is used: what it needs of torch's compiler takes seconds to import.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from trainer.attention import Relative

_BLOCK = 128  # tokens a side of what is computed or skipped; torch's own default
# Of torch's `BlockMask`.
BLOCK_TENSORS = (
    "kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices",
    "q_num_blocks", "q_indices", "full_q_num_blocks", "full_q_indices",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlexAttention:
    """The same as `SegmentedAttention`, in one kernel.

    Blocks of 128 x 128 pairs of tokens are computed whole, computed under a mask, or skipped. Segments lie end to end,
    so which are which follows from where segments begin, and no mask of N x N pairs is ever made.

    Attributes:
      starts: int64 [N], the first token of each token's segment.
      blocks: tensors of torch's `BlockMask`, of masked blocks, of whole blocks, and of both by key: how many each block
        of queries has, int32 [1, 1, n], and their numbers, int32 [1, 1, n, n].
      num_distances: length of the longest segment, rounded up to blocks.
    """

    starts: Tensor
    blocks: tuple[Tensor, ...]
    num_distances: int

    @classmethod
    def from_lengths(cls, lengths: Sequence[int]) -> FlexAttention:
        """For segments of these lengths, laid end to end."""
        ends = np.cumsum(lengths)
        starts = np.repeat(ends - np.asarray(lengths), lengths)
        num_tokens = len(starts)
        number = np.arange(-(-num_tokens // _BLOCK))
        # No query of a block sees what is before the first one's segment; all of them see what lies between the
        # beginning of the last one's segment and the block.
        first = starts[number * _BLOCK]
        last = starts[np.minimum((number + 1) * _BLOCK, num_tokens) - 1]
        key, query = number[None], number[:, None]
        seen = (key >= first[:, None] // _BLOCK) & (key <= query)
        whole = seen & (key * _BLOCK >= last[:, None]) & (key < query)
        whole[-1] &= num_tokens % _BLOCK == 0
        mask = BlockMask.from_kv_blocks(
            *_ordered(seen & ~whole), *_ordered(whole), BLOCK_SIZE=_BLOCK, seq_lengths=(num_tokens, num_tokens)
        )
        longest = -(-int(max(lengths)) // _BLOCK) * _BLOCK
        blocks = tuple(getattr(mask, name) for name in BLOCK_TENSORS)
        return cls(starts=torch.from_numpy(starts), blocks=blocks, num_distances=longest)

    # Compiled by itself: its kernel is the same whatever is compiled around it.
    @torch.compiler.disable
    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, *, block: int, relative: Relative | None = None
    ) -> Tensor:
        """[N, H, K] each -> [N, H, K]."""
        query, key, value = (part.transpose(0, 1)[None] for part in (query, key, value))  # [1, H, N, K]
        starts, score_mod = self.starts, None

        def is_seen(batch: Tensor, head: Tensor, place: Tensor, earlier: Tensor) -> Tensor:
            return (starts[place] <= earlier) & (earlier <= place)

        if relative is not None:
            score_mod = _added(relative.scores(query, self.num_distances)[0].flip(-1) * query.shape[-1] ** -0.5)
            query = query + relative.content_bias[:, None].to(query.dtype)
        blocks: dict[str, Any] = dict(zip(BLOCK_TENSORS, self.blocks, strict=True))
        length, side = len(starts), _BLOCK
        mask = BlockMask(seq_lengths=(length, length), BLOCK_SIZE=(side, side), mask_mod=is_seen, **blocks)
        attend = _compiled_flex() if query.is_cuda else flex_attention
        return attend(query, key, value, score_mod=score_mod, block_mask=mask)[0].transpose(0, 1)


def _ordered(blocks: np.ndarray) -> tuple[Tensor, Tensor]:
    """How many of [n, n] blocks are set in each row, and the numbers of these first: int32 [1, 1, n], [1, 1, n, n]."""
    numbers = np.argsort(~blocks, axis=1, kind="stable").astype(np.int32)
    return torch.from_numpy(blocks.sum(1, dtype=np.int32))[None, None], torch.from_numpy(numbers)[None, None]


def _added(scores: Tensor) -> Callable[..., Tensor]:
    """A score_mod that adds `scores` [H, N, D] by distance. The distance of a pair that is masked may be any."""

    def score_mod(score: Tensor, batch: Tensor, head: Tensor, place: Tensor, earlier: Tensor) -> Tensor:
        return score + scores[head, place, (place - earlier).clamp(0, scores.shape[-1] - 1)]

    return score_mod


@functools.cache
def _compiled_flex() -> Any:
    """Without compilation it would compute all pairs."""
    return torch.compile(flex_attention)
