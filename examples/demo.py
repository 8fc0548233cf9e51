"""The whole job on real input: specialists, demonstrations, shards, one generalist, its scores and a report.

    python examples/demo.py                 # about a quarter of an hour on 2 cores, everything under runs/demo
    python examples/demo.py --quick         # the same on fewer tasks, for CI

Every stage is a command that you can run yourself; it is printed before it starts. Interrupted, run it again: stages
that are done are quick, the one that was cut goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

# Task -> steps of demonstrations to record.
TASKS = {
    "CartPole-v1": 30_000,
    "Acrobot-v1": 25_000,
    "Pendulum-v1": 60_000,
    "MountainCar-v0": 20_000,
    "Taxi-v4": 30_000,
    "FrozenLake-v1": 20_000,
    "LunarLander-v3": 80_000,
    "Reacher-v5": 20_000,
    "InvertedPendulum-v5": 30_000,
    "babyai/GoToObj-v0": 15_000,
    "babyai/GoToLocal-v0": 40_000,
    "minigrid/Empty-Random-5x5-rgb-v0": 8_000,
    "metaworld/button-press-v3": 12_000,
    "metaworld/drawer-close-v3": 10_000,
}
# Corpus -> steps to take: texts, replies, pictures, questions.
CORPORA = {
    "text/wikipedia-v0": 4_000,
    "dialogue/chitchat-v0": 25_000,
    "caption/openmoji-v0": 1_375,
    "vqa/easy-vqa-v0": 10_000,
}
FILMED = (
    "CartPole-v1",
    "Acrobot-v1",
    "Pendulum-v1",
    "LunarLander-v3",
    "Taxi-v4",
    "babyai/GoToLocal-v0",
    "minigrid/Empty-Random-5x5-rgb-v0",
)
QUICK_TASKS = ("CartPole-v1", "MountainCar-v0", "Taxi-v4", "minigrid/Empty-Random-5x5-rgb-v0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One command of the demo."""

    name: str
    what: str
    command: list[str]


def stages(run: Path, *, tasks: dict[str, int], corpora: dict[str, int], length: list[str], episodes: int, workers: int,
           seed: int, films: list[str]) -> list[Stage]:  # fmt: skip
    """The commands, in order."""
    store, shards, train = str(run / "store"), str(run / "shards"), str(run / "train")
    baselines, text = str(run / "baselines.json"), str(run / "text.model")
    amounts = [f"{task}={amount}" for task, amount in {**tasks, **corpora}.items()]
    plan = [
        ("collect", "specialists are trained, and recorded while they train; bots, scripts and data sets too",
         ["collectors", "collect", "--train", "--store", store, "--output", str(run), "--workers", str(workers),
          "--tasks", *amounts]),
        ("score", "what the specialists and a random policy reach",
         ["collectors", "score", "--agents", str(run), "--output", baselines, "--workers", str(workers),
          "--tasks", *tasks]),
        ("text model", "32,000 pieces of text, from the training texts",
         ["tokenization", "train-text", "--store", store, "--output", text]),
        ("shards", "Beam filters by return, tokenizes and writes WebDataset shards",
         ["beam_jobs", "build-shards", "--store", store, "--scores", baselines, "--text-model", text,
          "--output", shards, "--seed", str(seed)]),
        ("train", "one network learns everything from scratch",
         ["trainer", "train", "--shards", shards, "--output", train, "--preset", "demo", *length,
          "--seed", str(seed)]),
        ("evaluate", "the one network acts in every task, beside a nearest-neighbour policy",
         ["trainer", "evaluate", "--run", train, "--shards", shards, "--output", str(run), "--scores", baselines,
          "--agents", str(run),
          "--episodes", str(episodes), "--workers", str(workers), "--seed", str(seed), "--films", *films]),
        ("report", "one page", ["trainer", "report", "--run", str(run)]),
    ]  # fmt: skip
    return [Stage(name=name, what=what, command=command) for name, what, command in plan]


def main() -> int:
    """Runs the stages one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", metavar="DIR", help="folder of everything (runs/demo; quick runs/demo-quick)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of shards, training and evaluation (0)")
    parser.add_argument("--minutes", type=float, metavar="M", help="of training (12; quick 1)")
    parser.add_argument("--quick", action="store_true", help="four tasks, little text, one minute of training")
    parser.add_argument("--steps", type=int, metavar="N", help="of training, whatever time they take")
    arguments = parser.parse_args()
    quick = arguments.quick
    run = Path(arguments.output or ("runs/demo-quick" if quick else "runs/demo"))
    run.mkdir(parents=True, exist_ok=True)
    minutes = arguments.minutes or (1.0 if quick else 12.0)
    plan = stages(
        run,
        tasks={task: min(TASKS[task], 8_000) for task in QUICK_TASKS} if quick else TASKS,
        corpora={task: min(count, 600) for task, count in CORPORA.items()} if quick else CORPORA,
        length=["--steps", str(arguments.steps)] if arguments.steps else ["--minutes", str(minutes)],
        episodes=10 if quick else 50,
        workers=min(2, os.cpu_count() or 1),
        seed=arguments.seed,
        films=["CartPole-v1"] if quick else list(FILMED),
    )
    timings_file = run / "timings.json"
    timings: dict[str, float] = json.loads(timings_file.read_text()) if timings_file.exists() else {}
    for number, stage in enumerate(plan, start=1):
        print(f"\n[{number}/{len(plan)}] {stage.name}: {stage.what}", flush=True)
        if number < len(plan):
            print(f"      next: {plan[number].name}", flush=True)
        print(f"      $ python -m {shlex.join(stage.command)}", flush=True)
        began = time.monotonic()
        code = subprocess.run([sys.executable, "-m", *stage.command], check=False).returncode
        if code:
            print(f"\nThe stage '{stage.name}' ended with exit code {code}. Run the same command again to go on.")
            return code
        seconds = time.monotonic() - began
        # Runs that were cut are not counted; a run that found everything done adds next to nothing.
        timings[stage.name] = round(timings.get(stage.name, 0.0) + seconds, 1)
        timings_file.write_text(json.dumps(timings, indent=1))
        print(f"      {stage.name} took {seconds:.0f} s", flush=True)
    print(f"\nscores as JSON: {(run / 'scores.json').resolve()}; all in {sum(timings.values()) / 60:.0f} minutes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
