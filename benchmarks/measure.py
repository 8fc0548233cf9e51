"""How everything here is measured: ours and the peer in turn, in one run, on the same data.

Times are seconds of this process's CPU, which other work on the machine disturbs less than the clock on the wall.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

RESULTS = Path(__file__).with_name("results.jsonl")
_SHORTEST_SECONDS = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """One comparison; a call of `ours` or `peer` works through `amount` of `unit`."""

    name: str
    unit: str
    amount: float
    ours: Callable[[], object]
    peer: Callable[[], object]
    peer_name: str

    def run(self, rounds: int) -> dict[str, object]:
        """A line of `results.jsonl`: `ratio` is the median of the rounds' ratios, `spread` their range."""
        calls = [_calls(self.ours), _calls(self.peer)]  # also warms up
        pairs = [(_seconds(self.ours, calls[0]), _seconds(self.peer, calls[1])) for _ in range(rounds)]
        ours, peer = zip(*pairs, strict=True)
        ratios = [theirs / mine for mine, theirs in pairs]
        return {
            "name": self.name,
            "value": rounded(self.amount / statistics.median(ours)),
            "unit": self.unit,
            "peer": self.peer_name,
            "peer_value": rounded(self.amount / statistics.median(peer)),
            "ratio": rounded(statistics.median(ratios)),
            "spread": [rounded(min(ratios)), rounded(max(ratios))],
            "machine": machine(),
            "commit": commit(),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limit:
    """A value that must stay below a goal, such as seconds or MB; each call of `ours` or `peer` measures it once.

    A peer is there to compare with; it may do less than ours.
    """

    name: str
    unit: str
    goal: float
    ours: Callable[[], float]
    peer: Callable[[], float]
    peer_name: str
    warm_up: bool = True

    def run(self, rounds: int) -> dict[str, object]:
        """A line of `results.jsonl`: `value` is the median, `spread` the range, `ratio` the peer's to ours."""
        if self.warm_up:
            self.ours(), self.peer()
        ours, peer = zip(*((self.ours(), self.peer()) for _ in range(rounds)), strict=True)
        value, peer_value = statistics.median(ours), statistics.median(peer)
        return {
            "name": self.name,
            "value": rounded(value),
            "unit": self.unit,
            "goal": self.goal,
            "peer": self.peer_name,
            "peer_value": rounded(peer_value),
            "ratio": rounded(peer_value / value),
            "spread": [rounded(min(ours)), rounded(max(ours))],
            "machine": machine(),
            "commit": commit(),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Race:
    """One against several; each call of `ours` or of a peer does the work once and returns its seconds."""

    name: str
    unit: str
    goal: float
    amount: float
    ours: Callable[[], float]
    peers: Mapping[str, Callable[[], float]]
    not_measured: Sequence[str] = ()

    def run(self, rounds: int) -> dict[str, object]:
        """A line of `results.jsonl` with the rate of each; `peer`, `ratio` and `spread` are those of the fastest."""
        runners = {"ours": self.ours, **self.peers}
        for runner in runners.values():
            runner()  # warms up
        seconds: dict[str, list[float]] = {name: [] for name in runners}
        for _ in range(rounds):
            for name, runner in runners.items():
                seconds[name].append(max(runner(), 1e-9))
        rates = {name: rounded(self.amount / statistics.median(times)) for name, times in seconds.items()}
        best = max(self.peers, key=rates.__getitem__)
        ratios = [theirs / mine for mine, theirs in zip(seconds["ours"], seconds[best], strict=True)]
        return {
            "name": self.name,
            "value": rates.pop("ours"),
            "unit": self.unit,
            "goal": self.goal,
            "peer": best,
            "peer_value": rates[best],
            "ratio": rounded(statistics.median(ratios)),
            "spread": [rounded(min(ratios)), rounded(max(ratios))],
            "peers": rates,
            "not_measured": list(self.not_measured),
            "machine": machine(),
            "commit": commit(),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alone:
    """A value without a peer; each call of `ours` measures it once."""

    name: str
    unit: str
    goal: float | None
    ours: Callable[[], float]
    most_rounds: int | None = None
    facts: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def run(self, rounds: int) -> dict[str, object]:
        """A line of `results.jsonl`: `value` is the median, `spread` the range."""
        values = [self.ours() for _ in range(min(rounds, self.most_rounds or rounds))]
        return {
            "name": self.name,
            "value": rounded(statistics.median(values)),
            "unit": self.unit,
            "goal": self.goal,
            "spread": [rounded(min(values)), rounded(max(values))],
            **self.facts,
            "machine": machine(),
            "commit": commit(),
        }


def cpu_seconds(function: Callable[[], object]) -> float:
    """Seconds of this process's CPU that one call takes."""
    return _seconds(function, 1)


def append(result: dict[str, object]) -> None:
    """Adds a line to `results.jsonl`."""
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")


def machine() -> str:
    """Processor and number of cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else os.uname().machine}, {os.cpu_count()} cores"


def commit() -> str:
    """What was measured; "-dirty" where files differ from the commit, "" outside a clone."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _seconds(function: Callable[[], object], calls: int) -> float:
    began = time.process_time()
    for _ in range(calls):
        function()
    return max(time.process_time() - began, 1e-9) / calls


def _calls(function: Callable[[], object]) -> int:
    """So many that they take long enough to be timed."""
    function()
    return max(1, round(_SHORTEST_SECONDS / _seconds(function, 1)))


def rounded(value: float) -> float:
    return float(f"{value:.4g}")
