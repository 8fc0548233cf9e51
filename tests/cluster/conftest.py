"""The engines, started once for all tests of the cluster."""

from __future__ import annotations

from collections.abc import Iterator

import flink
import job
import pytest
import s3


@pytest.fixture(scope="session")
def shards_job(tmp_path_factory: pytest.TempPathFactory) -> job.Job:
    return job.make(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.S3Server]:
    with s3.server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(scope="session")
def flink_cluster(tmp_path_factory: pytest.TempPathFactory, s3_server: s3.S3Server) -> Iterator[flink.Flink]:
    with flink.cluster(tmp_path_factory.mktemp("flink"), s3_server.environment) as running:
        yield running
