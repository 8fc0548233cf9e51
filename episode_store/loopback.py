"""A small HTTP server for programs and browsers of this machine, and for nobody else.

- It listens on 127.0.0.1 unless its user says otherwise.
- The Host header must then name this machine, so that a site cannot reach it by pointing its own name here (DNS
  rebinding). Any port is taken, so that a tunnel (ssh -L) works.
- A random token tells who may ask; it is compared in constant time, and never logged.
- What a request sends is bounded before it is read, in bytes and in seconds.
"""

from __future__ import annotations

import contextlib
import errno
import http.server
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar

from episode_store.errors import UserError

ADDRESS = "127.0.0.1"
TIMEOUT_SECONDS = 30
_HOST = re.compile(r"(.+?)(:[0-9]+)?")
# So much of a refused body is read and dropped: a client that is still sending would not see the refusal.
_MAX_DRAINED_BYTES, _DRAIN_SECONDS = 1 << 22, 2.0


class LoopbackServer(http.server.ThreadingHTTPServer):
    """Serves until `shutdown`; one thread a connection, and none is left after `server_close`.

    A thread that still runs when the interpreter ends takes it down (SIGABRT), if it has used torch.

    Args:
      handler: of requests.
      address: to listen on.
      port: 0 for any that is free.
      token: that requests must carry; a random one by default.

    Raises:
      UserError: it cannot listen there.
    """

    daemon_threads = False

    def __init__(
        self,
        handler: type[http.server.BaseHTTPRequestHandler],
        *,
        address: str = ADDRESS,
        port: int = 0,
        token: str | None = None,
    ) -> None:
        self.token = token or secrets.token_urlsafe(24)
        # When each connection was opened or last answered.
        self._connections: dict[socket.socket, float] = {}
        self._connections_lock = threading.Lock()
        if ":" in address:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((address, port), handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            if address != ADDRESS and getattr(error, "errno", None) != errno.EADDRINUSE:
                raise UserError(f"address {address}: {reason}; choose another with --address") from None
            where = f"port {port}" if address == ADDRESS else f"address {address}, port {port}"
            raise UserError(f"{where}: {reason}; choose another with --port, or leave it out") from None

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for a connection."""
        self.answered(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Ends a connection."""
        with self._connections_lock:
            self._connections.pop(request, None)
        super().shutdown_request(request)

    def answered(self, connection: socket.socket) -> None:
        """Notes that a connection was opened, or one of its requests answered."""
        with self._connections_lock:
            self._connections[connection] = time.monotonic()

    def cut(self, *, before: float, how: int = socket.SHUT_RDWR) -> None:
        """Cuts the connections last answered before this time of `time.monotonic`; their threads then end.

        With `socket.SHUT_RD` they still send the answer that they are at.
        """
        with self._connections_lock:
            late = [connection for connection, at in self._connections.items() if at <= before]
        for connection in late:
            with contextlib.suppress(OSError):
                connection.shutdown(how)

    def server_close(self) -> None:
        """Stops listening, and waits for the requests that are being answered."""
        self.cut(before=time.monotonic(), how=socket.SHUT_RD)
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no error of ours; others are printed."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def admits(self, token: str) -> bool:
        """Whether this is the token."""
        return secrets.compare_digest(token.encode(), self.token.encode())


class LoopbackHandler(http.server.BaseHTTPRequestHandler):
    """What every request is asked, and how every answer is sent."""

    protocol_version = "HTTP/1.1"
    timeout: ClassVar[float | None] = TIMEOUT_SECONDS
    server_version = "generalist-agent"
    sys_version = ""

    @property
    def names_this_machine(self) -> bool:
        """Whether the one Host header names this machine, with any port."""
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1:
            return False
        match = _HOST.fullmatch(hosts[0])
        here = "[::1]" if self.connection.family == socket.AF_INET6 else "127.0.0.1"
        return match is not None and match[1] in (here, "localhost")

    def read_body(self, most: int) -> bytes | None:
        """The body of a request, or None for one that is not sent in time.

        Raises:
          BodyError: its length is not told, or above `most`; nothing of it is then kept.
        """
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()) or "Transfer-Encoding" in self.headers:
            self.close_connection = True
            raise BodyError(HTTPStatus.LENGTH_REQUIRED, "Content-Length: expected the number of bytes of the body")
        if len(length) > 18 or int(length) > most:
            self.close_connection = True
            raise BodyError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"body: expected at most {most} bytes, got {length[:18]}"
            )
        body = self._read(int(length), seconds=TIMEOUT_SECONDS)
        if len(body) < int(length):
            self.close_connection = True
            return None
        return body

    def drain(self) -> None:
        """Reads and drops what the client of a refused request still sends, within limits; its connection ends."""
        length = self.headers.get("Content-Length", "")
        self.connection.settimeout(_DRAIN_SECONDS)
        if length.isascii() and length.isdecimal():
            self._read(min(int(length[:18]), _MAX_DRAINED_BYTES), seconds=_DRAIN_SECONDS)

    def _read(self, length: int, *, seconds: float) -> bytes:
        """Up to `length` bytes: fewer when they do not come in time."""
        parts, deadline = [], time.monotonic() + seconds
        try:
            while length > 0 and time.monotonic() < deadline:
                part = self.rfile.read1(min(length, 1 << 16))
                if not part:
                    break
                length -= len(part)
                parts.append(part)
        except OSError:  # a socket's time-out, or a client that has gone
            pass
        return b"".join(parts)

    def reply(self, status: HTTPStatus, kind: str, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Sends an answer."""
        self.send_response(status)
        everything = {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store"}
        if self.close_connection:
            everything["Connection"] = "close"
        for name, value in (everything | dict(headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: an address in a log would hold the token."""


class BodyError(Exception):
    """A body that is not read, and the answer that says so."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
