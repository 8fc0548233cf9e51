"""Worker processes of the local runner, forked before Beam starts its threads.

A fresh process imports Beam anew: 1.5 to 3 s of CPU for each worker of each job. A forked one has it already. Forking
is safe only while nothing of gRPC runs, so the processes are made first and wait, each for the variables that tell it
where to connect.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path


class WaitingWorker:
    """A process that becomes one of Beam's workers when it is told its environment, and ends when this one does."""

    def __init__(self, log: Path, earlier: Sequence[WaitingWorker] = ()) -> None:
        """Forks.

        Args:
          log: gets what the process prints.
          earlier: workers of the same job, whose pipes the new process must not hold open.
        """
        read_end, self._pipe = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            for pipe in (self._pipe, *(worker._pipe for worker in earlier)):
                os.close(pipe)
            _become_worker(read_end, log)
        os.close(read_end)

    def run(self, environment: Mapping[str, str]) -> int:
        """Starts the work and waits for its end; the exit code as a shell tells it, 137 after `kill -9`."""
        with os.fdopen(self._pipe, "w") as pipe:
            json.dump(dict(environment), pipe)
        return self._wait()

    def dismiss(self) -> None:
        """Ends a process that was not needed."""
        os.close(self._pipe)
        self._wait()

    def _wait(self) -> int:
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return code if code >= 0 else 128 - code


def _become_worker(read_end: int, log: Path) -> None:
    """Never returns: what follows in the caller is the other process's business."""
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        with os.fdopen(read_end) as pipe:
            told = pipe.read()
        if not told:
            os._exit(0)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        os.environ.update(json.loads(told))
        from apache_beam.runners.worker import sdk_worker_main

        sdk_worker_main.main([])
        code = 0
    except BaseException:  # noqa: BLE001 - this process must not go on in the caller
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
