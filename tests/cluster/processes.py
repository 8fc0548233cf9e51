"""Starts services in process groups of their own, and ends them all, also when this process is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_READY_SECONDS = 90.0
# Reads the groups' ids; its input ends when whoever started it ends, however that happens.
_WATCH = """
import os, signal, sys
groups = [int(line) for line in sys.stdin]
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


class Processes:
    """The services of one engine. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._watch = subprocess.Popen(
            [sys.executable, "-c", _WATCH], stdin=subprocess.PIPE, start_new_session=True, text=True
        )

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._running):
            self.kill(name)
        assert self._watch.stdin is not None
        self._watch.stdin.close()
        self._watch.wait()

    def start(self, name: str, command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> None:
        """Starts a service; what it prints goes to `NAME.log`."""
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=self._folder,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._running[name] = process
        assert self._watch.stdin is not None
        self._watch.stdin.write(f"{process.pid}\n")
        self._watch.stdin.flush()

    def kill(self, name: str) -> None:
        """`kill -9` of a service and of what it started."""
        process = self._running.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def pid(self, name: str) -> int:
        """Of a service."""
        return self._running[name].pid

    def log(self, name: str) -> Path:
        """What a service printed."""
        return self._folder / f"{name}.log"

    def wait(self, name: str, ready: Callable[[], bool]) -> None:
        """Until a service is ready.

        Raises:
          RuntimeError: it ended, or is not ready in time; with the end of its log.
        """
        end = time.monotonic() + _READY_SECONDS
        while not ready():
            if self._running[name].poll() is not None or time.monotonic() > end:
                tail = "\n".join(self.log(name).read_text(errors="replace").splitlines()[-15:])
                raise RuntimeError(f"{name} did not start:\n{tail}")
            time.sleep(0.1)


def free_port() -> int:
    """A port of loopback that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def answers(port: int) -> bool:
    """Whether something listens there."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
