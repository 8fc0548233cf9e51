"""Text from the generalist: answers, captions, replies, continuations."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from tokenization.text import TextTokenizer
from tokenization.token_sequence import TokenSequence
from tokenization.vocabulary import PATCH_PLACEHOLDER, SEPARATOR
from trainer.decoder import Decoder, Fragment
from trainer.model import Generalist


def observation_of(sequence: TokenSequence) -> TokenSequence:
    """A one-timestep sequence without its action: everything up to and with the separator."""
    end = int(np.argmax(sequence.tokens == SEPARATOR)) + 1
    num_patches = int(np.count_nonzero(sequence.tokens[:end] == PATCH_PLACEHOLDER))
    return dataclasses.replace(
        sequence,
        tokens=sequence.tokens[:end],
        targets=sequence.targets[:end],
        timestep_offsets=np.array([0, end]),
        patch_index=sequence.patch_index[:num_patches],
        patch_intervals=sequence.patch_intervals[:num_patches],
    )


def generate(
    model: Generalist,
    text: TextTokenizer,
    contexts: Sequence[Fragment],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    precision: str = "fp32",
) -> list[str]:
    """The text that follows each context, until its end mark or `max_tokens`."""
    capacity = max(len(context.tokens) for context in contexts) + max_tokens + 1
    decoder = Decoder(model, batch_size=len(contexts), capacity=capacity, precision=precision)
    rngs = [np.random.default_rng([seed, row]) for row in range(len(contexts))]
    hidden = decoder.feed(contexts, range(len(contexts)))
    rows: list[list[int]] = [[] for _ in contexts]
    over = np.zeros(len(contexts), bool)
    for _ in range(max_tokens):
        ids = decoder.sample_text(hidden, text.num_pieces, rngs, temperature)
        over |= ids == text.end_id
        if over.all():
            break
        for row in np.flatnonzero(~over).tolist():
            rows[row].append(int(ids[row]))
        hidden = decoder.feed([Fragment.of_action([one]) for one in ids], range(len(contexts)))
    return [text.decode(row) for row in rows]
