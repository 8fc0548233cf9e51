import json
from pathlib import Path

import numpy as np
import pytest

from episode_store.spec import ArraySpec, Modality
from episode_store.task import TaskSpec
from episode_store.testing import random_episode
from episode_store.writer import EpisodeWriter
from tokenization.cli import main
from tokenization.text import TextTokenizer

TEXT = ArraySpec(modality=Modality.TEXT, dtype="str")
CHAT = TaskSpec(task_id="dialogue/chat-v0", observation_spec={"text": TEXT}, action_spec={"text": TEXT})
WALK = TaskSpec(
    task_id="Walk-v0",
    observation_spec={"state": ArraySpec(modality=Modality.CONTINUOUS, shape=(2,))},
    action_spec={"action": ArraySpec(modality=Modality.DISCRETE, shape=(), dtype="int64", num_values=(3,))},
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "store"
    rng = np.random.default_rng(0)
    with EpisodeWriter(path) as writer:
        for task in (CHAT, WALK):
            writer.add_task(task)
            writer.add_episode(random_episode(task, rng, 4))
    return path


def test_show(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "--store", str(store), "--tasks", "Walk-v0", "--steps", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "4 timesteps, 16 tokens, 4 targets, 0 image patches" in lines[0]
    assert lines[1].split() == ["position", "timestep", "id", "local", "target", "meaning"]
    assert "observation/state[0] ~" in lines[2]
    assert lines[4].split() == ["2", "0", "33024", "2", "none", "separator"]
    assert "action = " in lines[5]
    assert lines[6] == "... 12 more tokens; leave out --steps to see them"


def test_show_as_json(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "--store", str(store), "--tasks", "Walk-v0", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert len(shown["tokens"]) == shown["num_tokens"] == 16
    assert main(["show", "--store", str(store), "--episode", shown["episode_id"][:12], "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == shown


def test_train_text_and_show_text(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "text.model"
    assert main(["train-text", "--store", str(store), "--output", str(model), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["tasks"] == ["dialogue/chat-v0"]
    assert result["sha256"] == TextTokenizer.load(model).model_sha256
    arguments = ["show", "--store", str(store), "--tasks", "dialogue/*", "--text-model", str(model)]
    assert main(arguments) == 0
    assert "action/text end of text" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "--tasks", "dialogue/*"], "task dialogue/chat-v0 has text: give the model with --text-model"),
        (["show", "--tasks", "Wlak-v0"], "Walk-v0"),
        (["show", "--episode", "zzz"], "zzz"),
        (["show", "--tasks", "dialogue/*", "--text-model", "/nowhere/x.model"], "/nowhere/x.model: no such file"),
        (["train-text", "--tasks", "Walk-v0", "--output", "x.model"], "expected tasks with text fields, got none"),
    ],
)
def test_mistakes_are_told_in_one_line(
    store: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([*arguments, "--store", str(store)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_missing_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "--store", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
