"""Mail addresses and telephone numbers in texts, masked.

The telephone patterns are deliberately narrow: they want an international prefix, a known grouping, or ten bare
digits. Numbers written in words, or split over two turns of a dialogue, are not found.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections import Counter
from collections.abc import Mapping

from episode_store.episode import Episode
from episode_store.spec import FieldValues

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


def find(text: str) -> list[str]:
    """Kinds of personal data in a text, sorted."""
    return sorted(mask_text(text)[1])


def mask_episode(episode: Episode) -> tuple[Episode, Counter[str]]:
    """The episode with the personal data of its text fields replaced, and how often each kind was found."""
    found: Counter[str] = Counter()
    observations = _mask_fields(episode.observations, found)
    actions = _mask_fields(episode.actions, found)
    if not found:
        return episode, found
    return dataclasses.replace(episode, observations=observations, actions=actions), found


def _mask_fields(fields: Mapping[str, FieldValues], found: Counter[str]) -> dict[str, FieldValues]:
    result = dict(fields)
    for key, values in fields.items():
        if isinstance(values, list):
            pairs = [mask_text(text) for text in values]
            result[key] = [text for text, _ in pairs]
            for _, changes in pairs:
                found.update(changes)
    return result
