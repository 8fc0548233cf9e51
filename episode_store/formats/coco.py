"""COCO's captions and VQA's questions: JSON files beside a folder of pictures.

    captions    {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}
    questions   {"questions": [{"question_id", "image_id", "question"}]}
    answers     {"annotations": [{"question_id", "multiple_choice_answer" or "answers": [{"answer"}]}]}

The source is the JSON of the captions, or a folder that holds it anywhere; of VQA a folder that holds the questions and
the answers. Pictures are looked for by name below the source, or below the option `images`; of VQA, whose questions
name no file, by the number at the end of the name, as COCO names its files (COCO_train2014_000000000009.jpg).
"""

from __future__ import annotations

import collections
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from episode_store import corpus
from episode_store.errors import UserError
from episode_store.formats import image_pairs, text_files
from episode_store.formats.format import Finding, Importer, one_line
from episode_store.formats.image_pairs import Pair, PairImporter
from episode_store.formats.transfer import Bar, examine_importer, no_bar

# The captions of COCO's 118,000 training pictures are 92 MB.
MAX_JSON_BYTES = 1 << 30
_PICTURES = tuple(f".{suffix}" for suffix in image_pairs.SUFFIXES)
_NUMBER = re.compile(r"(\d+)$")


def detect(source: Path) -> bool:
    """Whether a JSON file has annotations of pictures."""
    try:
        _Annotations(source, None)
    except (UserError, OSError):
        return False
    return True


def open_importer(source: Path, *, task_id: str | None = None, options: Mapping[str, str]) -> Importer:
    """Opens the JSON of the captions, or a folder."""
    return CocoImporter(source, task_id=task_id, options=options)


def doctor(source: Path, progress: Bar = no_bar) -> list[Finding]:
    """Reads every picture and holds every episode against the contract."""
    return examine_importer(lambda: CocoImporter(source, task_id=None, options={}), source, progress)


class CocoImporter(PairImporter):
    """The importer; see `format.Importer`."""

    name = "coco"

    def __init__(self, source: Path, *, task_id: str | None, options: Mapping[str, str]) -> None:
        self._annotations = _Annotations(source, Path(options["images"]) if "images" in options else None)
        with_questions = self._annotations.has_questions
        super().__init__(source, task_id=task_id, options=options, with_questions=with_questions)

    def num_episodes(self) -> int | None:
        """About: some episodes at the end may be short."""
        return -(-len(self._annotations.entries) // corpus.PAIRS_PER_EPISODE)

    def _pairs(self) -> Iterator[Pair]:
        self._findings += self._annotations.findings
        for where, path, question, answer in self._annotations.entries:
            try:
                if path is None:
                    raise ValueError("its picture is missing")
                if path.stat().st_size > image_pairs.MAX_IMAGE_BYTES:
                    raise ValueError(f"a picture of more than {image_pairs.MAX_IMAGE_BYTES} bytes")
                data = path.read_bytes()
            except (OSError, ValueError) as error:
                self._refuse(where, error)
                continue
            pair = self._pair(data, where=where, question=question, answer=answer)
            if pair is not None:
                yield pair


class _Annotations:
    """The pairs that the JSON files name: (where, picture or None, question, answer) each.

    Raises:
      UserError: there are none.
    """

    def __init__(self, source: Path, images: Path | None) -> None:
        self.findings: list[Finding] = []
        self.entries: list[tuple[str, Path | None, str, str]] = []
        self.has_questions = False
        captions: list[dict[str, Any]] = []
        questions: list[Any] = []
        answers: list[Any] = []
        for file in text_files.require(text_files.find_files(source, (".json",)), source, "a JSON file of annotations"):
            content = _read(file)
            if isinstance(content.get("questions"), list):
                questions += content["questions"]
            elif isinstance(content.get("annotations"), list):
                if isinstance(content.get("images"), list):
                    captions.append(content)
                else:
                    answers += content["annotations"]
        if not captions and not (questions and answers):
            raise UserError(
                f"source {source}: expected JSON of captions (images and annotations), or of questions and annotations"
            )
        if captions and questions:
            raise UserError(f"source {source}: it holds captions and questions; give the file or folder of one of them")
        root = images or (source if source.is_dir() else source.parent)
        pictures = {path.name: path for path in text_files.find_files(root, _PICTURES)}
        if captions:
            for content in captions:
                self._take_captions(content, pictures)
        else:
            self.has_questions = True
            self._take_questions(questions, answers, pictures)

    def _take_captions(self, content: Mapping[str, Any], pictures: Mapping[str, Path]) -> None:
        names: dict[Any, str] = {}
        for image in content["images"]:
            try:
                names[image["id"]] = Path(str(image["file_name"])).name  # folders in it mean nothing
            except (TypeError, KeyError):
                self._refuse("images", f"expected an id and a file_name, got {one_line(repr(image))}")
        for place, annotation in enumerate(content["annotations"]):
            try:
                name, caption = names[annotation["image_id"]], annotation["caption"]
                if not isinstance(caption, str):
                    raise TypeError
            except (TypeError, KeyError):
                self._refuse(f"annotation {place}", "expected the image_id of a picture and a caption")
                continue
            self.entries.append((f"annotation {place} {name}", pictures.get(name), "", caption))

    def _take_questions(self, questions: list[Any], answers: list[Any], pictures: Mapping[str, Path]) -> None:
        said: dict[Any, str] = {}
        for place, annotation in enumerate(answers):
            try:
                said[annotation["question_id"]] = _answer(annotation)
            except (TypeError, KeyError, ValueError):
                self._refuse(f"answer {place}", "expected a question_id and an answer")
        numbered = {int(number[1]): path for path in pictures.values() if (number := _NUMBER.search(path.stem))}
        for place, entry in enumerate(questions):
            try:
                question, image_id = entry["question"], int(entry["image_id"])
                answer = said[entry["question_id"]]
                if not isinstance(question, str) or not question.strip():
                    raise TypeError
            except (TypeError, KeyError, ValueError):
                what = "expected a question with an image_id, and an answer to its question_id"
                self._refuse(f"question {place}", what)
                continue
            where = f"question {entry['question_id']} picture {image_id}"
            self.entries.append((where, numbered.get(image_id), question, answer))

    def _refuse(self, where: str, what: str) -> None:
        self.findings.append(Finding(severity="error", where=where, what=what))


def _answer(annotation: Mapping[str, Any]) -> str:
    """The answer that was agreed on, or that most people gave."""
    if "multiple_choice_answer" in annotation:
        return str(annotation["multiple_choice_answer"])
    given = [str(each["answer"]) for each in annotation["answers"]]
    if not given:
        raise ValueError("no answer")
    return collections.Counter(given).most_common(1)[0][0]


def _read(file: Path) -> dict[str, Any]:
    size = file.stat().st_size
    if size > MAX_JSON_BYTES:
        raise UserError(f"{file}: {size} bytes, expected at most {MAX_JSON_BYTES}")
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
