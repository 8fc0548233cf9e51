import os
import subprocess
import sys
from pathlib import Path

import pytest

from beam_jobs.forked_workers import WaitingWorker


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_workers_that_are_not_needed_end(tmp_path: Path) -> None:
    workers: list[WaitingWorker] = []
    for _ in range(3):
        workers.append(WaitingWorker(tmp_path / "log", workers))
    for worker in workers:
        assert not gone(worker.pid)
        worker.dismiss()
        assert gone(worker.pid)
    assert not (tmp_path / "log").exists()


def test_what_a_worker_raises_is_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from apache_beam.runners.worker import sdk_worker_main

    def main(arguments: list[str]) -> None:
        print("greeting is", os.environ["GREETING"])
        raise RuntimeError("no runner at this address")

    monkeypatch.setattr(sdk_worker_main, "main", main)
    assert WaitingWorker(tmp_path / "log").run({"GREETING": "hello"}) == 1
    log = (tmp_path / "log").read_text()
    assert "greeting is hello" in log
    assert "RuntimeError: no runner at this address" in log
    assert "GREETING" not in os.environ


def test_a_killed_worker_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from apache_beam.runners.worker import sdk_worker_main

    monkeypatch.setattr(sdk_worker_main, "main", lambda arguments: os.kill(os.getpid(), 9))
    assert WaitingWorker(tmp_path / "log").run({}) == 137


def test_waiting_workers_end_with_the_process_that_made_them(tmp_path: Path) -> None:
    code = (
        "import os, pathlib\n"
        "from beam_jobs.forked_workers import WaitingWorker\n"
        "workers = []\n"
        "for _ in range(2):\n"
        "    workers.append(WaitingWorker(pathlib.Path('log'), workers))\n"
        "print(*(worker.pid for worker in workers), flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    root = Path(__file__).parents[2]
    # Reading to the end of the output waits for everyone who could write to it.
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == -9
    assert len(done.stdout.split()) == 2
