"""The JAT dataset's Parquet layout."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from episode_store.errors import UserError
from episode_store.formats import format as formats
from episode_store.formats import transfer
from episode_store.spec import Modality
from episode_store.store import EpisodeStore


def png(frame: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def write(folder: Path, rows: list[dict[str, Any]], name: str = "train-00000-of-00001.parquet") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / name)
    return folder


def run(source: Path, tmp_path: Path, **kwargs: Any) -> tuple[EpisodeStore, transfer.ImportReport]:
    report = transfer.import_set(formats.open_importer("jat", source, **kwargs), source, tmp_path / "store")
    return EpisodeStore.open(tmp_path / "store"), report


def test_three_kinds_of_tasks(tmp_path: Path) -> None:
    """Atari's images, BabyAI's text and numbers, MuJoCo's floats, each in a folder of the set."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 4, 5, 4), dtype=np.uint8)
    atari = {
        "image_observations": [png(frame) for frame in frames],
        "discrete_actions": [0, 17, 3],
        "rewards": [0.0, 1, 0],
    }
    write(tmp_path / "jat" / "atari-alien", [atari])
    babyai = {
        "text_observations": ["go to é", "go"],
        "discrete_observations": [[1, 2, 3], [4, 5, 6]],
        "discrete_actions": [6, 1],
        "rewards": [0.5, 0.25],
    }
    write(tmp_path / "jat" / "babyai-goto", [babyai])
    write(tmp_path / "jat" / "babyai-goto", [babyai | {"rewards": [1.0, 2]}], "test-00000-of-00001.parquet")
    ant = {"continuous_observations": [[0.5, 1], [2, 3]], "continuous_actions": [[1.0], [-1]], "rewards": [3.0, 4]}
    write(tmp_path / "jat" / "mujoco-ant", [ant])
    write(tmp_path / "jat" / "oscar", [{"text": "words"}])
    assert formats.detect_format(tmp_path / "jat") == "jat"
    store, report = run(tmp_path / "jat", tmp_path)
    assert report.num_added == 4
    assert report.tasks == ["jat/atari-alien-v0", "jat/babyai-goto-v0", "jat/mujoco-ant-v0"]
    assert [(finding.severity, finding.where) for finding in report.findings] == [("warning", "oscar")]
    assert {loss.what: loss.count for loss in report.losses} == {
        "bounds, seed, agent, environment": 3,
        "final observation": 4,
        "end of the episode": 4,
        "discrete_actions: number of values": 3,
        "discrete_observations: number of values": 2,
    }

    def read(task: str, index: int = 0) -> Any:
        return store.read(store.table(f"jat/{task}-v0")["episode_id"][index].as_py())

    episode = read("atari-alien")
    assert (episode.observations["observation"] == np.concatenate([frames, frames[-1:]])).all()
    assert episode.actions["action"].tolist() == [0, 17, 3]
    assert store.tasks["jat/atari-alien-v0"].action_spec["action"].num_values == (18,)
    assert (episode.rewards.tolist(), episode.terminated, episode.truncated) == ([0, 1, 0], False, True)
    by_reward = {read("babyai-goto", index).rewards[0]: read("babyai-goto", index) for index in range(2)}
    assert by_reward[0.5].observations["text"] == ["go to é", "go", "go"]
    assert by_reward[0.5].observations["discrete"].tolist() == [[1, 2, 3], [4, 5, 6], [4, 5, 6]]
    assert by_reward[0.5].metadata.split_group.startswith("train/")
    assert by_reward[1.0].metadata.split_group.startswith("validation/")
    specs = store.tasks["jat/babyai-goto-v0"].observation_spec
    assert (specs["discrete"].modality, specs["discrete"].num_values) == (Modality.DISCRETE, (7, 7, 7))
    episode = read("mujoco-ant")
    assert episode.observations["observation"].tolist() == [[0.5, 1], [2, 3], [2, 3]]
    assert episode.actions["action"].dtype == np.float32


def test_columns_that_are_null_are_not_fields(tmp_path: Path) -> None:
    """The whole set has every column in every folder."""
    row = {"continuous_observations": [[1.0]], "discrete_actions": [2], "rewards": [1.0], "text_observations": None}
    store, _ = run(write(tmp_path / "toy-task", [row]), tmp_path, task_id="Toy-v3")
    assert list(store.tasks["Toy-v3"].observation_spec) == ["observation"]


def test_damaged_rows_and_files_are_named(tmp_path: Path) -> None:
    good = {"continuous_observations": [[1.0], [2.0]], "discrete_actions": [1, 0], "rewards": [1.0, 2.0]}
    rows = [
        good,
        good | {"discrete_actions": [1]},
        good | {"continuous_observations": [[1.0], [2.0, 3.0]]},
        good | {"rewards": [1.0, float("nan")]},
    ]
    folder = write(tmp_path / "toy", rows, "train-00000-of-00002.parquet")
    write(folder, [good | {"rewards": [9.0, 9.0]}], "train-00001-of-00002.parquet")
    second = folder / "train-00001-of-00002.parquet"
    second.write_bytes(second.read_bytes()[:-20])
    name, findings = transfer.examine(folder)
    assert name == "jat"
    where = [(finding.where, finding.what) for finding in findings if finding.severity == "error"]
    assert where[:2] == [
        ("toy/train-00000-of-00002.parquet row 1", "discrete_actions: 1 steps, rewards have 2"),
        ("toy/train-00000-of-00002.parquet row 2", "steps of different lengths"),
    ]
    assert where[2][0] == "toy/train-00001-of-00002.parquet"
    assert where[2][1].startswith("cannot be read after row 0: ")
    assert where[3][0] == "toy/train-00000-of-00002.parquet row 3"
    assert "rewards: step 1: expected a finite number, got nan" in where[3][1]
    assert len(where) == 4


def test_numbers_that_are_no_choices(tmp_path: Path) -> None:
    row = {"continuous_observations": [[1.0]], "discrete_actions": [2**63 - 1], "rewards": [1.0]}
    with pytest.raises(UserError, match="discrete_actions: values from 0 to 9223372036854775807 are no choices"):
        formats.open_importer("jat", write(tmp_path / "toy", [row]))


def test_one_task_id_for_many_tasks_is_a_mistake(tmp_path: Path) -> None:
    row = {"continuous_observations": [[1.0]], "discrete_actions": [2], "rewards": [1.0]}
    for name in ("a", "b"):
        write(tmp_path / "jat" / name, [row])
    with pytest.raises(UserError, match=r"--task-id names one task, .* holds 2"):
        formats.open_importer("jat", tmp_path / "jat", task_id="One-v0")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="no Parquet files with actions and rewards"):
        formats.open_importer("jat", tmp_path / "none")


def test_changed_bytes_never_crash(tmp_path: Path) -> None:
    """An error or, since Parquet need not have checksums, nothing; the doctor says so."""
    row = {
        "image_observations": [png(np.zeros((4, 5, 3), np.uint8))] * 2,
        "discrete_actions": [1, 0],
        "rewards": [1.0, 2],
    }
    folder = write(tmp_path / "toy", [row])
    (file,) = folder.iterdir()
    good = file.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(good)
        place = int(rng.integers(len(changed)))
        changed[place : place + 4] = rng.bytes(4)
        file.write_bytes(changed)
        _, findings = transfer.examine(folder, "jat")
        assert "a changed bit may go unnoticed" in findings[-1].what
