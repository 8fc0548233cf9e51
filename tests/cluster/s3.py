"""A real S3 server on loopback: versitygw over a folder."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import parts
from processes import Processes, answers, free_port

BUCKET = "bucket"


@dataclasses.dataclass(frozen=True)
class S3Server:
    """A running server with one bucket.

    Attributes:
      environment: what its clients need, in the names that all S3 clients read.
      folder: where the server keeps the objects.
    """

    environment: dict[str, str]
    folder: Path


@contextlib.contextmanager
def server(folder: Path) -> Iterator[S3Server]:
    """Starts the server; ends it."""
    objects = folder / "objects"
    (objects / BUCKET).mkdir(parents=True)
    port, key, secret = free_port(), "test-key", "test-secret"
    with Processes(folder) as processes:
        command = [parts.versitygw(), "--port", f"127.0.0.1:{port}", "--quiet", "posix", objects]
        processes.start("s3", command, {"ROOT_ACCESS_KEY": key, "ROOT_SECRET_KEY": secret})
        processes.wait("s3", lambda: answers(port))
        environment = {
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        }
        yield S3Server(environment, objects / BUCKET)
