"""`python -m benchmarks [names]`: measures, appended to benchmarks/results.jsonl."""

from __future__ import annotations

import argparse
import importlib

from benchmarks.measure import RESULTS, append

# First part of the measures' ids; each is a module with a generator `measures`.
SUBJECTS = ("tokenize", "shards")


def main() -> int:
    """Runs the measures whose id is, or begins with, one of the names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"ids or beginnings of ids, such as {', '.join(SUBJECTS)} (all)")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="rounds of ours and the peer (7)")
    arguments = parser.parse_args()
    for name in arguments.names:
        if name.partition(".")[0] not in SUBJECTS:
            parser.error(f"{name}: no such measure; ids begin with {', '.join(SUBJECTS)}")
    for subject in SUBJECTS:
        if arguments.names and not any(name.startswith(subject) for name in arguments.names):
            continue
        for measure in importlib.import_module(f"benchmarks.{subject}").measures():
            if not arguments.names or measure.name.startswith(tuple(arguments.names)):
                result = measure.run(arguments.rounds)
                append(result)
                print(
                    f"{measure.name}: {result['value']} {measure.unit}; {measure.peer_name}: {result['peer_value']}; "
                    f"ratio {result['ratio']} {result['spread']}"
                )
    print(f"appended to {RESULTS}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
