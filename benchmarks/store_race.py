"""All stores side by side on one set: each in a process of its own, round after round in turn."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import store_data
from benchmarks.measure import commit, machine, rounded

_ROOT = Path(__file__).parents[1]
# In which environment a peer's packages are (`make peers`); the others run in this one.
_ENVIRONMENTS = {
    "zarr zstd": (".venv-peers-storage", "zarr"),
    "Lance": (".venv-peers-storage", "lance"),
    "HF datasets": (".venv-peers-storage", "datasets"),
    "MDS": (".venv-peers-storage", "streaming"),
    "array_record + Grain": (".venv-peers-storage", "grain"),
    "Minari": (".venv-peers", "minari"),
    "TFDS RLDS": (".venv-peers", "tensorflow_datasets"),
    "LeRobot v3": (".venv-peers-lerobot", "lerobot"),
}
OURS, UNCHECKED = "ours", "ours, checksums not compared"
PEERS = (
    "np.memmap",
    "Arrow IPC, mapped, views kept",
    "Arrow IPC zstd, 32 rows",
    "Parquet zstd-3",
    "HDF5 as robomimic",
    *_ENVIRONMENTS,
)
# A write that takes longer is not repeated.
_LONG_WRITE_SECONDS, _LONG_FIRST_WRITE_SECONDS = 1.0, 10.0
# A peer that takes longer for a round has no more rounds.
_LONG_ROUND_SECONDS = 5.0
_PATIENCE_SECONDS = 240
Samples = dict[str, dict[str, list[float]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """One line of `results.jsonl`: ours and one peer, for one measure on one set."""

    name: str
    unit: str
    kind: str
    race: Race
    peer_name: str

    def run(self, rounds: int) -> dict[str, object]:
        """`ratio` is the median of the rounds' ratios, `spread` their range; None where the peer was not measured."""
        samples, note = self.race.samples(rounds), self.race.notes.get(self.peer_name, "")
        ours, theirs = samples[OURS][self.kind], samples.get(self.peer_name, {}).get(self.kind, [])
        if self.kind == "size":
            ours, theirs = ours[:1], theirs[:1]
        ratios = [mine / other for mine, other in zip(ours, theirs, strict=False)]
        return {
            "name": self.name,
            "value": rounded(statistics.median(ours)),
            "unit": self.unit,
            "data": self.race.description,
            "peer": self.peer_name,
            "peer_value": rounded(statistics.median(theirs)) if theirs else note or "not measured",
            "ratio": rounded(statistics.median(ratios)) if ratios else None,
            "spread": [rounded(min(ratios)), rounded(max(ratios))] if ratios else None,
            "machine": machine(),
            "commit": commit(),
        }


class Race:
    """Every store on one set; all is measured when the first result is asked for.

    Attributes:
      description: of the set.
      notes: of each peer that was not measured, why.
    """

    def __init__(self, name: str, peers: Sequence[str] = (OURS, *PEERS)) -> None:
        self._name, self._peers = name, peers
        self.description = name
        self.notes: dict[str, str] = {}

    def comparisons(self, prefix: str, kinds: dict[str, str]) -> Iterator[Comparison]:
        """One a kind ("size", "windows", "sequential", "write") and peer; `kinds` has their units."""
        for kind, unit in kinds.items():
            for peer in PEERS:
                yield Comparison(name=f"{prefix}.{kind}", unit=unit, kind=kind, race=self, peer_name=peer)

    def checksums(self) -> Iterator[Comparison]:
        """What comparing checksums costs: the ratio is ours to ours without it."""
        for kind in ("windows", "sequential"):
            yield Comparison(name="store.checksum", unit=f"{kind}/s", kind=kind, race=self, peer_name=UNCHECKED)

    def samples(self, rounds: int) -> Samples:
        """Peer -> kind -> one value a round."""
        return self._samples(rounds)

    @functools.cache  # noqa: B019 - a race lives as long as the program
    def _samples(self, rounds: int) -> Samples:
        absent = store_data.missing(self._name)
        if absent:
            raise SystemExit(f"set {self._name}: install {absent} first")
        with tempfile.TemporaryDirectory(prefix="store-race-") as folder:
            data = Path(folder) / "data"
            self.description = store_data.make(self._name, data)
            raw = sum(file.stat().st_size for file in data.glob("*.npy"))
            runners = {}
            for number, peer in enumerate(self._peers):
                try:
                    runners[peer] = _Runner(peer, data, Path(folder) / f"peer{number}")
                except _NotMeasuredError as reason:
                    self.notes[peer] = str(reason)
            samples: Samples = {
                peer: {kind: [] for kind in ("size", "windows", "sequential", "write")} for peer in runners
            }
            for number in range(rounds):
                for peer, runner in list(runners.items()):
                    if runner.wall_seconds > _LONG_ROUND_SECONDS:
                        continue
                    began = time.monotonic()
                    try:
                        _round(runner, samples[peer], number, raw)
                    except _NotMeasuredError as reason:
                        self.notes[peer] = str(reason)
                        runners.pop(peer).end()
                        print(f"{peer}: {reason}", file=sys.stderr)
                    if number:
                        runner.wall_seconds = time.monotonic() - began
            for runner in runners.values():
                runner.end()
        return samples


def _round(runner: _Runner, samples: dict[str, list[float]], number: int, raw: int) -> None:
    """One turn of one peer."""
    if number == 0 or runner.write_seconds < _LONG_WRITE_SECONDS:
        steps, runner.write_seconds = runner.ask("write")
        if number == 0:
            samples["size"].append(raw / runner.ask("size"))
            # The first time also imports the package.
            if runner.write_seconds < _LONG_FIRST_WRITE_SECONDS:
                steps, runner.write_seconds = runner.ask("write")
        samples["write"].append(steps / runner.write_seconds)
    for kind, arguments in (("windows", [number]), ("sequential", [])):
        if number == 0 and runner.write_seconds < _LONG_WRITE_SECONDS:
            runner.ask(kind, *arguments)
        done, seconds = runner.ask(kind, *arguments)
        samples[kind].append(done / seconds)


class _NotMeasuredError(Exception):
    """Why there is no value of a peer."""


class _Runner:
    """A peer's process."""

    def __init__(self, peer: str, data: Path, folder: Path) -> None:
        environment, module = _ENVIRONMENTS.get(peer, ("", ""))
        python = _ROOT / environment / "bin" / "python" if environment else Path(sys.executable)
        if environment and (
            not python.exists()
            or subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False).returncode
        ):
            raise _NotMeasuredError("not installed, not measured")
        self.write_seconds = self.wall_seconds = 0.0
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `end`
        variables = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(_ROOT) if not environment else "",
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        self._process = subprocess.Popen(
            [python, "-P", Path(__file__).with_name("store_peers.py"), peer, data, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=variables,
            text=True,
        )

    def ask(self, *command: Any) -> Any:
        """The answer to a command."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._log.seek(0)
            lines = self._log.read().decode(errors="replace").strip().splitlines() or ["ended"]
            raise _NotMeasuredError(f"failed: {lines[-1][:200]}")
        return json.loads(line)

    def end(self) -> None:
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        self._process.wait(timeout=_PATIENCE_SECONDS)
        self._log.close()
