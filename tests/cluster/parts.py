"""The engines' parts, pinned: fetched once by pip, Maven and Go into a cache folder, checked, and kept.

`python tests/cluster/parts.py` fetches what is missing, or says in one line each what has to be installed first, and
prints where the S3 server lies.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

_FLINK = "apache-flink-libraries==1.19.3"
_FLINK_SHA256 = "4a58e3a1fb7d83340bc96b6c080624c6d792d69fae5d294b96224775204a9c60"
_FLINK_JARS = re.compile(r"apache-flink-libraries-[^/]+/deps/lib/(flink-dist|log4j)-[^/]+\.jar")
# The newest version of Beam's Flink runner whose parts are all on Maven Central.
_JOB_SERVER = ("org.apache.beam", "beam-runners-flink-1.19", "2.62.0")
# A third of the bytes, which every job would carry to the cluster without need.
_UNUSED = "conscrypt-openjdk-uber,flink-rpc-akka-loader,flink-shaded-zookeeper-3,grpc-netty-shaded,grpc-xds"
_JOB_SERVER_SHA256 = "4da603cb1abf4ef4ac3a0f285f88d4219e671a0bfbd370e4ef4755d9a770c0d6"
_PRISM = "github.com/apache/beam/sdks/v2/go/cmd/prism@v2.77.0"
_VERSITYGW = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"
_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>none</groupId><artifactId>job-server</artifactId><version>1</version>
  <dependencies>
    <dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>
  </dependencies>
</project>
"""
_TOOLS = {
    "java": (17, r'version "(\d+)', "Java 17 is needed for Flink: sudo apt-get install openjdk-17-jre-headless"),
    "mvn": (3, r"Maven (\d+)", "Maven 3 is needed for Beam's Flink job server: sudo apt-get install maven"),
    "go": (1, r"go(\d+)\.", "Go 1.21 or newer is needed for Prism and the S3 server: sudo apt-get install golang-go"),
}


class PartsError(Exception):
    """A part cannot be had; the text says why, in one line."""


def cache_folder() -> Path:
    """Where the parts lie: in the project's cache (collectors/corpora/archives.py)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("GENERALIST_CACHE") or Path(base) / "generalist-agent") / "cluster"


def flink_jars() -> Path:
    """Folder of the jars of a Flink cluster."""
    return cache_folder() / _FLINK.replace("==", "-")


def job_server_jars() -> Path:
    """Folder of the jars of Beam's job server for Flink."""
    return cache_folder() / "-".join(_JOB_SERVER[1:])


def prism() -> Path:
    """Beam's local engine in Go."""
    return cache_folder() / "prism-2.77.0" / "prism"


def versitygw() -> Path:
    """An S3 server over a folder."""
    return cache_folder() / f"versitygw-{_VERSITYGW.rpartition('@v')[2]}" / "versitygw"


def missing_tools() -> list[str]:
    """One line for each program that has to be installed."""
    lines = []
    for name, (least, pattern, line) in _TOOLS.items():
        told = ""
        if shutil.which(name):
            done = subprocess.run([name, "version" if name == "go" else "-version"], capture_output=True, text=True)
            told = done.stdout + done.stderr
        found = re.search(pattern, told)
        if not found or int(found[1]) < least:
            lines.append(f"{line} (found {found[0].strip() if found else 'none'})")
    return lines


def fetch() -> None:
    """Brings what is missing, side by side.

    Raises:
      PartsError: a download failed, or what came is not what was pinned.
    """
    makers = {
        flink_jars(): _fetch_flink,
        job_server_jars(): _fetch_job_server,
        prism().parent: lambda folder: _go_install(_PRISM, folder),
        versitygw().parent: lambda folder: _go_install(_VERSITYGW, folder),
    }
    missing = {folder: make for folder, make in makers.items() if not folder.is_dir()}
    if missing:
        print(f"fetching {', '.join(folder.name for folder in missing)} into {cache_folder()} (once)", file=sys.stderr)
    with concurrent.futures.ThreadPoolExecutor(len(makers)) as pool:
        for done in [pool.submit(_make, folder, make) for folder, make in missing.items()]:
            done.result()


def _make(folder: Path, make: Callable[[Path], None]) -> None:
    """A folder that is there is whole: it is filled under another name."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetching-") as temporary:
        filled = Path(temporary) / folder.name
        filled.mkdir()
        make(filled)
        filled.replace(folder)


def _fetch_flink(folder: Path) -> None:
    requirements = folder.parent / "requirements.txt"
    requirements.write_text(f"{_FLINK} --hash=sha256:{_FLINK_SHA256}\n")
    name = _FLINK.partition("==")[0]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", name, "--require-hashes"]
    _run([*command, "--no-cache-dir", "-d", str(folder.parent), "-r", str(requirements)])
    with tarfile.open(next(folder.parent.glob("*.tar.gz"))) as archive:
        for member in archive:
            if member.isfile() and _FLINK_JARS.fullmatch(member.name):
                data = archive.extractfile(member)
                assert data is not None
                with (folder / Path(member.name).name).open("wb") as file:
                    shutil.copyfileobj(data, file)


def _fetch_job_server(folder: Path) -> None:
    (folder.parent / "pom.xml").write_text(_POM.format(*_JOB_SERVER))
    goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DexcludeArtifactIds={_UNUSED}"]
    goal.append(f"-DoutputDirectory={folder}")
    _run(["mvn", "-B", "-q", "-C", "-f", str(folder.parent / "pom.xml"), *goal])
    found = digest(folder)
    if found != _JOB_SERVER_SHA256:
        raise PartsError(f"{_JOB_SERVER[1]}: expected jars with the digest {_JOB_SERVER_SHA256}, got {found}")


def digest(folder: Path) -> str:
    """SHA-256 of the names and the bytes of all files of a folder."""
    whole = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        whole.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()


def _go_install(module: str, folder: Path) -> None:
    # Go itself compares what it downloads with its public table of checksums.
    _run(["go", "install", module], GOBIN=str(folder))


def _run(command: list[str], **environment: str) -> None:
    done = subprocess.run(
        command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        told = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        raise PartsError(f"`{' '.join(command[:5])} ...` failed: {told[-1]}")


def main() -> int:
    """Fetches; 2 when something has to be installed or could not be had."""
    lines = missing_tools()
    if not lines:
        try:
            fetch()
        except PartsError as error:
            lines = [str(error)]
    for line in lines:
        print(line, file=sys.stderr)
    if lines:
        return 2
    print(versitygw())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
