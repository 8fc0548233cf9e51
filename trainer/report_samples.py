"""What the network did, to look at and to read: films, captions, answers, text, conversation.

videos/videos.json and its films: see videos.py.
language.json: samples and metrics on held-out data, each part optional:

    {"captions": {"num": 20, "metrics": {name: number},
                  "samples": [{"image_png_base64", "reference", "generated"}]},
     "vqa":      {"num", "accuracy", "majority_accuracy",     # accuracies from 0 to 1
                  "samples": [{"image_png_base64", "question", "reference", "generated"}]},
     "text":     {"bits_per_byte", "unigram_bits_per_byte", "samples": [{"prompt", "generated"}]},
     "dialogue": {"bits_per_byte", "unigram_bits_per_byte",
                  "samples": [{"turns": [{"speaker", "text"}]}]}}   # what the network wrote has speaker "generalist"
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from trainer.report_html import MissingInputError, card, image_uri, note, number, percent, read_json, terms
from trainer.videos import VIDEOS_FILE

LANGUAGE_FILE = "language.json"
GENERALIST = "generalist"

Sample = Mapping[str, Any]


def videos(run: Path) -> str:
    """The films of each task side by side, and a line for each that could not be made."""
    tasks: dict[str, list[Sample]] = {}
    for entry in read_json(run, f"videos/{VIDEOS_FILE}", "`trainer evaluate`"):
        tasks.setdefault(entry["task_id"], []).append(entry)
    cards = ""
    for task_id, entries in tasks.items():
        films = "".join(_film(run / "videos", entry) for entry in entries if entry["file"])
        cards += card(task_id, f'<div class="pair">{films}</div>') if films else ""
    errors = dict.fromkeys(entry["error"] for entries in tasks.values() for entry in entries if entry["error"])
    return f'<div class="cards pairs">{cards}</div>{"".join(map(note, errors))}'


def _film(folder: Path, entry: Sample) -> str:
    """Moves by itself, unless the reader's system asks for less motion."""
    path = folder / Path(entry["file"]).name
    if not path.exists():
        return f"<figure>{note(f'{path.name} is missing.')}</figure>"
    data, role = path.read_bytes(), escape(entry["role"])
    still = io.BytesIO()
    with Image.open(io.BytesIO(data)) as film:
        film.convert("RGB").save(still, "WEBP", quality=60)
    still_uri = image_uri(still.getvalue(), "webp")
    return (
        f'<figure><picture><source media="(prefers-reduced-motion: reduce)" srcset="{still_uri}">'
        f'<img src="{image_uri(data, "webp")}" alt="{role} acting"></picture><figcaption><b>{role}</b><br>'
        f"return {number(entry['episode_return'])}<br>{entry['num_steps']:,} steps</figcaption></figure>"
    )


def captions(run: Path) -> str:
    """Pictures with what the network and a person call them."""
    part = _part(run, "captions")

    def describe(sample: Sample) -> str:
        return f'{_said(sample["generated"])}<p class="muted">reference: {escape(sample["reference"])}</p>'

    measures = {name: number(value) for name, value in part.get("metrics", {}).items()}
    return terms({"held-out pictures": number(part["num"])} | measures) + _shots(part["samples"], describe)


def vqa(run: Path) -> str:
    """Pictures with a question and the network's answer."""
    part = _part(run, "vqa")

    def describe(sample: Sample) -> str:
        generated, reference = sample["generated"].strip(), sample["reference"].strip()
        right = generated.lower() == reference.lower()
        verdict = '<b class="right">✓ right</b>' if right else f'<b class="wrong">✗</b> it is: {escape(reference)}'
        return f"<p>{escape(sample['question'])}</p>{_said(generated)}<p>{verdict}</p>"

    measures = {
        "held-out questions": number(part["num"]),
        "answered exactly right": percent(100 * part["accuracy"]),
        "always the most frequent answer": percent(100 * part["majority_accuracy"]),
    }
    return terms(measures) + _shots(part["samples"], describe)


def text(run: Path) -> str:
    """Beginnings of texts and what the network made of them."""
    part = _part(run, "text")
    return _bits(part) + "".join(
        f'<div class="text"><strong>{escape(sample["prompt"])}</strong> '
        f'<span class="said">{escape(sample["generated"])}</span></div>'
        for sample in part["samples"]
    )


def dialogue(run: Path) -> str:
    """Conversations with the network."""
    part = _part(run, "dialogue")
    chats = "".join(card("", "".join(map(_turn, sample["turns"])), "chat") for sample in part["samples"])
    return f'{_bits(part)}<div class="cards chats">{chats}</div>'


def _part(run: Path, name: str) -> Sample:
    parts = read_json(run, LANGUAGE_FILE, "`trainer evaluate`")
    if not parts.get(name):
        raise MissingInputError(f"{LANGUAGE_FILE} has no part {name!r}.")
    return parts[name]


def _shots(samples: Sequence[Sample], describe: Callable[[Sample], str]) -> str:
    cards = ""
    for sample in samples:
        picture = image_uri(base64.b64decode(sample["image_png_base64"], validate=True), "png")
        cards += card("", f'<img src="{picture}" alt="">{describe(sample)}')
    return f'<div class="cards shots">{cards}</div>'


def _said(generated: str) -> str:
    return f'<p class="said">{escape(generated) or "(nothing)"}</p>'


def _bits(part: Sample) -> str:
    return terms({
        "bits a byte (less is better)": number(part["bits_per_byte"]),
        "bits a byte of a unigram model": number(part["unigram_bits_per_byte"]),
    })  # fmt: skip


def _turn(turn: Sample) -> str:
    kind = "turn generalist" if turn["speaker"] == GENERALIST else "turn"
    return f'<div class="{kind}"><small>{escape(turn["speaker"])}</small>{escape(turn["text"])}</div>'
