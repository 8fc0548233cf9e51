"""A policy that copies the action of the most similar demonstrated observation: the baseline to beat (REGENT)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tokenization import bins
from tokenization.episode_tokenizer import EpisodeTokenizer
from tokenization.token_sequence import TargetKind, TokenSequence
from tokenization.vocabulary import CONTINUOUS_OFFSET, PATCH_PLACEHOLDER, SEPARATOR
from trainer.shards import TaskData

_MAX_NEIGHBOURS = 20_000
_CODE_SIZE = 16  # values of a discrete id's random code; two different ids are about 1 apart
_PATCH_CELLS = 2  # a patch is compared by the mean colours of 2x2 cells
_TEXT_TOKENS = 16  # texts are compared by their first tokens
_TEXT_WEIGHT = 10.0  # another instruction is further away than any observation


class NearestNeighbourPolicy:
    """Compares what the network sees: continuous values (scaled by their spread), discrete ids, colours, text."""

    def __init__(self, data: TaskData, tokenizer: EpisodeTokenizer, *, seed: int = 0) -> None:
        self.agent_id = f"nearest-neighbour-{data.task.task_id}"
        self._tokenizer = tokenizer
        rng = np.random.default_rng(seed)
        self._codes = rng.normal(size=(CONTINUOUS_OFFSET, _CODE_SIZE)).astype(np.float32) / np.sqrt(2.0 * _CODE_SIZE)
        is_action = data.targets == TargetKind.ACTION
        chosen = np.flatnonzero(np.add.reduceat(is_action, data.timestep_offsets[:-1]) > 0)
        if len(chosen) > _MAX_NEIGHBOURS:
            chosen = np.sort(rng.choice(chosen, _MAX_NEIGHBOURS, replace=False))
        layout = tokenizer.action_layout
        assert layout is not None
        ends = data.timestep_offsets[chosen + 1]
        self._actions = data.tokens[ends[:, None] + np.arange(-len(layout), 0)]
        observed, patches = [], []
        for step in chosen.tolist():
            window = data.window(step, step + 1)
            observed.append(window.tokens[: len(window.tokens) - len(layout)])
            patches.append(_colours(window))
        raw = self._raw_features(observed, patches)
        # Values that do not vary, but for rounding, count for nothing.
        self._mean, spread = raw.mean(axis=0), raw.std(axis=0)
        self._scale = np.where(spread > 1e-5 + 1e-5 * np.abs(self._mean), spread, np.inf)
        self._features = self._features_of(raw, observed)
        self._norms = (self._features**2).sum(axis=1)

    def begin_episode(self, slot: int, env: Any, seed: int) -> None:
        """Nothing is remembered between steps."""

    def act(self, slots: Sequence[int], observations: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """The action of the nearest demonstrated observation, for each of `slots`."""
        encoded = self._tokenizer.encode_observations(observations)
        windows = [encoded.window(index, index + 1) for index in range(len(slots))]
        observed = [window.tokens for window in windows]
        features = self._features_of(self._raw_features(observed, [_colours(w) for w in windows]), observed)
        distances = self._norms[None, :] - 2.0 * features @ self._features.T
        return [self._tokenizer.decode_action(self._actions[row]) for row in distances.argmin(axis=1)]

    def _split(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Text tokens, padded, and the tensor tokens of one observation."""
        num_tensors = self._tokenizer.layout.num_observation_values
        tokens = tokens[tokens != SEPARATOR].astype(np.int64)
        tensors = tokens[len(tokens) - num_tensors :]
        text = tokens[: len(tokens) - num_tensors]
        text = text[text != PATCH_PLACEHOLDER][:_TEXT_TOKENS]
        return np.pad(text, (0, _TEXT_TOKENS - len(text))), tensors

    def _raw_features(self, observed: Sequence[np.ndarray], patches: Sequence[np.ndarray]) -> np.ndarray:
        """Continuous values and colours, unscaled, float32 [n, F]."""
        tensors = np.stack([self._split(tokens)[1] for tokens in observed])
        values = np.zeros(tensors.shape, np.float32)
        is_bin = tensors >= CONTINUOUS_OFFSET
        values[is_bin] = bins.companded_from_ids(tensors[is_bin])
        # Colours are on one scale already; continuous values differ by orders of magnitude.
        return np.concatenate([values, np.stack(patches)], axis=1)

    def _features_of(self, raw: np.ndarray, observed: Sequence[np.ndarray]) -> np.ndarray:
        texts, tensors = (np.stack(part) for part in zip(*(self._split(tokens) for tokens in observed), strict=True))
        discrete = np.where(
            tensors[..., None] < CONTINUOUS_OFFSET, self._codes[np.minimum(tensors, CONTINUOUS_OFFSET - 1)], 0.0
        )
        text = self._codes[texts] * _TEXT_WEIGHT
        return np.concatenate(
            [(raw - self._mean) / self._scale, discrete.reshape(len(raw), -1), text.reshape(len(raw), -1)], axis=1
        ).astype(np.float32)


def _colours(window: TokenSequence) -> np.ndarray:
    """Mean colours of the cells of each patch, float32 [patches * 12], in [0, 1]."""
    patches = window.patches[window.patch_index].astype(np.float32)
    side = patches.shape[1] // _PATCH_CELLS
    cells = patches.reshape(len(patches), _PATCH_CELLS, side, _PATCH_CELLS, side, 3).mean(axis=(2, 4))
    return cells.reshape(-1) / 255.0
