"""Lists of words that are rarely said kindly. They are looked up in what is read at run time, never copied into here.

A name is one of `KNOWN`, whose words come out of a pinned archive, or a text file with one word or phrase a line. Words
with an everyday meaning (`AMBIGUOUS`) are left out of the known lists, not out of a user's own.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from episode_store.archives import Archive, read_npm_member
from episode_store.errors import UserError

MAX_LIST_BYTES = 1 << 22
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_RATING = re.compile(r"^\s*(?:'((?:[^'\\]|\\.)+)'|([A-Za-z]\w*)): ([012]),?$", re.MULTILINE)
_SURE = "2"  # the highest rating of cuss

# Said of bodies, animals, tools, sports and places, or so mild, that they are rarely harm. Chosen by looking at what
# the lists find in Wikipedia's leads and in friendly talk (docs/sources.md says what that does to their recall).
AMBIGUOUS = frozenset(
    """
    anal anus ass asses bareback bastard bdsm bitch bitches bondage bong boobies booby booty butt chunky clansman clit
    clitoris cock cocks cocky crap crappy cum cumquat dick domination dong dope dumb ejaculation erotic escort eunuch
    fatah fecal fingering fu gangsta geez geezer genitals gringo hardcore hillbilly hitlerism ho hoes homo hooker horny
    idiot incest intercourse jeez kinky kumquat lolita loser masturbate masturbating masturbation moron nipple nude
    nudity orgasm panties pegging penis pissed playboy pollock poop porn pornography prick puke puss pussy rape rectum
    scat semen sex sexual sexuality sexually sexy slave snatch sooty spit spunk stupid suck sucker sucks swastika tang
    tinker tinkers tit tits titty topless undressing vagina vibrator vomit vulva welfare willie
    """.split()  # noqa: SIM905 - a list of 120 lines reads no better
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnownList:
    """A published list.

    Attributes:
      archive: where it is.
      member: the file in it.
      licence: SPDX.
      credit: whose work it is.
      parse: bytes of the member -> words and phrases.
    """

    archive: Archive
    member: str
    licence: str
    credit: str
    parse: Callable[[bytes], Iterable[str]]


def _sure_words(data: bytes) -> list[str]:
    """Of a JavaScript object {word: rating, ...}, which is read as text, never run."""
    entries = _RATING.findall(data.decode("utf-8"))
    return [(quoted or bare).replace("\\'", "'") for quoted, bare, rating in entries if rating == _SURE]


def _json_words(data: bytes) -> list[str]:
    return [str(word) for word in json.loads(data)]


KNOWN = {
    "ldnoobw": KnownList(
        archive=Archive(
            name="naughty-words",
            version="1.2.0",
            file_name="naughty-words-1.2.0.tgz",
            sha256="c34b05e10a97ec7b9e0c3dd91d09888187c0f08d0812eaea79679795585b217e",
            num_bytes=24_337,
        ),
        member="en.json",
        licence="CC-BY-4.0",
        credit="List of Dirty, Naughty, Obscene, and Otherwise Bad Words, Shutterstock and contributors",
        parse=_json_words,
    ),
    "cuss": KnownList(
        archive=Archive(
            name="cuss",
            version="2.2.0",
            file_name="cuss-2.2.0.tgz",
            sha256="66b19c6086d3fb3eac3769daf97dd695290ecc24b0fddbc30688418c629b776f",
            num_bytes=25_470,
        ),
        member="index.js",
        licence="MIT",
        credit="cuss, Titus Wormer (words rated 2 of 2)",
        parse=_sure_words,
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordList:
    """Words and phrases to look for.

    Attributes:
      name: as it is counted by.
      words: single words, lower case.
      phrases: tuples of two words or more, by their first word.
      sha256: of what they were read from.
      licence, credit: of a known list; "" of a user's own.
    """

    name: str
    words: frozenset[str]
    phrases: dict[str, tuple[tuple[str, ...], ...]]
    sha256: str
    licence: str = ""
    credit: str = ""

    def find(self, tokens: list[str]) -> list[str]:
        """What of the list a text holds, given its `words_of`; each once, sorted."""
        found = {token for token in set(tokens) if token in self.words}
        if self.phrases:
            for place, token in enumerate(tokens):
                for phrase in self.phrases.get(token, ()):
                    if tuple(tokens[place : place + len(phrase)]) == phrase:
                        found.add(" ".join(phrase))
        return sorted(found)


def words_of(text: str) -> list[str]:
    """The words of a text in lower case; what stands between them is lost."""
    return _WORD.findall(text.lower())


def load(name: str) -> WordList:
    """A known list, or one from a file.

    Raises:
      UserError: no such list or file, or the file is no text or has no words.
      ArchiveError: a known list cannot be had.
    """
    return _known(name) if name in KNOWN else _own(Path(name))


@functools.cache
def _known(name: str) -> WordList:
    entry = KNOWN[name]
    data = read_npm_member(entry.archive, entry.member, max_bytes=MAX_LIST_BYTES)
    words = [word for word in entry.parse(data) if word.lower() not in AMBIGUOUS]
    return _word_list(name, words, entry.archive.sha256, licence=entry.licence, credit=entry.credit)


def _own(path: Path) -> WordList:
    if not path.is_file():
        raise UserError(
            f"word list {str(path)!r}: expected {' or '.join(KNOWN)}, or a text file with one word a line; no such file"
        )
    if path.stat().st_size > MAX_LIST_BYTES:
        raise UserError(f"word list {path}: expected at most {MAX_LIST_BYTES} bytes, got {path.stat().st_size}")
    data = path.read_bytes()
    try:
        lines = [line.strip() for line in data.decode("utf-8").splitlines()]
    except UnicodeDecodeError:
        raise UserError(f"word list {path}: expected text in UTF-8 with one word a line") from None
    words = [line for line in lines if line and not line.startswith("#")]
    return _word_list(path.stem, words, hashlib.sha256(data).hexdigest())


def _word_list(name: str, entries: Iterable[str], sha256: str, *, licence: str = "", credit: str = "") -> WordList:
    words: set[str] = set()
    phrases: dict[str, set[tuple[str, ...]]] = {}
    for entry in entries:
        tokens = words_of(entry)
        if len(tokens) == 1:
            words.add(tokens[0])
        elif tokens:
            phrases.setdefault(tokens[0], set()).add(tuple(tokens))
    if not words and not phrases:
        raise UserError(f"word list {name}: expected one word a line, got none")
    ordered = {first: tuple(sorted(group)) for first, group in phrases.items()}
    return WordList(name=name, words=frozenset(words), phrases=ordered, sha256=sha256, licence=licence, credit=credit)
