"""Training and collecting into a store: order, resuming after kill -9, several processes, the command line."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from collectors import cli, registry, scores, specialist_file, specialists
from collectors.collection import CollectionJob, run
from collectors.seeds import Purpose, purpose_of
from collectors.task import Sb3Expert
from episode_store.errors import UserError
from episode_store.store import EpisodeStore


def no_report(work: float, doing: str) -> None:
    pass


def table(store: Path, task_id: str) -> dict[str, list]:
    return EpisodeStore.open(store).table(task_id).to_pydict()


def test_demonstrations_are_numbered_and_made_once(tmp_path: Path) -> None:
    store = tmp_path / "store"
    job = CollectionJob(task_id="Taxi-v4", store=str(store), steps=1000)
    first = run(job, no_report)
    rows = table(store, "Taxi-v4")
    assert rows["collection_index"] == list(range(first.episodes))
    assert {purpose_of(seed) for seed in rows["seed"]} == {Purpose.COLLECT}
    assert 1000 <= first.steps < 1200
    assert first.new_episodes == first.episodes
    again = run(job, no_report)
    assert again.new_episodes == 0
    assert (again.episodes, again.steps, again.mean_return) == (first.episodes, first.steps, first.mean_return)
    more = run(CollectionJob(task_id="Taxi-v4", store=str(store), steps=2000), no_report)
    assert more.new_episodes == more.episodes - first.episodes > 0
    assert table(store, "Taxi-v4")["collection_index"] == list(range(more.episodes))


def test_interrupted_collection_ends_with_the_same_episodes(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    job = CollectionJob(task_id="Taxi-v4", store=str(whole), steps=1500)
    run(job, no_report)
    job = CollectionJob(task_id="Taxi-v4", store=str(parts), steps=1500)
    calls = 0

    def interrupt(work: float, doing: str) -> None:
        nonlocal calls
        calls += 1
        if calls == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(job, interrupt)
    assert 25 <= len(EpisodeStore.open(parts)) <= 30
    run(job, no_report)
    assert EpisodeStore.open(parts).episode_ids == EpisodeStore.open(whole).episode_ids


def test_random_agent_and_its_own_numbers(tmp_path: Path) -> None:
    store = tmp_path / "store"
    run(CollectionJob(task_id="FrozenLake-v1", store=str(store), episodes=20), no_report)
    run(CollectionJob(task_id="FrozenLake-v1", store=str(store), episodes=5, agent="random"), no_report)
    rows = table(store, "FrozenLake-v1")
    assert sorted(set(rows["agent_id"])) == ["random-FrozenLake-v1", "value-iteration-FrozenLake-v1"]
    numbers = [i for i, agent in zip(rows["collection_index"], rows["agent_id"], strict=True) if agent[0] == "r"]
    assert numbers == [0, 1, 2, 3, 4]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    job = CollectionJob(
        task_id="CartPole-v1",
        store=str(folder / "store"),
        output=str(folder),
        train=True,
        train_steps=4096,
        episodes=6,
    )
    run(job, no_report)
    return folder


def test_training_is_recorded_in_order_and_demonstrations_follow(trained: Path) -> None:
    rows = table(trained / "store", "CartPole-v1")
    assert set(rows["agent_id"]) == {"ppo-CartPole-v1-seed0"}
    assert rows["collection_index"] == list(range(len(rows["seed"])))
    purposes = [purpose_of(seed) for seed in rows["seed"]]
    assert purposes == [Purpose.TRAIN] * (len(rows["seed"]) - 6) + [Purpose.COLLECT] * 6
    assert 3500 < sum(rows["num_steps"][:-6]) <= 4096
    assert len(set(rows["seed"])) == len(rows["seed"])
    # It learns.
    assert np.mean(rows["episode_return"][-6:]) > 2 * np.mean(rows["episode_return"][:20])


def test_trained_agent_is_not_trained_again(trained: Path) -> None:
    job = CollectionJob(
        task_id="CartPole-v1",
        store=str(trained / "store"),
        output=str(trained),
        train=True,
        train_steps=4096,
        episodes=6,
    )
    assert run(job, no_report).new_episodes == 0


def test_training_that_was_cut_short_goes_on_when_more_steps_are_wanted(tmp_path: Path) -> None:
    job = CollectionJob(
        task_id="CartPole-v1", store=str(tmp_path / "store"), output=str(tmp_path), train=True, collect=False
    )
    assert run(dataclasses.replace(job, train_steps=1024), no_report).train_steps > 0
    path = specialists.agent_path(tmp_path, registry.get("CartPole-v1"), 0)
    before = specialist_file.load(path, {}).header["num_timesteps"]
    assert run(dataclasses.replace(job, train_steps=3000), no_report).new_episodes > 0
    assert before < 3000 <= specialist_file.load(path, {}).header["num_timesteps"]
    assert run(dataclasses.replace(job, train_steps=2000), no_report).new_episodes == 0


def test_training_ends_when_the_return_has_not_risen_for_a_while(tmp_path: Path) -> None:
    recipe = Sb3Expert(
        steps=50_000,
        hyperparameters={"n_steps": 64, "batch_size": 64, "n_epochs": 1, "learning_rate": 0.0},
        stop_window=5,
        patience_steps=2_000,
    )
    task = dataclasses.replace(registry.get("CartPole-v1"), expert=recipe)
    path = specialists.agent_path(tmp_path, task, 0)
    progress = specialists.train_specialist(task, lambda episode: None, path=path)
    assert 2_000 < progress.num_steps < 25_000
    assert specialist_file.load(path, {}).header["converged"] is True
    assert specialists.train_specialist(task, lambda episode: None, path=path) == progress


def test_a_specialist_acts_on_the_seeds_of_another_run(trained: Path, tmp_path: Path) -> None:
    """`--seed` picks the episodes; the only specialist there is is found whatever it was trained with."""
    task = registry.get("CartPole-v1")
    shutil.copytree(trained / "agents", tmp_path / "agents")
    job = scores.ScoreJob(task_id="CartPole-v1", output=str(tmp_path), episodes=3, seed=5)
    _, score = scores.measure(job, no_report)
    assert (score.expert, score.seed) == ("ppo-CartPole-v1-seed0", 5)
    assert scores.is_measured(job, score)
    second = specialists.agent_path(tmp_path, task, 1)
    shutil.copy(specialists.agent_path(tmp_path, task, 0), second)
    with pytest.raises(UserError, match=r"no specialist of CartPole-v1 at .*-seed5\.safetensors"):
        scores.measure(job, no_report)


def test_random_actions_need_no_folder_of_specialists(tmp_path: Path) -> None:
    words = ["collect", "--tasks", "CartPole-v1", "--store", str(tmp_path / "store"), "--episodes", "2"]
    assert cli.main([*words, "--agent", "random"]) == 0
    assert len(EpisodeStore.open(tmp_path / "store")) == 2
    assert cli.main(words) == 2


def test_specialist_file_holds_no_pickle_and_gives_the_same_actions(trained: Path) -> None:
    task = registry.get("CartPole-v1")
    path = specialists.agent_path(trained, task, 0)
    header_length = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + header_length])
    assert json.loads(header["__metadata__"]["specialist"])["finished"] is True
    left, right = specialists.load_specialist(task, path), specialists.load_specialist(task, path)
    observations = [{"observation": np.array([0.01 * i, 0.1, -0.02 * i, 0.3], np.float32)} for i in range(8)]
    actions = [int(fields["action"]) for fields in left.act(range(8), observations)]
    assert actions == [int(fields["action"]) for fields in right.act(range(8), observations)]
    assert left.agent_hash == right.agent_hash


def test_specialist_of_another_task_is_refused(trained: Path) -> None:
    path = specialists.agent_path(trained, registry.get("CartPole-v1"), 0)
    with pytest.raises(UserError, match="expected a specialist with task_id 'Acrobot-v1', got 'CartPole-v1'"):
        specialists.load_specialist(registry.get("Acrobot-v1"), path)
    broken = path.with_name("broken.safetensors")
    broken.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="is no specialist of this project, or damaged"):
        specialists.load_specialist(registry.get("CartPole-v1"), broken)


def test_training_goes_on_after_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys; from collectors import specialists; specialists._SECONDS_BETWEEN_CHECKPOINTS = 0.0; "
        "from collectors.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    store = tmp_path / "store"
    words = ["train", "--tasks", "CartPole-v1", "--store", str(store), "--output", str(tmp_path), "--steps", "6000"]
    path = specialists.agent_path(tmp_path, registry.get("CartPole-v1"), 0)
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (path.exists() and len(EpisodeStore.open(store)) > 20):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    task = registry.get("CartPole-v1")
    header = specialist_file.load(path, {}).header
    assert 0 < header["num_timesteps"] < 6000
    assert not header["finished"]
    with pytest.raises(UserError, match="is still in training"):
        specialists.load_specialist(task, path)
    before = table(store, "CartPole-v1")
    assert cli.main(words) == 0
    after = table(store, "CartPole-v1")
    # Nothing lost, nothing twice, in order.
    assert after["episode_id"][: len(before["episode_id"])] == before["episode_id"]
    assert after["collection_index"] == list(range(len(after["seed"])))
    assert len(set(after["seed"])) == len(after["seed"]) > len(before["seed"])
    assert specialist_file.load(path, {}).header["num_timesteps"] >= 6000


def test_several_processes_fill_one_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["collect", "--store", str(tmp_path / "s"), "--workers", "2", "--json"]
    assert cli.main([*words, "--tasks", "Taxi-v4=300", "FrozenLake-v1", "CliffWalking-v1", "--episodes", "7"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert [result["task_id"] for result in results] == ["Taxi-v4", "FrozenLake-v1", "CliffWalking-v1"]
    assert results[0]["steps"] >= 300
    assert [result["episodes"] for result in results[1:]] == [7, 7]
    assert len(EpisodeStore.open(tmp_path / "s")) == sum(result["episodes"] for result in results)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["collect", "--tasks", "Taxi-v5"], "unknown task 'Taxi-v5': did you mean Taxi-v4"),
        (["collect"], "--tasks is needed"),
        (["collect", "--tasks", "Taxi-v4=many"], "expected TASK=STEPS with a whole number of steps, got 'many'"),
        (["collect", "--tasks", "CartPole-v1"], "--output is needed"),
        (["collect", "--tasks", "CartPole-v1", "--output", "nowhere"], "no specialist of CartPole-v1 at nowhere"),
        (["train", "--tasks", "Taxi-v4", "--output", "x"], "no specialist to train for Taxi-v4"),
        (["train", "--tasks", "CartPole-v1", "--output", __file__], "test_collection.py: is a file, expected a folder"),
        (["collect", "--tasks", "Taxi-v4=10", "--episodes", "2"], "--episodes changes nothing: every task has its own"),
        (["collect", "--tasks", "Taxi-v4=10", "--steps", "2"], "--steps changes nothing: every task has its own steps"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, "--store", str(tmp_path / "s")]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1
    assert message in lines[0]


def test_a_foreign_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    assert cli.main(["collect", "--tasks", "Taxi-v4", "--store", str(tmp_path)]) == 2
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_a_store_below_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "letter.txt" / "store"
    store.parent.write_text("dear")
    assert cli.main(["collect", "--tasks", "Taxi-v4", "--store", str(store)]) == 2
    assert "what should be a folder of this path is a file" in capsys.readouterr().err


def test_seeds_are_not_negative(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("train", "collect", "play", "score"):
        with pytest.raises(SystemExit, match="2"):
            cli.main([verb, "--tasks", "CartPole-v1", "--store", "x", "--output", "x", "--seed", "-1"])
        assert "argument --seed: expected a number from 0 to 2147483647, got -1" in capsys.readouterr().err


def test_what_others_did_is_shown_beside_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--store", str(tmp_path / "s"), "--output", str(tmp_path), "--episodes", "3"]
    assert cli.main(["collect", *words, "--tasks", "CartPole-v1", "Taxi-v4", "CartPole-rgb-v1"]) == 2
    told = capsys.readouterr()
    assert "value-iteration-Taxi-v4" in told.out
    assert "error: no specialist of CartPole-v1 at " in told.err
    assert told.err.rstrip().endswith("(and 1 more failed)")
    words = ["--episodes", "3", "--agents", str(tmp_path), "--tasks", "CartPole-v1", "Taxi-v4"]
    assert cli.main(["score", *words, "--json"]) == 2
    told = capsys.readouterr()
    assert list(json.loads(told.out)) == ["Taxi-v4"]
    assert "error: no specialist of CartPole-v1 at " in told.err


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "--tasks", "CartPole-v1", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["observation"] == {"observation": "continuous[4]"}
    assert row["action"] == {"action": "discrete[]"}
    assert row["expert"].startswith("PPO")
    assert cli.main(["list"]) == 0
    assert "families: " in capsys.readouterr().out


def test_score_measures_and_adds_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "scores.json"
    words = ["score", "--output", str(output), "--episodes", "10"]
    assert cli.main([*words, "--tasks", "CliffWalking-v1"]) == 0
    assert cli.main([*words, "--tasks", "FrozenLake-v1", "--random-only"]) == 0
    kept = scores.load(output)
    assert set(kept) == {"CliffWalking-v1", "FrozenLake-v1"}
    cliff = kept["CliffWalking-v1"]
    assert (cliff.expert_return, cliff.expert_std, cliff.expert) == (-13.0, 0.0, "value-iteration-CliffWalking-v1")
    assert cliff.random_return < -500
    assert cliff.normalized(-13.0) == 100.0
    assert kept["FrozenLake-v1"].expert_return is None
    output.write_text("[1]")
    assert cli.main([*words, "--tasks", "FrozenLake-v1"]) == 2


@pytest.mark.parametrize("verb", ["score", "describe"])
def test_an_output_that_cannot_be_written_is_told_before_the_work(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("{}")
    words = [verb, "--tasks", "Taxi-v4", "--output"]
    assert cli.main([*words, str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"collectors: error: {tmp_path}: is a folder, expected a file\n"
    assert cli.main([*words, str(tmp_path / "file" / "x.json")]) == 2
    assert capsys.readouterr().err.endswith(f"{tmp_path / 'file'} is a file, expected a folder\n")


def test_descriptions_go_to_a_new_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["describe", "--tasks", "Taxi-v4", "--output", str(tmp_path / "new" / "spaces.json")]) == 0
    assert "1 tasks described" in capsys.readouterr().out


def test_nothing_to_score_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    taxi = scores.known()["Taxi-v4"]
    monkeypatch.setattr(scores, "known", lambda: {"Taxi-v4": taxi})
    corpus = "text/wikipedia-v0: nobody acts in a corpus, so it has no return to score"
    for words, message in (
        (["text/wikipedia-v0"], corpus),
        (["text/wikipedia-v0", "--known"], corpus),
        (["CliffWalking-v1", "--known"], "CliffWalking-v1: not scored yet, leave --known out to measure"),
    ):
        assert cli.main(["score", "--tasks", *words]) == 2
        assert capsys.readouterr().err == f"collectors: error: {message}\n"
    assert cli.main(["score", "--tasks", "Taxi-v4", "toy_text", "text/wikipedia-v0", "--known", "--json"]) == 0
    told = capsys.readouterr()
    assert list(json.loads(told.out)) == ["Taxi-v4"]
    assert corpus in told.err
    assert "Blackjack-v1, CliffWalking-v1, CliffWalkingSlippery-v1 and 2 more: not scored yet" in told.err


def test_known_scores_are_plausible() -> None:
    for task_id, score in scores.known().items():
        registry.get(task_id)
        if score.is_expert:
            assert score.expert_return is not None
            assert score.expert_return > score.random_return, task_id
    with pytest.raises(UserError, match="unknown task"):
        scores.get("no/Such-v0")


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("list", "train", "collect", "score"):
        with pytest.raises(SystemExit):
            cli.main([verb, "--help"])
        assert f"example:\n  collectors {verb} " in capsys.readouterr().out
