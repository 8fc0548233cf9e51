"""No service outlives the tests: not after an error, not after Ctrl-C, not when the tests themselves are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import Processes

pytestmark = pytest.mark.cluster
# A service that starts another one, in a program that then waits for its end.
_PROGRAM = """
import signal, sys, time
from pathlib import Path
# Whoever runs the tests in the background may have it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {here!r})
from processes import Processes
with Processes(Path(sys.argv[1])) as processes:
    processes.start("service", ["sh", "-c", "sleep 987 & echo $! > child; echo $$ > parent; wait"])
    time.sleep(600)
"""


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_services_end_with_the_program(tmp_path: Path, number: signal.Signals) -> None:
    text = _PROGRAM.format(here=str(Path(__file__).parent))
    program = subprocess.Popen([sys.executable, "-c", text, str(tmp_path)], stderr=subprocess.DEVNULL)
    notes = [tmp_path / "child", tmp_path / "parent"]
    deadline = time.monotonic() + 30
    while not all(note.exists() and note.read_text().strip() for note in notes):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    pids = [int(note.read_text()) for note in notes]
    assert all(_runs(pid) for pid in pids)
    os.kill(program.pid, number)
    program.wait(30)
    deadline = time.monotonic() + 10
    while any(_runs(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_service_that_does_not_start_is_told_with_its_log(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        processes.start("broken", ["sh", "-c", "echo no such jar; exit 3"])
        with pytest.raises(RuntimeError, match="broken did not start:\nno such jar"):
            processes.wait("broken", lambda: False)
