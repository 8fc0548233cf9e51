"""The tokens of a step for `episode_store view`, which imports nothing from here: it finds this by its entry point."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from episode_store.episode import Episode
from episode_store.errors import UserError
from episode_store.task import TaskSpec
from tokenization.describe import TokenDescription, describe
from tokenization.episode_tokenizer import EpisodeTokenizer
from tokenization.text import TextTokenizer
from tokenization.timestep import TimestepLayout


class TokenView:
    """See `episode_store.viewer.content.TokenView`.

    Args:
      text_model: file of the text model; without one, tasks with text have no tokens.
    """

    def __init__(self, text_model: str | Path | None = None) -> None:
        """Raises UserError when the file is no text model."""
        self._text = TextTokenizer.load(text_model) if text_model else None
        self._tokenizers: dict[str, EpisodeTokenizer] = {}

    def __call__(self, task: TaskSpec, episode: Episode, episode_id: str) -> Sequence[Mapping[str, Any]]:
        """One mapping a token: its place, its id, its place in the observation, whether it is a target, its meaning.

        Image patches that follow each other are one mapping, from the first to the last.

        Raises:
          UserError: the task has text and there is no text model, or a field has no tokens.
        """
        tokenizer = self._tokenizers.get(task.task_id)
        if tokenizer is None or tokenizer.task != task:
            if self._text is None and TimestepLayout.of(task).has_text:
                raise UserError(
                    f"{task.task_id} has text: give the text model with --text-model, as `tokenization train-text` "
                    "writes it"
                )
            tokenizer = self._tokenizers[task.task_id] = EpisodeTokenizer(task, self._text)
        sequence = tokenizer.encode(episode, episode_id=episode_id, content_hash="-")
        tokens = describe(sequence, tokenizer)
        rows: list[Mapping[str, Any]] = []
        for is_patch, run in itertools.groupby(tokens, key=lambda token: token.token is None):
            found = list(run)
            rows += [_patches(found)] if is_patch else map(_row, found)
        return rows


def _row(token: TokenDescription) -> Mapping[str, Any]:
    return {
        "position": token.position,
        "id": token.token,
        "place in observation": "" if token.local_position < 0 else token.local_position,
        "target": "" if token.target == "none" else token.target.replace("_", " "),
        "meaning": token.meaning,
    }


def _patches(tokens: Sequence[TokenDescription]) -> Mapping[str, Any]:
    first, last = tokens[0], tokens[-1]
    if first is last:
        return {**_row(first), "id": "patch"}
    field, _, place = last.meaning.partition(" patch ")
    return {
        "position": f"{first.position} to {last.position}",
        "id": f"{len(tokens)} patches",
        "place in observation": f"{first.local_position} to {last.local_position}",
        "target": "",
        "meaning": f"{first.meaning} to {place if first.meaning.startswith(f'{field} patch ') else last.meaning}",
    }
