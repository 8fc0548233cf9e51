"""Runs independent jobs in this process or in several, with one progress bar for all of them."""

from __future__ import annotations

import concurrent.futures
import functools
import multiprocessing
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Generic, TypeVar

from collectors import packages
from episode_store.command_line import progress
from episode_store.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")
# A job calls this with the units of work it has done since its last call, and a word on what it is doing.
Report = Callable[[float, str], None]


class Stopped(Exception):  # noqa: N818
    """The run was interrupted; raised inside a job at its next report."""


class JobsFailedError(UserError):
    """Some jobs could not be done.

    Attributes:
      results: of the others, in the order of the jobs.
    """

    def __init__(self, errors: Sequence[UserError], results: Sequence[Any]) -> None:
        others = len(errors) - 1
        super().__init__(f"{errors[0]}{f' (and {others} more failed)' if others else ''}")
        self.results = list(results)


class JobRunner(Generic[Job, Result]):
    """Runs `function(job, report)` for each job.

    Args:
      function: importable by name, as it is called in other processes.
      unit: of the work that the bar counts.
      describe: names a job.
      done: one line on a finished job's result, shown above the bar.
    """

    def __init__(
        self,
        function: Callable[[Job, Report], Result],
        *,
        unit: str,
        describe: Callable[[Job], str],
        done: Callable[[Result], str],
    ) -> None:
        self._function = function
        self._unit = unit
        self._describe = describe
        self._done = done

    def run(self, jobs: Sequence[Job], *, workers: int, total: float | None, title: str) -> list[Result]:
        """The results, in the order of `jobs`.

        Raises:
          JobsFailedError: a job raised a UserError, or its process was killed; the other jobs are finished first.
        """
        if not jobs:
            return []
        with progress(description=title, total=total, unit=self._unit) as bar:
            if workers == 1 or len(jobs) == 1:
                outcomes = self._run_here(jobs, bar)
            else:
                outcomes = self._run_in_processes(jobs, min(workers, len(jobs)), bar)
        errors = [outcome for outcome in outcomes if isinstance(outcome, UserError)]
        if errors:
            raise JobsFailedError(errors, [outcome for outcome in outcomes if not isinstance(outcome, UserError)])
        return outcomes

    def _run_here(self, jobs: Sequence[Job], bar: Any) -> list[Any]:
        outcomes: list[Any] = []
        for job in jobs:
            name = self._describe(job)

            def report(work: float, doing: str, name: str = name) -> None:
                bar.update(work)
                bar.set_postfix_str(f"{name}: {doing}", refresh=False)

            outcomes.append(self._outcome(functools.partial(self._function, job, report), bar))
        return outcomes

    def _run_in_processes(self, jobs: Sequence[Job], workers: int, bar: Any) -> list[Any]:
        context = multiprocessing.get_context("spawn")
        reports, stop = context.Queue(), context.Event()
        doing: dict[str, str] = {}
        with concurrent.futures.ProcessPoolExecutor(
            workers, mp_context=context, initializer=_start_worker, initargs=(reports, stop, os.getpid())
        ) as pool:
            futures = [pool.submit(_run_job, self._function, job, self._describe(job)) for job in jobs]
            waiting = set(futures)
            try:
                while waiting:
                    ended, waiting = concurrent.futures.wait(waiting, timeout=0.2)
                    _drain(reports, bar, doing)
                    for future in futures:
                        if future in ended:
                            self._outcome(future.result, bar)
            except BaseException:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            _drain(reports, bar, doing)
        return [self._outcome(future.result, None) for future in futures]

    def _outcome(self, call: Callable[[], Any], bar: Any) -> Any:
        """The result, or the user's mistake that prevented it."""
        try:
            with packages.named():
                result = call()
        except UserError as error:
            return error
        except BrokenProcessPool:
            return UserError(
                "a worker process was killed, perhaps for want of memory: run the same command again to go on, with "
                "fewer --workers"
            )
        if bar is not None:
            bar.write(self._done(result), file=sys.stderr)
        return result


def _drain(reports: Any, bar: Any, doing: dict[str, str]) -> None:
    while True:
        try:
            name, work, what = reports.get_nowait()
        except queue.Empty:
            break
        if what:
            doing[name] = what
        else:
            doing.pop(name, None)
        bar.update(work)
    bar.set_postfix_str("; ".join(f"{name}: {what}" for name, what in doing.items()), refresh=False)


# Of a worker process: set once when it starts.
_WORKER: dict[str, Any] = {}


def _start_worker(reports: Any, stop: Any, parent: int) -> None:
    _WORKER.update(reports=reports, stop=stop)

    def watch() -> None:
        # A parent that was killed cannot tell its workers; they must not go on beside the next run.
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_job(function: Callable[[Any, Report], Any], job: Any, name: str) -> Any:
    last = time.monotonic()
    pending = 0.0

    def report(work: float, doing: str) -> None:
        nonlocal last, pending
        pending += work
        if _WORKER["stop"].is_set():
            raise Stopped
        if time.monotonic() - last > 0.2:
            _WORKER["reports"].put((name, pending, doing))
            last, pending = time.monotonic(), 0.0

    result = function(job, report)
    _WORKER["reports"].put((name, pending, ""))
    return result
