"""The whole demo, shortened: killed at random moments of its stages, and run again to its end."""

import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from episode_store.store import EpisodeStore
from episode_store.verify import verify_store

ROOT = Path(__file__).parent.parent
KILLS = 4


@pytest.mark.slow
def test_demo_survives_kills(tmp_path):
    """Four kills of everything, at random moments, then one whole run: all stages complete and agree."""
    run = tmp_path / "run"
    command = [sys.executable, "examples/demo.py", "--quick", "--output", str(run), "--steps", "300"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    rng = random.Random(os.environ.get("KILL_SEED"))
    for _ in range(KILLS):
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(rng.uniform(4.0, 30.0))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            time.sleep(1.0)  # processes with a session of their own notice that their parent is gone
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]

    store = EpisodeStore.open(run / "store")
    assert len(store) == len(store.table()["episode_id"].unique())
    assert not verify_store(run / "store").damages
    dataset = json.loads((run / "shards" / "dataset.json").read_text())
    for shard in dataset["shards"]:
        with tarfile.open(run / "shards" / shard["file"]) as tar:
            assert len({member.name.partition(".")[0] for member in tar.getmembers()}) == shard["num_samples"]
    rows = [json.loads(line)["step"] for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
    assert rows == sorted(set(rows))
    scores = {score["task_id"]: score for score in json.loads((run / "scores.json").read_text())["scores"]}
    assert set(scores) == {"CartPole-v1", "MountainCar-v0", "Taxi-v4", "minigrid/Empty-Random-5x5-rgb-v0"}
    for score in scores.values():
        assert len(score["episode_returns"]) == 10
        assert set(score) >= {"expert_return", "random_return", "nearest_neighbour_return", "normalized_score"}
    assert scores["MountainCar-v0"]["normalized_score"] > 50
    language = json.loads((run / "language.json").read_text())
    assert set(language) == {"captions", "vqa", "text", "dialogue"}
    page = (run / "report.html").read_text()
    assert "CartPole-v1" in page
    assert "mean score" in done.stdout
    assert "report.html" in done.stdout
