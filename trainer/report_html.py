"""What the parts of the report share: their inputs, which may be missing, and small pieces of HTML."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any


class MissingInputError(Exception):
    """An input of the report is not there; the text says which, and what makes it."""


def read_json(run: Path, name: str, maker: str) -> Any:
    """The file `name` of a run.

    Raises:
      MissingInputError: not there or not JSON; `maker` is the command that writes it.
    """
    try:
        return json.loads((run / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingInputError(f"there is no {name} yet; {maker} writes it.") from None
    except ValueError as error:
        raise MissingInputError(f"{name} is damaged ({error}); {maker} writes it.") from None


def note(text: str) -> str:
    """A quiet line, escaped."""
    return f'<p class="note">{escape(text)}</p>'


def terms(facts: Mapping[str, str]) -> str:
    """A list of names and values, both escaped."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(value)}</dd>' for name, value in facts.items())}</dl>"


def card(title: str, body: str, kind: str = "") -> str:
    """A box with an escaped title, which may be empty, around HTML."""
    heading = f"<h4>{escape(title)}</h4>" if title else ""
    return f'<div class="card {kind}">{heading}{body}</div>'


def image_uri(data: bytes, kind: str) -> str:
    """A picture as the `src` of an image."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def percent(value: float | None) -> str:
    """Percent with one digit; a dash for None."""
    return "–" if value is None else f"{value:,.1f}%".replace("-", "−")


def number(value: float | None, suffix: str = "") -> str:
    """A number for people: three or four digits, a real minus sign, a dash for None and NaN."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == int(value) and abs(value) < 1e15:
        text = f"{value:,.0f}"
    else:
        text = f"{value:,.{0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3}f}"
    return text.replace("-", "−") + suffix
