"""The page itself: one HTML text with its style, its script, and a policy that allows nothing else."""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.resources
import json
import string
from typing import Any


@functools.cache
def _file(name: str) -> str:
    return importlib.resources.files("episode_store.viewer").joinpath(name).read_text(encoding="utf-8")


@functools.cache
def policy(*, connects: bool) -> str:
    """The Content-Security-Policy: the page's own script and style by their hashes, and no other.

    Args:
      connects: whether the page may ask its own server, or nobody.
    """
    own = "'self'" if connects else "'none'"
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src '{_hash('page.js')}'",
            f"style-src '{_hash('page.css')}'",
            f"img-src data: {own}" if connects else "img-src data:",
            f"connect-src {own}",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _hash(name: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(_file(name).encode()).digest()).decode()}"


def build(data: Any = None) -> str:
    """The page.

    Args:
      data: what `snapshot.gather` gives, for a page without a server; None for one that asks its server.
    """
    # "<" could end the block that the data are in; no other character could.
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return string.Template(_file("page.html")).substitute(
        policy=policy(connects=data is None), style=_file("page.css"), script=_file("page.js"), data=text
    )
