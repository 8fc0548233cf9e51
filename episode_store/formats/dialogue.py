"""Conversations, one JSON object a line (.jsonl, .jsonl.zst): a corpus of dialogues.

    {"turns": ["Hello.", "Hi, how are you?"]}
    {"turns": [{"speaker": "ann", "text": "Hello."}, {"speaker": "bob", "text": "Hi."}]}
    {"messages": [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi."}]}

The speaker who comes second is the agent (the role "assistant" where there is one): what the other says is observed,
the replies are the actions. Turns of one speaker that follow each other are joined by a new line. A conversation of
more than 16 replies goes on in further episodes, which stay on its side of the split.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from episode_store import corpus
from episode_store.episode import Episode, EpisodeMetadata
from episode_store.formats import text_files
from episode_store.formats.format import Finding, Importer, LossLog, SingleTaskImporter, task_id_from
from episode_store.formats.text_files import Broken
from episode_store.formats.transfer import Bar, examine_importer, no_bar

_LISTS = ("turns", "messages", "conversation")
_SPEAKERS, _TEXTS = ("speaker", "role", "from"), ("text", "content", "value")
_ASSISTANTS, _SYSTEM = ("assistant", "gpt"), "system"


def detect(source: Path) -> bool:
    """Whether the first line of the first file has a list of turns."""
    files = text_files.find_files(source, text_files.JSON_LINES)
    values = text_files.first_record(files[0], ()) if files else None
    return values is not None and any(isinstance(values.get(name), list) for name in _LISTS)


def open_importer(source: Path, *, task_id: str | None = None, options: Mapping[str, str]) -> Importer:
    """Opens a file, or all files below a folder."""
    return DialogueImporter(source, task_id=task_id)


def doctor(source: Path, progress: Bar = no_bar) -> list[Finding]:
    """Reads every conversation and holds it against the contract."""
    return examine_importer(lambda: DialogueImporter(source, task_id=None), source, progress)


class DialogueImporter(SingleTaskImporter):
    """The importer; see `format.Importer`."""

    name = "dialogue"

    def __init__(self, source: Path, *, task_id: str | None) -> None:
        super().__init__()
        self._source = source
        self._files = text_files.require(
            text_files.find_files(source, text_files.JSON_LINES), source, "files that end with .jsonl or .jsonl.zst"
        )
        self._task = corpus.corpus_spec(
            task_id_from(task_id or f"dialogue/{source.name.partition('.')[0]}"),
            observation={"text": corpus.TEXT},
            kind="dialogue",
            max_steps=corpus.MAX_TURNS,
        )

    def num_episodes(self) -> int | None:
        """Nobody knows before reading."""
        return None

    def episodes(self) -> Iterator[Episode]:
        """Every conversation, file by file."""
        self._losses, self._findings = LossLog(), []
        index = 0
        for file in self._files:
            for record in text_files.records(self._source, file, ()):
                if isinstance(record, Broken):
                    self._findings.append(Finding(severity="error", where=record.where, what=record.what))
                    continue
                try:
                    heard, replies = _sides(record.values)
                except ValueError as error:
                    self._findings.append(Finding(severity="error", where=record.where, what=str(error)))
                    continue
                yield from self._conversation(heard, replies, record.where, index)
                index += 1

    def _conversation(self, heard: list[str], replies: list[str], where: str, index: int) -> Iterator[Episode]:
        group = f"conversation/{corpus.facts_hash(*heard, *replies)}"
        for start in range(0, len(replies), corpus.MAX_TURNS):
            end = min(start + corpus.MAX_TURNS, len(replies))
            last = heard[end] if end < len(heard) else ""  # what was said after the last reply
            yield corpus.corpus_episode(
                self._task.task_id,
                observations={"text": [*heard[start:end], last]},
                actions=replies[start:end],
                terminated=end == len(replies),
                metadata=EpisodeMetadata(
                    agent_id=self.name,
                    collection_index=index * 1_000 + start // corpus.MAX_TURNS,
                    environment_config={"source": where},
                    split_group=group,
                ),
            )


def _sides(values: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What is heard before each reply, and perhaps after the last; and the replies.

    Raises:
      ValueError: it is no conversation of two.
    """
    turns = next((values[name] for name in _LISTS if isinstance(values.get(name), list)), None)
    if turns is None:
        raise ValueError(f"expected a list {' or '.join(map(repr, _LISTS))}, got {sorted(values)[:8]}")
    said = [_turn(turn, place) for place, turn in enumerate(turns)]
    instruction = "\n".join(text for speaker, text in said if speaker == _SYSTEM)
    speakers: list[str] = []
    texts: list[str] = []
    for speaker, text in said:
        if speaker == _SYSTEM or not text:
            continue
        if speakers and speakers[-1] == speaker:
            texts[-1] = f"{texts[-1]}\n{text}"
        else:
            speakers.append(speaker)
            texts.append(text)
    if len(set(speakers)) != 2:
        raise ValueError(f"expected two speakers, got {len(set(speakers))}")
    agent = next((speaker for speaker in speakers if speaker in _ASSISTANTS), speakers[1])
    if speakers[0] == agent:  # nothing was said before its first words
        texts.insert(0, "")
    texts = [corpus.cap_text(text) for text in texts]
    if instruction:
        texts[0] = corpus.cap_text(f"{instruction}\n{texts[0]}".strip())
    return texts[0::2], texts[1::2]


def _turn(turn: Any, place: int) -> tuple[str, str]:
    """Speaker and text; speakers of bare texts take turns."""
    if isinstance(turn, str):
        return str(place % 2), turn.strip()
    if isinstance(turn, Mapping):
        speaker = next((turn[name] for name in _SPEAKERS if name in turn), None)
        text = next((turn[name] for name in _TEXTS if name in turn), None)
        if isinstance(text, str) and isinstance(speaker, str | int):
            return str(speaker), text.strip()
    raise ValueError(f"turn {place}: expected a text, or an object with a speaker and a text")
