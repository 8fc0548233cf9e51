"""The command line, called as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from beam_jobs.cli import main


@pytest.fixture
def arguments(store_path: Path, text_model: Path, tmp_path: Path) -> list[str]:
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps({"Swing-v1": {"random_return": -1000.0}, "toy/Picture-v0": {"random_return": 0}}))
    return [
        "build-shards", "--store", str(store_path), "--text-model", str(text_model), "--scores", str(scores),
        "--output", str(tmp_path / "shards"),
    ]  # fmt: skip


def test_build_again_and_report(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["task", "episodes", "kept", "dead", "steps", "tokens", "targets", "shards", "MB"]
    assert out[1].split()[:7] == ["Swing-v1", "40", "10", "0", "100", "500", "100"]
    assert "masked in dialogue/chat-v0: 1 x mail address, 1 x telephone number" in out
    assert out[-1].startswith(f"shards in {tmp_path / 'shards'}, ")

    assert main(arguments) == 0
    assert "finished before with the same input and settings; nothing to do" in capsys.readouterr().out

    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["built"], result["format"]) == (False, "gato-shards-v3")

    shards = ["filter-report", "--shards", str(tmp_path / "shards")]
    assert main(shards) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Swing-v1"))
    assert line.split()[:12] == [
        "Swing-v1", "normalized", "40", "0", "0", "10", "4/4", "-1000", "-250", "-400", "-1000", "-220",
    ]  # fmt: skip
    assert main([*shards, "--json", "--tasks", "toy/*"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert (report["task_id"], report["num_episodes"], report["num_kept"]) == ("toy/Picture-v0", 20, 20)
    assert main([*shards, "--tasks", "Swing-v2"]) == 2
    assert "did you mean Swing-v1?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tasks", "Swing-v2"], "did you mean 'Swing-v1'?"),
        (["--runner=DaskRunner"], "DaskRunner is not offered"),
        (["--filter", "paper"], "task Swing-v1: the paper filter would drop all 40 episodes"),
        (["--sed", "3"], "--sed: no such flag; did you mean --seed?"),
        (["--scores", "/nowhere/scores.json"], "/nowhere/scores.json: no such file"),
        (["--text-model", "/nowhere/text.model"], "/nowhere/text.model"),
        (["--store", "/nowhere/store"], "/nowhere/store"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(
    arguments: list[str], more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, *more]) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert message in err[-1]
    assert len(err) == 1


def test_report_of_an_unfinished_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["filter-report", "--shards", str(tmp_path)]) == 2
    assert "expected a folder of finished shards with dataset.json, got none" in capsys.readouterr().err
