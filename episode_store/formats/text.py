"""Documents in .txt, .jsonl, .jsonl.zst or Parquet: a corpus of texts.

A document is one episode: nothing is seen but its title, where it has one, and what is said is the text, in parts of at
most 2,000 characters that end with a sentence. Joined, the parts are the text. A document of more than 64 parts goes on
in further episodes, which stay on its side of the split.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from episode_store import corpus
from episode_store.episode import Episode, EpisodeMetadata
from episode_store.errors import UserError
from episode_store.formats import text_files
from episode_store.formats.format import Finding, Importer, LossLog, SingleTaskImporter, task_id_from
from episode_store.formats.text_files import Broken
from episode_store.formats.transfer import Bar, examine_importer, no_bar

SUFFIXES = (".txt", ".txt.zst", *text_files.JSON_LINES, ".parquet")
MAX_PARTS = 64
_UNITS = ("file", "paragraph", "line")


def detect(source: Path) -> bool:
    """Whether the first file is plain text, or has a column "text"."""
    files = text_files.find_files(source, SUFFIXES)
    if not files:
        return False
    if files[0].name.removesuffix(".zst").endswith(".txt"):
        return True
    values = text_files.first_record(files[0], ("text",))
    return values is not None and isinstance(values.get("text"), str)


def open_importer(source: Path, *, task_id: str | None = None, options: Mapping[str, str]) -> Importer:
    """Opens a file, or all files below a folder."""
    return TextImporter(source, task_id=task_id, options=options)


def doctor(source: Path, progress: Bar = no_bar) -> list[Finding]:
    """Reads every document and holds it against the contract."""
    return examine_importer(lambda: TextImporter(source, task_id=None, options={}), source, progress)


class TextImporter(SingleTaskImporter):
    """The importer; see `format.Importer`."""

    name = "text"

    def __init__(self, source: Path, *, task_id: str | None, options: Mapping[str, str]) -> None:
        super().__init__()
        self._source = source
        self._files = text_files.require(
            text_files.find_files(source, SUFFIXES), source, "files that end with .txt, .jsonl, .jsonl.zst or .parquet"
        )
        self._text, self._title = options.get("text", "text"), options.get("title", "title")
        self._unit = options.get("unit", "file")
        if self._unit not in _UNITS:
            raise UserError(f"option unit {self._unit!r}: expected one of {', '.join(_UNITS)}")
        self._task = corpus.corpus_spec(
            task_id_from(task_id or f"text/{source.name.partition('.')[0]}"),
            observation={"text": corpus.TEXT},
            kind="text",
            max_steps=MAX_PARTS,
        )

    def num_episodes(self) -> int | None:
        """Nobody knows before reading."""
        return None

    def episodes(self) -> Iterator[Episode]:
        """Every document, file by file."""
        self._losses, self._findings = LossLog(), []
        index = 0
        for file in self._files:
            for record in text_files.records(self._source, file, (self._text, self._title), unit=self._unit):
                if isinstance(record, Broken):
                    self._findings.append(Finding(severity="error", where=record.where, what=record.what))
                    continue
                text, title = record.values.get(self._text), record.values.get(self._title) or ""
                if not isinstance(text, str) or not isinstance(title, str) or not text.strip():
                    what = f"expected a text in {self._text!r}, got {type(text).__name__}"
                    self._findings.append(Finding(severity="error", where=record.where, what=what))
                    continue
                yield from self._document(title, text, record.where, index)
                index += 1

    def _document(self, title: str, text: str, where: str, index: int) -> Iterator[Episode]:
        parts = list(corpus.parts_of(text))
        for start in range(0, len(parts), MAX_PARTS):
            actions = parts[start : start + MAX_PARTS]
            yield corpus.corpus_episode(
                self._task.task_id,
                observations={"text": [title if not start else "", *[""] * len(actions)]},
                actions=actions,
                terminated=start + MAX_PARTS >= len(parts),
                metadata=EpisodeMetadata(
                    agent_id=self.name,
                    collection_index=index * 1_000 + start // MAX_PARTS,
                    environment_config={"source": where},
                    split_group=f"document/{corpus.facts_hash(text)}",
                ),
            )
