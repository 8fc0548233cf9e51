"""`dialogue/chitchat-v0`: conversations of two people. The first speaker is observed, the second one's replies are
the actions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from collectors.corpora.language import TRAIN, VALIDATION, Attribution, corpus_episode
from episode_store.archives import Archive, open_archive
from episode_store.corpus import MAX_TURNS, TEXT, cap_text, is_held_out
from episode_store.episode import Episode
from episode_store.task import TaskSpec

ARCHIVE = Archive(
    name="chitchat-dataset",
    version="0.9.0",
    file_name="chitchat_dataset-0.9.0-py3-none-any.whl",
    sha256="7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
    num_bytes=8_105_664,
)
MIN_TURNS = 2  # fewer is a greeting that led nowhere
# Of people. Each talks with several others, so about twice this share of conversations is held out.
HELD_OUT_FRACTION = 0.05

ATTRIBUTION = Attribution(
    task_id="dialogue/chitchat-v0",
    title="Chit-Chat Dataset",
    authors="Perception, Control and Cognition Lab, Brigham Young University (Myers, Etchart, Fulda 2020)",
    licence="MIT",
    source="https://github.com/BYU-PCCL/chitchat-dataset",
    archive=ARCHIVE.requirement,
    changes=f"mail addresses and telephone numbers masked, cut into parts of {MAX_TURNS} turns",
)
SPEC = TaskSpec(
    task_id=ATTRIBUTION.task_id,
    observation_spec={"text": TEXT},
    action_spec={"text": TEXT},
    max_episode_steps=MAX_TURNS,
    tags=("corpus", "family:dialogue"),
    licence=ATTRIBUTION.licence,
)
DESCRIPTION = "Chit-Chat: given what the other person says, the reply."
MEMBER = "chitchat_dataset/dataset.json"
MAIL_MASK = "[mail address]"
TELEPHONE_MASK = "[telephone number]"

_MAX_MEMBER_BYTES = 128_000_000
_MAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_TELEPHONE = re.compile(
    r"\+\d[\d\s().-]{7,}\d"  # international
    r"|(?<![\w.,-])(?:1[\s.-]?)?(?:\(\d{3}\)\s?|\d{3}[\s.-])\d{3}[\s.-]?\d{4}(?![\w-]|[.,]\d)"  # (801) 555-0100
    r"|(?<![\w.,-])\d{10,11}(?![\w-]|[.,]\d)"  # the same without a gap
    r"|(?<![\w.,-])\d{3}-\d{4}(?![\w-]|[.,]\d)"  # 555-0100
)


def load(*, seed: int = 0, archive: Archive = ARCHIVE) -> Iterator[Episode]:
    """Every conversation of two people once, in an order that the seed decides.

    A conversation of more than 16 turns becomes several episodes, all but the last of them truncated. The people, not
    the conversations, are divided: whoever is held out is never read or answered in the training part.

    Raises:
      ArchiveError: the archive cannot be had or is not the pinned one.
    """
    with open_archive(archive) as members:
        conversations = list(members.read_json(MEMBER, max_bytes=_MAX_MEMBER_BYTES).items())
    order = np.random.default_rng(seed).permutation(len(conversations)).tolist()
    unfinished = [_episodes(conversations[index][0], conversations[index][1]["messages"], index) for index in order]
    while unfinished:  # first the beginnings of all conversations, then their second parts, ...
        going_on = []
        for episodes in unfinished:
            episode = next(episodes, None)
            if episode is not None:
                yield episode
                going_on.append(episodes)
        unfinished = going_on


def _episodes(name: str, blocks: list[list[dict[str, Any]]], index: int) -> Iterator[Episode]:
    """The episodes of one conversation; a block is what one person said without being interrupted."""
    speakers, texts = _alternating(blocks)
    if len(set(speakers)) != 2 or len(texts) < 2 * MIN_TURNS:
        return
    held_out = any(is_held_out(speaker, HELD_OUT_FRACTION) for speaker in speakers[:2])
    heard, replies = texts[0::2], texts[1::2]
    num_parts = -(-len(replies) // MAX_TURNS)
    for part in range(num_parts):
        start, end = part * MAX_TURNS, min((part + 1) * MAX_TURNS, len(replies))
        last = heard[end] if end < len(heard) else ""  # what was said after the last reply
        yield corpus_episode(
            ATTRIBUTION,
            observations={"text": [*heard[start:end], last]},
            actions=replies[start:end],
            collection_index=index * 1_000 + part,
            group=speakers[1],
            split=VALIDATION if held_out else TRAIN,
            facts={"conversation": name, "part": part},
            terminated=part == num_parts - 1,
        )


def _alternating(blocks: list[list[dict[str, Any]]]) -> tuple[list[str], list[str]]:
    """Speaker and text of each block in order; empty ones dropped, so neighbours of one speaker are joined."""
    speakers: list[str] = []
    texts: list[str] = []
    for block in blocks:
        lines = [mask_contacts(message["text"].strip()) for message in block]
        text = "\n".join(line for line in lines if line)
        if not text:
            continue
        if speakers and speakers[-1] == block[0]["sender"]:
            texts[-1] = f"{texts[-1]}\n{text}"
        else:
            speakers.append(block[0]["sender"])
            texts.append(text)
    return speakers, [cap_text(text) for text in texts]


def mask_contacts(text: str) -> str:
    """The text with mail addresses and telephone numbers replaced."""
    return _TELEPHONE.sub(TELEPHONE_MASK, _MAIL.sub(MAIL_MASK, text))
