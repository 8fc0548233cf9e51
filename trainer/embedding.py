"""Tokens, patches and positions become vectors (Gato, section 2.2 and appendix C)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokenization.image_patches import NUM_POSITIONS, PATCH_SIZE
from tokenization.token_sequence import NUM_LOCAL_POSITIONS
from tokenization.vocabulary import CONTINUOUS_OFFSET, NUM_BINS, VOCABULARY_SIZE

EMBEDDING_STD = 0.02


def smooth_bin_rows(width: int, generator: torch.Generator) -> Tensor:
    """Initial rows [1024, width] of the continuous ids: random Fourier features of the bin's place in [-1, 1].

    Neighbouring bins start with similar rows, so what is learned about one value holds for the values beside it.
    """
    centres = (torch.arange(NUM_BINS) + 0.5) / NUM_BINS * 2.0 - 1.0
    # Wavelengths from the whole range to about eight bins, evenly in the logarithm.
    log_frequency = torch.rand(width, generator=generator) * math.log(256.0)
    phase = torch.rand(width, generator=generator) * 2.0 * math.pi
    features = torch.cos(centres[:, None] * torch.exp(log_frequency)[None, :] * math.pi / 2.0 + phase)
    return features * (EMBEDDING_STD * math.sqrt(2.0))


class PatchEmbedding(nn.Module):
    """A 16x16 patch becomes one vector through one ResNet-v2 block with GroupNorm and GELU."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        groups = 32
        self.root = nn.Conv2d(3, channels, 3, stride=2, padding=1)
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.out = nn.Linear(channels * (PATCH_SIZE // 2) ** 2, width)

    def forward(self, patches_UHWC: Tensor) -> Tensor:
        """uint8 [U, 16, 16, 3] -> [U, width]."""
        # Pixels to [-1, 1], divided by the square root of the patch size.
        x = (patches_UHWC.to(torch.float32) / 127.5 - 1.0) / math.sqrt(PATCH_SIZE)
        x = self.root(x.permute(0, 3, 1, 2).contiguous())
        y = self.conv1(functional.gelu(self.norm1(x)))
        y = self.conv2(functional.gelu(self.norm2(y)))
        return self.out((x + y).flatten(1))


class InputEmbedding(nn.Module):
    """Vocabulary ids or patches, plus their positions."""

    def __init__(self, width: int, patch_channels: int) -> None:
        super().__init__()
        # One vocabulary in two tables, since they learn at different rates (optim.py): text with the discrete values,
        # and the continuous bins with the separator.
        self.text = nn.Embedding(CONTINUOUS_OFFSET, width)
        self.bins = nn.Embedding(VOCABULARY_SIZE - CONTINUOUS_OFFSET, width)
        # Places inside an observation count from 0; all action tokens share the last row.
        self.local_positions = nn.Embedding(NUM_LOCAL_POSITIONS + 1, width)
        self.patch_rows = nn.Embedding(NUM_POSITIONS, width)
        self.patch_columns = nn.Embedding(NUM_POSITIONS, width)
        self.patches = PatchEmbedding(width, patch_channels)

    def initialize(self, generator: torch.Generator) -> None:
        """Sets the tables' initial values."""
        for table in (self.text, self.bins, self.local_positions, self.patch_rows, self.patch_columns):
            nn.init.normal_(table.weight, std=EMBEDDING_STD, generator=generator)
        with torch.no_grad():
            self.bins.weight[:NUM_BINS] = smooth_bin_rows(self.bins.embedding_dim, generator)
        for layer in (self.patches.root, self.patches.conv1, self.patches.conv2, self.patches.out):
            fan_in = layer.weight[0].numel()
            nn.init.normal_(layer.weight, std=fan_in**-0.5, generator=generator)
            nn.init.zeros_(layer.get_parameter("bias"))

    def picture_parameters(self) -> list[Tensor]:
        """What only pictures use."""
        return [*self.patches.parameters(), self.patch_rows.weight, self.patch_columns.weight]

    def forward(
        self,
        tokens_N: Tensor,
        local_positions_N: Tensor,
        patches: Tensor,
        patch_slots_M: Tensor,
        patch_index_M: Tensor,
        patch_positions_M2: Tensor,
    ) -> Tensor:
        """[N] ids -> [N, width].

        Args:
          tokens_N: ids; the value at a patch's place is ignored.
          local_positions_N: place inside the observation, or -1 for action tokens.
          patches: uint8 [U, 16, 16, 3], each different patch of the batch once.
          patch_slots_M: place in [0, N) of each patch token.
          patch_index_M: row of `patches` of each patch token.
          patch_positions_M2: row and column index in [0, 128) of each patch token.
        """
        is_bin = tokens_N >= CONTINUOUS_OFFSET
        text = self.text(tokens_N.masked_fill(is_bin, 0))
        x = torch.where(is_bin[:, None], self.bins((tokens_N - CONTINUOUS_OFFSET).clamp_min(0)), text)
        if patch_slots_M.shape[0]:  # len() would fix the number in an exported program
            rows, columns = patch_positions_M2.unbind(1)
            vectors = self.patches(patches)[patch_index_M]
            vectors = vectors + self.patch_rows(rows) + self.patch_columns(columns)
            x = x.index_copy(0, patch_slots_M, vectors.to(x.dtype))
        # -1, an action token, takes the last row.
        return x + self.local_positions(local_positions_N % (NUM_LOCAL_POSITIONS + 1))
