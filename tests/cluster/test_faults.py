"""`kill -9` of each part of a Flink job in its middle: nothing is lost, nothing is done twice, the same bytes."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flink import Flink
from job import Job, wait_for_records

pytestmark = pytest.mark.cluster
_SHARDS_BEFORE = 5


@contextlib.contextmanager
def _halted(flink: Flink, output: Path, num_shards: int) -> Iterator[dict[Path, int]]:
    """The job with its workers stopped in the middle, so that what dies dies there; the shards that were done."""
    wait_for_records(output, _SHARDS_BEFORE)
    workers = flink.pool_workers()
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    done = wait_for_records(output, _SHARDS_BEFORE)
    assert len(done) < num_shards, "the job was done before it could be halted"
    try:
        yield done
    finally:
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _check_untouched(done: dict[Path, int]) -> None:
    assert {path: path.stat().st_mtime_ns for path in done} == done


def test_a_task_manager(shards_job: Job, tmp_path: Path, flink_cluster: Flink) -> None:
    output = tmp_path / "shards"
    driver = shards_job.start(output, *flink_cluster.flags())
    with _halted(flink_cluster, output, len(shards_job.manifest["shards"])) as done:
        flink_cluster.kill(flink_cluster.busy_task_managers()[0])
    shards_job.check(driver, output)
    _check_untouched(done)
    flink_cluster.start_task_manager()


def test_a_python_worker_and_then_the_pool(shards_job: Job, tmp_path: Path, flink_cluster: Flink) -> None:
    output = tmp_path / "shards"
    driver = shards_job.start(output, *flink_cluster.flags())
    with _halted(flink_cluster, output, len(shards_job.manifest["shards"])) as done:
        os.kill(flink_cluster.pool_workers()[0], signal.SIGKILL)
        flink_cluster.kill("pool")
        time.sleep(2)
        flink_cluster.start_pool()
    shards_job.check(driver, output)
    _check_untouched(done)


def test_the_driver(shards_job: Job, tmp_path: Path, flink_cluster: Flink) -> None:
    """The cluster goes on with the job of a dead driver; the next one takes the folder over."""
    output = tmp_path / "shards"
    first = shards_job.start(output, *flink_cluster.flags())
    with _halted(flink_cluster, output, len(shards_job.manifest["shards"])) as done:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
        second = shards_job.start(output, *flink_cluster.flags())
        end = time.monotonic() + 60
        before = (output / ".records" / "job").read_bytes()
        while (output / ".records" / "job").read_bytes() == before and time.monotonic() < end:
            time.sleep(0.05)
    shards_job.check(second, output)
    _check_untouched(done)
