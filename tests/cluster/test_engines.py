"""The same job on every engine, on a store with a damaged episode: the bytes of the plain loop."""

from __future__ import annotations

import shutil
from pathlib import Path

import parts
import pytest
from flink import PARALLELISM, Flink
from job import Job, files
from s3 import BUCKET, S3Server

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("flags", [[], ["--workers=2"], ["--direct_runner_bundle_repeat=1"]])
def test_local_runner(shards_job: Job, tmp_path: Path, flags: list[str]) -> None:
    shards_job.check(shards_job.start(tmp_path / "shards", *flags), tmp_path / "shards")


def test_prism(shards_job: Job, tmp_path: Path) -> None:
    flags = ["--runner=PrismRunner", f"--prism_location={parts.prism()}", "--environment_type=LOOPBACK"]
    shards_job.check(shards_job.start(tmp_path / "shards", *flags), tmp_path / "shards")


def test_flink(shards_job: Job, tmp_path: Path, flink_cluster: Flink) -> None:
    driver = shards_job.start(tmp_path / "shards", *flink_cluster.flags())
    shards_job.check(driver, tmp_path / "shards")
    managers = flink_cluster.ask("/taskmanagers")["taskmanagers"]
    assert len({manager["dataPort"] for manager in managers}) > PARALLELISM


def test_local_runner_writes_to_s3(shards_job: Job, s3_server: S3Server) -> None:
    output = f"s3://{BUCKET}/local/shards"
    environment = s3_server.environment
    driver = shards_job.start(output, "--workers=2", environment=environment)
    shards_job.check(driver, s3_server.folder / "local" / "shards")
    told, errors = shards_job.start(output, environment=environment).communicate()
    assert '"built": false' in told, errors
    victim = next((s3_server.folder / "local" / "shards").glob("*.tar"))
    victim.write_bytes(victim.read_bytes()[:-512])
    shards_job.check(shards_job.start(output, environment=environment), s3_server.folder / "local" / "shards")


def test_flink_reads_and_writes_s3_by_its_own_flags(
    shards_job: Job, tmp_path: Path, flink_cluster: Flink, s3_server: S3Server
) -> None:
    """As a user's own cluster is reached: the job server is started by Beam, from the jar of this version."""
    shutil.copytree(shards_job.store, s3_server.folder / "store", ignore=shutil.ignore_patterns("*.lock"))
    flags = ["--runner=FlinkRunner", f"--flink_master={flink_cluster.master}", *flink_cluster.worker_flags()]
    flags.append(f"--flink_job_server_jar={flink_cluster.write_job_server_jar(tmp_path / 'job-server.jar')}")
    driver = shards_job.start(
        f"s3://{BUCKET}/shards", *flags, store=f"s3://{BUCKET}/store", environment=s3_server.environment
    )
    shards_job.check(driver, s3_server.folder / "shards")
    assert files(s3_server.folder / "shards")
