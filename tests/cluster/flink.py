"""A real Flink cluster on loopback: a JobManager, TaskManagers, Beam's job server, and a pool of Python workers."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import parts
from processes import ROOT, Processes, answers, free_port

PARALLELISM = 2
_SPARE = 1  # takes the place of a TaskManager that was killed
_OPEN_BASE = (
    "lang", "net", "io", "nio", "lang.reflect", "text", "time", "util", "util.concurrent", "util.concurrent.atomic",
    "util.concurrent.locks",
)  # fmt: skip
_OPENS = [
    *(f"--add-opens=java.base/java.{package}=ALL-UNNAMED" for package in _OPEN_BASE),
    "--add-opens=java.base/sun.nio.ch=ALL-UNNAMED",
    "--add-exports=java.base/sun.net.util=ALL-UNNAMED",
    "--add-exports=java.rmi/sun.rmi.registry=ALL-UNNAMED",
    "--add-exports=java.security.jgss/sun.security.krb5=ALL-UNNAMED",
]
# Short jobs: compiling Java well would take longer than they run.
_QUICK = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"]
# Without Flink's own scripts, a TaskManager must be told every part of its memory.
_MEMORY = {
    "taskmanager.cpu.cores": "1",
    "taskmanager.memory.task.heap.size": "256m",
    "taskmanager.memory.task.off-heap.size": "0m",
    "taskmanager.memory.network.min": "64m",
    "taskmanager.memory.network.max": "64m",
    "taskmanager.memory.managed.size": "128m",
    "taskmanager.memory.framework.heap.size": "128m",
    "taskmanager.memory.framework.off-heap.size": "128m",
    "taskmanager.memory.jvm-metaspace.size": "256m",
    "taskmanager.memory.jvm-overhead.min": "192m",
    "taskmanager.memory.jvm-overhead.max": "192m",
}
_JOB_SERVER = "org.apache.beam.runners.flink.FlinkJobServerDriver"
_LOGGING = """rootLogger.level = INFO
rootLogger.appenderRef.console.ref = console
appender.console.name = console
appender.console.type = CONSOLE
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{HH:mm:ss,SSS} %-5p %c{1} - %m%n
"""


class Flink:
    """A running cluster. Make it with `cluster`."""

    def __init__(self, folder: Path, processes: Processes, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._processes = processes
        self._environment = environment
        self._rest, self._rpc, self._job, self._pool = (free_port() for _ in range(4))
        self._num_started = 0

    @property
    def master(self) -> str:
        """Address of the JobManager."""
        return f"localhost:{self._rest}"

    def flags(self) -> list[str]:
        """Beam's flags for this cluster, through the job server."""
        return ["--runner=PortableRunner", f"--job_endpoint=localhost:{self._job}", *self.worker_flags()]

    def worker_flags(self) -> list[str]:
        """Beam's flags for these workers, however the cluster is reached."""
        pool = f"--environment_config=localhost:{self._pool}"
        return ["--environment_type=EXTERNAL", pool, f"--parallelism={PARALLELISM}"]

    def start(self) -> None:
        """Starts everything side by side and waits until it is ready."""
        (self._folder / "conf").mkdir()
        (self._folder / "conf" / "config.yaml").write_text(self._config())
        (self._folder / "conf" / "log4j.properties").write_text(_LOGGING)
        entry = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
        self._processes.start("jobmanager", self._java("512m", entry, "--configDir", "conf"))
        for _ in range(PARALLELISM + _SPARE):
            self.start_task_manager()
        self._processes.start("jobserver", self._job_server())
        self.start_pool()
        self._processes.wait("jobmanager", lambda: self.num_slots() == PARALLELISM + _SPARE)
        self._processes.wait("jobserver", lambda: answers(self._job))
        self._processes.wait("pool", lambda: answers(self._pool))

    def start_task_manager(self) -> str:
        """Adds a TaskManager, a process of its own; returns its name."""
        name = f"taskmanager-{self._num_started}"
        self._num_started += 1
        settings = [f"-D{key}={value}" for key, value in _MEMORY.items()]
        entry = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
        resource = f"-Dtaskmanager.resource-id={name}"
        self._processes.start(name, self._java("384m", entry, "--configDir", "conf", resource, *settings))
        return name

    def start_pool(self) -> None:
        """Starts the pool of Python workers, at the same address each time."""
        command = [sys.executable, "-m", "beam_jobs", "worker-pool", "--port", str(self._pool)]
        self._processes.start("pool", command, {"PYTHONPATH": str(ROOT), **self._environment})

    def kill(self, name: str) -> None:
        """`kill -9` of "pool" or of a TaskManager."""
        self._processes.kill(name)

    def pool_workers(self) -> list[int]:
        """Process ids of the Python workers that the pool started."""
        children = Path(f"/proc/{self._processes.pid('pool')}/task").glob("*/children")
        return [int(pid) for path in children for pid in path.read_text().split()]

    def busy_task_managers(self) -> list[str]:
        """Names of the TaskManagers that run something now."""
        managers = self.ask("/taskmanagers")["taskmanagers"]
        return [manager["id"] for manager in managers if manager["freeSlots"] < manager["slotsNumber"]]

    def num_slots(self) -> int:
        """Slots that the JobManager knows of."""
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            return self.ask("/overview")["slots-total"]
        return 0

    def ask(self, path: str) -> Any:
        """What the JobManager answers."""
        with urllib.request.urlopen(f"http://{self.master}{path}", timeout=10) as answer:
            return json.load(answer)

    def _config(self) -> str:
        settings = {
            "jobmanager.rpc.address": "localhost",
            "jobmanager.rpc.port": self._rpc,
            "jobmanager.bind-host": "localhost",
            "rest.address": "localhost",
            "rest.bind-address": "localhost",
            "rest.port": self._rest,
            "blob.server.port": free_port(),
            "jobmanager.memory.process.size": "1g",
            "taskmanager.host": "localhost",
            "taskmanager.bind-host": "localhost",
            "taskmanager.numberOfTaskSlots": 1,
            "restart-strategy.type": "fixed-delay",
            # One a second, while a killed pool starts again: on a busy machine that takes its time.
            "restart-strategy.fixed-delay.attempts": 60,
            "restart-strategy.fixed-delay.delay": "1 s",
            "heartbeat.interval": 1000,
            "heartbeat.timeout": 6000,
            "io.tmp.dirs": str(self._folder / "tmp"),
        }
        return "".join(f"{key}: {value}\n" for key, value in settings.items())

    def write_job_server_jar(self, path: Path) -> Path:
        """The job server as the one jar that Beam's FlinkRunner starts: it names the others."""
        places = " ".join(jar.as_uri() for jar in _job_server_jars())
        lines = ["Manifest-Version: 1.0", f"Main-Class: {_JOB_SERVER}", f"Class-Path: {places}"]
        # A line of a manifest has at most 72 bytes; the next one goes on after a space.
        text = "".join("\n ".join(re.findall(".{1,70}", line)) + "\n" for line in lines)
        with zipfile.ZipFile(path, "w") as jar:
            jar.writestr("META-INF/MANIFEST.MF", text)
        return path

    def _job_server(self) -> list[str]:
        jars = ":".join(map(str, _job_server_jars()))
        return [
            *["java", "-Xmx512m", *_QUICK, *_OPENS, self._log_flag(), "-cp", jars, _JOB_SERVER],
            f"--flink-master={self.master}",
            "--job-host=localhost",
            f"--job-port={self._job}",
            f"--artifact-port={free_port()}",
            f"--expansion-port={free_port()}",
            f"--artifacts-dir={self._folder / 'artifacts'}",
        ]

    def _java(self, heap: str, *arguments: str) -> list[str]:
        return ["java", f"-Xmx{heap}", *_QUICK, *_OPENS, self._log_flag(), "-cp", f"{parts.flink_jars()}/*", *arguments]

    def _log_flag(self) -> str:
        return f"-Dlog4j.configurationFile={self._folder / 'conf' / 'log4j.properties'}"


def _job_server_jars() -> list[Path]:
    return [*sorted(parts.job_server_jars().glob("*.jar")), *sorted(parts.flink_jars().glob("log4j-*.jar"))]


@contextlib.contextmanager
def cluster(folder: Path, environment: Mapping[str, str]) -> Iterator[Flink]:
    """Starts a cluster whose logs lie in `folder`; ends it.

    Args:
      folder: empty.
      environment: of the Python workers, beside this process's.
    """
    with Processes(folder) as processes:
        flink = Flink(folder, processes, environment)
        flink.start()
        yield flink
