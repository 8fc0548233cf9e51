"""WebDatasets of pictures and texts: tars whose samples have jpg, png or webp beside txt or json.

A sample is a run of members with one key, the name up to its first dot. Of a json the members "caption" or "text" are
the caption; with "question" and "answer" (in all samples or in none) it is question answering. Nothing is unpacked to
the disk, so what names say of folders means nothing.
"""

from __future__ import annotations

import itertools
import json
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from episode_store.formats import image_pairs, text_files
from episode_store.formats.format import Finding, Importer, one_line
from episode_store.formats.image_pairs import Pair, PairImporter
from episode_store.formats.transfer import Bar, examine_importer, no_bar

SUFFIXES = (".tar", ".tar.gz", ".tgz")
_MAX_TEXT_BYTES = 1 << 20
_DAMAGE = (tarfile.TarError, OSError, EOFError, zlib.error, ValueError)

Sample = dict[str, bytes]


def detect(source: Path) -> bool:
    """Whether the first sample of the first tar has a picture and a text."""
    files = text_files.find_files(source, SUFFIXES)
    if not files:
        return False
    try:
        first = next(_samples(files[0]), None)
    except _DAMAGE:
        return False
    return first is not None and _is_pair(first[1])


def open_importer(source: Path, *, task_id: str | None = None, options: Mapping[str, str]) -> Importer:
    """Opens a tar, or all tars below a folder."""
    return WebDatasetImporter(source, task_id=task_id, options=options)


def doctor(source: Path, progress: Bar = no_bar) -> list[Finding]:
    """Reads every sample and holds every episode against the contract."""
    return examine_importer(lambda: WebDatasetImporter(source, task_id=None, options={}), source, progress)


class WebDatasetImporter(PairImporter):
    """The importer; see `format.Importer`."""

    name = "webdataset"

    def __init__(self, source: Path, *, task_id: str | None, options: Mapping[str, str]) -> None:
        self._source = source
        self._files = text_files.require(text_files.find_files(source, SUFFIXES), source, "tars")
        super().__init__(source, task_id=task_id, options=options, with_questions=self._first_has_question())

    def num_episodes(self) -> int | None:
        """Nobody knows before reading."""
        return None

    def _first_has_question(self) -> bool:
        for file in self._files:
            try:
                for _, sample in itertools.islice(_samples(file), 16):
                    if _is_pair(sample):
                        return bool(_texts(sample)[0])
            except _DAMAGE:
                continue
        return False

    def _pairs(self) -> Iterator[Pair]:
        for file in self._files:
            name = file.name if file == self._source else file.relative_to(self._source).as_posix()
            key = ""
            try:
                for key, sample in _samples(file):
                    pair = self._pair_of(sample, f"{name} {key}")
                    if pair is not None:
                        yield pair
            except _DAMAGE as error:
                what = f"cannot be read further: {one_line(error)}"
                self._findings.append(
                    Finding(severity="error", where=f"{name} after {key or 'its beginning'}", what=what)
                )

    def _pair_of(self, sample: Sample, where: str) -> Pair | None:
        image = next((sample[suffix] for suffix in image_pairs.SUFFIXES if suffix in sample), None)
        try:
            if image is None:
                raise ValueError(f"expected a picture, got {', '.join(sorted(sample)) or 'nothing'}")
            question, answer = _texts(sample)
            if bool(question) != self._with_questions:
                raise ValueError("expected a question in all samples or in none")
        except ValueError as error:
            self._refuse(where, error)
            return None
        return self._pair(image, where=where, question=question, answer=answer)


def _is_pair(sample: Sample) -> bool:
    return any(suffix in sample for suffix in image_pairs.SUFFIXES) and ("txt" in sample or "json" in sample)


def _texts(sample: Sample) -> tuple[str, str]:
    """Question ("" for a caption) and answer or caption.

    Raises:
      ValueError: there is no text.
    """
    if "txt" in sample:
        return "", sample["txt"].decode("utf-8")
    if "json" not in sample:
        raise ValueError(f"expected txt or json, got {', '.join(sorted(sample))}")
    try:
        facts = json.loads(sample["json"].decode("utf-8"))
    except RecursionError:
        raise ValueError("its json is nested too deep") from None
    if isinstance(facts, dict):
        caption = facts.get("caption", facts.get("text", facts.get("answer")))
        question = facts.get("question", "")
        if isinstance(caption, str) and isinstance(question, str):
            return question, caption
    raise ValueError("expected a json with a caption, or a question and an answer")


def _samples(file: Path) -> Iterator[tuple[str, Sample]]:
    """Key and members of each sample; a member that is too large is left out of its sample.

    Raises:
      TarError, OSError, EOFError, zlib.error: the tar is damaged from here on.
      ValueError: it unfolds to more than a tar of its size may.
    """
    budget = file.stat().st_size * text_files.MAX_EXPANSION + text_files.EXPANSION_ALLOWANCE
    current: str | None = None
    sample: Sample = {}
    with tarfile.open(file, "r|*") as tar:
        for member in tar:
            budget -= member.size
            if budget < 0:
                raise ValueError(f"unfolds to more than {text_files.MAX_EXPANSION} times its size: taken for a bomb")
            if not member.isfile():
                continue
            folder, _, base = member.name.rpartition("/")
            key, dot, suffix = base.partition(".")
            if not dot:
                continue
            suffix, name = suffix.lower(), f"{folder}/{key}" if folder else key
            if name != current:
                if current is not None:
                    yield current, sample
                current, sample = name, {}
            limit = image_pairs.MAX_IMAGE_BYTES if suffix in image_pairs.SUFFIXES else _MAX_TEXT_BYTES
            if suffix in (*image_pairs.SUFFIXES, "txt", "json") and member.size <= limit:
                content = tar.extractfile(member)
                data = content.read() if content is not None else b""
                if len(data) != member.size:
                    raise tarfile.ReadError("unexpected end of data")
                sample[suffix] = data
    if current is not None:
        yield current, sample
    if file.name.endswith(".tar") and not _has_end(file):
        raise tarfile.ReadError("it is cut short: the end of the archive is missing")


def _has_end(file: Path) -> bool:
    """Whether a plain tar ends with an empty block; without, it may have been cut between two members."""
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - 512))
        return not any(stream.read())
