"""robomimic files: literal layouts, round trips, what is said of faulty ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from episode_store.cli import main
from episode_store.errors import UserError
from episode_store.formats import format as formats
from episode_store.formats import transfer
from episode_store.spec import ArraySpec, Modality
from episode_store.store import EpisodeStore
from episode_store.task import TaskSpec
from episode_store.testing import StoreContract, assert_episodes_equal, example_tasks, random_episode
from episode_store.writer import EpisodeWriter

ENV_ARGS = {"env_name": "Lift", "type": 1, "env_kwargs": {"robots": ["Panda"]}, "env_version": "1.4.1"}


class _Contract(StoreContract):
    __test__ = False


def make_file(path: Path) -> Path:
    """A small file as robosuite and robomimic write it."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        total = 0
        for number in range(3):
            steps = 4 + number
            total += steps
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = steps
            demo.attrs["model_file"] = "<mujoco>" + "x" * 100_000 + "</mujoco>"
            demo["actions"] = rng.uniform(-1, 1, (steps, 7))
            demo["rewards"] = np.arange(steps) == steps - 1
            demo["dones"] = (np.arange(steps) == (steps - 1 if number else -1)).astype(np.int64)
            demo["states"] = rng.normal(size=(steps, 5))
            for name, values in (
                ("robot0_eef_pos", rng.normal(size=(steps + 1, 3))),
                ("agentview_image", rng.integers(0, 256, (steps + 1, 20, 18, 3), np.uint8)),
            ):
                demo[f"obs/{name}"], demo[f"next_obs/{name}"] = values[:-1], values[1:]
        data.attrs["total"] = total
        data.attrs["env_args"] = json.dumps(ENV_ARGS)
        file["mask/train"] = np.array([b"demo_0", b"demo_2"])
        file["mask/valid"] = np.array([b"demo_1"])
        file["mask/20_percent"] = np.array([b"demo_2"])
    return path


def change(file: Path, edit: Callable[[Any], None]) -> None:
    """Edits the file."""
    with h5py.File(file, "a") as opened:
        edit(opened)


def put(file: Any, path: str, values: Any) -> None:
    """Replaces an array."""
    del file[path]
    file[path] = values


def findings(source: Path, severity: str = "error") -> list[str]:
    """What the doctor says."""
    return [finding.describe() for finding in transfer.examine(source)[1] if finding.severity == severity]


def test_a_file_is_read(tmp_path: Path) -> None:
    """Fields, final observations from next_obs, ends, states, masks, env_args, the simulator's XML."""
    source = make_file(tmp_path / "lift.hdf5")
    assert formats.detect_format(source) == "robomimic"
    importer = formats.open_importer("robomimic", source)
    (task,) = importer.tasks()
    assert task.task_id == "robomimic/Lift-v0"
    assert json.loads(task.env_spec_json) == {"file": "lift.hdf5", "env_args": ENV_ARGS}
    assert {name: (spec.modality.value, spec.dtype, spec.shape) for name, spec in task.observation_spec.items()} == {
        "agentview_image": ("image", "uint8", (20, 18, 3)),
        "robot0_eef_pos": ("continuous", "float64", (3,)),
    }
    episodes = list(importer.episodes())
    assert importer.findings() == []
    with h5py.File(source) as file:
        for number, episode in enumerate(episodes):
            episode.validate(task)
            demo = file[f"data/demo_{number}"]
            for name in task.observation_spec:
                np.testing.assert_array_equal(episode.observations[name][:-1], demo[f"obs/{name}"])
                np.testing.assert_array_equal(episode.observations[name][-1], demo[f"next_obs/{name}"][-1])
            np.testing.assert_array_equal(episode.actions["action"], demo["actions"])
            np.testing.assert_array_equal(episode.step_columns["states"], demo["states"])
            assert list(episode.step_columns) == ["states"]
            assert (episode.terminated, episode.truncated) == (number > 0, number == 0)
            assert len(episode.metadata.environment_config["model_file"]) == 100_017
            masks = {0: ["train"], 1: ["valid"], 2: ["20_percent", "train"]}[number]
            assert episode.metadata.environment_config["masks"] == masks
            side = "validation" if number == 1 else "train"
            assert episode.metadata.split_group == f"{side}/lift:demo_{number}"
    assert [loss.what for loss in importer.losses()] == [
        "bounds of observations and actions",
        "truncation",
        "seed, agent",
    ]
    assert findings(source) == []
    slim = formats.open_importer("robomimic", source, options={"model_file": "drop"})
    assert "model_file" not in next(iter(slim.episodes())).metadata.environment_config


def test_a_file_goes_there_and_back(tmp_path: Path) -> None:
    """robomimic's own arrays, masks and env_args through a store and out again."""
    source = make_file(tmp_path / "lift.hdf5")
    assert transfer.import_set(formats.open_importer("robomimic", source), source, tmp_path / "store").ok
    store = EpisodeStore.open(tmp_path / "store")
    result = formats.export_task("robomimic", store, "robomimic/Lift-v0", tmp_path / "out")
    assert result.destination.name == "robomimic--Lift-v0.hdf5"
    with h5py.File(source) as first, h5py.File(result.destination) as again:
        assert json.loads(again["data"].attrs["env_args"]) == ENV_ARGS
        assert again["data"].attrs["total"] == first["data"].attrs["total"] == 15
        for name in ("train", "valid", "20_percent"):
            assert again[f"mask/{name}"][()].tolist() == first[f"mask/{name}"][()].tolist()
        for number in range(3):
            left, right = first[f"data/demo_{number}"], again[f"data/demo_{number}"]
            assert right.attrs["num_samples"] == left.attrs["num_samples"]
            assert right.attrs["model_file"] == left.attrs["model_file"]
            for group in ("obs", "next_obs"):
                assert sorted(right[group]) == sorted(left[group])
            for name in ("actions", "rewards", "dones", "states", "obs/robot0_eef_pos", "next_obs/agentview_image"):
                np.testing.assert_array_equal(right[name], left[name])


def test_a_round_trip_loses_nothing(tmp_path: Path) -> None:
    """Texts, both end flags, several actions, step columns and provenance: the same ids again."""
    episodes = _Contract().fill(tmp_path / "store")
    store = EpisodeStore.open(tmp_path / "store")
    for task_id in ("Robot-v1", "grid/Example-v0"):
        result = formats.export_task("robomimic", store, task_id, tmp_path / "out")
        report = transfer.import_set(
            formats.open_importer("robomimic", result.destination), tmp_path, tmp_path / "back"
        )
        assert (report.losses, report.findings) == ([], [])
        assert findings(result.destination) == findings(result.destination, "warning") == []
    back = EpisodeStore.open(tmp_path / "back")
    for episode_id, episode in episodes.items():
        if episode.task_id in back.tasks:
            assert_episodes_equal(episode, back.read(episode_id))
    with pytest.raises(UserError, match="its actions are texts only; robomimic holds arrays of numbers"):
        formats.export_task("robomimic", store, "caption/example-v0", tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["Robot-v1.hdf5", "grid--Example-v0.hdf5"]
    with h5py.File(tmp_path / "out" / "grid--Example-v0.hdf5") as file:
        demo = file["data/demo_0"]
        assert (demo["actions"].dtype, demo["actions"].ndim) == (np.float64, 2)
        assert sorted(demo["obs"]) == ["image"]
        assert demo["dones"][-1] == json.loads(demo["episode_store"].asstr()[()])["terminated"]


def test_the_export_says_what_it_cannot_hold(tmp_path: Path) -> None:
    """Exact losses."""
    assert "Robot-v1" in example_tasks()
    task = TaskSpec(
        task_id="Mixed-v0",
        observation_spec={
            "state/x": ArraySpec(modality=Modality.CONTINUOUS, shape=(2,)),
            "text": ArraySpec(modality=Modality.TEXT, dtype="str"),
        },
        action_spec={
            "big": ArraySpec(modality=Modality.CONTINUOUS, dtype="int64"),
            "move": ArraySpec(modality=Modality.CONTINUOUS, shape=(2,)),
        },
        env_spec_json='{"id": "Mixed-v0", "kwargs": {"a": 1}, "wrappers": ["w"]}',
    )
    episode = random_episode(task, np.random.default_rng(1), 3)
    episode.actions["big"][0] = (1 << 53) + 1
    with EpisodeWriter(tmp_path / "store") as writer:
        writer.add_task(task)
        writer.add_episode(episode)
    result = formats.export_task("robomimic", EpisodeStore.open(tmp_path / "store"), "Mixed-v0", tmp_path / "out")
    lost = [loss.what for loss in result.losses]
    assert lost == [
        "observation text: text",
        "action big: int64",
        "action big: digits",
        "action move: float32",
        "names of actions",
        *(["truncation"] if episode.truncated else []),
        "wrappers of the environment",
        "agent, seed, provenance",
    ]
    with h5py.File(result.destination) as file:
        assert json.loads(file["data"].attrs["env_args"]) == {"env_name": "Mixed-v0", "type": 2, "env_kwargs": {"a": 1}}
        assert file["data/demo_0/actions"].shape == (3, 3)
        assert sorted(file["data/demo_0/obs"]) == ["state_x"]
    importer = formats.open_importer("robomimic", result.destination)
    assert len(list(importer.episodes())) == 1
    assert [loss.what for loss in importer.losses()] == ["content hash"]


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda file: put(file, "data/demo_1/actions", np.full((5, 7), np.nan)), "a finite number, got nan"),
        (lambda file: put(file, "data/demo_1/actions", np.zeros((4, 7))), "5 rewards for 4 actions"),
        (lambda file: put(file, "data/demo_1/dones", np.zeros(3)), "3 dones for 5 actions"),
        (lambda file: put(file, "data/demo_1/obs/robot0_eef_pos", np.zeros((4, 3))), "4 observations for 5 actions"),
        (lambda file: put(file, "data/demo_1/next_obs/robot0_eef_pos", np.zeros((5, 2))), "expected as obs/robot0"),
        (lambda file: file.__delitem__("data/demo_1/actions"), "has no actions"),
        (lambda file: file.__delitem__("data/demo_1/obs/robot0_eef_pos"), "expected fields"),
        (lambda file: file.__delitem__("data/demo_1"), "names 1 demos that are not there, for example demo_1"),
        (lambda file: put(file, "mask/valid", np.array([b"demo_2"])), "1 demos are in both, for example demo_2"),
        (lambda file: file["data"].attrs.__setitem__("total", 99), "total says 99 steps, the demos have 15"),
        (lambda file: file["data/demo_1"].attrs.__setitem__("num_samples", 9), "says num_samples 9, it has 5 actions"),
        (lambda file: put(file, "data/demo_1/states", h5py.ExternalLink("/etc/passwd", "/")), "a link"),
    ],
)
def test_the_doctor_names_what_is_wrong(tmp_path: Path, edit: Callable[[Any], None], expected: str) -> None:
    """Each fault is an error that names the demo; the others are imported."""
    source = make_file(tmp_path / "lift.hdf5")
    change(source, edit)
    errors = findings(source)
    assert any(expected in error for error in errors), errors
    assert main(["doctor", "--source", str(source), "--json"]) == 1
    report = transfer.import_set(formats.open_importer("robomimic", source), source, tmp_path / "store")
    assert report.num_added >= 2


def test_the_doctor_on_milder_things(tmp_path: Path) -> None:
    """No next_obs, dones at every state of success, no rewards, doubled demos, no env_args: warnings."""
    source = make_file(tmp_path / "lift.hdf5")

    def edit(file: Any) -> None:
        del file["data/demo_0/next_obs"], file["data/demo_0/rewards"], file["data"].attrs["env_args"]
        put(file, "data/demo_1/dones", np.array([0, 0, 1, 1, 1]))
        file.copy("data/demo_2", "data/demo_7")
        file["data"].attrs["total"] = 21
        put(file, "data/demo_2/next_obs/robot0_eef_pos", np.zeros((6, 3)))

    change(source, edit)
    assert findings(source) == []
    warnings = findings(source, "warning")
    for expected in (
        "final observation (2): no next_obs",
        "rewards (1): the demo has none",
        "dones before the last step (1)",
        "next_obs of robot0_eef_pos (1)",
        "has no env_args",
    ):
        assert any(expected in warning for warning in warnings), (expected, warnings)
    assert any("the numbers have gaps" in note for note in findings(source, "note"))
    (_, second, *_) = formats.open_importer("robomimic", source).episodes()
    assert second.step_columns["dones"].tolist() == [0, 0, 1, 1, 1]
    assert second.terminated


def test_cut_and_flipped_files_never_crash(tmp_path: Path) -> None:
    """A cut file is an error; HDF5 has no checksums here, so not each flip can be noticed, but none does more harm."""
    source = make_file(tmp_path / "lift.hdf5")
    data = source.read_bytes()
    for share in (0.1, 0.5, 0.99):
        source.write_bytes(data[: int(len(data) * share)])
        assert any(finding.severity == "error" for finding in transfer.examine(source, "robomimic")[1])
    rng = np.random.default_rng(0)
    for _ in range(40):
        changed = bytearray(data)
        changed[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        source.write_bytes(changed)
        transfer.examine(source, "robomimic")
    source.write_bytes(b"")
    assert not formats.load_module("robomimic").detect(source)
