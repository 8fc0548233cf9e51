"""Networks for pictures that a processor core can train: that of DQN's first paper (Mnih et al., 2013)."""

from __future__ import annotations

import gymnasium
import torch
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor
from torch import nn


class SmallCnn(BaseFeaturesExtractor):
    """Two convolutions and a layer: 2.5 million products for 80×64×6 numbers, where SB3's NatureCNN takes 6.7."""

    def __init__(self, observation_space: gymnasium.spaces.Box, features_dim: int = 256) -> None:
        super().__init__(observation_space, features_dim)
        convolutions = nn.Sequential(
            nn.Conv2d(observation_space.shape[0], 16, kernel_size=8, stride=4),
            nn.ReLU(),
            nn.Conv2d(16, 32, kernel_size=4, stride=2),
            nn.ReLU(),
            nn.Flatten(),
        )
        with torch.no_grad():
            size = convolutions(torch.zeros(1, *observation_space.shape)).shape[1]
        self.layers = nn.Sequential(convolutions, nn.Linear(size, features_dim), nn.ReLU())

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Features [B, features_dim] of pictures [B, C, H, W] between 0 and 1."""
        return self.layers(observations)


class SmallCombinedExtractor(CombinedExtractor):
    """SB3's extractor for observations of several fields, with `SmallCnn` for pictures."""

    def __init__(self, observation_space: gymnasium.spaces.Dict, cnn_output_dim: int = 256) -> None:
        super().__init__(observation_space, cnn_output_dim)
        for key, space in observation_space.items():
            if isinstance(space, gymnasium.spaces.Box) and is_image_space(space):
                self.extractors[key] = SmallCnn(space, cnn_output_dim)
