"""A screen for `play` in a browser on this machine: a page, pictures, keys. Nobody without its address can use it."""

from __future__ import annotations

import collections
import hmac
import http.server
import io
import json
import secrets
import threading
import urllib.parse
from collections.abc import Collection
from typing import Any

import numpy as np

from collectors.keyboard import KEYS

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
    """Serves one player on 127.0.0.1 until `close`."""

    def __init__(self, *, port: int = 0) -> None:
        self._token = secrets.token_urlsafe(24)
        self._changed = threading.Condition()
        self._frame: tuple[int, bytes, str] = (0, b"", "")
        self._held: frozenset[str] = frozenset()
        self._presses: collections.deque[str] = collections.deque(maxlen=_MAX_PRESSES)
        self._closed = False
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        """To be opened by the player; holds the secret."""
        return f"http://127.0.0.1:{self._server.server_port}/?token={self._token}"

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

    def _frame_after(self, number: int) -> tuple[int, bytes, str] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._frame[0] > number or self._closed, _POLL_SECONDS)
            return self._frame if self._frame[0] > number else None

    def _take(self, body: Any) -> bool:
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

    def _handler(screen) -> type[http.server.BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                query = self._query()
                if query is None:
                    return
                if self.path.startswith("/?"):
                    self._answer(200, _PAGE.encode(), "text/html; charset=utf-8")
                elif self.path.startswith("/frame?"):
                    after = query.get("after", ["0"])[0]
                    found = screen._frame_after(int(after) if after.isdecimal() and len(after) < 12 else 0)
                    if found is None:
                        self._answer(410 if screen._closed else 204, b"", "image/png")
                    else:
                        number, picture, caption = found
                        headers = {"X-Frame": str(number), "X-Caption": caption.encode("ascii", "replace").decode()}
                        self._answer(200, picture, "image/png", headers)
                else:
                    self._answer(404, b"", "text/plain")

            def do_POST(self) -> None:
                if self._query() is None:
                    return
                length = self.headers.get("Content-Length", "")
                if not self.path.startswith("/keys?") or not length.isdecimal() or int(length) > _MAX_BODY_BYTES:
                    self._answer(400, b"", "text/plain")
                    return
                try:
                    understood = screen._take(json.loads(self.rfile.read(int(length))))
                except ValueError:
                    understood = False
                self._answer(204 if understood else 400, b"", "text/plain")

            def _query(self) -> dict[str, list[str]] | None:
                """What follows the '?', where the secret is right and the page is our own; else the answer is given."""
                query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
                token = query.get("token", [""])[0]
                # Another site's page whose name was pointed at this machine has another Host.
                host = self.headers.get("Host", "").partition(":")[0]
                if hmac.compare_digest(token.encode(), screen._token.encode()) and host in ("127.0.0.1", "localhost"):
                    return query
                self._answer(403, b"", "text/plain")
                return None

            def _answer(self, code: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
                self.send_response(code)
                for name, value in {"Content-Type": kind, "Cache-Control": "no-store", **(headers or {})}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing: the terminal is the player's."""

        return Handler
