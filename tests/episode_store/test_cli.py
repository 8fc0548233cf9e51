"""The command line: what it prints, its JSON, its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from episode_store.cli import main
from episode_store.spec import ArraySpec, Modality
from episode_store.task import TaskSpec
from episode_store.testing import StoreContract, random_episode
from episode_store.writer import EpisodeWriter


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
    assert [line.split()[:2] for line in lines[1:5]] == [
        ["Album-v0", "3"],
        ["Robot-v1", "3"],
        ["caption/example-v0", "3"],
        ["grid/Example-v0", "3"],
    ]
    assert lines[5].startswith("12 episodes in 4 tasks")
    assert main(["list", "--store", str(store), "--tasks", "*/*", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [task["task_id"] for task in result["tasks"]] == ["caption/example-v0", "grid/Example-v0"]
    assert result["tasks"][0]["episodes"] == 3
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
    others = ["Album-v0", "Robot-v1", "caption/example-v0", "grid/Example-v0"]
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


def run(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> dict:
    """Runs a verb with --json."""
    assert main([*(str(argument) for argument in arguments), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_query_prints_rows(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a table and as JSON."""
    command = ["query", "--store", str(store), "--where", "task_id == 'Robot-v1'", "--sort=-num_steps", "--limit", "2"]
    assert main([*command, "--columns", "num_steps", "seed"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["num_steps", "seed"]
    assert lines[-1] == "2 of 12 episodes"
    assert int(lines[1].split()[0]) >= int(lines[2].split()[0])
    result = run(capsys, *command)
    assert [row["task_id"] for row in result["rows"]] == ["Robot-v1", "Robot-v1"]
    assert main(["query", "--store", str(store), "--where", "import os"]) == 2
    assert "cannot be understood" in capsys.readouterr().err


def test_stats_by_agent_and_by_field(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Groups, and ranges of fields, against the table."""
    result = run(capsys, "stats", "--store", store, "--by", "task_id", "agent_id", "--fields", "--tasks", "Robot-v1")
    assert sum(group["episodes"] for group in result["groups"]) == 3
    assert {group["agent_id"] for group in result["groups"]} == {"agent0", "agent1"}
    group = result["groups"][0]
    assert group["return"]["min"] <= group["return"]["median"] <= group["return"]["max"]
    assert (group["success_rate"], group["success_known"]) == (None, 0)
    fields = result["fields"]["Robot-v1"]
    assert -2 <= fields["actions/action"]["min"] <= fields["actions/action"]["mean"] <= fields["actions/action"]["max"]
    assert {"rewards", "observations/state/flags", "actions/action"} <= set(fields)
    assert main(["stats", "--store", str(store), "--fields", "--episodes", "1"]) == 0
    text = capsys.readouterr().out
    assert "mean return" in text
    assert "observations/mission" in text


def test_stats_tell_lossy_columns(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Which, of which quality, in how many episodes; nothing where all is as it was given."""
    assert run(capsys, "stats", "--store", store)["lossy_columns"] == {}
    task = TaskSpec(
        task_id="Camera-v0",
        observation_spec={"image": ArraySpec(modality=Modality.IMAGE, shape=(16, 16, 3), dtype="uint8")},
        action_spec={},
    )
    rng = np.random.default_rng(0)
    for quality in (None, 60, 80):
        with EpisodeWriter(tmp_path / "camera", lossy_images=quality) as writer:
            writer.add_task(task)
            writer.add_episode(random_episode(task, rng, 4))
    expected = {"episodes": 2, "min_quality": 60, "max_quality": 80}
    result = run(capsys, "stats", "--store", tmp_path / "camera")
    assert result["lossy_columns"] == {"Camera-v0": {"observations/image": expected}}
    assert main(["stats", "--store", str(tmp_path / "camera")]) == 0
    line = "Camera-v0: observations/image: lossy WebP of quality 60 to 80 in 2 of 3 episodes, as their writer was asked"
    assert line in capsys.readouterr().out.splitlines()
    (column,) = run(capsys, "stats", "--store", tmp_path / "camera", "--episodes", 2)["lossy_columns"].values()
    assert column["observations/image"]["episodes"] in (1, 2)


def test_delete_list_restore_compact(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A store's life by the command line."""
    where = ["--where", "task_id == 'Robot-v1'"]
    assert run(capsys, "delete", "--store", store, *where, "--dry-run")["version"] is None
    assert run(capsys, "delete", "--store", store, *where, "--note", "bad")["version"] == 1
    assert main(["list", "--store", str(store)]) == 0
    text = capsys.readouterr().out
    assert "9 episodes in 4 tasks" in text
    assert "delete" in text
    assert "note=bad" in text
    result = run(capsys, "list", "--store", store, "--version", "0")
    assert sum(task["episodes"] for task in result["tasks"]) == 12
    assert [version["operation"] for version in result["versions"]] == ["delete"]
    assert run(capsys, "restore", "--store", store, "--version", 0)["kept"] == 12
    assert main(["delete", "--store", str(store), *where]) == 0
    assert "version 3: 3 episodes out, 9 left" in capsys.readouterr().out
    assert run(capsys, "compact", "--store", store, "--dry-run")["gone"] == ["0", "1", "2", "3"]
    assert main(["compact", "--store", str(store)]) == 0
    assert "3 records out" in capsys.readouterr().out
    assert main(["list", "--store", str(store), "--version", "0"]) == 2
    assert "went when the store was compacted" in capsys.readouterr().err


def test_filter_split_merge(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Views, stores of parts, and parts joined again."""
    assert run(capsys, "filter", "--store", store, "--where", "num_steps > 0", "--name", "all")["kept"] == 12
    parts = ["--parts", "train=0.5", "validation=0.5"]
    result = run(capsys, "split", "--store", store, *parts, "--output", tmp_path / "parts")
    assert sum(part["kept"] for part in result["parts"]) == 12
    assert main(["split", "--store", str(store), *parts, "--dry-run"]) == 0
    assert "train: would be" in capsys.readouterr().out
    report = run(capsys, "merge", "--store", tmp_path / "joined", "--sources", *result["stores"])
    assert report["episodes"] == 12
    assert main(["merge", "--store", str(tmp_path / "joined"), "--sources", str(store)]) == 0
    assert "12 duplicates left out" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["split", "--store", str(store), "--parts", "train"])
    assert "expected NAME=SHARE" in capsys.readouterr().err


def test_repair_says_what_is_lost(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1 with losses; 0 when all could be made again."""
    (seal,) = (store / "segments").glob("*.seal")
    seal.unlink()
    assert main(["repair", "--store", str(store)]) == 0
    assert "repaired: " in capsys.readouterr().out
    (data,) = (store / "segments").glob("*.data")
    data.write_bytes(data.read_bytes()[:-100])
    told = run(capsys, "repair", "--store", store, "--dry-run", code=1)
    assert len(told["lost"]) == 1
    assert main(["repair", "--store", str(store)]) == 1
    assert "LOST segments/" in capsys.readouterr().out
    assert run(capsys, "verify", "--store", store)["ok"]


@pytest.mark.parametrize(
    "verb", ["stats", "query", "filter", "delete", "restore", "merge", "split", "repair", "compact"]
)
def test_each_verb_teaches_and_tells_a_missing_store(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An example in the help; one line and exit code 2."""
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    assert f"python -m episode_store {verb} --store" in capsys.readouterr().out
    needed = {
        "filter": ["--where", "truncated"],
        "delete": ["--where", "truncated"],
        "restore": ["--version", "0"],
        "merge": ["--sources", str(tmp_path / "other")],
        "split": ["--parts", "a=0.5", "b=0.5"],
    }
    assert main([verb, "--store", str(tmp_path / "missing"), *needed.get(verb, [])]) == 2
    error = capsys.readouterr().err
    assert "no such folder" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "missing").exists()


VERBS = (
    *("list", "show", "stats", "query", "verify", "repair", "doctor", "import", "export", "merge", "split", "delete"),
    *("compact", "replay", "view"),
)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_json_and_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And a mistake costs one line and exit code 2."""
    with pytest.raises(SystemExit) as done:
        main([verb, "--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    assert "--json" in text
    assert f"example:\n  python -m episode_store {verb} " in text
    with pytest.raises(SystemExit) as done:
        main([verb, "--no-such-flag"])
    assert done.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_results_are_json_alone_and_progress_is_not_among_them(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of every verb that ends by itself: one JSON document on standard output, nothing on standard error."""
    folder = str(store)
    commands = [
        ["list"],
        ["show"],
        ["stats", "--fields"],
        ["query", "--where", "num_steps > 1"],
        ["verify"],
        ["repair", "--dry-run"],
        ["doctor"],
        ["export", "--to", "rlds", "--tasks", "Robot-v1", "--output", str(tmp_path / "rlds")],
        ["split", "--parts", "train=0.5", "test=0.5", "--dry-run"],
        ["delete", "--where", "num_steps > 1", "--dry-run"],
        ["compact", "--dry-run"],
        ["view", "--output", str(tmp_path / "page.html")],
    ]
    for verb, *flags in commands:
        assert main([verb, "--store", folder, *flags, "--json"]) == 0, verb
        output = capsys.readouterr()
        json.loads(output.out)
        assert output.err == "", verb
    (source,) = (tmp_path / "rlds").glob("*/*/")
    other = str(tmp_path / "other")
    for arguments in (
        ["merge", "--store", other, "--sources", folder],
        ["import", "--source", str(source), "--store", other, "--task-id", "rlds/Robot-v1"],
        ["doctor", "--source", str(source)],
    ):
        assert main([*arguments, "--json"]) == 0, arguments
        output = capsys.readouterr()
        json.loads(output.out)
        assert output.err == "", arguments


def test_long_work_shows_how_far_it_is(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb, *flags in (
        ["verify"],
        ["doctor"],
        ["stats", "--fields"],
        ["merge", "--sources", str(store)],
        ["export", "--to", "rlds", "--tasks", "Robot-v1", "--output", str(tmp_path / "rlds")],
        ["view", "--output", str(tmp_path / "page.html")],
    ):
        assert main([verb, "--store", str(tmp_path / "other" if verb == "merge" else store), *flags]) == 0
        assert "100%" in capsys.readouterr().err, verb
