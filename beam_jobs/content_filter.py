"""The content filter: which texts, captions and dialogues may go into a shard, and why the others may not.

An episode is rejected for its first reason of these: personal data (where they are not merely masked), a word of a
list, a language that was not asked for, a classifier's word. Copies are found by `beam_jobs/duplicates.py`, which sees
all of the episodes. The filter is a pure function of episode and settings.

A classifier is any function `module:function` that the command line names, from an episode to a reason, "" for none:

    def classify(episode: Episode) -> str
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from beam_jobs import personal_data, word_lists
from beam_jobs.personal_data import PersonalData
from episode_store.episode import Episode
from episode_store.errors import UserError
from episode_store.formats.format import need

# Shorter texts are not asked for their language: a caption of three words is of several.
MIN_LANGUAGE_CHARACTERS = 200
MAX_EXCERPT_CHARACTERS = 160

Classifier = Callable[[Episode], str]


class Samples(enum.StrEnum):
    """What the report shows of rejected texts.

    Attributes:
      MASKED: an excerpt without personal data and with listed words reduced to their first letter; of a text that a
        classifier rejected, nothing.
      FULL: an excerpt as it is.
      NONE: nothing.
    """

    MASKED = "masked"
    FULL = "full"
    NONE = "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContentSettings:
    """What the content filter does to corpora.

    Attributes:
      personal_data: mail addresses and telephone numbers: masked, rejected or kept.
      word_lists: names of known lists, or files; none by default.
      languages: ISO 639-1 codes that texts of `MIN_LANGUAGE_CHARACTERS` or more may have; () allows all.
      classifiers: "module:function" each; only from the command line, never from data.
      similarity: texts at least so alike (Jaccard, of runs of words) are copies; 1.0 removes equal ones only.
      samples: what the report shows of rejected texts.
    """

    personal_data: PersonalData = PersonalData.MASK
    word_lists: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    classifiers: tuple[str, ...] = ()
    similarity: float = 0.8
    samples: Samples = Samples.MASKED

    def facts(self) -> dict[str, Any]:
        """What is recorded and hashed: no paths, but what they lead to.

        Raises:
          UserError: a list or a classifier cannot be had.
        """
        lists = [word_lists.load(name) for name in self.word_lists]
        return {
            "personal_data": str(self.personal_data),
            "word_lists": [
                {"name": each.name, "sha256": each.sha256, "licence": each.licence, "credit": each.credit}
                for each in lists
            ],
            "languages": list(self.languages),
            "classifiers": [{"name": name, "sha256": source_hash(load_classifier(name))} for name in self.classifiers],
            "similarity": self.similarity,
            "samples": str(self.samples),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rejection:
    """Why an episode stays out, and what the report shows of it."""

    reason: str
    excerpt: str = ""


class ContentFilter:
    """Looks at one episode after the other; loads lists and models once.

    Raises:
      UserError: a list, a classifier or a package that the settings name cannot be had.
    """

    def __init__(self, settings: ContentSettings) -> None:
        self._settings = settings
        self._lists = [word_lists.load(name) for name in settings.word_lists]
        self._classifiers = [(name, load_classifier(name)) for name in settings.classifiers]
        self._identify = _language_identifier() if settings.languages else None

    def __call__(self, episode: Episode) -> Rejection | None:
        """Why an episode may not pass; None when it may."""
        texts = texts_of(episode)
        if self._settings.personal_data == PersonalData.REJECT:
            found = sorted({kind for text in texts for kind in personal_data.find(text)})
            if found:
                return self._rejection(f"personal data: {', '.join(found)}", texts, [])
        if self._lists:
            tokens = [word_lists.words_of(text) for text in texts]
            for word_list in self._lists:
                words = sorted({word for each in tokens for word in word_list.find(each)})
                if words:
                    return self._rejection(f"word list {word_list.name}", texts, words)
        if self._identify is not None:
            whole = "\n".join(texts)
            if len(whole) >= MIN_LANGUAGE_CHARACTERS:
                language = self._identify(whole)
                if language not in self._settings.languages:
                    return self._rejection(f"language {language}", texts, [])
        for name, classify in self._classifiers:
            reason = classify(episode)
            if reason:
                # Nobody knows which words of it offend.
                shown = texts if self._settings.samples == Samples.FULL else []
                return self._rejection(f"{name}: {' '.join(reason.split())[:80]}", shown, [])
        return None

    def _rejection(self, reason: str, texts: Sequence[str], words: Sequence[str]) -> Rejection:
        if self._settings.samples == Samples.NONE:
            return Rejection(reason=reason)
        text = _around(" / ".join(text for text in texts if text), words)
        if self._settings.samples == Samples.MASKED:
            text = mask_words(personal_data.mask_text(text)[0], words)
        return Rejection(reason=reason, excerpt=" ".join(text.split())[:MAX_EXCERPT_CHARACTERS])


def texts_of(episode: Episode) -> list[str]:
    """All texts of an episode, in a fixed order."""
    groups = (episode.observations, episode.actions)
    return [
        text for group in groups for _, values in sorted(group.items()) if isinstance(values, list) for text in values
    ]


def mask_words(text: str, words: Sequence[str]) -> str:
    """The text with these words reduced to their first letters."""
    for word in sorted(words, key=len, reverse=True):
        pattern = r"[\W_]+".join(re.escape(part) for part in word.split())
        text = re.sub(rf"(?<![^\W_]){pattern}(?![^\W_])", lambda found: found[0][0] + "***", text, flags=re.IGNORECASE)
    return text


def _around(text: str, words: Sequence[str]) -> str:
    """So much of the text around the first of the words that an excerpt shows it."""
    places = [place for word in words if (place := text.lower().find(word.split()[0])) >= 0]
    start = max(0, min(places, default=0) - MAX_EXCERPT_CHARACTERS // 3)
    if start:
        start = text.find(" ", start) + 1 or start
    # More than is shown: masking needs whole words and whole numbers.
    return text[start : start + 4 * MAX_EXCERPT_CHARACTERS]


def load_classifier(name: str) -> Classifier:
    """The function "module:function".

    Raises:
      UserError: there is none.
    """
    module_name, colon, function_name = name.partition(":")
    try:
        if not colon:
            raise AttributeError
        classify = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError):
        raise UserError(
            f"classifier {name!r}: expected module:function of a module that Python finds (PYTHONPATH), such as "
            "beam_jobs.unsafe_images:unsafe_image"
        ) from None
    if not callable(classify):
        raise UserError(f"classifier {name!r}: expected a function, got {type(classify).__name__}")
    return classify


def source_hash(classify: Classifier) -> str:
    """SHA-256 of the file that a classifier is in; "" where there is none."""
    path = inspect.getsourcefile(inspect.unwrap(classify)) if inspect.isfunction(classify) else None
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""


@functools.cache
def _language_identifier() -> Callable[[str], str]:
    langid = need("py3langid.langid", "content", "identifying languages")
    identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)
    return lambda text: str(identifier.classify(text)[0])
