"""Pictures of strangers with what is said of them, five pairs an episode: what WebDatasets and COCO files share."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from episode_store import corpus
from episode_store.episode import Episode, EpisodeMetadata
from episode_store.errors import UserError
from episode_store.formats.format import Finding, LossLog, SingleTaskImporter, need, one_line, task_id_from
from episode_store.splits import DEFAULT_HOLDOUT, TRAIN, VALIDATION

FORMATS = ("JPEG", "PNG", "WEBP")
SUFFIXES = ("jpg", "jpeg", "png", "webp")
MAX_IMAGE_BYTES = 64 << 20
MAX_PIXELS = 100_000_000
MAX_SIDE = 1024
# Groups that wait for a fifth pair; with more, the fullest is closed as it is.
_MAX_OPEN = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """One picture, what is asked of it and what is said.

    Attributes:
      where: file and member or id.
      key: of the picture: equal for equal pictures.
      image: uint8 [side, side, 3].
      question: "" for a caption.
      answer: the caption or the answer.
    """

    where: str
    key: str
    image: np.ndarray
    question: str
    answer: str


def side_option(options: Mapping[str, str]) -> int:
    """The side of the pictures in pixels, from the option "side".

    Raises:
      UserError: no number, or out of bounds.
    """
    text = options.get("side", str(corpus.IMAGE_SIDE))
    if not text.isdecimal() or not 16 <= int(text) <= MAX_SIDE:
        raise UserError(f"option side {text!r}: expected a number of pixels from 16 to {MAX_SIDE}")
    return int(text)


def decode(data: bytes, side: int, losses: LossLog) -> np.ndarray:
    """A picture scaled so that it fills a square, and cut to it: uint8 [side, side, 3].

    Raises:
      ValueError: it is none, too large, or damaged.
    """
    images = need("PIL.Image", "images", "reading pictures")
    if len(data) > MAX_IMAGE_BYTES:
        raise ValueError(f"a picture of {len(data)} bytes, expected at most {MAX_IMAGE_BYTES}")
    try:
        with images.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS or min(width, height) < 1:  # told before anything is decoded
                raise ValueError(f"a picture of {width} x {height}, expected at most {MAX_PIXELS} pixels")
            if (width, height) != (side, side):
                losses.add("picture sizes", f"scaled and cut to {side} x {side}")
                image.draft("RGB", (2 * side, 2 * side))
            scale = side / min(image.size)
            size = [max(side, round(edge * scale)) for edge in image.size]
            left, top = (size[0] - side) // 2, (size[1] - side) // 2
            image = image.convert("RGBA") if image.mode in ("P", "LA", "RGBA", "PA") else image.convert("RGB")
            if image.mode == "RGBA":
                white = images.new("RGBA", image.size, "white")
                image = images.alpha_composite(white, image).convert("RGB")
            if tuple(size) != image.size:
                image = image.resize(size, images.Resampling.LANCZOS)
            return np.array(image.crop((left, top, left + side, top + side)))
    except (OSError, SyntaxError, images.DecompressionBombError, EOFError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"not a whole picture: {one_line(error)}") from None


def episodes(
    pairs: Iterable[Pair], *, task_id: str, agent_id: str, with_questions: bool, holdout: float = DEFAULT_HOLDOUT
) -> Iterator[Episode]:
    """Five pairs an episode, in their order; the pictures of an episode differ, so that no answer is given away.

    A picture is held out, or not, with all of its pairs, by what is in it; episodes never mix both kinds.
    """
    open_groups: dict[str, list[list[Pair]]] = {TRAIN: [], VALIDATION: []}
    count = 0

    def close(split: str, group: list[Pair]) -> Episode:
        nonlocal count
        count += 1
        return _episode(split, group, task_id, agent_id, with_questions, count - 1)

    for pair in pairs:
        split = VALIDATION if corpus.is_held_out(pair.key, holdout) else TRAIN
        groups = open_groups[split]
        group = next((each for each in groups if all(pair.key != other.key for other in each)), None)
        if group is None:
            if len(groups) == _MAX_OPEN:
                yield close(split, groups.pop(0))
            group = []
            groups.append(group)
        group.append(pair)
        if len(group) == corpus.PAIRS_PER_EPISODE:
            groups.remove(group)
            yield close(split, group)
    for split, groups in open_groups.items():
        for group in groups:
            yield close(split, group)


def _episode(split: str, group: list[Pair], task_id: str, agent_id: str, with_questions: bool, index: int) -> Episode:
    images = [pair.image for pair in group]
    observations: dict[str, np.ndarray | list[str]] = {"image": np.stack([*images, np.full_like(images[0], 255)])}
    if with_questions:
        observations["text"] = [*(pair.question for pair in group), ""]
    return corpus.corpus_episode(
        task_id,
        observations=observations,
        actions=[corpus.cap_text(pair.answer) for pair in group],
        terminated=True,
        metadata=EpisodeMetadata(
            agent_id=agent_id,
            collection_index=index,
            environment_config={"source": group[0].where, "pictures": [pair.where for pair in group], "split": split},
            split_group=f"{split}/{corpus.facts_hash(*sorted(pair.key for pair in group))}",
        ),
    )


class PairImporter(SingleTaskImporter):
    """An importer of pictures with captions, or with questions and answers; a subclass has a name and finds the pairs.

    Args:
      source: names the task where no `task_id` does.
      task_id: of the task; None for "caption/" or "vqa/" and the source's name.
      options: "side" of the pictures.
      with_questions: whether its pairs have questions.
    """

    name: str

    def __init__(self, source: Path, *, task_id: str | None, options: Mapping[str, str], with_questions: bool) -> None:
        super().__init__()
        self._side, self._with_questions = side_option(options), with_questions
        kind = "vqa" if with_questions else "caption"
        observation = {"image": corpus.image_spec(self._side)}
        self._task = corpus.corpus_spec(
            task_id_from(task_id or f"{kind}/{source.name.partition('.')[0]}"),
            observation=observation | ({"text": corpus.TEXT} if with_questions else {}),
            kind=kind,
            max_steps=corpus.PAIRS_PER_EPISODE,
        )

    def episodes(self) -> Iterator[Episode]:
        """Five pairs an episode, in the order of the source."""
        self._losses, self._findings = LossLog(), []
        yield from episodes(
            self._pairs(), task_id=self._task.task_id, agent_id=self.name, with_questions=self._with_questions
        )

    def _pairs(self) -> Iterator[Pair]:
        raise NotImplementedError

    def _pair(self, data: bytes, *, where: str, question: str, answer: str) -> Pair | None:
        """A pair of a picture's bytes; None where there is none, which becomes a finding."""
        try:
            image = decode(data, self._side, self._losses)
            if not answer.strip():
                raise ValueError("nothing is said of it")
        except ValueError as error:
            self._refuse(where, error)
            return None
        key = corpus.facts_hash(image.tobytes())
        return Pair(where=where, key=key, image=image, question=question.strip(), answer=answer.strip())

    def _refuse(self, where: str, error: Exception) -> None:
        self._findings.append(Finding(severity="error", where=where, what=one_line(error)))
