"""Feeds token sequences to the network through a key-value cache and samples what comes next."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from tokenization import image_patches
from tokenization.token_sequence import ACTION_POSITION, TokenSequence, observation_positions
from tokenization.vocabulary import CONTINUOUS_OFFSET, NUM_DISCRETE, PATCH_PLACEHOLDER
from trainer.attention import KeyValueCache
from trainer.model import Generalist, ModelInput
from trainer.precision import autocast


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Fragment:
    """Tokens ready for the network, patches as pixels.

    Attributes:
      tokens: int64 [N], 0 at patches.
      local_positions: int64 [N].
      patches: uint8 [M, 16, 16, 3], one for each patch token.
      patch_slots: int64 [M], places of the patch tokens.
      patch_positions: int64 [M, 2].
    """

    tokens: np.ndarray
    local_positions: np.ndarray
    patches: np.ndarray
    patch_slots: np.ndarray
    patch_positions: np.ndarray

    @classmethod
    def of(cls, sequence: TokenSequence) -> Fragment:
        """A token sequence with the patch positions of evaluation."""
        tokens = sequence.tokens.astype(np.int64)
        (slots,) = np.nonzero(tokens == PATCH_PLACEHOLDER)
        tokens[slots] = 0
        return cls(
            tokens=tokens,
            local_positions=observation_positions(sequence.tokens, sequence.timestep_offsets).astype(np.int64),
            patches=sequence.patches[sequence.patch_index],
            patch_slots=slots,
            patch_positions=image_patches.evaluation_positions(sequence.patch_intervals),
        )

    @classmethod
    def of_action(cls, tokens: Sequence[int]) -> Fragment:
        """Action tokens."""
        ids = np.asarray(tokens, dtype=np.int64)
        nothing = np.zeros(0, np.int64)
        return cls(
            tokens=ids,
            local_positions=np.full(len(ids), ACTION_POSITION, np.int64),
            patches=np.zeros((0, *image_patches.PATCH_SHAPE), np.uint8),
            patch_slots=nothing,
            patch_positions=nothing.reshape(0, 2),
        )

    def part(self, start: int, stop: int) -> Fragment:
        """The tokens [start, stop)."""
        low, high = np.searchsorted(self.patch_slots, (start, stop))
        return Fragment(
            tokens=self.tokens[start:stop],
            local_positions=self.local_positions[start:stop],
            patches=self.patches[low:high],
            patch_slots=self.patch_slots[low:high] - start,
            patch_positions=self.patch_positions[low:high],
        )

    @classmethod
    def join(cls, parts: Sequence[Fragment]) -> Fragment:
        """One after the other."""
        starts = np.cumsum([0] + [len(part.tokens) for part in parts])
        return cls(
            tokens=np.concatenate([part.tokens for part in parts]),
            local_positions=np.concatenate([part.local_positions for part in parts]),
            patches=np.concatenate([part.patches for part in parts]),
            patch_slots=np.concatenate([part.patch_slots + start for part, start in zip(parts, starts, strict=False)]),
            patch_positions=np.concatenate([part.patch_positions for part in parts]),
        )


class Decoder:
    """A batch of sequences that grow; each is one row of the cache.

    With a `window` they have no end: a token sees itself and the window - 1 tokens before it.
    """

    def __init__(
        self, model: Generalist, *, batch_size: int, capacity: int, precision: str, window: int | None = None
    ) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        self._precision = precision
        config = model.config
        self._cache = KeyValueCache(
            num_blocks=config.num_blocks,
            batch_size=batch_size,
            capacity=capacity,
            num_heads=config.num_heads,
            key_size=config.key_size,
            dtype=torch.float32,
            device=self._device,
            window=window,
        )

    @property
    def capacity(self) -> int:
        """Most tokens of one sequence."""
        return self._cache.capacity

    def keep(self, rows: Sequence[int]) -> None:
        """Row rows[i] becomes the i-th; -1 stands for a new, empty sequence."""
        self._cache.keep(torch.tensor(rows, device=self._device))

    @torch.no_grad()
    def feed(self, fragments: Sequence[Fragment], rows: Sequence[int], *, fresh: bool = False) -> torch.Tensor:
        """Appends a fragment to each of `rows`; returns the final hidden state of its last token, [len(rows), D]."""
        if fresh:
            self._cache.clear(torch.tensor(rows, device=self._device))
        most, longest = self._cache.most_at_once, max(len(fragment.tokens) for fragment in fragments)
        if longest <= most:
            return self._feed(fragments, rows)
        last = torch.empty((len(rows), self._model.config.width), device=self._device)
        for start in range(0, longest, most):
            going = [index for index, fragment in enumerate(fragments) if len(fragment.tokens) > start]
            parts = [fragments[index].part(start, start + most) for index in going]
            last[going] = self._feed(parts, [rows[index] for index in going])
        return last

    def _feed(self, fragments: Sequence[Fragment], rows: Sequence[int]) -> torch.Tensor:
        device = self._device
        row_numbers = torch.tensor(rows, device=device)
        lengths = np.array([len(fragment.tokens) for fragment in fragments])
        width = int(lengths.max())
        tokens = np.zeros((len(rows), width), np.int64)
        local = np.zeros((len(rows), width), np.int64)
        for index, fragment in enumerate(fragments):
            tokens[index, : lengths[index]] = fragment.tokens
            local[index, : lengths[index]] = fragment.local_positions
        valid = torch.from_numpy(lengths).to(device)
        positions = self._cache.extend(row_numbers, valid)
        pixels = np.concatenate([fragment.patches for fragment in fragments])
        patches, patch_index = image_patches.unique_patches(pixels) if len(pixels) else (pixels, np.zeros(0, np.int64))
        inputs = ModelInput(
            tokens=torch.from_numpy(tokens).flatten(),
            local_positions=torch.from_numpy(local).flatten(),
            positions=positions.flatten(),
            patches=torch.from_numpy(patches),
            patch_slots=torch.from_numpy(
                np.concatenate([fragment.patch_slots + i * width for i, fragment in enumerate(fragments)])
            ),
            patch_index=torch.from_numpy(patch_index.astype(np.int64)),
            patch_positions=torch.from_numpy(np.concatenate([fragment.patch_positions for fragment in fragments])),
        ).to(device)
        with autocast(self._precision, device):
            hidden = self._model(inputs, self._cache).view(len(rows), width, -1)
        return hidden[torch.arange(len(rows), device=device), valid - 1].float()

    @torch.no_grad()
    def sample_action(
        self,
        hidden: torch.Tensor,
        low: int,
        high: int,
        rngs: Sequence[np.random.Generator],
        temperature: float,
        top_k: int = 0,
    ) -> np.ndarray:
        """An id in [low, high), discrete values or bins, for each row of `hidden` [n, D]."""
        shift = CONTINUOUS_OFFSET - NUM_DISCRETE if low >= CONTINUOUS_OFFSET else 0
        logits = self._model.control_logits(hidden)[:, low - shift : high - shift]
        return _sample(logits, rngs, temperature, top_k) + low

    @torch.no_grad()
    def sample_text(
        self, hidden: torch.Tensor, num_pieces: int, rngs: Sequence[np.random.Generator], temperature: float
    ) -> np.ndarray:
        """A piece of text for each row of `hidden` [n, D]."""
        return _sample(self._model.text_logits(hidden)[:, :num_pieces], rngs, temperature)


def _sample(
    logits: torch.Tensor, rngs: Sequence[np.random.Generator], temperature: float, top_k: int = 0
) -> np.ndarray:
    """Softmax at `temperature` over the `top_k` most likely (0: over all), or the most likely at 0."""
    values = logits.float().cpu().numpy()
    if 0 < top_k < values.shape[1]:
        least = np.partition(values, -top_k, axis=1)[:, -top_k, None]
        values = np.where(values >= least, values, -np.inf)
    if temperature > 0:
        # The Gumbel trick: one generator a row, so a row's choice does not depend on its neighbours.
        values = values / temperature + np.stack([rng.gumbel(size=values.shape[1]) for rng in rngs])
    return values.argmax(axis=1)
