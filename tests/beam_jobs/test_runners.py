"""The runner is always named, dangerous ones are refused, and a job that hangs or loses a worker ends in one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import apache_beam as beam
import pytest

from beam_jobs import runners
from beam_jobs.runners import LOCAL_RUNNER, pipeline_flags
from episode_store.errors import UserError


def test_local_runner_is_named() -> None:
    local = f"--runner={LOCAL_RUNNER}"
    assert pipeline_flags([], 1) == [local]
    assert pipeline_flags(["--runner=FnApiRunner"], 1) == [local]
    assert pipeline_flags(["--runner", "FnApiRunner"], 2) == ["--runner", LOCAL_RUNNER, "--direct_num_workers=2"]
    assert pipeline_flags(["--direct_runner_bundle_repeat=1"], 1) == ["--direct_runner_bundle_repeat=1", local]


def test_other_runners_get_their_flags_unchanged() -> None:
    flags = ["--runner=FlinkRunner", "--flink_master=localhost:8081", "--made_up=1", "--parallelism", "2"]
    assert pipeline_flags(flags, 1) == flags
    with pytest.raises(UserError, match="--workers is for the local runner; tell FlinkRunner"):
        pipeline_flags(flags, 2)


@pytest.mark.parametrize(
    "flags",
    [["--runner=DaskRunner"], ["--runner", "dask"], ["--runner=apache_beam.runners.dask.dask_runner.DaskRunner"]],
)
def test_dask_is_refused_with_the_reason(flags: list[str]) -> None:
    with pytest.raises(UserError, match="DaskRunner is not offered: without any error it drops"):
        pipeline_flags(flags, 1)


def test_misspelt_flag() -> None:
    with pytest.raises(UserError, match=r"--holdot: no such flag; did you mean --holdout\?"):
        pipeline_flags(["--holdot", "0.1"], 1)


def _run(
    step: Callable[[int], int], tmp_path: Path, *, workers: int = 1, timeout: float | None = None,
    on_tick: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    def build(pipeline: beam.Pipeline) -> None:
        _ = pipeline | beam.Create([1]) | beam.Map(step)

    runners.run(
        build, pipeline_flags([], workers), workers=workers, log_folder=tmp_path, timeout_seconds=timeout,
        on_tick=on_tick,
    )  # fmt: skip


def test_timeout(tmp_path: Path) -> None:
    def wait(value: int) -> int:
        time.sleep(3)
        return value

    begin = time.monotonic()
    with pytest.raises(UserError, match=r"the job was not done after 0.5 s \(--timeout\)"):
        _run(wait, tmp_path, timeout=0.5)
    assert time.monotonic() - begin < 2.5


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (UserError("store x: damaged"), UserError, "store x: damaged"),
        (OSError(28, "No space left on device"), OSError, "[Errno 28] No space left on device"),
    ],
)
def test_errors_of_workers_arrive_as_one_line(
    tmp_path: Path, error: Exception, kind: type[Exception], message: str
) -> None:
    def fail(_: int) -> int:
        raise error

    with pytest.raises(kind) as caught:
        _run(fail, tmp_path)
    assert str(caught.value) == message


def test_errors_of_worker_processes_arrive_as_one_line(tmp_path: Path) -> None:
    def fail(_: int) -> int:
        from episode_store.errors import CorruptionError

        raise CorruptionError("episode 12: a byte was changed")

    with pytest.raises(UserError) as caught:
        _run(fail, tmp_path, workers=2)
    assert str(caught.value) == "episode 12: a byte was changed"


def test_a_worker_process_that_comes_late_does_not_hold_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    # One of the processes comes when the job is over.
    python.write_text(f'#!/bin/sh\nmkdir {tmp_path}/first 2>/dev/null && sleep 6\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(runners.sys, "executable", str(python))
    monkeypatch.setattr(runners, "_grpc_has_run", True)  # then workers are fresh processes

    def fail(_: int) -> int:
        from episode_store.errors import CorruptionError

        raise CorruptionError("episode 12: a byte was changed")

    with pytest.raises(UserError, match="a byte was changed"):
        _run(fail, tmp_path, workers=2, timeout=40)


_KILL_A_FORKED_WORKER = """
import os, pathlib, sys, time
import apache_beam as beam
from beam_jobs import runners

folder = pathlib.Path(sys.argv[1])
note = folder / "pid"

def tell_and_wait(value, path=str(note)):
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(60)

def kill():
    if note.exists() and (text := note.read_text()):
        os.kill(int(text), 9)
        note.unlink()

runners.run(
    lambda pipeline: pipeline | beam.Create([1]) | beam.Map(tell_and_wait), runners.pipeline_flags([], 2), workers=2,
    log_folder=folder, timeout_seconds=60, on_tick=kill,
)
"""


def test_a_killed_forked_worker_ends_the_job(tmp_path: Path) -> None:
    """In a process of its own: only one that has not run gRPC yet forks its workers."""
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _KILL_A_FORKED_WORKER, str(tmp_path)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert "UserError: a worker process died (exit code 137;" in done.stderr
    assert time.monotonic() - begin < 60


def test_a_killed_worker_process_ends_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "_grpc_has_run", True)  # then workers are fresh processes
    note = tmp_path / "pid"
    path = str(note)

    def tell_and_wait(value: int) -> int:
        with open(path, "w") as file:
            file.write(str(os.getpid()))
        time.sleep(60)
        return value

    def kill() -> None:
        if note.exists() and (text := note.read_text()):
            os.kill(int(text), signal.SIGKILL)
            note.unlink()

    begin = time.monotonic()
    with pytest.raises(UserError, match=r"a worker process died \(exit code 137;"):
        _run(tell_and_wait, tmp_path, workers=2, on_tick=kill, timeout=60)
    assert time.monotonic() - begin < 30
