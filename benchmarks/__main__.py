"""`python -m benchmarks [names]`: measures, appended to benchmarks/results.jsonl."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from benchmarks.measure import RESULTS, append

# How the measures' ids begin; each is a module with a generator `measures`, with '_' in place of '.'.
SUBJECTS = (
    *("tokenize", "content", "shards.tokens", "shards.patches", "beam", "beam.flink", "beam.million", "collect"),
    *("store.million", "store.view", "store.image", "store.state", "store.checksum", "store.memory"),
    *("train", "act", "gpu"),
)


def main() -> int:
    """Runs the measures whose id is, or begins with, one of the names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"ids or beginnings of ids, such as {', '.join(SUBJECTS)} (all)")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="rounds of ours and the peer (7)")
    parser.add_argument("--nanogpt", metavar="DIR", type=Path, help="folder of nanoGPT's model.py, for `train`")
    arguments = parser.parse_args()
    if arguments.nanogpt is not None:
        from benchmarks import train_peers

        if not (arguments.nanogpt / "model.py").is_file():
            parser.error(f"--nanogpt {arguments.nanogpt}: there is no model.py")
        train_peers.nanogpt_folder = arguments.nanogpt
    for name in arguments.names:
        if not any(_concerns(name, subject) for subject in SUBJECTS):
            parser.error(f"{name}: no such measure; ids begin with {', '.join(SUBJECTS)}")
    for subject in SUBJECTS:
        if arguments.names and not any(_concerns(name, subject) for name in arguments.names):
            continue
        for measure in importlib.import_module(f"benchmarks.{subject.replace('.', '_')}").measures():
            if not arguments.names or measure.name.startswith(tuple(arguments.names)):
                result = measure.run(arguments.rounds)
                append(result)
                beside = (
                    f"{result['peer']}: {result['peer_value']}; ratio {result['ratio']}" if "peer" in result else ""
                )
                print(f"{measure.name}: {result['value']} {result['unit']}; {beside} {result['spread']}")
                for name in result.get("not_measured", ()):  # type: ignore[attr-defined]
                    print(f"  not measured: {name}")
    print(f"appended to {RESULTS}")
    return 0


def _concerns(name: str, subject: str) -> bool:
    """Whether a subject may have measures whose id begins with `name`."""
    return subject.startswith(name) or name.startswith(subject)


if __name__ == "__main__":
    raise SystemExit(main())
