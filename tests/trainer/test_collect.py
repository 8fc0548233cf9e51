"""`trainer collect`: a checkpoint of the generalist fills a store; the same call again adds nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from beam_jobs.build_shards import build_locally
from beam_jobs.plan import BuildConfig
from beam_jobs.return_filter import FilterRule, ReturnFilter
from beam_jobs.stores import Source
from collectors.collection import CollectionJob, run
from episode_store.store import EpisodeStore
from trainer import cli
from trainer.config import TrainConfig
from trainer.shards import Dataset
from trainer.train import train

TASK = "CliffWalking-v1"


def test_the_generalist_collects(tmp_path: Path, config: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(tmp_path / "source")
    run(CollectionJob(task_id=TASK, store=source, episodes=6), lambda steps, doing: None)
    build_locally(
        BuildConfig(
            sources=(Source(name="store", store=Path(source)),),
            output=tmp_path / "shards",
            text_model=None,
            task_ids=(TASK,),
            return_filter=ReturnFilter(rule=FilterRule.NONE),
            random_returns={TASK: -2000.0},
            holdout=0.2,
        )
    )
    train(Dataset.open(tmp_path / "shards"), tmp_path / "run", config)
    words = ["collect", "--run", str(tmp_path / "run"), "--shards", str(tmp_path / "shards"), "--episodes", "3"]
    words += ["--store", str(tmp_path / "store"), "--json"]
    capsys.readouterr()
    assert cli.main(words) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["agent_id"].startswith("generalist-")
    assert (result["task_id"], result["episodes"], result["new_episodes"]) == (TASK, 3, 3)
    store = EpisodeStore.open(tmp_path / "store")
    episodes = [store.read(episode_id) for episode_id in store.episode_ids]
    assert {episode.metadata.agent_id for episode in episodes} == {result["agent_id"]}
    assert all(episode.terminated or episode.num_steps == 200 for episode in episodes)
    assert all(np.isin(episode.actions["action"], range(4)).all() for episode in episodes)
    assert cli.main(words) == 0
    assert json.loads(capsys.readouterr().out)[0]["new_episodes"] == 0
    assert cli.main([*words[:-1], "--tasks", "Taxi-v4"]) == 2
    assert "no control task matches 'Taxi-v4'" in capsys.readouterr().err
