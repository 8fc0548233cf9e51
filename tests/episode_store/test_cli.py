"""The command line: what it prints, its JSON, its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from episode_store.cli import main
from episode_store.testing import StoreContract


class _Contract(StoreContract):
    __test__ = False


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Twelve episodes of three tasks."""
    _Contract().fill(tmp_path / "store")
    return tmp_path / "store"


def test_list(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line a task; patterns; JSON."""
    assert main(["list", "--store", str(store)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["task", "episodes", "steps", "mean", "return", "min", "max", "MB", "agents"]
    assert [line.split()[:2] for line in lines[1:4]] == [
        ["Robot-v1", "4"],
        ["caption/example-v0", "4"],
        ["grid/Example-v0", "4"],
    ]
    assert lines[4].startswith("12 episodes in 3 tasks")
    assert main(["list", "--store", str(store), "--tasks", "*/*", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [task["task_id"] for task in result["tasks"]] == ["caption/example-v0", "grid/Example-v0"]
    assert result["tasks"][0]["episodes"] == 4
    assert result["tasks"][0]["licence"] == "CC-BY-4.0"


def test_show(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Specs and first episodes; one episode by the beginning of its id."""
    assert main(["show", "--store", str(store), "--tasks", "Robot-v1", "--episodes", "2"]) == 0
    text = capsys.readouterr().out
    assert "observation state/position: continuous float64 (3,)" in text
    assert "action action: continuous float32 (2,) low=[-1.0, -2.0] high=[1.0, 2.0]" in text
    assert main(["show", "--store", str(store), "--tasks", "Robot-v1", "--episodes", "2", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert len(result["episodes"]) == 2
    episode_id = result["episodes"][0]["episode_id"]
    assert main(["show", "--store", str(store), "--episode", episode_id[:10], "--json"]) == 0
    episode = json.loads(capsys.readouterr().out)
    assert episode["episode_id"] == episode_id
    steps = episode["num_steps"]
    assert episode["columns"]["observations/state/position"]["shape"] == [steps + 1, 3]
    assert episode["columns"]["actions/action"]["shape"] == [steps, 2]
    assert main(["show", "--store", str(store), "--episode", episode_id]) == 0
    assert f"episode_id: {episode_id}" in capsys.readouterr().out


def test_verify(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0 when all is well; 1 and the names of what is not."""
    assert main(["verify", "--store", str(store), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["num_episodes"], report["damages"]) == (True, 12, [])
    (data,) = (store / "segments").glob("*.data")
    content = bytearray(data.read_bytes())
    content[-70] ^= 1
    data.write_bytes(content)
    assert main(["verify", "--store", str(store), "--json"]) == 1
    (damage,) = json.loads(capsys.readouterr().out)["damages"]
    assert damage["file"] == f"segments/{data.name}"
    assert len(damage["episode_id"]) == 32
    assert main(["verify", "--store", str(store)]) == 1
    assert f"DAMAGED segments/{data.name}: episode {damage['episode_id']}" in capsys.readouterr().out
    others = ["Robot-v1", "caption/example-v0", "grid/Example-v0"]
    others.remove(damage["task_id"])
    assert main(["verify", "--store", str(store), "--tasks", *others]) == 0


@pytest.mark.parametrize("verb", ["list", "show", "verify"])
def test_mistakes_are_one_line_and_exit_code_2(verb: str, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Missing store, foreign folder, unknown task."""
    for arguments, text in (
        (["--store", str(store / "missing")], "no such folder"),
        (["--store", str(store / "segments")], "is not an episode store"),
        (["--store", str(store), "--tasks", "Robot-v2"], "did you mean 'Robot-v1'?"),
    ):
        assert main([verb, *arguments]) == 2
        error = capsys.readouterr().err
        assert text in error
        assert error.count("\n") == 1


def test_help_teaches_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    """Every verb has one."""
    for verb in ("list", "show", "verify"):
        with pytest.raises(SystemExit) as caught:
            main([verb, "--help"])
        assert caught.value.code == 0
        assert f"python -m episode_store {verb} --store" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main(["list", "--stor", "x"])
    assert caught.value.code == 2
    assert "required: --store" in capsys.readouterr().err
