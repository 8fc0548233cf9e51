"""Which engine runs the pipeline: Beam's local runner, always named, or whatever Beam's own flags say."""

from __future__ import annotations

import difflib
import errno
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from episode_store.errors import UserError

# Beam's default, DirectRunner, tries to download and start another engine first.
LOCAL_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
_TICK_SECONDS = 0.25
_USER_ERROR = re.compile(
    r"\b(?:UserError|EpisodeError|StoreError|CorruptionError): ([^\n]+?)(?: \[while running|\\n|\n|$)"
)


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
        flags += ["--direct_running_mode=multi_processing", f"--direct_num_workers={workers}"]
    return flags


def run(
    build: Callable[[beam.Pipeline], None],
    flags: Sequence[str],
    timeout_seconds: float | None,
    on_tick: Callable[[], None],
) -> None:
    """Runs a pipeline to its end, calling `on_tick` now and then.

    The runner works in a thread, since a local runner with processes can wait for ever for one that was killed.

    Raises:
      UserError: the time is over, or a worker met one.
      OSError: a worker met a full disk.
    """
    outcome: list[BaseException | None] = []

    def work() -> None:
        try:
            pipeline = beam.Pipeline(options=PipelineOptions(list(flags)))
            build(pipeline)
            pipeline.run().wait_until_finish()
        except BaseException as error:  # noqa: BLE001 - handed to the caller below
            outcome.append(error)
        else:
            outcome.append(None)

    _let_workers_import_us()
    thread = threading.Thread(target=work, daemon=True, name="beam-job")
    end = time.monotonic() + timeout_seconds if timeout_seconds else None
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_TICK_SECONDS)
            on_tick()
            if end and time.monotonic() > end and thread.is_alive():
                raise UserError(
                    f"the job was not done after {timeout_seconds:g} s (--timeout); finished shards stay: run the "
                    "same command again to go on"
                )
    finally:
        if thread.is_alive():
            _end_children()
    error = outcome[0]
    if error is not None:
        raise _translated(error) from error


def _translated(error: BaseException) -> BaseException:
    """Runners wrap what a worker raised in a text; users get their one line all the same."""
    text = str(error)
    if isinstance(error, UserError):
        return UserError(text.split(" [while running")[0])
    if os.strerror(errno.ENOSPC) in text:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    found = _USER_ERROR.findall(text)
    return UserError(found[-1]) if found else error


def _runner_of(flags: Sequence[str]) -> str | None:
    for index, flag in enumerate(flags):
        if flag.startswith("--runner="):
            return flag.partition("=")[2]
        if flag == "--runner" and index + 1 < len(flags):
            return flags[index + 1]
    return None


def _check_known(flags: Sequence[str]) -> None:
    """The local runner ignores flags it does not know, so that a misspelt flag of ours would be lost."""
    known = set(PipelineOptions().get_all_options())
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
    "personal-data", "max-shard-bytes", "max-rejected",
)  # fmt: skip


def _let_workers_import_us() -> None:
    """Puts this checkout on the path of the processes that the local runner starts."""
    root = str(Path(__file__).resolve().parent.parent)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if root not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, paths)])


def _end_children() -> None:
    """Ends the worker processes that an abandoned job leaves; they are this process's children."""
    for children in Path("/proc/self/task").glob("*/children"):
        for pid in children.read_text().split():
            os.kill(int(pid), signal.SIGTERM)
