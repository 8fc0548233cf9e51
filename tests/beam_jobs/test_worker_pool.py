"""Workers of a host: started when asked, on loopback, and not mixed up by their names."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc, endpoints_pb2

from beam_jobs.cli import main
from beam_jobs.worker_pool import serve
from episode_store.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def pool() -> Iterator[tuple[int, int]]:
    """Port and process id of a running pool."""
    port = _free_port()
    command = [sys.executable, "-m", "beam_jobs", "worker-pool", "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield port, process.pid
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _workers(pid: int) -> set[int]:
    return {int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()}


def test_two_workers_of_one_name_live_side_by_side(pool: tuple[int, int]) -> None:
    port, pid = pool
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    grpc.channel_ready_future(channel).result(timeout=60)
    stub = beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(channel)
    # Two TaskManagers both call their first worker 1-1. Nobody answers at their addresses: they wait for an engine.
    for number in range(2):
        endpoint = endpoints_pb2.ApiServiceDescriptor(url=f"127.0.0.1:{_free_port()}")
        request = beam_fn_api_pb2.StartWorkerRequest(worker_id="1-1", control_endpoint=endpoint)
        assert not stub.StartWorker(request).error
        _until(lambda number=number: len(_workers(pid)) == number + 1)
    assert not stub.StopWorker(beam_fn_api_pb2.StopWorkerRequest(worker_id="1-1")).error
    assert len(_workers(pid)) == 2


def test_it_listens_on_loopback_only(pool: tuple[int, int]) -> None:
    port, _ = pool
    tables = [Path("/proc/net/tcp"), Path("/proc/net/tcp6")]

    def listening() -> list[str]:
        rows = [line.split() for table in tables for line in table.read_text().splitlines()[1:]]
        return [row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")]

    _until(lambda: bool(listening()))
    (address,) = listening()  # maybe as IPv4 inside IPv6
    assert address.endswith("0100007F")


def test_a_taken_port_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1:{port}: cannot listen there; take another --port or --host"):
            serve("127.0.0.1", port)
        assert main(["worker-pool", "--port", str(port)]) == 2
    assert "cannot listen there" in capsys.readouterr().err
