"""Serves the page to this machine's user, and to nobody else.

- `loopback.py` listens on 127.0.0.1 only, and checks that the Host header names this machine.
- Every request must carry the random token of the address that the command printed. There is no cookie, so another
  site's page has nothing that a browser would send along.
- A browser is started with a code that works once, since other users of the machine can read a command's arguments.
- Only GET and HEAD, only the routes below; no path is ever looked up on the disk.
"""

from __future__ import annotations

import json
import secrets
import threading
import urllib.parse
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from episode_store.errors import CorruptionError, UserError
from episode_store.loopback import ADDRESS, LoopbackHandler, LoopbackServer
from episode_store.viewer import page
from episode_store.viewer.content import Content


class ViewerServer(LoopbackServer):
    """Serves a store's content until `shutdown`.

    Args:
      content: to show.
      port: 0 for any that is free.

    Raises:
      UserError: the port is taken.
    """

    def __init__(self, content: Content, *, port: int = 0) -> None:
        self.content = content
        self._code = secrets.token_urlsafe(24)
        self._lock = threading.Lock()
        super().__init__(_Handler, port=port)

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{ADDRESS}:{self.server_port}/?token={self.token}"

    @property
    def url_once(self) -> str:
        """An address that leads there the first time it is opened."""
        return f"http://{ADDRESS}:{self.server_port}/?once={self._code}"

    def redeem(self, code: str) -> bool:
        """Whether this is the code of `url_once`, for the first time."""
        with self._lock:
            valid = bool(self._code) and secrets.compare_digest(code.encode(), self._code.encode())
            if valid:
                self._code = ""
        return valid


class _Handler(LoopbackHandler):
    server: ViewerServer

    def do_GET(self) -> None:  # noqa: N802
        """Answers, or says why not."""
        parts = urllib.parse.urlsplit(self.path)
        asked = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
        if not self.names_this_machine:
            self._refuse(HTTPStatus.FORBIDDEN, "this host is not served here")
        elif parts.path == "/" and "once" in asked and self.server.redeem(asked["once"]):
            self._send(HTTPStatus.SEE_OTHER, "text/plain", b"", location=f"/?token={self.server.token}")
        elif not self.server.admits(asked.pop("token", "")):
            self._refuse(HTTPStatus.FORBIDDEN, "the token is missing or wrong: open the address that `view` printed")
        elif parts.path == "/":
            self._page()
        elif parts.path in _ROUTES:
            self._answer(_ROUTES[parts.path], asked)
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")

    do_HEAD = do_GET  # noqa: N815

    def _page(self) -> None:
        try:
            self.server.content.reopen()
        except UserError as error:
            self._refuse(HTTPStatus.CONFLICT, str(error))
            return
        self._send(HTTPStatus.OK, "text/html; charset=utf-8", page.build().encode())

    def _answer(self, route: Callable[[Content, Mapping[str, str]], Any], asked: Mapping[str, str]) -> None:
        try:
            answer = route(self.server.content, asked)
        except (KeyError, ValueError) as error:
            self._refuse(HTTPStatus.BAD_REQUEST, f"not understood: {error}")
        except CorruptionError as error:
            self._refuse(HTTPStatus.CONFLICT, str(error))
        except UserError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        else:
            if isinstance(answer, bytes):
                self._send(HTTPStatus.OK, "image/png", answer)
            else:
                self._send(HTTPStatus.OK, "application/json", json.dumps(answer, allow_nan=False).encode())

    def _refuse(self, status: HTTPStatus, sentence: str) -> None:
        self._send(status, "application/json", json.dumps({"error": sentence}).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes, *, location: str = "") -> None:
        self.reply(status, kind, body, _headers() | ({"Location": location} if location else {}))


def _headers() -> dict[str, str]:
    return {
        "Content-Security-Policy": f"{page.policy(connects=True)}; frame-ancestors 'none'",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }


def _float(text: str) -> float | None:
    return float(text) if text.strip() else None


_ROUTES: Mapping[str, Callable[[Content, Mapping[str, str]], Any]] = {
    "/api/summary": lambda content, asked: content.summary(),
    "/api/episodes": lambda content, asked: content.episodes(
        task=asked.get("task", ""),
        where=asked.get("where", ""),
        lowest=_float(asked.get("lowest", "")),
        highest=_float(asked.get("highest", "")),
        sort=asked.get("sort", ""),
        offset=int(asked.get("offset", "0")),
        limit=int(asked.get("limit", "50")),
    ),
    "/api/episode": lambda content, asked: content.episode(asked["id"]),
    "/api/series": lambda content, asked: content.series(asked["id"], asked["path"]),
    "/api/steps": lambda content, asked: content.steps(asked["id"], int(asked["start"]), int(asked["count"])),
    "/api/texts": lambda content, asked: content.texts(asked["id"]),
    "/api/tokens": lambda content, asked: content.tokens(asked["id"], int(asked["step"])),
    "/api/frame": lambda content, asked: content.frame(asked["id"], asked["path"], int(asked["step"])),
}
