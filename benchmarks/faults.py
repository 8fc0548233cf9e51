"""What a flipped bit and a killed writer do to a set: `python -m benchmarks.faults --python PEERS/bin/python`.

Each format of `faults_formats.py` keeps the same 20 episodes. `faults.flips`: one random bit of one of its files is
flipped, all episodes are read by a fresh reader, and what comes back is compared with what was written. `faults.kill`:
a writer is killed with SIGKILL at a random instant; of the episodes that it had said are saved, how many does a fresh
reader hand out right? Every try is a process of its own with 30 seconds of time.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import importlib.metadata
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.faults_formats import NUM_EPISODES, Arrays, digest, installed, make_episode
from benchmarks.measure import RESULTS, commit

SECONDS = 30.0
_DISTRIBUTIONS = {"streaming": "mosaicml-streaming", "episode_store": "generalist-agent"}


def in_child(action: Callable[[], object]) -> tuple[str, Any]:
    """("value", what it returned as JSON), ("error", text), ("crash", signal) or ("hang", None)."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(OSError):
            os.close(read_end)
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
        try:
            answer = json.dumps(["value", action()])
        except BaseException as error:  # noqa: BLE001 - whatever a peer raises is its answer
            answer = json.dumps(["error", f"{type(error).__name__}: {error}"[:200]])
        os.write(write_end, answer.encode())
        os._exit(0)
    os.close(write_end)
    content, deadline = b"", time.monotonic() + SECONDS
    with open(read_end, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
            part = pipe.read(1 << 16)
            if not part:
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                return tuple(json.loads(content)) if content else ("crash", code)
            content += part
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hang", None


def read_digests(kind: Any, folder: Path) -> list[str]:
    """Of all episodes that a reader hands out."""
    return [digest(arrays) for arrays in kind.read(folder)]


def write_all(kind: Any, folder: Path) -> None:
    """The whole set, by a child, so that nothing of it stays in memory."""
    folder.mkdir()
    episodes = (make_episode(number) for number in range(NUM_EPISODES))
    outcome = in_child(lambda: kind.write(folder, episodes, lambda: None))
    if outcome[0] != "value":
        raise RuntimeError(f"{kind.title}: cannot be written: {outcome}")


def flips(kind: Any, folder: Path, count: int) -> dict[str, int]:
    """Outcomes of `count` flipped bits, spread over the bytes of all files."""
    truth = [digest(make_episode(number)) for number in range(NUM_EPISODES)]
    whole = folder / "whole"
    write_all(kind, whole)
    if sorted(in_child(lambda: read_digests(kind, whole))[1]) != sorted(truth):
        raise RuntimeError(f"{kind.title}: does not read back what was written")
    files = [file for file in sorted(whole.rglob("*")) if file.is_file() and file.stat().st_size]
    sizes = [file.stat().st_size for file in files]
    chance = random.Random(0)
    outcomes = {"told": 0, "harmless": 0, "wrong": 0, "short": 0, "crash or hang": 0}
    for number in range(count):
        # Every other one in a file chosen evenly, so that the small files, which index the rest, are tried too.
        file = chance.choices(files, sizes if number % 2 else None)[0]
        content = bytearray(file.read_bytes())
        place = chance.randrange(len(content))
        content[place] ^= 1 << chance.randrange(8)
        changed = folder / "changed"
        shutil.copytree(whole, changed)
        (changed / file.relative_to(whole)).write_bytes(content)
        outcomes[_judge(in_child(lambda changed=changed: read_digests(kind, changed)), truth)] += 1
        shutil.rmtree(changed)
    return outcomes


def _judge(outcome: tuple[str, Any], truth: list[str]) -> str:
    if outcome[0] == "error":
        return "told"
    if outcome[0] != "value":
        return "crash or hang"
    if any(found not in truth for found in outcome[1]):
        return "wrong"
    return "harmless" if sorted(outcome[1]) == sorted(truth) else "short"


def kills(kind: Any, folder: Path, count: int) -> dict[str, int]:
    """Episodes said to be saved before a kill, and how many of them were readable afterwards."""
    chance = random.Random(0)
    result = {"saved": 0, "readable": 0, "wrong": 0}
    for number in range(count):
        target = folder / f"killed-{number}"
        target.mkdir()
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            with contextlib.suppress(BaseException):
                kind.write(target, _endless(), functools.partial(os.write, write_end, b"!"))
            os._exit(0)
        os.close(write_end)
        wanted, saved = chance.randrange(3, 40), 0
        while saved < wanted and (part := os.read(read_end, wanted - saved)):
            saved += len(part)
        time.sleep(chance.random() * 0.01)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while part := os.read(read_end, 1 << 16):
            saved += len(part)
        os.close(read_end)
        expected = {digest(make_episode(place)) for place in range(saved)}
        one_more = digest(make_episode(saved))
        kind_found, found = in_child(lambda target=target: _readable(kind, target))
        found = found if kind_found == "value" else []
        result["saved"] += saved
        result["readable"] += len(expected.intersection(found))
        result["wrong"] += len([name for name in found if name not in expected and name != one_more])
        shutil.rmtree(target)
    return result


def _readable(kind: Any, folder: Path) -> list[str]:
    """As many episodes as come before the reader fails."""
    found = []
    with contextlib.suppress(Exception):
        for arrays in kind.read(folder):
            found.append(digest(arrays))
    return found


def _endless() -> Iterator[Arrays]:
    number = 0
    while True:
        yield make_episode(number)
        number += 1


def main() -> int:
    """Runs both measures on all installed formats; prints a table and appends a line to results.jsonl for each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--python", help="an interpreter that has the peers' packages (this one)")
    parser.add_argument("--flips", type=int, default=300, metavar="N", help="flipped bits a format (300)")
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="killed writers a format (20)")
    parser.add_argument("--formats", nargs="*", metavar="TITLE", help="only these (all)")
    parser.add_argument("--date", default=time.strftime("%Y-%m-%d"), help=argparse.SUPPRESS)
    parser.add_argument("--table", action="store_true", help="only print the newest results as Markdown")
    arguments = parser.parse_args()
    if arguments.table:
        print(table())
        return 0
    if arguments.python and Path(arguments.python).absolute() != Path(sys.executable).absolute():
        command = [arguments.python, "-m", "benchmarks.faults", *_without_python(sys.argv[1:])]
        os.chdir(Path(__file__).parents[1])
        os.execv(arguments.python, command)
    for kind in installed():
        if arguments.formats and kind.title not in arguments.formats:
            continue
        # Once, before the forks.
        for module in kind.modules:
            importlib.import_module(module)
        with tempfile.TemporaryDirectory() as folder:
            try:
                flipped = flips(kind, Path(folder), arguments.flips)
                killed = kills(kind, Path(folder), arguments.kills)
            except RuntimeError as error:
                print(f"left out: {error}", flush=True)
                continue
        facts = {"format": kind.title, "version": _version(kind.package), "date": arguments.date, "commit": commit()}
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"name": "faults.flips", **facts, "flips": arguments.flips, **flipped}) + "\n")
            file.write(json.dumps({"name": "faults.kill", **facts, "kills": arguments.kills, **killed}) + "\n")
        print(f"| {kind.title} {facts['version']} | {flipped} | {killed} |", flush=True)
    return 0


def table() -> str:
    """The newest line of each format as a table in Markdown; docs/reliability.md has it."""
    newest: dict[str, dict[str, dict[str, Any]]] = {}
    for line in RESULTS.read_text().splitlines():
        result = json.loads(line)
        if result["name"] in ("faults.flips", "faults.kill"):
            newest.setdefault(result["format"], {})[result["name"]] = result
    rows = [
        "| format | bits flipped | wrong data, no error | episodes missing, no error | error | same data | "
        "episodes saved before `kill -9` | readable after it |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in newest.items():
        flipped, killed = found["faults.flips"], found["faults.kill"]
        counts = [flipped["flips"], flipped["wrong"], flipped["short"], flipped["told"] + flipped["crash or hang"]]
        counts += [flipped["harmless"], killed["saved"], killed["readable"]]
        title = f"{name} {flipped['version']}".strip()
        rows.append("| " + " | ".join([title, *map(str, counts)]) + " |")
    return "\n".join(rows)


def _without_python(words: list[str]) -> list[str]:
    place = words.index("--python") if "--python" in words else len(words)
    return [*words[:place], *words[place + 2 :]]


def _version(package: str) -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(_DISTRIBUTIONS.get(package, package))
    return ""


if __name__ == "__main__":
    raise SystemExit(main())
