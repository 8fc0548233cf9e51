"""The generalist: one decoder-only transformer over tokens of every kind.

Shape suffixes: N tokens, H heads, K key size, D width (in `Positions` distances), U patches, M patch tokens.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from episode_store.errors import UserError
from tokenization.vocabulary import NUM_BINS, NUM_DISCRETE
from trainer.attention import Attention, Relative
from trainer.config import ModelConfig
from trainer.embedding import InputEmbedding
from trainer.tensors import map_tensors

ROTARY_BASE = 10_000.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelInput:
    """N tokens of all sequences, end to end.

    Attributes:
      tokens: int64 [N].
      local_positions: int64 [N], -1 for action tokens.
      positions: int64 [N], place inside the segment, for the rotary embedding.
      patches, patch_slots, patch_index, patch_positions: see `InputEmbedding.forward`.
    """

    tokens: Tensor
    local_positions: Tensor
    positions: Tensor
    patches: Tensor
    patch_slots: Tensor
    patch_index: Tensor
    patch_positions: Tensor

    def to(self, device: torch.device) -> ModelInput:
        """The same on another device."""
        return map_tensors(self, lambda tensor: tensor.to(device, non_blocking=True))


class Positions(NamedTuple):
    """What the blocks know of places: the rotary embedding's angles, or the encodings of distances.

    Attributes:
      cosine, sine: [N, 1, 1, K / 2], of the rotary embedding; empty without it.
      distances: [D, width], of the relative positions; empty without them.
    """

    cosine: Tensor
    sine: Tensor
    distances: Tensor


class Block(nn.Module):
    """Pre-norm attention and GEGLU."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.num_heads, self.key_size = config.num_heads, config.key_size
        inner = config.num_heads * config.key_size
        self.attention_norm = nn.LayerNorm(config.width)
        self.query_key_value = nn.Linear(config.width, 3 * inner, bias=False)
        self.attention_out = nn.Linear(inner, config.width, bias=False)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.gate_and_value = nn.Linear(config.width, config.feed_forward_size, bias=False)
        self.feed_forward_out = nn.Linear(config.feed_forward_size // 2, config.width, bias=False)
        self.is_relative = config.positions == "relative"
        if self.is_relative:
            self.distance_key = nn.Linear(config.width, inner, bias=False)
            self.content_bias = nn.Parameter(torch.zeros(config.num_heads, config.key_size))
            self.position_bias = nn.Parameter(torch.zeros(config.num_heads, config.key_size))
        self.dropout, self.stochastic_depth = config.dropout, config.stochastic_depth

    def forward(self, x_ND: Tensor, positions: Positions, attention: Attention) -> Tensor:
        """[N, D] -> [N, D]."""
        qkv = self.query_key_value(self.attention_norm(x_ND)).view(-1, 3, self.num_heads, self.key_size)
        relative = None
        if self.is_relative:
            query, key = qkv[:, 0], qkv[:, 1]
            encodings = self.distance_key(positions.distances).view(-1, self.num_heads, self.key_size)
            relative = Relative(content_bias=self.content_bias, position_bias=self.position_bias, encodings=encodings)
        else:
            query, key = rotate(qkv[:, :2], (positions.cosine, positions.sine)).unbind(1)
        mixed = attention(query, key, qkv[:, 2], block=self.index, relative=relative)
        x_ND = x_ND + self._drop(self.attention_out(mixed.flatten(1)))
        gate, value = self.gate_and_value(self.feed_forward_norm(x_ND)).chunk(2, dim=-1)
        return x_ND + self._drop(self.feed_forward_out(functional.gelu(gate) * value))

    def _drop(self, update: Tensor) -> Tensor:
        if self.dropout:
            update = functional.dropout(update, self.dropout, self.training)
        if self.stochastic_depth and self.training:
            # The whole sub-layer, as a factor: no branch that a compiled network would have to leave its graph for.
            kept = torch.rand((), device=update.device) >= self.stochastic_depth
            update = update * (kept / (1.0 - self.stochastic_depth)).to(update.dtype)
        return update


class Generalist(nn.Module):
    """Embedding, blocks, final norm; input and output embeddings are one table."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.positions not in ("rotary", "relative"):
            raise UserError(f"model.positions {config.positions!r}: expected rotary or relative")
        self.config = config
        # Trades time for memory: only the blocks' inputs are kept for the backward pass.
        self.checkpoint_activations = False
        self.embedding = InputEmbedding(config.width, config.patch_channels)
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.num_blocks))
        self.final_norm = nn.LayerNorm(config.width)

    def initialize(self, seed: int) -> None:
        """Deterministic initial weights; the residual branches' last layers are scaled down with depth."""
        generator = torch.Generator().manual_seed(seed)
        self.embedding.initialize(generator)
        for block in self.blocks:
            for name, layer in block.named_children():
                if not isinstance(layer, nn.Linear):
                    continue
                std = layer.in_features**-0.5
                if name.endswith("_out"):
                    std /= (2 * len(self.blocks)) ** 0.5
                nn.init.normal_(layer.weight, std=std, generator=generator)

    def forward(self, batch: ModelInput, attention: Attention) -> Tensor:
        """Final hidden states [N, D]."""
        x = self.embedding(
            batch.tokens,
            batch.local_positions,
            batch.patches,
            batch.patch_slots,
            batch.patch_index,
            batch.patch_positions,
        )
        x = x * self.config.width**0.5
        positions = self._positions(batch.positions, attention)
        for block in self.blocks:
            if self.checkpoint_activations and self.training:
                x = checkpoint(block, x, positions, attention, use_reentrant=False)
            else:
                x = block(x, positions, attention)
        return self.final_norm(x)

    def _positions(self, positions_N: Tensor, attention: Attention) -> Positions:
        empty = torch.zeros(0, device=positions_N.device)
        if self.config.positions == "relative":
            distances = torch.arange(attention.num_distances, device=positions_N.device)
            return Positions(empty, empty, sinusoids(distances, self.config.width))
        cosine, sine = rotary_angles(positions_N, self.config.key_size)
        return Positions(cosine, sine, empty)

    def text_logits(self, hidden: Tensor) -> Tensor:
        """Logits of all 33,025 ids at hidden states [..., D]; input and output embeddings are the same tables."""
        tables = (self.embedding.text.weight, self.embedding.bins.weight)
        return torch.cat([functional.linear(hidden, table.to(hidden.dtype)) for table in tables], dim=-1)

    def text_table(self) -> Tensor:
        """The rows [33025, D] that `text_logits` multiplies with."""
        return torch.cat((self.embedding.text.weight, self.embedding.bins.weight))

    def control_logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., 2048] of the ids that actions are made of: the 1,024 discrete ones, then the 1,024 bins."""
        tables = (self.embedding.text.weight[:NUM_DISCRETE], self.embedding.bins.weight[:NUM_BINS])
        return torch.cat([functional.linear(hidden, table.to(hidden.dtype)) for table in tables], dim=-1)


def rotary_angles(positions_N: Tensor, key_size: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine [N, 1, 1, K / 2] of the rotary embedding (RoFormer, equation 34)."""
    frequency = ROTARY_BASE ** (-torch.arange(0, key_size, 2, device=positions_N.device) / key_size)
    angles = positions_N[:, None, None, None] * frequency
    return angles.cos(), angles.sin()


def sinusoids(distances_D: Tensor, width: int) -> Tensor:
    """Sines, then cosines of distances, [D, width] (Transformer-XL; Vaswani et al. 2017, section 3.5)."""
    frequency = ROTARY_BASE ** (-torch.arange(0, width, 2, device=distances_D.device) / width)
    angles = distances_D[:, None] * frequency
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def rotate(x_NCHK: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates the first half of each head against the second."""
    cosine, sine = (part.to(x_NCHK.dtype) for part in rotary)
    first, second = x_NCHK.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


def num_parameters(model: nn.Module) -> int:
    """Number of trainable values."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
