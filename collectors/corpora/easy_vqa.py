"""`vqa/easy-vqa-v0`: questions about drawn shapes. An episode is five (image and question, answer) pairs."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np

from collectors.corpora.language import IMAGE, IMAGE_SHAPE, TRAIN, VALIDATION, Attribution, corpus_episode
from episode_store.archives import Archive, ArchiveError, ArchiveMembers, open_archive
from episode_store.corpus import IMAGE_SIDE, PAIRS_PER_EPISODE, TEXT
from episode_store.episode import Episode
from episode_store.task import TaskSpec

ARCHIVE = Archive(
    name="easy-vqa",
    version="1.0",
    file_name="easy_vqa-1.0-py3-none-any.whl",
    sha256="fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
    num_bytes=3_215_672,
)
ATTRIBUTION = Attribution(
    task_id="vqa/easy-vqa-v0",
    title="easy-VQA",
    authors="Victor Zhou",
    licence="MIT",
    source="https://github.com/vzhou842/easy-VQA",
    archive=ARCHIVE.requirement,
    changes="questions gathered in fives",
)
SPEC = TaskSpec(
    task_id=ATTRIBUTION.task_id,
    observation_spec={"image": IMAGE, "text": TEXT},
    action_spec={"text": TEXT},
    max_episode_steps=PAIRS_PER_EPISODE,
    tags=("corpus", "family:vqa"),
    licence=ATTRIBUTION.licence,
)
DESCRIPTION = "easy-VQA: given an image of a shape and a question, the answer."
FOLDERS = {TRAIN: "easy_vqa/data/train", VALIDATION: "easy_vqa/data/test"}

_MAX_QUESTIONS_BYTES = 8_000_000
_MAX_IMAGE_BYTES = 100_000

Question = tuple[str, str, int]  # question, answer, image number


def load(*, seed: int = 0, archive: Archive = ARCHIVE) -> Iterator[Episode]:
    """Every question once, five an episode, in an order that the seed decides; the data's own test part is held out.

    The five images of an episode differ, so no answer is given away by an earlier one.

    Raises:
      ArchiveError: the archive cannot be had or is not the pinned one.
    """
    rng = np.random.default_rng(seed)
    with open_archive(archive) as members:
        groups: list[tuple[str, list[Question]]] = []
        for split, folder in FOLDERS.items():
            rows = members.read_json(f"{folder}/questions.json", max_bytes=_MAX_QUESTIONS_BYTES)
            questions = [(str(question), str(answer), int(image)) for question, answer, image in rows]
            groups += [(split, five) for five in _fives(questions, rng)]
        for index, number in enumerate(rng.permutation(len(groups)).tolist()):
            split, five = groups[number]
            images = [_image(members, f"{FOLDERS[split]}/images/{image}.png") for _, _, image in five]
            images.append(np.full(IMAGE_SHAPE, 255, np.uint8))  # the last observation, after which nothing is asked
            numbers = [image for _, _, image in five]
            yield corpus_episode(
                ATTRIBUTION,
                observations={"image": np.stack(images), "text": [*(question for question, _, _ in five), ""]},
                actions=[answer for _, answer, _ in five],
                collection_index=index,
                group="+".join(map(str, sorted(numbers))),
                split=split,
                facts={"images": numbers},
                seed=seed,
            )


def _fives(questions: list[Question], rng: np.random.Generator) -> Iterator[list[Question]]:
    """Groups of five questions in random order; a question whose image is in the group already waits for the next."""
    group: list[Question] = []
    waiting: list[Question] = []
    for index in rng.permutation(len(questions)).tolist():
        waiting.append(questions[index])
        for question in list(waiting):
            if all(question[2] != other[2] for other in group):
                group.append(question)
                waiting.remove(question)
                if len(group) == PAIRS_PER_EPISODE:
                    yield group
                    group = []
                    break


def _image(members: ArchiveMembers, name: str) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(members.read(name, max_bytes=_MAX_IMAGE_BYTES)), formats=["PNG"]) as image:
        if image.size != (IMAGE_SIDE, IMAGE_SIDE):  # told before anything is decoded
            raise ArchiveError(f"{name}: expected an image of {IMAGE_SIDE} x {IMAGE_SIDE}, got {image.size}")
        return np.asarray(image.convert("RGB"))
