"""LeRobot sets: literal layouts, round trips, what is said of faulty ones. The real package: test_lerobot_peers.py."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from episode_store.cli import main
from episode_store.errors import UserError
from episode_store.formats import folders, transfer
from episode_store.formats import format as formats
from episode_store.formats.lerobot_files import open_folder
from episode_store.formats.lerobot_stats import RunningStats, episode_stats
from episode_store.spec import ArraySpec, Modality
from episode_store.store import EpisodeStore
from episode_store.task import TaskSpec
from episode_store.testing import StoreContract, assert_episodes_equal, example_tasks, random_episode
from episode_store.writer import EpisodeWriter

Row = dict[str, Any]


class _Contract(StoreContract):
    __test__ = False


def _entry(dtype: str, *shape: int, names: Any = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "names": names}


FEATURES = {
    "observation.state": _entry("float32", 2),
    "observation.image": _entry("image", 3, 20, 18, names=["channels", "height", "width"]),
    "observation.mode": _entry("int64", 1),
    "action": _entry("float32", 2),
    "next.reward": _entry("float32", 1),
    "next.done": _entry("bool", 1),
    "timestamp": _entry("float32", 1),
    **{key: _entry("int64", 1) for key in ("frame_index", "episode_index", "index", "task_index")},
}


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def make_rows(num_episodes: int = 3, fps: float = 10) -> list[Row]:
    """The frames of a small set."""
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    for episode in range(num_episodes):
        steps = 4 + episode
        for step in range(steps):
            rows.append(
                {
                    "observation.state": rng.normal(size=2).astype(np.float32).tolist(),
                    "observation.image": {"bytes": _png(rng.integers(0, 256, (20, 18, 3), np.uint8)), "path": None},
                    "observation.mode": int(rng.integers(0, 3)),
                    "action": rng.normal(size=2).astype(np.float32).tolist(),
                    "next.reward": float(step),
                    "next.done": step == steps - 1 and episode > 0,
                    "timestamp": step / fps,
                    "frame_index": step,
                    "episode_index": episode,
                    "index": len(rows),
                    "task_index": episode % 2,
                }
            )
    return rows


SCHEMA = pa.schema(
    {
        "observation.state": pa.list_(pa.float32(), 2),
        "observation.image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "observation.mode": pa.int64(),
        "action": pa.list_(pa.float32(), 2),
        "next.reward": pa.float32(),
        "next.done": pa.bool_(),
        "timestamp": pa.float32(),
        **{key: pa.int64() for key in ("frame_index", "episode_index", "index", "task_index")},
    }
)


def make_set(path: Path, rows: list[Row] | None = None, schema: pa.Schema = SCHEMA, **info: Any) -> Path:
    """A small set as LeRobot writes it: the first two episodes in one file, the others in a second."""
    whole = make_rows()
    rows = whole if rows is None else rows
    (path / "data/chunk-000").mkdir(parents=True)
    (path / "meta/episodes/chunk-000").mkdir(parents=True)
    for number, part in enumerate(
        ([row for row in rows if row["episode_index"] < 2], [row for row in rows if row["episode_index"] >= 2])
    ):
        if part:
            file = path / f"data/chunk-000/file-{number:03d}.parquet"
            pq.write_table(pa.Table.from_pylist(part, schema), file, row_group_size=5)
    episodes = []
    start = 0
    for episode in range(3):
        steps = sum(row["episode_index"] == episode for row in whole)
        episodes.append(
            {
                "episode_index": episode,
                "tasks": [["lift", "push"][episode % 2]],
                "length": steps,
                "dataset_from_index": start,
                "dataset_to_index": start + steps,
            }
        )
        start += steps
    pq.write_table(pa.Table.from_pylist(episodes), path / "meta/episodes/chunk-000/file-000.parquet")
    pq.write_table(pa.table({"task_index": [0, 1], "task": ["lift", "push"]}), path / "meta/tasks.parquet")
    content = {
        "codebase_version": "v3.0",
        "fps": 10,
        "features": FEATURES,
        "total_episodes": 3,
        "total_frames": len(whole),
        "total_tasks": 2,
        "video_path": None,
    }
    (path / "meta/info.json").write_text(json.dumps(content | info))
    numbers = [key for key in FEATURES if key != "observation.image"]
    values = {key: {"min": [0.0], "max": [1.0], "mean": [0.5], "std": [0.1], "count": [len(whole)]} for key in numbers}
    values["observation.image"] = dict.fromkeys(("min", "max", "mean", "std"), [[[0.0]]] * 3) | {"count": [9]}
    (path / "meta/stats.json").write_text(json.dumps(values))
    return path


def findings(source: Path, severity: str = "error") -> list[str]:
    """What the doctor says."""
    return [finding.describe() for finding in transfer.examine(source)[1] if finding.severity == severity]


def test_a_set_is_read(tmp_path: Path) -> None:
    """Fields, kinds, instructions and ends of a set made by hand, with row groups that cut episodes."""
    source = make_set(tmp_path / "toy")
    assert formats.detect_format(source) == "lerobot"
    importer = formats.open_importer("lerobot", source, options={"discrete": "mode:3"})
    (task,) = importer.tasks()
    assert task.task_id == "lerobot/toy-v0"
    assert {name: (spec.modality.value, spec.dtype, spec.shape) for name, spec in task.observation_spec.items()} == {
        "image": ("image", "uint8", (20, 18, 3)),
        "mode": ("discrete", "int64", (1,)),
        "state": ("continuous", "float32", (2,)),
        "task": ("text", "str", ()),
    }
    episodes = list(importer.episodes())
    assert importer.findings() == []
    rows = make_rows()
    for index, episode in enumerate(episodes):
        episode.validate(task)
        own = [row for row in rows if row["episode_index"] == index]
        assert episode.num_steps == len(own)
        np.testing.assert_array_equal(
            episode.observations["state"][:-1], np.float32([r["observation.state"] for r in own])
        )
        np.testing.assert_array_equal(episode.observations["state"][-1], episode.observations["state"][-2])
        pixels = np.asarray(Image.open(io.BytesIO(own[1]["observation.image"]["bytes"])))
        np.testing.assert_array_equal(episode.observations["image"][1], pixels)
        assert episode.observations["task"] == [["lift", "push"][index % 2]] * (len(own) + 1)
        np.testing.assert_array_equal(episode.actions["action"], np.float32([row["action"] for row in own]))
        assert episode.rewards.tolist() == list(range(len(own)))
        assert (episode.terminated, episode.truncated) == (index > 0, index == 0)
        assert (
            episode.metadata.environment_config["source"]
            == f"data/chunk-000/file-{index // 2:03d}.parquet episode {index}"
        )
    assert [loss.to_json() for loss in importer.losses()] == [
        {
            "what": "truncation",
            "why": "the set has no flag for it: taken as truncated where next.done is not set",
            "count": 1,
        },
        {"what": "bounds of observations and actions", "why": "info.json has none: taken as unbounded", "count": 1},
        {"what": "seed, agent", "why": "LeRobot has no place for them: left empty", "count": 1},
        {
            "what": "final observation",
            "why": "LeRobot has none: the last one is repeated; --option last_frame=drop drops the last action instead",
            "count": 3,
        },
    ]


def test_the_last_frame_may_be_dropped(tmp_path: Path) -> None:
    """Then the observations are all real, and one action is gone."""
    importer = formats.open_importer(
        "lerobot", make_set(tmp_path / "toy"), options={"last_frame": "drop", "task": "metadata"}
    )
    (task,) = importer.tasks()
    assert "task" not in task.observation_spec
    episodes = list(importer.episodes())
    assert [episode.num_steps for episode in episodes] == [3, 4, 5]
    for episode in episodes:
        episode.validate(task)
    assert episodes[2].metadata.environment_config["tasks"] == ["lift"]


def test_a_round_trip_loses_nothing(tmp_path: Path) -> None:
    """Every kind of field, the final observation, step columns and provenance: the same ids again."""
    episodes = _Contract().fill(tmp_path / "store")
    store = EpisodeStore.open(tmp_path / "store")
    tasks = {task_id: task for task_id, task in example_tasks().items() if task_id != "Album-v0"}
    for task_id in tasks:
        result = formats.export_task("lerobot", store, task_id, tmp_path / "out")
        report = transfer.import_set(formats.open_importer("lerobot", result.destination), tmp_path, tmp_path / "back")
        assert (report.losses, report.findings) == ([], [])
        assert findings(result.destination) == findings(result.destination, "warning") == []
    back = EpisodeStore.open(tmp_path / "back")
    assert dict(back.tasks) == tasks
    for episode_id, episode in episodes.items():
        if episode.task_id in tasks:
            assert_episodes_equal(episode, back.read(episode_id))


def test_the_export_is_as_lerobot_wants_it(tmp_path: Path) -> None:
    """Literal info.json, columns, indices and row groups; what cannot be held."""
    _Contract().fill(tmp_path / "store")
    store = EpisodeStore.open(tmp_path / "store")
    result = formats.export_task("lerobot", store, "Robot-v1", tmp_path / "out", options={"fps": "50"})
    info = json.loads((result.destination / "meta/info.json").read_text())
    assert {key: (entry["dtype"], entry["shape"]) for key, entry in info["features"].items()} == {
        "observation.state.counts": ("int16", [2, 2]),
        "observation.state.flags": ("bool", [2]),
        "observation.state.position": ("float64", [3]),
        "action": ("float32", [2]),
        "step.exploratory": ("bool", [1]),
        "next.reward": ("float64", [1]),
        "next.done": ("bool", [1]),
        "next.truncated": ("bool", [1]),
        "timestamp": ("float32", [1]),
        "frame_index": ("int64", [1]),
        "episode_index": ("int64", [1]),
        "index": ("int64", [1]),
        "task_index": ("int64", [1]),
    }
    steps = store.table("Robot-v1")["num_steps"].to_pylist()
    assert (info["codebase_version"], info["fps"], info["total_episodes"]) == ("v3.0", 50, 3)
    assert (info["total_frames"], info["splits"], info["total_tasks"]) == (sum(steps), {"train": "0:3"}, 1)
    file = pq.ParquetFile(result.destination / "data/chunk-000/file-000.parquet")
    assert [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)] == steps
    table = file.read()
    assert table["index"].to_pylist() == list(range(sum(steps)))
    assert table["frame_index"].to_pylist() == [step for length in steps for step in range(length)]
    assert table["timestamp"].to_pylist()[:3] == [0.0, np.float32(0.02), np.float32(0.04)]
    assert str(table.schema.field("action").type) == "fixed_size_list<element: float>[2]"
    counts = table.schema.field("observation.state.counts")
    assert str(counts.type).startswith("list<element: list<element: int16>>")
    assert counts.metadata[b"ARROW:extension:name"] == b"datasets.features.features.Array2DExtensionType"
    assert counts.metadata[b"ARROW:extension:metadata"] == b'[[2, 2], "int16"]'
    rows = pq.read_table(result.destination / "meta/episodes").to_pylist()
    assert [row["dataset_from_index"] for row in rows] == [sum(steps[:index]) for index in range(3)]
    assert rows[1]["tasks"] == ["Robot-v1"]
    assert len(rows[1]["stats/action/mean"]) == 2
    assert pq.read_table(result.destination / "meta/tasks.parquet").to_pylist() == [
        {"task_index": 0, "task": "Robot-v1"}
    ]
    both = sum(
        store.read(episode_id).terminated and store.read(episode_id).truncated
        for episode_id in store.table("Robot-v1")["episode_id"].to_pylist()
    )
    lost = {loss.what: loss.count for loss in result.losses}
    assert lost.pop("terminated", 0) == both
    assert lost == {
        "levels of names": 3,
        "observation.state.position: float64": 1,
        "next.reward: float64": 1,
        "final observation": 3,
        "agent, seed, provenance": 3,
        "bounds and numbers of values": 1,
        "environment": 1,
    }
    pictures = formats.export_task("lerobot", store, "grid/Example-v0", tmp_path / "out")
    column = pq.read_table(pictures.destination / "data")["observation.image"][0].as_py()
    assert column["bytes"][:8] == b"\x89PNG\r\n\x1a\n"
    assert "fps" in {loss.what for loss in pictures.losses}


def test_statistics() -> None:
    """Literal values, and the whole set from its episodes."""
    left, right = np.array([[1.0, 10.0], [3.0, 20.0]]), np.array([[5.0, 0.0]])
    assert {name: value.tolist() for name, value in episode_stats(left, is_picture=False).items()} == {
        "min": [1.0, 10.0],
        "max": [3.0, 20.0],
        "mean": [2.0, 15.0],
        "std": [1.0, 5.0],
        "count": [2],
        "q01": [1.02, 10.1],
        "q10": [1.2, 11.0],
        "q50": [2.0, 15.0],
        "q90": [2.8, 19.0],
        "q99": [2.98, 19.9],
    }
    running = RunningStats()
    for values in (left, right):
        running.add({"x": episode_stats(values, is_picture=False)})
    whole = np.concatenate([left, right])
    stats = running.to_json()["x"]
    np.testing.assert_allclose(stats["mean"], whole.mean(0))
    np.testing.assert_allclose(stats["std"], whole.std(0))
    assert (stats["min"], stats["max"], stats["count"]) == ([1.0, 0.0], [5.0, 20.0], [3])
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    frames[1, :, :, 1] = 255
    pictures = episode_stats(frames, is_picture=True)
    assert pictures["mean"].tolist() == [[[0.0]], [[0.5]], [[0.0]]]
    assert pictures["std"].tolist() == [[[0.0]], [[0.5]], [[0.0]]]
    assert pictures["max"].tolist() == [[[0.0]], [[1.0]], [[0.0]]]


def _set(step: int, key: str, value: Any) -> Callable[[list[Row]], list[Row]]:
    """Changes one frame of the second episode, which has five."""

    def edit(rows: list[Row]) -> list[Row]:
        rows[4 + step][key] = value
        return rows

    return edit


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (_set(1, "observation.state", [float("nan"), 0.0]), "state: step 1, element (0,): expected a finite number"),
        (_set(1, "next.reward", float("inf")), "rewards: step 1: expected a finite number"),
        (_set(1, "next.done", True), "next.done is set at frame 1 of 5: an end in the middle"),
        (_set(2, "frame_index", 7), "frame_index is 7 at its frame 2 of 5"),
        (_set(2, "next.reward", None), "next.reward: 1 values are missing"),
        (_set(2, "action", None), "row group 1: cannot be read"),
        (_set(2, "task_index", 9), "task_index 9 is not in meta/tasks.parquet"),
        (
            _set(2, "observation.image", {"bytes": b"\x89PNG but no picture", "path": None}),
            "the image cannot be decoded",
        ),
        (_set(2, "observation.image", {"bytes": None, "path": "/etc/passwd"}), "a picture is not in the file"),
        (
            _set(2, "observation.image", {"bytes": _png(np.zeros((9, 18, 3), np.uint8)), "path": None}),
            "expected (20, 18)",
        ),
        (lambda rows: [*rows[:6], *rows[7:]], "frame_index is 3 at its frame 2 of 4"),
        (lambda rows: rows[:8], "meta/episodes says 5 frames, the data has 4"),
        (lambda rows: rows[:9], "1 episodes have no frames in data, for example [2]"),
        (lambda rows: [*rows[:6], rows[0], *rows[6:]], "its frames stand in two places"),
        (_set(4, "frame_index", 3), "frame_index is 3 at its frame 4 of 5"),
    ],
)
def test_the_doctor_names_what_is_wrong(tmp_path: Path, edit: Callable[[list[Row]], list[Row]], expected: str) -> None:
    """Each fault is an error that names file and episode; an import goes on with the others."""
    source = make_set(tmp_path / "toy", edit(make_rows()))
    errors = findings(source)
    assert any(expected in error for error in errors), errors
    report = transfer.import_set(formats.open_importer("lerobot", source), source, tmp_path / "store")
    assert not report.ok
    assert report.num_added >= 1


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({"total_episodes": 36}, "says total_episodes 36, the data has 3"),
        ({"total_frames": 36}, "says total_frames 36, the data has 15"),
        ({"total_tasks": 1}, "says total_tasks 1, meta/tasks.parquet has 2"),
        (
            {"features": FEATURES | {"observation.state": _entry("float32", 3)}},
            "10 numbers in 5 frames, info.json declares",
        ),
        ({"features": FEATURES | {"observation.mode": _entry("int8", 1)}}, None),
        ({"features": FEATURES | {"action": _entry("int32", 2)}}, "float32 in the file, info.json declares int32"),
        ({"features": FEATURES | {"observation.more": _entry("float32", 1)}}, "has no column observation.more"),
        ({"codebase_version": "v2.1"}, "convert the set with LeRobot's own lerobot.scripts.convert_dataset_v21_to_v30"),
        ({"fps": 0}, "fps 0: expected a positive number"),
        ({"features": {}}, "has no features"),
    ],
)
def test_info_that_disagrees_with_the_data(tmp_path: Path, info: dict[str, Any], expected: str | None) -> None:
    """Counts, shapes, dtypes, missing columns, versions."""
    errors = findings(make_set(tmp_path / "toy", **info))
    assert any(expected in error for error in errors) if expected else errors == []


def test_the_doctor_on_milder_things(tmp_path: Path) -> None:
    """Another rate than declared, gaps in index, doubled episodes, stale statistics: warnings."""
    rows = make_rows(fps=20)
    for row in rows[9:]:
        row["index"] += 5
    source = make_set(tmp_path / "toy", rows)
    assert findings(source) == []
    warnings = findings(source, "warning")
    for expected in (
        "fps 10 makes it 0.3000 s; the frames come at about 20 a second",
        "index runs from 14 to 19, expected from 9 without gaps",
    ):
        assert any(expected in warning for warning in warnings), (expected, warnings)
    (source / "meta/stats.json").unlink()
    assert any("stats.json: missing; training normalizes by it" in warning for warning in findings(source, "warning"))
    rows = make_rows()
    copies = [dict(row) for row in rows if row["episode_index"] == 0]
    rows = [*rows[:4], *[row | {"episode_index": 1, "task_index": 0, "index": 4 + i} for i, row in enumerate(copies)]]
    doubled = make_set(tmp_path / "doubled", rows, total_episodes=2, total_frames=8)
    table = pq.read_table(doubled / "meta/episodes/chunk-000/file-000.parquet").to_pylist()[:2]
    table[1] |= {"length": 4, "dataset_to_index": 8}
    pq.write_table(pa.Table.from_pylist(table), doubled / "meta/episodes/chunk-000/file-000.parquet")
    assert findings(doubled) == []
    assert any(
        "the same content as data/chunk-000/file-000.parquet episode 0" in w for w in findings(doubled, "warning")
    )


@pytest.mark.parametrize(
    "name",
    [
        "data/chunk-000/file-000.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "meta/tasks.parquet",
        "meta/info.json",
    ],
)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_cut_file_is_told(tmp_path: Path, name: str, share: float) -> None:
    """Whatever is left, it is an error and never a crash."""
    source = make_set(tmp_path / "toy")
    data = (source / name).read_bytes()
    (source / name).write_bytes(data[: int(len(data) * share)])
    assert findings(source)


def test_flipped_bits_never_crash(tmp_path: Path) -> None:
    """LeRobot writes no checksums, so not each flip can be noticed; none may do more than spoil its set."""
    source = make_set(tmp_path / "toy")
    rng = np.random.default_rng(0)
    for name in ("data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet", "meta/tasks.parquet"):
        data = (source / name).read_bytes()
        for _ in range(25):
            changed = bytearray(data)
            changed[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
            (source / name).write_bytes(changed)
            transfer.examine(source, "lerobot")
        (source / name).write_bytes(data)


def test_flips_in_our_own_export_are_told(tmp_path: Path) -> None:
    """Our Parquet has page checksums and our side file content hashes: a changed pixel or number does not pass."""
    task = TaskSpec(
        task_id="Pure-v0",
        observation_spec={"observation": ArraySpec(modality=Modality.CONTINUOUS, shape=(8,), dtype="float32")},
        action_spec={"action": ArraySpec(modality=Modality.CONTINUOUS, shape=(4,), dtype="float32")},
    )
    with EpisodeWriter(tmp_path / "store") as writer:
        writer.add_task(task)
        writer.add_episode(random_episode(task, np.random.default_rng(0), 200))
    result = formats.export_task("lerobot", EpisodeStore.open(tmp_path / "store"), "Pure-v0", tmp_path / "out")
    file = result.destination / "data/chunk-000/file-000.parquet"
    data = file.read_bytes()
    start = data.index(
        np.ascontiguousarray(
            EpisodeStore.open(tmp_path / "store")
            .read(EpisodeStore.open(tmp_path / "store").episode_ids[0])
            .observations["observation"][3, :4]
        ).tobytes()[:6]
    )
    for offset in range(0, 400, 40):
        changed = bytearray(data)
        changed[start + offset] ^= 4
        file.write_bytes(changed)
        assert findings(result.destination) or findings(result.destination, "warning"), offset


def test_a_file_that_would_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of equal numbers take no room on the disk: sizes are looked at before anything is read."""
    source = make_set(tmp_path / "toy")
    assert findings(source) == []
    monkeypatch.setattr(folders, "_MAX_ROW_GROUP_NUMBERS", 60)
    (first, *_) = findings(source)
    assert "data/chunk-000/file-000.parquet row group 0: cannot be read: row group 0 says it has" in first


def test_videos_without_a_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clear refusal that says what is missing; a depth video is left out and said."""
    features = FEATURES | {
        "observation.cam": _entry("video", 48, 64, 3),
        "observation.depth": _entry("video", 48, 64, 1),
    }
    features["observation.depth"]["info"] = {"is_depth_map": True}
    source = make_set(tmp_path / "toy", features=features)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError) as caught:
        formats.open_importer("lerobot", source)
    assert str(caught.value) == (
        f"source {source}: observation.cam: videos (mp4): decoding videos needs the package av; "
        "pip install 'generalist-agent[video]'"
    )
    assert any("needs the package av" in error for error in findings(source))
    features.pop("observation.cam")
    source = make_set(tmp_path / "depth", features=features)
    importer = formats.open_importer("lerobot", source)
    assert len(list(importer.episodes())) == 3
    assert "feature observation.depth" in {loss.what for loss in importer.losses()}


def test_the_doctor_on_videos_and_statistics(tmp_path: Path) -> None:
    """What metadata alone tell: a missing video, a rate that is not fps, statistics of another state or with NaN."""
    features = FEATURES | {"observation.cam": _entry("video", 48, 64, 3)}
    source = make_set(tmp_path / "toy", features=features)
    file = source / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(file).to_pylist()
    for row in rows:
        row |= {"videos/observation.cam/chunk_index": 0, "videos/observation.cam/file_index": 0}
        row |= {"videos/observation.cam/from_timestamp": row["dataset_from_index"] / 25}
        row |= {"videos/observation.cam/to_timestamp": row["dataset_to_index"] / 25}
    pq.write_table(pa.Table.from_pylist(rows), file)
    stats = json.loads((source / "meta/stats.json").read_text())
    stats["action"] |= {"count": [9], "mean": [float("nan")]}
    (source / "meta/stats.json").write_text(json.dumps(stats))
    errors, warnings = findings(source), findings(source, "warning")
    for expected in (
        "the video file-000.mp4 of observation.cam is missing",
        "observation.cam has 1.6 frames of video at fps 10 for 4 frames of data",
        "action: mean is not finite: frames with NaN or Inf",
    ):
        assert any(expected in error for error in errors), (expected, errors)
    for expected in (
        "action: of [9] frames, info.json says 15",
        "has no min, max, mean and std of observation.cam",
    ):
        assert any(expected in warning for warning in warnings), (expected, warnings)
    rows[1]["dataset_from_index"] -= 2
    pq.write_table(pa.Table.from_pylist(rows), file)
    assert any("frames 2 to 9 for length 5, expected from 4: windows mix" in error for error in findings(source))


@pytest.mark.parametrize("template", ["../../{video_key}.mp4", "/etc/{video_key}", "{video_key.__class__}/x.mp4"])
def test_video_paths_stay_inside(tmp_path: Path, template: str) -> None:
    """A stranger's template cannot name files elsewhere, and is not run as a format string."""
    folder = open_folder(make_set(tmp_path / "toy", video_path=template))
    row = {"videos/cam/chunk_index": 0, "videos/cam/file_index": 1}
    if "__class__" in template:
        assert folder.video_file("cam", row) == folder.path.resolve() / "{video_key.__class__}/x.mp4"
        return
    with pytest.raises(UserError, match="leads out of the folder"):
        folder.video_file("cam", row)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """import, export and doctor find the format out; a wrong option is one line."""
    monkeypatch.setitem(sys.modules, "av", None)
    source = make_set(tmp_path / "toy")
    store, out = str(tmp_path / "store"), str(tmp_path / "out")
    assert main(["import", "--source", str(source), "--store", store, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["format"], report["num_added"], report["tasks"]) == ("lerobot", 3, ["lerobot/toy-v0"])
    assert main(["import", "--source", str(source), "--store", store]) == 0
    assert "0 episodes added, 3 there already" in capsys.readouterr().out
    assert main(["export", "--to", "lerobot", "--store", store, "--output", out]) == 0
    assert "the format cannot hold: final observation (3)" in capsys.readouterr().out
    info = json.loads((tmp_path / "out/lerobot--toy-v0/meta/info.json").read_text())
    assert (info["fps"], info["total_tasks"]) == (10, 2)
    assert "observation.task" not in info["features"]
    assert main(["doctor", "--source", str(tmp_path / "out/lerobot--toy-v0")]) == 0
    capsys.readouterr()
    for option, expected in (
        ("images=video", "encoding videos needs the package av"),
        ("images=jpg", "option images 'jpg': expected png or video"),
        ("fps=-1", "option fps '-1': expected a positive number"),
        ("rate=3", "no option 'rate'"),
    ):
        assert main(["export", "--to", "lerobot", "--store", store, "--output", f"{out}2", "--option", option]) == 2
        assert expected in capsys.readouterr().err
    assert not (tmp_path / "out2").exists()
