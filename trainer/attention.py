"""Ways for tokens to see each other, one rule: only earlier tokens of the same segment."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

# Up to this length a plain matrix product beats the fused kernel on CPUs, above all its backward pass in bf16.
_PLAIN_LENGTH = 512
_SMALLEST_BUCKET = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Relative:
    """Relative positions of one block (Transformer-XL, Dai et al. 2019, section 3.3).

    The score of query i and key j is (q_i + u) k_j + (q_i + v) r_{i - j}, over the square root of K.

    Attributes:
      content_bias: u, [H, K].
      position_bias: v, [H, K].
      encodings: r, [D, H, K], of the distances 0 to D - 1.
    """

    content_bias: Tensor
    position_bias: Tensor
    encodings: Tensor

    def scores(self, query: Tensor, num_distances: int) -> Tensor:
        """(q + v) r of queries [n, H, T, K] at the distances D' - 1 down to 0: [n, H, T, D']."""
        encodings = self.encodings[:num_distances].flip(0).permute(1, 2, 0).to(query.dtype)  # [H, K, D']
        return (query + self.position_bias[:, None].to(query.dtype)) @ encodings


class Attention(Protocol):
    """Queries, keys and values of N tokens, each [N, H, K], become N mixed values [N, H, K]."""

    @property
    def num_distances(self) -> int:
        """Distances between a query and a key are below this."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, *, block: int, relative: Relative | None = None
    ) -> Tensor: ...


class PackedAttention(Attention, Protocol):
    """Attention inside the segments of packed sequences: a dataclass of tensors."""

    @classmethod
    def from_lengths(cls, lengths: Sequence[int]) -> Self:
        """For segments of these lengths, laid end to end."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentedAttention:
    """Attention inside the segments of packed sequences.

    Segments are gathered into buckets of similar length, so nothing is computed between segments and hardly anything
    for padding; a token cannot see another segment because it is never in the same product.

    Attributes:
      buckets: int64 [n, L] each: flat token numbers of n segments, the last one repeated to fill up.
      inverse: int64 [N]: where each token is in the buckets, laid end to end.
    """

    buckets: tuple[Tensor, ...]
    inverse: Tensor

    @classmethod
    def from_lengths(cls, lengths: Sequence[int]) -> SegmentedAttention:
        """For segments of these lengths, laid end to end."""
        ends = np.cumsum(lengths)
        starts = ends - np.asarray(lengths)
        sides = np.maximum(_SMALLEST_BUCKET, 2 ** np.ceil(np.log2(np.maximum(lengths, 1))).astype(np.int64))
        # Half-way sides keep the padding under a third.
        halfway = (sides > _SMALLEST_BUCKET) & (np.asarray(lengths) <= sides * 3 // 4)
        sides = np.where(halfway, sides * 3 // 4, sides)
        buckets, inverse, base = [], np.empty(int(ends[-1]), dtype=np.int64), 0
        for side in np.unique(sides).tolist():
            (members,) = np.nonzero(sides == side)
            columns = np.arange(side)
            places = np.minimum(starts[members, None] + columns, ends[members, None] - 1)
            real = columns < (ends - starts)[members, None]
            inverse[places[real]] = base + np.flatnonzero(real.ravel())
            buckets.append(torch.from_numpy(places))
            base += places.size
        return cls(buckets=tuple(buckets), inverse=torch.from_numpy(inverse))

    @property
    def num_distances(self) -> int:
        """Length of the longest bucket."""
        return max(bucket.shape[1] for bucket in self.buckets)

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, *, block: int, relative: Relative | None = None
    ) -> Tensor:
        """[N, H, K] each -> [N, H, K]."""
        packed = torch.stack((query, key, value), dim=1)  # [N, 3, H, K]
        mixed = []
        for bucket in self.buckets:
            parts = packed.index_select(0, bucket.flatten()).view(*bucket.shape, *packed.shape[1:])
            q, k, v = parts.permute(2, 0, 3, 1, 4)  # each [n, H, L, K]
            mixed.append(causal_attention(q, k, v, relative).transpose(1, 2).flatten(0, 1))
        return torch.cat(mixed).index_select(0, self.inverse)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, relative: Relative | None = None) -> Tensor:
    """[n, H, L, K] each -> [n, H, L, K], every token over itself and the earlier ones."""
    length, scale = query.shape[2], query.shape[-1] ** -0.5
    fused = query.is_cuda or length > _PLAIN_LENGTH
    if relative is None:
        if fused:
            return functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        bias = _future(length, query.dtype, query.device).expand(query.shape[0] * query.shape[1], -1, -1)
    else:
        position_scores = shifted_scores(relative.scores(query, length)) * scale
        bias = position_scores + _future(length, query.dtype, query.device)
        query = query + relative.content_bias[:, None].to(query.dtype)
        if fused:
            return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        bias = bias.flatten(0, 1)
    flat = [part.flatten(0, 1) for part in (query, key.transpose(-1, -2), value)]
    scores = torch.baddbmm(bias, flat[0], flat[1], alpha=scale)
    return torch.bmm(scores.softmax(-1).to(value.dtype), flat[2]).view_as(query)


def shifted_scores(scores: Tensor) -> Tensor:
    """From scores by distance, L - 1 first [..., L, L], to scores by key: row i moves L - 1 - i places to the left.

    What wraps around lies in the future.
    """
    *rest, length, _ = scores.shape
    padded = functional.pad(scores, (1, 0)).view(*rest, length + 1, length)
    return padded[..., 1:, :]


@functools.cache
def _future(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[L, L]: minus infinity where a key is later than the query, else 0."""
    return torch.full((length, length), float("-inf"), dtype=dtype, device=device).triu_(1)


class KeyValueCache:
    """Keys and values of what each of B sequences has seen, for acting; sequences may differ in length.

    `extend` begins a pass over T new tokens of some of the sequences, of which `valid` are real and the others, on the
    right, are padding: they are written beyond the end and overwritten by what comes next.

    With a `window` a token sees itself and the window - 1 tokens before it, and a sequence has no end: position p lies
    in place p modulo `capacity`, where it replaces one that no token can see any more. The positions go on growing.
    """

    def __init__(
        self,
        *,
        num_blocks: int,
        batch_size: int,
        capacity: int,
        num_heads: int,
        key_size: int,
        dtype: torch.dtype,
        device: torch.device,
        window: int | None = None,
    ) -> None:
        shape = (num_blocks, batch_size, num_heads, capacity, key_size)
        self._window = window
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros(shape, dtype=dtype, device=device)
        self._lengths = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self._rows = self._places = self._distances = torch.zeros(0, dtype=torch.int64, device=device)
        self._mask = torch.zeros(0, dtype=torch.bool, device=device)
        self._num_distances = 0

    @property
    def capacity(self) -> int:
        """Most tokens of one sequence; with a window, most tokens of one that are kept."""
        return self._keys.shape[3]

    @property
    def most_at_once(self) -> int:
        """Most tokens of one sequence in one pass: more would replace what the first of them has to see."""
        return self.capacity if self._window is None else self.capacity - self._window + 1

    def clear(self, rows: Tensor) -> None:
        """Forgets what these sequences have seen."""
        self._lengths[rows] = 0

    def keep(self, rows: Tensor) -> None:
        """Makes sequence rows[i] the i-th; -1 stands for a new, empty one."""
        kept = rows.clamp_min(0)
        self._keys, self._values = self._keys[:, kept], self._values[:, kept]
        self._lengths = torch.where(rows >= 0, self._lengths[kept], 0)

    def extend(self, rows: Tensor, valid: Tensor) -> Tensor:
        """Adds `valid` [B'] tokens to each of `rows` [B']; returns their positions, int64 [B', T], T = max(valid)."""
        device, width = self._lengths.device, int(valid.max())
        positions = self._lengths[rows, None] + torch.arange(width, device=device)
        end = int(positions.max()) + 1
        if width > self.most_at_once or (self._window is None and end > self.capacity):
            raise ValueError(f"a cache of {self.capacity} tokens cannot hold {end}, {width} of them at once")
        places = torch.arange(min(end, self.capacity), device=device)
        # The newest position that each place can hold; negative where nothing was written yet.
        last = positions[:, -1:]
        held = last - (last - places) % self.capacity  # [B', places]
        distances = positions[:, :, None] - held[:, None]  # [B', T, places]
        mask = (distances >= 0) & (held >= 0)[:, None]
        if self._window is not None:
            mask &= distances < self._window
        self._rows, self._places = rows, positions % self.capacity
        self._num_distances = min(end, self._window or end)
        self._distances, self._mask = distances.clamp(0, self._num_distances - 1), mask[:, None]
        self._lengths[rows] += valid
        return positions

    @property
    def num_distances(self) -> int:
        """Tokens that a token of the sequences that `extend` was called for sees at most."""
        return self._num_distances

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, *, block: int, relative: Relative | None = None
    ) -> Tensor:
        """[B' * T, H, K] each -> [B' * T, H, K]."""
        query, key, value = (part.view(*self._places.shape, *part.shape[1:]) for part in (query, key, value))
        keys, values = self._keys[block], self._values[block]
        keys[self._rows[:, None], :, self._places] = key.to(keys.dtype)
        values[self._rows[:, None], :, self._places] = value.to(values.dtype)
        used = self._mask.shape[-1]
        if len(self._rows) == len(keys):  # all of them, in order
            keys, values = keys[:, :, :used], values[:, :, :used]
        else:
            keys, values = keys[self._rows, :, :used], values[self._rows, :, :used]
        query, mask = query.transpose(1, 2).to(keys.dtype), self._mask
        if relative is not None:
            position_scores = relative.scores(query, self.num_distances).flip(-1)
            wanted = self._distances[:, None].expand(-1, query.shape[1], -1, -1)
            position_scores = position_scores.gather(-1, wanted)
            mask = (position_scores * query.shape[-1] ** -0.5).masked_fill(~mask, float("-inf"))
            query = query + relative.content_bias[:, None].to(query.dtype)
        mixed = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        return mixed.transpose(1, 2).flatten(0, 1)
