"""The real LeRobot reads what we export, and we read what it wrote: pictures as PNG and as video."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from episode_store.formats import format as formats
from episode_store.formats import transfer
from episode_store.spec import ArraySpec, Modality
from episode_store.store import EpisodeStore
from episode_store.task import TaskSpec
from episode_store.testing import random_episode
from episode_store.writer import EpisodeWriter

pytestmark = pytest.mark.peers_lerobot


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub, and no cache outside the test."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


ROBOT = TaskSpec(
    task_id="arm/Lift-v2",
    observation_spec={
        "images/wrist": ArraySpec(modality=Modality.IMAGE, shape=(40, 36, 3), dtype="uint8"),
        "images/mono": ArraySpec(modality=Modality.IMAGE, shape=(20, 24, 1), dtype="uint8"),
        "state": ArraySpec(modality=Modality.CONTINUOUS, shape=(3,), dtype="float32"),
        "precise": ArraySpec(modality=Modality.CONTINUOUS, shape=(2, 3), dtype="float64"),
        "count": ArraySpec(modality=Modality.CONTINUOUS, shape=(), dtype="uint16"),
        "flags": ArraySpec(modality=Modality.DISCRETE, shape=(2,), dtype="bool", num_values=(2, 2)),
        "note": ArraySpec(modality=Modality.TEXT, dtype="str"),
    },
    action_spec={
        "action": ArraySpec(modality=Modality.CONTINUOUS, shape=(2,), low=(-1.0, -1.0), high=(1.0, 1.0)),
        "grip": ArraySpec(modality=Modality.DISCRETE, dtype="int64", num_values=(3,)),
    },
)


def _fill(path: Path) -> EpisodeStore:
    rng = np.random.default_rng(0)
    with EpisodeWriter(path) as writer:
        writer.add_task(ROBOT)
        for steps in (5, 1, 12):
            writer.add_episode(random_episode(ROBOT, rng, steps, exploratory=True))
    return EpisodeStore.open(path)


def test_lerobot_reads_our_export(tmp_path: Path) -> None:
    """Every field of every frame through LeRobotDataset, with windows over time, tasks and statistics."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    store = _fill(tmp_path / "store")
    result = formats.export_task("lerobot", store, ROBOT.task_id, tmp_path / "out", options={"fps": "10"})
    dataset = LeRobotDataset("our/set", root=result.destination)
    assert (dataset.num_episodes, dataset.num_frames, dataset.fps) == (3, 18, 10)
    ids = store.table()["episode_id"].to_pylist()
    frame = 0
    for index, episode_id in enumerate(ids):
        episode = store.read(episode_id)
        for step in range(episode.num_steps):
            item = dataset[frame]
            assert (int(item["episode_index"]), int(item["frame_index"]), int(item["index"])) == (index, step, frame)
            assert float(item["timestamp"]) == pytest.approx(step / 10)
            assert item["task"] == ROBOT.task_id
            for name in ("images/wrist", "images/mono"):
                pixels = np.rint(item[f"observation.{name.replace('/', '.')}"].numpy() * 255).astype(np.uint8)
                np.testing.assert_array_equal(pixels.transpose(1, 2, 0), episode.observations[name][step])
            for name in ("state", "precise", "count", "flags"):
                value = episode.observations[name][step]
                # The file has float64; torch.tensor of Python's floats makes float32 of it.
                expected = value.astype(np.float32) if value.dtype == np.float64 else value
                np.testing.assert_array_equal(np.asarray(item[f"observation.{name}"]).reshape(value.shape), expected)
            assert item["observation.note"] == episode.observations["note"][step]
            np.testing.assert_array_equal(item["action"].numpy(), episode.actions["action"][step])
            assert int(item["action.grip"]) == episode.actions["grip"][step]
            assert float(item["next.reward"]) == np.float32(episode.rewards[step])
            assert bool(item["next.done"]) == (step == episode.num_steps - 1)
            assert bool(item["next.truncated"]) == (step == episode.num_steps - 1 and episode.truncated)
            assert bool(item["step.exploratory"]) == episode.step_columns["exploratory"][step]
            frame += 1
    stats = dataset.meta.stats
    state = np.concatenate([store.read(episode_id).observations["state"][:-1] for episode_id in ids])
    np.testing.assert_allclose(stats["observation.state"]["mean"], state.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["observation.state"]["std"], state.std(0), rtol=1e-5)
    np.testing.assert_array_equal(stats["observation.state"]["max"], state.max(0))
    assert stats["observation.images.wrist"]["mean"].shape == (3, 1, 1)
    windows = LeRobotDataset("our/set", root=result.destination, delta_timestamps={"observation.state": [-0.1, 0.0]})
    assert windows[3]["observation.state"].shape == (2, 3)
    only = LeRobotDataset("our/set", root=result.destination, episodes=[2])
    assert only.num_frames == store.read(ids[2]).num_steps


def test_lerobot_reads_our_videos(tmp_path: Path) -> None:
    """Asked for, pictures become videos: LeRobot's frames are near ours, and our own import says what was lost."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    task = TaskSpec(
        task_id="Cam-v0",
        observation_spec={
            "cam": ArraySpec(modality=Modality.IMAGE, shape=(64, 96, 3), dtype="uint8"),
            "small": ArraySpec(modality=Modality.IMAGE, shape=(9, 7, 3), dtype="uint8"),
        },
        action_spec={"action": ArraySpec(modality=Modality.CONTINUOUS, shape=(2,))},
    )
    with EpisodeWriter(tmp_path / "store") as writer:
        writer.add_task(task)
        for steps in (7, 1, 12):
            episode = random_episode(task, np.random.default_rng(steps), steps)
            ramp = np.add.outer(np.arange(64) * 2, np.arange(96))[None, :, :, None] + np.array([0, 20, 40])
            ramp = ramp + 4 * np.arange(steps + 1)[:, None, None, None]
            episode.observations["cam"][:] = np.clip(ramp, 0, 255)  # type: ignore[index]
            writer.add_episode(episode)
    store = EpisodeStore.open(tmp_path / "store")
    options = {"images": "video", "fps": "12.5"}
    result = formats.export_task("lerobot", store, "Cam-v0", tmp_path / "out", options=options)
    lost = {loss.what for loss in result.losses}
    assert {"observations/cam: pixels", "observations/small: video"} <= lost
    dataset = LeRobotDataset("our/videos", root=result.destination, video_backend="pyav")
    frame = 0
    for episode_id in store.table()["episode_id"].to_pylist():
        episode = store.read(episode_id)
        for step in range(episode.num_steps):
            pixels = dataset[frame]["observation.cam"].numpy().transpose(1, 2, 0) * 255
            assert np.abs(pixels - episode.observations["cam"][step]).mean() < 4
            frame += 1
    importer = formats.open_importer("lerobot", result.destination)
    episodes = list(importer.episodes())
    assert importer.findings() == []
    assert [loss.what for loss in importer.losses()] == ["content hash"]
    np.testing.assert_array_equal(
        episodes[0].observations["small"], store.read(store.table()["episode_id"][0].as_py()).observations["small"]
    )


def test_our_statistics_are_lerobots(tmp_path: Path) -> None:
    """Shapes and values as LeRobot computes them for one episode; exact ones where it approximates quantiles."""
    from lerobot.datasets.compute_stats import get_feature_stats

    from episode_store.formats.lerobot_stats import episode_stats

    rng = np.random.default_rng(0)
    for shape in ((4,), (2, 3)):
        values = rng.uniform(size=(2000, *shape))
        theirs = get_feature_stats(values.copy(), axis=0, keepdims=False)
        ours = episode_stats(values, is_picture=False)
        assert set(ours) == set(theirs)
        for name in ("min", "max", "mean", "std", "count"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6)
        for name in ("q01", "q10", "q50", "q90", "q99"):
            np.testing.assert_allclose(ours[name], theirs[name], atol=0.01)
    frames = rng.integers(0, 256, (20, 16, 18, 3), dtype=np.uint8)
    theirs = get_feature_stats(frames.transpose(0, 3, 1, 2).astype(np.float32), axis=(0, 2, 3), keepdims=True)
    ours = episode_stats(frames, is_picture=True)
    for name in ("min", "max", "mean", "std", "q10", "q50", "q90"):
        np.testing.assert_allclose(ours[name], np.squeeze(theirs[name] / 255, axis=0), atol=0.01)
    assert ours["count"].tolist() == [20]


def _features(picture: str) -> dict[str, Any]:
    def entry(dtype: str, *shape: int, names: Any = None) -> dict[str, Any]:
        return {"dtype": dtype, "shape": shape, "names": names}

    return {
        "observation.state": entry("float32", 3, names=["x", "y", "z"]),
        "observation.images.cam": entry(picture, 64, 48, 3, names=["height", "width", "channels"]),
        "observation.matrix": entry("float64", 2, 2),
        "observation.note": entry("string", 1),
        "action": entry("float32", 2),
        "next.reward": entry("float32", 1),
        "next.done": entry("bool", 1),
        "effort": entry("float32", 1),
    }


def _errors(source: Path) -> list[str]:
    return [finding.describe() for finding in transfer.examine(source)[1] if finding.severity == "error"]


@pytest.mark.parametrize("picture", ["image", "video"])
def test_we_read_what_lerobot_wrote(tmp_path: Path, picture: str) -> None:
    """A set of its own writer, compared step by step with what was added."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    rng = np.random.default_rng(0)
    source = tmp_path / "lab_set"
    dataset = LeRobotDataset.create(
        "lab/set", fps=10, features=_features(picture), root=source, use_videos=picture == "video"
    )
    added: list[list[dict[str, Any]]] = []
    for index, steps in enumerate((6, 9, 4)):
        rows = []
        for step in range(steps):
            ramp = np.add.outer(np.arange(64) * 2, np.arange(48))[:, :, None] + np.array([0, 10, 20]) + 3 * step
            row = {
                "observation.state": rng.normal(size=3).astype(np.float32),
                "observation.images.cam": np.clip(ramp, 0, 255).astype(np.uint8),
                "observation.matrix": rng.normal(size=(2, 2)),
                "observation.note": f"schön {step}",
                "action": rng.normal(size=2).astype(np.float32),
                "next.reward": np.array([step / 2], np.float32),
                "next.done": np.array([step == steps - 1 and index != 1]),
                "effort": rng.normal(size=1).astype(np.float32),
            }
            dataset.add_frame({**row, "task": ["lift", "lift", "push"][index]})
            rows.append(row)
        dataset.save_episode()
        added.append(rows)
    dataset.finalize()
    assert formats.detect_format(source) == "lerobot"
    report = transfer.import_set(formats.open_importer("lerobot", source), source, tmp_path / "store")
    assert report.findings == []
    assert (report.num_added, list(report.tasks)) == (3, ["lerobot/lab_set-v0"])
    store = EpisodeStore.open(tmp_path / "store")
    task = store.tasks["lerobot/lab_set-v0"]
    assert task.observation_spec["images/cam"].modality == Modality.IMAGE
    assert task.observation_spec["task"].modality == Modality.TEXT
    for index, episode_id in enumerate(store.table()["episode_id"].to_pylist()):
        episode, rows = store.read(episode_id), added[index]
        assert episode.num_steps == len(rows)
        for name, key in (("state", "observation.state"), ("matrix", "observation.matrix")):
            expected = np.stack([row[key] for row in rows])
            np.testing.assert_array_equal(episode.observations[name][:-1], expected)
            np.testing.assert_array_equal(episode.observations[name][-1], expected[-1])
        assert episode.observations["note"][:-1] == [row["observation.note"] for row in rows]
        assert set(episode.observations["task"]) == {["lift", "lift", "push"][index]}
        pixels = np.stack([row["observation.images.cam"] for row in rows])
        if picture == "image":
            np.testing.assert_array_equal(episode.observations["images/cam"][:-1], pixels)
        else:
            assert np.abs(episode.observations["images/cam"][:-1].astype(int) - pixels).mean() < 4
        np.testing.assert_array_equal(episode.actions["action"], np.stack([row["action"] for row in rows]))
        np.testing.assert_array_equal(episode.rewards, [row["next.reward"][0] for row in rows])
        assert (episode.terminated, episode.truncated) == (index != 1, index == 1)
        np.testing.assert_array_equal(episode.step_columns["effort"], [row["effort"][0] for row in rows])
        assert episode.metadata.environment_config["fps"] == 10
    lost = {loss.what for loss in report.losses}
    assert {"final observation", "truncation"} <= lost
    assert ("images/cam: pixels" in lost) == (picture == "video")
    assert _errors(source) == []
    if picture == "video":
        (video,) = source.glob("videos/*/*/*.mp4")
        data = video.read_bytes()
        video.write_bytes(data[: len(data) // 2])
        assert any("cannot be decoded" in error or "before the episode does" in error for error in _errors(source))
        video.unlink()
        assert any("the video is missing" in error for error in _errors(source))


def test_a_set_goes_there_and_back(tmp_path: Path) -> None:
    """LeRobot's own set through a store is LeRobot's set again: fps, instructions and frames."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    source = tmp_path / "first"
    features = {key: entry for key, entry in _features("image").items() if key != "observation.images.cam"}
    dataset = LeRobotDataset.create("lab/first", fps=25, features=features, root=source, use_videos=False)
    rng = np.random.default_rng(1)
    for index in range(4):
        for step in range(7):
            row = {key: rng.normal(size=features[key]["shape"]) for key in ("observation.state", "action", "effort")}
            frame = {key: value.astype(np.float32) for key, value in row.items()}
            frame |= {"observation.matrix": rng.normal(size=(2, 2)), "observation.note": f"{step}"}
            frame |= {"next.reward": np.zeros(1, np.float32), "next.done": np.array([step == 6])}
            dataset.add_frame({**frame, "task": ["lift", "push"][index % 2]})
        dataset.save_episode()
    dataset.finalize()
    transfer.import_set(formats.open_importer("lerobot", source), source, tmp_path / "store")
    store = EpisodeStore.open(tmp_path / "store")
    result = formats.export_task("lerobot", store, "lerobot/first-v0", tmp_path / "out")
    again = LeRobotDataset("lab/again", root=result.destination)
    first = LeRobotDataset("lab/first", root=source)
    assert (again.fps, again.num_frames, again.num_episodes) == (25, 28, 4)
    for frame in range(28):
        left, right = first[frame], again[frame]
        for key in ("observation.state", "observation.matrix", "action", "timestamp", "index", "episode_index"):
            np.testing.assert_array_equal(np.asarray(left[key]), np.asarray(right[key]))
        assert (left["task"], left["observation.note"]) == (right["task"], right["observation.note"])
    assert json.loads((result.destination / "meta/info.json").read_text())["total_tasks"] == 2


def test_a_killed_writer_is_told(tmp_path: Path) -> None:
    """What LeRobot leaves behind when it dies before finalize(): info.json promises episodes that cannot be read."""
    import multiprocessing
    import os

    def write(root: str) -> None:
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        features = {key: {"dtype": "float32", "shape": (2,), "names": None} for key in ("observation.state", "action")}
        dataset = LeRobotDataset.create("lab/dead", fps=10, features=features, root=root, use_videos=False)
        for _ in range(3):
            for _ in range(5):
                dataset.add_frame({**{key: np.zeros(2, np.float32) for key in features}, "task": "lift"})
            dataset.save_episode()
        os._exit(9)

    source = tmp_path / "dead"
    process = multiprocessing.get_context("fork").Process(target=write, args=(str(source),))
    process.start()
    process.join()
    assert json.loads((source / "meta/info.json").read_text())["total_episodes"] == 3
    findings = transfer.examine(source)[1]
    errors = [finding.describe() for finding in findings if finding.severity == "error"]
    assert any("cannot be read" in error and "killed before finalize()" in error for error in errors)
    assert any("says total_episodes 3, the data has 0" in error for error in errors)
