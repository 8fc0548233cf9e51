"""The generalist: one decoder-only transformer over tokens of every kind.

Shape suffixes: N tokens, H heads, K key size, D width, U patches, M patch tokens.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokenization.vocabulary import NUM_BINS, NUM_DISCRETE
from trainer.attention import Attention
from trainer.config import ModelConfig
from trainer.embedding import InputEmbedding

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
        return ModelInput(
            **{
                field.name: getattr(self, field.name).to(device, non_blocking=True)
                for field in dataclasses.fields(self)
            }
        )


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
        self.dropout = config.dropout

    def forward(self, x_ND: Tensor, rotary: tuple[Tensor, Tensor], attention: Attention) -> Tensor:
        """[N, D] -> [N, D]."""
        qkv = self.query_key_value(self.attention_norm(x_ND)).view(-1, 3, self.num_heads, self.key_size)
        query, key = rotate(qkv[:, :2], rotary).unbind(1)
        mixed = attention(query, key, qkv[:, 2], block=self.index)
        x_ND = x_ND + self._drop(self.attention_out(mixed.flatten(1)))
        gate, value = self.gate_and_value(self.feed_forward_norm(x_ND)).chunk(2, dim=-1)
        return x_ND + self._drop(self.feed_forward_out(functional.gelu(gate) * value))

    def _drop(self, update: Tensor) -> Tensor:
        return functional.dropout(update, self.dropout, self.training) if self.dropout else update


class Generalist(nn.Module):
    """Embedding, blocks, final norm; input and output embeddings are one table."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = InputEmbedding(config.width, config.patch_channels)
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.num_blocks))
        self.final_norm = nn.LayerNorm(config.width)

    def initialize(self, seed: int) -> None:
        """Deterministic initial weights; the residual branches' last layers are scaled down with depth."""
        generator = torch.Generator().manual_seed(seed)
        self.embedding.initialize(generator)
        for block in self.blocks:
            for name in ("query_key_value", "attention_out", "gate_and_value", "feed_forward_out"):
                layer = getattr(block, name)
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
        rotary = rotary_angles(batch.positions, self.config.key_size)
        for block in self.blocks:
            x = block(x, rotary, attention)
        return self.final_norm(x)

    def text_logits(self, hidden: Tensor) -> Tensor:
        """Logits of all 33,025 ids at hidden states [..., D]; input and output embeddings are the same tables."""
        tables = (self.embedding.text.weight, self.embedding.bins.weight)
        return torch.cat([functional.linear(hidden, table.to(hidden.dtype)) for table in tables], dim=-1)

    def control_logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., 2048] of the ids that actions are made of: the 1,024 discrete ones, then the 1,024 bins."""
        tables = (self.embedding.text.weight[:NUM_DISCRETE], self.embedding.bins.weight[:NUM_BINS])
        return torch.cat([functional.linear(hidden, table.to(hidden.dtype)) for table in tables], dim=-1)


def rotary_angles(positions_N: Tensor, key_size: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine [N, 1, 1, K / 2] of the rotary embedding (RoFormer, equation 34)."""
    frequency = ROTARY_BASE ** (-torch.arange(0, key_size, 2, device=positions_N.device) / key_size)
    angles = positions_N[:, None, None, None] * frequency
    return angles.cos(), angles.sin()


def rotate(x_NCHK: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates the first half of each head against the second."""
    cosine, sine = (part.to(x_NCHK.dtype) for part in rotary)
    first, second = x_NCHK.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


def num_parameters(model: nn.Module) -> int:
    """Number of trainable values."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
