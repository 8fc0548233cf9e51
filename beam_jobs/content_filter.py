"""The content filter: what of a text, a caption or a dialogue may go into a shard.

Exact copies are left out by `return_filter.keep_corpus`. Here mail addresses and telephone numbers are masked (or
their episodes rejected), and every change is counted. A filter is any callable from an episode to a `Verdict`;
`shard_builder.ShardBuilder` applies it to every episode of a corpus.

The telephone patterns are deliberately narrow: they want an international prefix, a known grouping, or ten bare
digits. Numbers written in words, or split over two turns of a dialogue, are not found.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections import Counter
from collections.abc import Mapping
from typing import Protocol

from episode_store.episode import Episode
from episode_store.spec import FieldValues

# Part of every shard's fingerprint: raise it when a pattern changes.
CONTENT_FILTER_VERSION = 1

MAIL = re.compile(r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])")
TELEPHONE = re.compile(
    r"""(?<![\w.,$€£/-])(?:
        \+(?=(?:[ .()-]{0,3}\d){8})\d{1,3}(?:[ .-]?\(?\d{1,4}\)?){2,6}  # +44 20 7946 0958, at least 8 digits
      | (?:1[ .-])?\(\d{3}\)[ .-]?\d{3}[ .-]\d{4}        # (212) 555-0123
      | (?:1[ .-])?\d{3}([ .-])\d{3}\1\d{4}              # 212-555-0123
      | 0\d{2,4}[ /-]\d{3,4}[ -]?\d{3,4}                 # 020 7946 0958
      | [2-9]\d{9}                                       # 9876543210
    )(?![\w%-]|[.,]\d)""",
    re.VERBOSE | re.ASCII,
)
_SUSPECT = re.compile("[0-9@]")
_PATTERNS = {"mail address": (MAIL, "[mail]"), "telephone number": (TELEPHONE, "[telephone]")}


class PersonalData(enum.StrEnum):
    """What happens to a text with a mail address or a telephone number."""

    MASK = "mask"
    REJECT = "reject"
    KEEP = "keep"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Verdict:
    """What a filter says of one episode.

    Attributes:
      episode: to be used from here on, perhaps changed; None when rejected.
      reason: why it was rejected; "" when it was not.
      changes: what was changed, name -> how often.
    """

    episode: Episode | None
    reason: str = ""
    changes: Mapping[str, int] = dataclasses.field(default_factory=dict)


class ContentFilter(Protocol):
    """A pure function: the same episode always gets the same verdict."""

    def __call__(self, episode: Episode) -> Verdict: ...


def mask_text(text: str) -> tuple[str, Counter[str]]:
    """The text with personal data replaced, and how often each kind was found."""
    found: Counter[str] = Counter()
    if not _SUSPECT.search(text):
        return text, found
    for name, (pattern, replacement) in _PATTERNS.items():
        text, count = pattern.subn(replacement, text)
        if count:
            found[name] = count
    return text, found


def personal_data_filter(episode: Episode, handling: PersonalData) -> Verdict:
    """Masks or rejects mail addresses and telephone numbers in the text fields of an episode."""
    if handling == PersonalData.KEEP:
        return Verdict(episode=episode)
    changes: Counter[str] = Counter()
    observations = _mask_fields(episode.observations, changes)
    actions = _mask_fields(episode.actions, changes)
    if not changes:
        return Verdict(episode=episode)
    if handling == PersonalData.REJECT:
        return Verdict(episode=None, reason=f"personal data: {', '.join(sorted(changes))}")
    masked = dataclasses.replace(episode, observations=observations, actions=actions)
    return Verdict(episode=masked, changes=dict(changes))


def _mask_fields(fields: Mapping[str, FieldValues], changes: Counter[str]) -> dict[str, FieldValues]:
    result = dict(fields)
    for key, values in fields.items():
        if isinstance(values, list):
            pairs = [mask_text(text) for text in values]
            result[key] = [text for text, _ in pairs]
            for _, found in pairs:
                changes.update(found)
    return result
