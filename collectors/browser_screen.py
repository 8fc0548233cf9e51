"""A screen for `play` in a browser on this machine: a page, pictures, keys. Nobody without its address can use it."""

from __future__ import annotations

import collections
import io
import json
import threading
import urllib.parse
from collections.abc import Callable, Collection
from http import HTTPStatus
from typing import Any

import numpy as np

from collectors.keyboard import KEYS
from episode_store.loopback import BodyError, LoopbackHandler, LoopbackServer

_MAX_BODY_BYTES = 4096
_MAX_PRESSES = 64
_POLL_SECONDS = 10.0
_PAGE = """<!doctype html><meta charset="utf-8"><title>play</title>
<style>body{background:#222;color:#ddd;font:16px sans-serif;text-align:center}img{image-rendering:pixelated;
min-width:480px;max-width:95vw}</style><p id="caption">The keyboard plays; close the page to stop.</p><img id="screen">
<script>
const token = new URLSearchParams(location.search).get("token"), held = new Set();
const names = {ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down", " ": "space", Enter: "enter"};
const name = event => names[event.key] || event.key.toLowerCase();
const tell = body => fetch("/keys?token=" + token, {method: "POST", body: JSON.stringify(body), keepalive: true});
addEventListener("keydown", event => {event.preventDefault(); if (!event.repeat) {held.add(name(event));
  tell({held: [...held], pressed: [name(event)]});}});
addEventListener("keyup", event => {held.delete(name(event)); tell({held: [...held], pressed: []});});
addEventListener("blur", () => {held.clear(); tell({held: [], pressed: []});});
addEventListener("pagehide", () => tell({closed: true}));
(async () => { let after = 0; for (;;) {
  const answer = await fetch(`/frame?token=${token}&after=${after}`);
  if (answer.status == 204) continue;
  if (!answer.ok) break;
  after = Number(answer.headers.get("X-Frame"));
  document.getElementById("caption").textContent = answer.headers.get("X-Caption");
  const screen = document.getElementById("screen"), old = screen.src;
  screen.src = URL.createObjectURL(await answer.blob()); URL.revokeObjectURL(old);
} })();
</script>
"""


class BrowserScreen:
    """Serves one player on 127.0.0.1 until `close`.

    Args:
      port: of this machine; 0 for any that is free.
      announce: called with the address at the first picture, when there is something to see.
    """

    def __init__(self, *, port: int = 0, announce: Callable[[str], object] | None = None) -> None:
        self._changed = threading.Condition()
        self._frame: tuple[int, bytes, str] = (0, b"", "")
        self._held: frozenset[str] = frozenset()
        self._presses: collections.deque[str] = collections.deque(maxlen=_MAX_PRESSES)
        self._closed = False
        self._announce = announce
        self._server = _Server(self, port)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        """To be opened by the player; holds the secret."""
        return f"http://127.0.0.1:{self._server.server_port}/?token={self._server.token}"

    @property
    def is_closed(self) -> bool:
        """Whether the page was closed."""
        return self._closed

    def show(self, frame: np.ndarray, caption: str) -> None:
        """A new picture, uint8 [height, width, 3]."""
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(frame)).save(file, "PNG", compress_level=1)
        with self._changed:
            self._frame = (self._frame[0] + 1, file.getvalue(), caption)
            self._changed.notify_all()
        if self._announce is not None:
            self._announce(self.address)
            self._announce = None

    def held(self) -> Collection[str]:
        """Names of the keys held down."""
        return self._held

    def next_press(self) -> str | None:
        """The next key that was pressed."""
        return self._presses.popleft() if self._presses else None

    def forget(self) -> None:
        """Drops the presses that were not asked for yet."""
        self._presses.clear()

    def close(self) -> None:
        """Stops serving."""
        self._closed = True
        with self._changed:
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def frame_after(self, number: int) -> tuple[int, bytes, str] | None:
        """Number, PNG and caption of the newest picture; None if none is newer than `number` for ten seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._frame[0] > number or self._closed, _POLL_SECONDS)
            return self._frame if self._frame[0] > number else None

    def take(self, body: Any) -> bool:
        """Reads what the page tells; False for anything else."""
        if not isinstance(body, dict):
            return False
        if body.get("closed") is True:
            self._closed = True
            return True
        held, pressed = body.get("held", []), body.get("pressed", [])
        if not all(isinstance(part, list) and all(isinstance(key, str) for key in part) for part in (held, pressed)):
            return False
        self._held = frozenset(held) & KEYS
        self._presses.extend(key for key in pressed if key in KEYS)
        return True


class _Server(LoopbackServer):
    def __init__(self, screen: BrowserScreen, port: int) -> None:
        self.screen = screen
        super().__init__(_Handler, port=port)


class _Handler(LoopbackHandler):
    server: _Server

    def do_GET(self) -> None:  # noqa: N802
        """The page, or the next picture."""
        path, asked = self._asked()
        if path == "/":
            self.reply(HTTPStatus.OK, "text/html; charset=utf-8", _PAGE.encode())
        elif path == "/frame":
            after = asked.get("after", "0")
            found = self.server.screen.frame_after(int(after) if after.isdecimal() and len(after) < 12 else 0)
            if found is None:
                self._say(HTTPStatus.GONE if self.server.screen.is_closed else HTTPStatus.NO_CONTENT)
            else:
                number, picture, caption = found
                headers = {"X-Frame": str(number), "X-Caption": caption.encode("ascii", "replace").decode()}
                self.reply(HTTPStatus.OK, "image/png", picture, headers)
        elif path is not None:
            self._say(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:  # noqa: N802
        """Keys."""
        path, _ = self._asked()
        if path is None:
            return
        try:
            told = json.loads(self.read_body(_MAX_BODY_BYTES) or b"")
            understood = path == "/keys" and self.server.screen.take(told)
        except (BodyError, ValueError):
            understood = False
        self._say(HTTPStatus.NO_CONTENT if understood else HTTPStatus.BAD_REQUEST)

    def _asked(self) -> tuple[str | None, dict[str, str]]:
        """Path and query of a request that is the page's own; of another's the path is None, and it is refused."""
        parts = urllib.parse.urlsplit(self.path)
        asked = dict(urllib.parse.parse_qsl(parts.query))
        if self.names_this_machine and self.server.admits(asked.get("token", "")):
            return parts.path, asked
        self.close_connection = True  # its body is not read
        self._say(HTTPStatus.FORBIDDEN)
        return None, {}

    def _say(self, status: HTTPStatus) -> None:
        self.reply(status, "text/plain", b"")
        if self.close_connection:
            self.drain()
