"""Mail addresses and telephone numbers are found; years, prices and versions are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from beam_jobs.personal_data import find, mask_episode, mask_text
from episode_store.episode import Episode


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to jane.doe@example.org.", "write to [mail]."),
        ("a+b_c@sub.example.co.uk,ok", "[mail],ok"),
        ("(jörg@firma.de)", "([mail])"),
        ("+44 20 7946 0958", "[telephone]"),
        ("call +1-212-555-0123!", "call [telephone]!"),
        ("(212) 555-0123 or 212.555.0123", "[telephone] or [telephone]"),
        ("call 020 7946 0958 now", "call [telephone] now"),
        ("my number is 9876543210", "my number is [telephone]"),
    ],
)
def test_masked(text: str, masked: str) -> None:
    assert mask_text(text)[0] == masked


@pytest.mark.parametrize(
    "text",
    [
        "born in 1990, died 2001-02-03",
        "1914-1918 and 1939–1945",
        "a population of 1,234,567,890 in 2020",
        "pi is 3.1415926535",
        "version 10.20.30.4000",
        "$2000000000 of debt",
        "@home, me @ work",
        "2 + 2 = 4, +5 points",
        "ISBN 978-3-16-148410-0",
        "at 10:30 on 12/11/2010",
        "route 66, unit 0123",
        "it scored +12 34 56",
        "",
    ],
)
def test_left_alone(text: str) -> None:
    assert mask_text(text) == (text, {})


def test_an_episode_is_masked_and_left_as_it_was(chat_episode: Callable[[int], Episode]) -> None:
    mail, clean = chat_episode(5), chat_episode(1)
    assert mask_episode(clean) == (clean, {})
    masked, found = mask_episode(mail)
    assert masked.actions["text"] == ["write to [mail]"]
    assert masked.metadata == mail.metadata
    assert found == {"mail address": 1}
    assert mail.actions["text"] == ["write to jane.doe@example.org"]


def test_find() -> None:
    assert find("call 212-555-0123 or write to a@b.org") == ["mail address", "telephone number"]
    assert find("call me") == []


def test_long_hostile_text_is_fast() -> None:
    for text in ("a." * 50_000 + "@", "1 " * 50_000, "+1" * 50_000, "x@" * 50_000, "x@" + "a." * 50_000, "(" * 99_999):
        mask_text(text)
