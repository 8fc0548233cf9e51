"""Which engine runs the pipeline: Beam's local runner, always named, or whatever Beam's own flags say."""

from __future__ import annotations

import contextlib
import difflib
import errno
import logging
import os
import re
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import apache_beam as beam
import grpc
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import python_urns
from apache_beam.portability.api import endpoints_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.portability.fn_api_runner.worker_handlers import (
    BeamFnControlServicer,
    SubprocessSdkWorkerHandler,
    WorkerHandler,
)
from apache_beam.runners.worker import statesampler
from apache_beam.transforms.environments import SubprocessSDKEnvironment
from google.protobuf import json_format, text_format

from beam_jobs.forked_workers import WaitingWorker
from episode_store.errors import UserError

# Beam's default, DirectRunner, tries to download and start another engine first.
LOCAL_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
WORKER_LOG = "workers.log"
_TICK_SECONDS = 0.25
_SAMPLING_MILLISECONDS = 10
_GRACE_SECONDS = 5.0
_USER_ERROR = re.compile(
    r"\b(?:UserError|EpisodeError|StoreError|CorruptionError): ([^\n]+?)(?: \[while running|\\n|\n|$)"
)


@WorkerHandler.register_environment(python_urns.SUBPROCESS_SDK, bytes)
class _WorkerProcess(SubprocessSdkWorkerHandler):
    """Beam's own, but a process that connects only after the job has ended is told so.

    Beam tells those that are connected, and then waits for all of them: for ever, when one was still starting.
    """

    def start_worker(self) -> None:
        """One that was forked, while there are any; else a fresh process."""
        if not _waiting:
            super().start_worker()
            return
        # Without an address for its messages they go where it prints, into the log.
        environment = {
            "CONTROL_API_SERVICE_DESCRIPTOR": text_format.MessageToString(
                endpoints_pb2.ApiServiceDescriptor(url=self.control_address)
            ),
            "PIPELINE_OPTIONS": json_format.MessageToJson(self.provision_info.provision_info.pipeline_options),
            "WORKER_ID": self.worker_id,
        }
        self.worker_thread = threading.Thread(
            name="run_worker", target=_run_forked, args=(_waiting.pop(0), environment), daemon=True
        )
        self.worker_thread.start()

    def stop_worker(self) -> None:
        """Waits for the process to end."""
        self.control_conn.push(BeamFnControlServicer._DONE_MARKER)
        super().stop_worker()


# Workers of the job that is about to start, and where to note that one died. One job runs at a time.
_waiting: list[WaitingWorker] = []
_note_of_death: Path | None = None
_grpc_has_run = False


def _run_forked(worker: WaitingWorker, environment: dict[str, str]) -> None:
    if (code := worker.run(environment)) and _note_of_death:
        _note_of_death.write_text(f"{code}\n")


def _fork_workers(workers: int, log: Path, died: Path) -> None:
    """Forks the workers of a job, where that is safe: on Linux, before anything of gRPC has run in this process."""
    global _note_of_death
    _note_of_death = died
    if sys.platform == "linux" and not _grpc_has_run:
        for _ in range(workers):
            _waiting.append(WaitingWorker(log, _waiting))


def pipeline_flags(beam_flags: Sequence[str], workers: int) -> list[str]:
    """The flags for Beam: the user's, with the local runner named where they name none.

    Raises:
      UserError: for a runner that loses data, for `--workers` beside another runner than the local one, and for a
        flag that the local runner does not know.
    """
    flags = list(beam_flags)
    runner = _runner_of(flags)
    name = runner.rsplit(".", 1)[-1].lower() if runner else ""
    if name in ("dask", "daskrunner"):
        raise UserError(
            "--runner=DaskRunner is not offered: without any error it drops side branches, tagged outputs and the "
            "output of finish_bundle, so episodes would be missing; use --workers N here or --runner=FlinkRunner"
        )
    if name not in ("", "fnapirunner"):
        if workers > 1:
            raise UserError(
                f"--workers is for the local runner; tell {runner} its parallelism with its own flags, for example "
                f"--parallelism={workers}"
            )
        return flags
    _check_known(flags)
    if not runner:
        flags.append(f"--runner={LOCAL_RUNNER}")
    else:
        flags = [f"--runner={LOCAL_RUNNER}" if flag == f"--runner={runner}" else flag for flag in flags]
        flags = [LOCAL_RUNNER if flag == runner else flag for flag in flags]
    if workers > 1:
        flags.append(f"--direct_num_workers={workers}")
    return flags


def run(
    build: Callable[[beam.Pipeline], None],
    flags: Sequence[str],
    *,
    workers: int,
    log_folder: Path,
    timeout_seconds: float | None,
    on_tick: Callable[[], None],
) -> None:
    """Runs a pipeline to its end, calling `on_tick` now and then.

    The wait for the end has a thread of its own, since a local runner waits for ever for a worker that was killed.
    Other runners are started in this one: they want to be told of Ctrl-C.

    Args:
      build: adds the steps.
      flags: of `pipeline_flags`.
      workers: processes of the local runner.
      log_folder: gets what those processes print.
      timeout_seconds: the job is given up after this time.
      on_tick: called from this thread.

    Raises:
      UserError: the time is over, a worker process died, or a worker met a mistake of the user.
      OSError: a worker met a full disk.
    """
    global _grpc_has_run
    outcome: list[BaseException | None] = []
    died = log_folder / "worker-died"
    died.unlink(missing_ok=True)
    # Only processes need an object; by its name in the flags, a runner cannot be told how to start them.
    runner = FnApiRunner(default_environment=_worker_processes(log_folder, died)) if workers > 1 else None
    # The graph is always the same, and its types are checked in tests: here that is a tenth of what Beam costs.
    options = PipelineOptions(list(flags), pipeline_type_check=False)
    pipeline = beam.Pipeline(runner=runner, options=options)
    build(pipeline)
    is_local = _runner_of(flags) == LOCAL_RUNNER
    if is_local:
        _sample_often()
    if workers > 1:
        _fork_workers(workers, log_folder / WORKER_LOG, died)
    # With one worker the local runner calls it directly.
    _grpc_has_run = _grpc_has_run or workers > 1 or not is_local
    try:
        started = None if is_local else pipeline.run()
    except (RuntimeError, ValueError, OSError, grpc.RpcError) as error:
        raise UserError(f"{_runner_of(flags)} could not be started: {_last_line(error)}") from error

    def work() -> None:
        try:
            (started or pipeline.run()).wait_until_finish()
        except BaseException as error:  # noqa: BLE001 - handed to the caller below
            outcome.append(error)
        else:
            outcome.append(None)

    thread = threading.Thread(target=work, daemon=True, name="beam-job")
    with _chatter_in_log(log_folder / WORKER_LOG) if workers > 1 else contextlib.nullcontext():
        thread.start()
        try:
            _wait(thread, died, timeout_seconds, on_tick)
        finally:
            while _waiting:
                _waiting.pop().dismiss()
            if thread.is_alive():
                if started is not None:
                    started.cancel()
                _end_children()
    if outcome[0] is not None:
        raise _translated(outcome[0]) from outcome[0]


def _sample_often() -> None:
    """At the end of a stage Beam waits for a thread that looks every 200 ms, by default, at where time goes."""
    start = statesampler.StateSampler.__init__
    if start.__defaults__ == (statesampler.DEFAULT_SAMPLING_PERIOD_MS,):
        start.__defaults__ = (_SAMPLING_MILLISECONDS,)


def _wait(thread: threading.Thread, died: Path, timeout_seconds: float | None, on_tick: Callable[[], None]) -> None:
    end = time.monotonic() + timeout_seconds if timeout_seconds else None
    while thread.is_alive():
        thread.join(_TICK_SECONDS)
        on_tick()
        if died.exists() and thread.is_alive():
            raise UserError(
                f"a worker process died (exit code {died.read_text().strip()}; it may have run out of memory, see "
                f"{died.with_name(WORKER_LOG)}); finished shards stay: run the same command again to go on"
            )
        if end and time.monotonic() > end and thread.is_alive():
            raise UserError(
                f"the job was not done after {timeout_seconds:g} s (--timeout); finished shards stay: run the "
                "same command again to go on"
            )


@contextlib.contextmanager
def _chatter_in_log(log: Path) -> Iterator[None]:
    """When a worker process dies, Beam's threads here print their broken connections: into the log with them."""

    def note(error: threading.ExceptHookArgs) -> None:
        with log.open("a") as file:
            traceback.print_exception(error.exc_type, error.exc_value, error.exc_traceback, file=file)

    log.write_bytes(b"")
    hook, threading.excepthook = threading.excepthook, note
    logger = logging.getLogger("apache_beam.runners.worker.data_plane")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        threading.excepthook = hook
        logger.setLevel(level)


def _worker_processes(log_folder: Path, died: Path) -> SubprocessSDKEnvironment:
    """Processes that keep their chatter in a file and leave a note when they die."""
    root = str(Path(__file__).resolve().parent.parent)
    paths = os.pathsep.join(dict.fromkeys([root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]))
    command = f"{shlex.quote(sys.executable)} -m apache_beam.runners.worker.sdk_worker_main"
    log, note = shlex.quote(str(log_folder / WORKER_LOG)), shlex.quote(str(died))
    return SubprocessSDKEnvironment.from_command_string(
        f"PYTHONPATH={shlex.quote(paths)} {command} >>{log} 2>&1 || echo $? >{note}"
    )


def _translated(error: BaseException) -> BaseException:
    """Runners wrap what a worker raised in a text; users get their one line all the same."""
    text = str(error)
    if isinstance(error, UserError):
        return UserError(text.split(" [while running")[0])
    if os.strerror(errno.ENOSPC) in text:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    found = _USER_ERROR.findall(text)
    return UserError(found[-1]) if found else error


def _last_line(error: BaseException) -> str:
    """What happened, of a message that may go on for pages."""
    text = error.details() if isinstance(error, grpc.Call) else str(error)
    lines = (text or type(error).__name__).strip().splitlines()
    return lines[-1][:300]


def _runner_of(flags: Sequence[str]) -> str | None:
    for index, flag in enumerate(flags):
        if flag.startswith("--runner="):
            return flag.partition("=")[2]
        if flag == "--runner" and index + 1 < len(flags):
            return flags[index + 1]
    return None


def _check_known(flags: Sequence[str]) -> None:
    """The local runner ignores flags it does not know, so that a misspelt flag of ours would be lost."""
    known = set(PipelineOptions([]).get_all_options())
    for flag in flags:
        name = flag.removeprefix("--").partition("=")[0]
        if not flag.startswith("--"):
            continue
        if name not in known and name.removeprefix("no_") not in known:
            near = difflib.get_close_matches(name, [*known, *OWN_FLAGS], n=1)
            raise UserError(f"--{name}: no such flag{f'; did you mean --{near[0]}?' if near else ' here or in Beam'}")


# Flags of the verb, for suggestions.
OWN_FLAGS = (
    "store", "output", "text-model", "tasks", "seed", "filter", "scores", "holdout", "workers", "timeout", "json",
    "personal-data", "max-shard-bytes", "max-dead-share", "mixture", "filter-for", "word-lists", "languages",
    "classifier", "similarity", "samples",
)  # fmt: skip


def _end_children() -> None:
    """Ends the worker processes of an abandoned job: this process's children and theirs."""
    pending, found = [os.getpid()], []
    while pending:
        for children in Path(f"/proc/{pending.pop()}/task").glob("*/children"):
            pids = [int(pid) for pid in children.read_text().split()]
            pending += pids
            found += pids
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    for thread in threading.enumerate():
        if thread.name == "run_worker":  # Beam's, one for each process; they complain when it ends
            thread.join(_GRACE_SECONDS)
