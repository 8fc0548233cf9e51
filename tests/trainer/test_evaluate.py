"""Evaluation goes on where it was cut, never mixes what does not belong together, and says what its scores are of."""

import dataclasses
import json
from pathlib import Path

import pytest

from beam_jobs.build_shards import build_locally
from beam_jobs.plan import BuildConfig
from beam_jobs.return_filter import FilterRule, ReturnFilter
from beam_jobs.stores import Source
from collectors.collection import CollectionJob, run
from collectors.seeds import Purpose
from trainer import checkpoint, cli, scores_file
from trainer import evaluate as evaluate_module
from trainer.config import ModelConfig, SamplerConfig, TrainConfig
from trainer.evaluate import EvaluationJob, EvaluationResult, evaluate
from trainer.policy import ActingConfig
from trainer.serve import Service
from trainer.shards import Dataset
from trainer.train import train

TASKS = ["CliffWalking-v1", "FrozenLake-v1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with shards/ of two real tasks, and train/ of two checkpoints, the first of them the best."""
    folder = tmp_path_factory.mktemp("evaluated")
    for task_id in TASKS:
        run(CollectionJob(task_id=task_id, store=str(folder / "store"), episodes=6), lambda steps, doing: None)
    build_locally(
        BuildConfig(
            sources=(Source(name="store", store=folder / "store"),),
            output=folder / "shards",
            text_model=None,
            task_ids=tuple(TASKS),
            return_filter=ReturnFilter(rule=FilterRule.NONE),
            random_returns={"CliffWalking-v1": -2000.0, "FrozenLake-v1": 0.0},
            holdout=0.2,
        )
    )
    config = TrainConfig(
        model=ModelConfig(width=32, num_blocks=2, num_heads=2, key_size=16, feed_forward_size=64),
        sampler=SamplerConfig(context_tokens=64, long_segment_tokens=48),
        batch_size=2, steps=4, checkpoint_every_steps=2, precision="fp32", device="cpu",
    )  # fmt: skip
    train(Dataset.open(folder / "shards"), folder / "train", config)
    for path, loss in zip(checkpoint.list_checkpoints(folder / "train"), (1.0, 2.0), strict=True):
        state = json.loads((path / "state.json").read_text()) | {"validation_loss": loss}
        (path / "state.json").write_text(json.dumps(state))
    return folder


@pytest.fixture
def job(trained):
    return EvaluationJob(
        run=trained / "train",
        checkpoint=checkpoint.latest(trained / "train"),
        shards=trained / "shards",
        acting=ActingConfig(),
        purpose=Purpose.TEST,
        seed=0,
        episodes=2,
    )


@pytest.fixture
def played(monkeypatch):
    """The jobs that were really done; they cost nothing."""
    done = []

    def play(job, task_id):
        done.append((task_id, job.purpose, job.checkpoint.name))
        return EvaluationResult(
            task_id=task_id, episode_returns=[float(len(done)), 0.0], expert_return=10.0, random_return=0.0,
            nearest_neighbour_return=1.0, normalized_score=5.0 * len(done), score_interval=(0.0, 10.0 * len(done)),
            episode_lengths=[1, 2],
        )  # fmt: skip

    monkeypatch.setattr(evaluate_module, "evaluate_task", play)
    return done


def test_finished_tasks_are_not_done_again(job, played, tmp_path, monkeypatch):
    play = evaluate_module.evaluate_task

    def cut(job, task_id):
        if task_id == "FrozenLake-v1":
            raise KeyboardInterrupt
        return play(job, task_id)

    monkeypatch.setattr(evaluate_module, "evaluate_task", cut)
    with pytest.raises(KeyboardInterrupt):
        evaluate(job, TASKS, partial=tmp_path)
    monkeypatch.setattr(evaluate_module, "evaluate_task", play)
    first, second = evaluate(job, TASKS, partial=tmp_path)
    assert [task_id for task_id, *_ in played] == TASKS
    assert (first.episode_returns, second.episode_returns) == ([1.0, 0.0], [2.0, 0.0])
    assert [dataclasses.asdict(a) | {"score_interval": [*a.score_interval]} for a in (first, second)] == [
        dataclasses.asdict(b) | {"score_interval": [*b.score_interval]} for b in evaluate(job, TASKS, partial=tmp_path)
    ]
    assert len(played) == 2


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"job": "old", "result": {}}', '{"task_id": "FrozenLake-v1"}'])
def test_a_damaged_result_is_done_again(job, played, tmp_path, content):
    evaluate(job, TASKS, partial=tmp_path)
    (file,) = tmp_path.glob("*/FrozenLake-v1.json")
    file.write_text(content)
    assert [result.task_id for result in evaluate(job, TASKS, partial=tmp_path)] == TASKS
    assert [task_id for task_id, *_ in played] == [*TASKS, "FrozenLake-v1"]
    assert json.loads(file.read_text())["task_id"] == "FrozenLake-v1"


def test_results_that_are_of_something_else_are_kept_apart(job, trained, played, tmp_path):
    (tmp_path / "baselines.json").write_text("{}")
    others = [
        dataclasses.replace(job, purpose=Purpose.DEVELOP),
        dataclasses.replace(job, seed=1),
        dataclasses.replace(job, episodes=3),
        dataclasses.replace(job, acting=ActingConfig(temperature=0.5)),
        dataclasses.replace(job, scores=tmp_path / "baselines.json"),
        dataclasses.replace(job, checkpoint=checkpoint.best(trained / "train")),
    ]
    results = [evaluate(one, TASKS[:1], partial=tmp_path / "evaluation") for one in (job, *others)]
    assert len(played) == 7
    assert [evaluate(one, TASKS[:1], partial=tmp_path / "evaluation")[0].episode_returns for one in (job, *others)] == [
        result.episode_returns for (result,) in results
    ]
    assert len(played) == 7


def test_two_workers_find_what_one_finds(job, tmp_path):
    one = evaluate(job, TASKS, partial=tmp_path / "one")
    assert evaluate(job, TASKS, partial=tmp_path / "two", workers=2) == one
    assert [len(result.episode_returns) for result in one] == [2, 2]


def words(trained: Path, output: Path, *more: str) -> list[str]:
    places = ["--run", str(trained / "train"), "--shards", str(trained / "shards"), "--output", str(output)]
    return ["evaluate", *places, "--episodes", "2", *more]


def test_scores_say_what_they_are_of(trained, played, tmp_path, capsys):
    assert cli.main(words(trained, tmp_path, "--seed", "3", "--best")) == 0
    out = capsys.readouterr().out
    assert "step 2, 2 episodes a task on test seeds (seed 3)" in out
    assert "interquartile mean" in out
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert (scores["purpose"], scores["seed"], scores["episodes"]) == ("test", 3, 2)
    best = checkpoint.best(trained / "train")
    assert scores["checkpoint"] == {"step": 2, "weights": checkpoint.weights_hash(best)}
    assert {name for *_, name in played} == {"step-00000002"}
    # Four episodes at 10%, 0%, 20%, 0%: the middle half is 0% and 10%.
    assert scores["summary"]["interquartile_mean"] == pytest.approx(5.0)
    low, high = scores["summary"]["interquartile_interval"]
    assert low <= 5.0 <= high
    assert [row["task_id"] for row in scores["scores"]] == TASKS


def test_tasks_join_those_of_the_same_evaluation(trained, played, tmp_path):
    assert cli.main(words(trained, tmp_path, "--tasks", "FrozenLake-v1")) == 0
    assert cli.main(words(trained, tmp_path, "--tasks", "CliffWalking-v1")) == 0
    scores = scores_file.read(tmp_path / "scores.json")
    assert [row["task_id"] for row in scores["scores"]] == TASKS
    assert scores["summary"]["num_tasks"] == 2
    assert len(played) == 2


def test_another_evaluation_overwrites_nothing(trained, played, tmp_path, capsys):
    (tmp_path / "scores.json").write_text("[]")  # as they were before
    assert cli.main(words(trained, tmp_path)) == 0
    assert "the scores of another evaluation are now in" in capsys.readouterr().err
    assert (next(tmp_path.glob("scores-before-*.json"))).read_text() == "[]"
    tested = (tmp_path / "scores.json").read_text()
    assert cli.main(words(trained, tmp_path, "--purpose", "develop", "--tasks", "FrozenLake-v1", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["purpose"] == "develop"
    (aside,) = tmp_path.glob("scores-test-step4-*.json")
    assert aside.read_text() == tested
    assert (tmp_path / "language.json").exists()
    # A part of the tasks on test seeds again: the others are still there.
    assert cli.main(words(trained, tmp_path, "--tasks", "FrozenLake-v1")) == 0
    assert json.loads((tmp_path / "scores.json").read_text()) == json.loads(tested)
    assert len(list(tmp_path.glob("scores-develop-step4-*.json"))) == 1
    assert len(list(tmp_path.glob("language-develop-step4-*.json"))) == 1
    assert not aside.exists()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--rolling-tokens", "65"], "--rolling-tokens 65: the network was trained with 64"),
        (["--return-scale", "2"], "the network was not trained with sampler.condition_on_return"),
    ],
)
def test_what_the_network_cannot_do_is_told_at_once(trained, played, tmp_path, capsys, flags, told):
    assert cli.main(words(trained, tmp_path / "out", *flags)) == 2
    assert told in capsys.readouterr().err
    assert not played
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_told(trained, played, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(words(trained, tmp_path / "file")) == 2
    assert "file: what should be a folder of this path is a file" in capsys.readouterr().err
    export = ["export", *words(trained, tmp_path / "file")[1:7]]
    assert cli.main(export) == 2
    assert "file: what should be a folder of this path is a file" in capsys.readouterr().err


def test_the_best_checkpoint_is_served(trained, monkeypatch):
    best = checkpoint.best(trained / "train")
    service = Service(trained / "train", Dataset.open(trained / "shards"), TASKS, ActingConfig(), best)
    assert service.facts()["checkpoint"] == "step-00000002"
    asked = []

    def stop(*arguments):
        asked.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr("trainer.serve.Service", stop)
    command = ["serve", "--run", str(trained / "train"), "--shards", str(trained / "shards")]
    assert [cli.main(command), cli.main([*command, "--best"])] == [130, 130]
    assert [arguments[-1].name for arguments in asked] == ["step-00000004", "step-00000002"]


def test_the_best_checkpoint_collects(trained, tmp_path, capsys):
    places = ["--run", str(trained / "train"), "--shards", str(trained / "shards"), "--store", str(tmp_path / "store")]
    capsys.readouterr()
    assert cli.main(["collect", *places, "--tasks", "FrozenLake-v1", "--episodes", "1", "--best", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["agent_id"] == "generalist-step-00000002"
