"""Lists are read from archives and files, never run; words are found as words. Made-up words stand for real ones."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from beam_jobs import word_lists
from beam_jobs.word_lists import AMBIGUOUS, KNOWN, load, words_of
from benchmarks import content
from episode_store.archives import ArchiveError
from episode_store.errors import UserError

JAVASCRIPT = """
export const cuss = {
  blorp: 2,
  flarn: 1,
  'snee': 0,
  'gorm face': 2,
  'ho\\'zat': 2,
  bastard: 2
}
"""


def _npm_archive(path: Path, member: str, data: bytes) -> str:
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo(f"package/{member}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GENERALIST_CACHE", str(tmp_path))
    folder = tmp_path / "corpora"
    folder.mkdir()
    word_lists._known.cache_clear()
    yield folder
    word_lists._known.cache_clear()


def _pin(monkeypatch: pytest.MonkeyPatch, name: str, sha256: str) -> None:
    import dataclasses

    entry = KNOWN[name]
    archive = dataclasses.replace(entry.archive, sha256=sha256)
    monkeypatch.setitem(KNOWN, name, dataclasses.replace(entry, archive=archive))


def test_words_of() -> None:
    assert words_of("It's over, Ünïcode_and 3 don’t-know!") == ["it's", "over", "ünïcode", "and", "3", "don’t", "know"]


def test_known_lists_are_read_as_text(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pin(monkeypatch, "cuss", _npm_archive(cache / "cuss-2.2.0.tgz", "index.js", JAVASCRIPT.encode()))
    words = json.dumps(["Quibble", "wump", "anal", "zort zort"]).encode()
    _pin(monkeypatch, "ldnoobw", _npm_archive(cache / "naughty-words-1.2.0.tgz", "en.json", words))
    cuss, ldnoobw = load("cuss"), load("ldnoobw")
    assert cuss.words == {"blorp", "ho'zat"}  # rated 2 of 2, and not ambiguous
    assert cuss.phrases == {"gorm": (("gorm", "face"),)}
    assert (cuss.licence, ldnoobw.licence) == ("MIT", "CC-BY-4.0")
    assert ldnoobw.words == {"quibble", "wump"}
    assert ldnoobw.find(words_of("Wump! A WUMP, and zort, zort")) == ["wump", "zort zort"]
    assert ldnoobw.find(words_of("wumpus and zort and zort")) == []
    assert cuss.find(words_of("a gorm-face with flarn")) == ["gorm face"]


def test_another_archive_than_the_pinned_one_is_refused(cache: Path) -> None:
    _npm_archive(cache / "cuss-2.2.0.tgz", "index.js", b"blorp: 2,")
    with pytest.raises(ArchiveError, match="expected sha256 66b19c60"):
        load("cuss")


def test_own_list(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("# my own\nbastard\nFlarn Snee\n\nblorp\n")
    mine = load(str(path))
    assert (mine.name, mine.words, mine.licence) == ("mine", {"bastard", "blorp"}, "")
    assert mine.find(words_of("flarn, snee: the bastard")) == ["bastard", "flarn snee"]


def test_lists_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"word list 'ldnob': expected ldnoobw or cuss, or a text file"):
        load("ldnob")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(UserError, match="word list empty: expected one word a line, got none"):
        load(str(tmp_path / "empty.txt"))
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="expected text in UTF-8"):
        load(str(tmp_path / "binary.txt"))


def test_ambiguous_words_are_single_lower_case_words() -> None:
    assert all(words_of(word) == [word] for word in AMBIGUOUS)


@pytest.mark.slow
def test_the_real_lists_find_what_the_docs_say() -> None:
    harmful, benign = content.found(content.harmful_lines()), content.found(content.benign_lines())
    assert (len(harmful), len(benign)) == (40, 60)
    swearing = content.NUM_SWEARING
    # Literal: docs/sources.md has these numbers.
    assert (sum(harmful[:swearing]), sum(harmful[swearing:]), sum(benign)) == (13, 0, 1)
