"""The Python workers of a cluster's host: whatever executes the pipeline there asks this service to start them.

Beam's own `worker_pool_main` listens on all interfaces, starts whatever `python` is first in PATH, and stops a worker
by a name that two TaskManagers of one host both use: each stops the other's, and the job starts again and again.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from typing import Any

import grpc
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc
from apache_beam.utils import thread_pool_executor

from episode_store.errors import UserError

_WORKER = (
    "import sys; from apache_beam.runners.worker.sdk_worker import SdkHarness; "
    "SdkHarness(sys.argv[1], worker_id=sys.argv[2], state_cache_size=0, data_buffer_time_limit_ms=0).run()"
)


class _Pool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    """A process for each request. A worker ends by itself when the engine closes its connection."""

    def StartWorker(self, request: Any, _: Any) -> Any:  # noqa: N802 - Beam's name
        """Starts a worker that connects to whoever asked."""
        command = [sys.executable, "-c", _WORKER, request.control_endpoint.url, request.worker_id]
        try:
            worker = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        except OSError as error:
            return beam_fn_api_pb2.StartWorkerResponse(error=str(error))
        logging.getLogger(__name__).info("worker %s of %s started", request.worker_id, request.control_endpoint.url)
        threading.Thread(target=worker.wait, daemon=True).start()
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(self, request: Any, _: Any) -> Any:  # noqa: N802 - Beam's name
        """Nothing to do."""
        return beam_fn_api_pb2.StopWorkerResponse()


def serve(host: str, port: int) -> None:
    """Serves until the process ends.

    Raises:
      UserError: the address is taken, or not one of this machine.
    """
    server = grpc.server(thread_pool_executor.shared_unbounded_instance(), options=[("grpc.so_reuseport", 0)])
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(_Pool(), server)
    try:
        server.add_insecure_port(f"{host}:{port}")
    except RuntimeError:
        raise UserError(f"{host}:{port}: cannot listen there; take another --port or --host") from None
    server.start()
    server.wait_for_termination()
