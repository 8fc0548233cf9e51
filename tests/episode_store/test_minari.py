"""Minari sets: literal layouts, round trips, what is said of faulty ones. The real package: test_minari_peers.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from episode_store.cli import main
from episode_store.errors import UserError
from episode_store.formats import format as formats
from episode_store.formats import transfer
from episode_store.formats.format import Finding
from episode_store.formats.space_json import parse_space
from episode_store.spec import ArraySpec, Modality
from episode_store.store import EpisodeStore
from episode_store.task import TaskSpec
from episode_store.testing import StoreContract, assert_episodes_equal, example_tasks, random_episode
from episode_store.writer import EpisodeWriter

OBSERVATION = {
    "type": "Dict",
    "subspaces": {
        "pos": {"type": "Box", "dtype": "float32", "shape": [2], "low": [-1.0, -1.0], "high": [1.0, 1.0]},
        "pair": {
            "type": "Tuple",
            "subspaces": [{"type": "Discrete", "dtype": "int64", "start": 0, "n": 5}, {"type": "MultiBinary", "n": 2}],
        },
        "words": {"type": "Text", "max_length": 9, "min_length": 0, "charset": "abc"},
    },
}
ACTION = {"type": "Box", "dtype": "float32", "shape": [2], "low": [-1.0, -1.0], "high": [1.0, 1.0]}


class _Contract(StoreContract):
    __test__ = False


def make_set(path: Path, num_episodes: int = 3) -> Path:
    """A small set as Minari writes it."""
    data = path / "lab" / "toy-v0" / "data"
    data.mkdir(parents=True)
    rng = np.random.default_rng(0)
    total = 0
    with h5py.File(data / "main_data.hdf5", "w") as file:
        for index in range(num_episodes):
            steps = 3 + index
            total += steps
            group = file.create_group(f"episode_{index}")
            group.attrs["id"], group.attrs["total_steps"], group.attrs["seed"] = index, steps, 7 + index
            group["observations/pos"] = rng.uniform(-1, 1, (steps + 1, 2)).astype(np.float32)
            group["observations/pair/_index_0"] = rng.integers(0, 5, steps + 1)
            group["observations/pair/_index_1"] = rng.integers(0, 2, (steps + 1, 2)).astype(np.int8)
            group.create_dataset("observations/words", data=["abé"] * (steps + 1), dtype=h5py.string_dtype())
            group["actions"] = rng.uniform(-1, 1, (steps, 2)).astype(np.float32)
            group["rewards"] = rng.normal(size=steps)
            group["terminations"] = np.arange(steps) == (steps - 1 if index else -1)
            group["truncations"] = np.arange(steps) == (-1 if index else steps - 1)
            group["infos/speed"] = rng.normal(size=steps + 1)
    metadata = {
        "dataset_id": "lab/toy-v0",
        "total_episodes": num_episodes,
        "total_steps": total,
        "data_format": "hdf5",
        "observation_space": json.dumps(OBSERVATION),
        "action_space": json.dumps(ACTION),
        "minari_version": "0.5.4",
        "algorithm_name": "scripted",
        "env_spec": json.dumps({"id": "Toy-v0", "entry_point": "os:abort", "max_episode_steps": 40, "kwargs": {}}),
    }
    (data / "metadata.json").write_text(json.dumps(metadata))
    return data.parent


def change(source: Path, edit: Callable[[Any], None]) -> None:
    """Edits the HDF5 file."""
    with h5py.File(source / "data" / "main_data.hdf5", "a") as file:
        edit(file)


def put(file: Any, path: str, values: Any) -> None:
    """Replaces an array."""
    del file[path]
    file[path] = values


def findings(source: Path, severity: str = "error") -> list[str]:
    """What the doctor says."""
    found: list[Finding] = transfer.examine(source)[1]
    return [finding.describe() for finding in found if finding.severity == severity]


def test_a_set_is_read(tmp_path: Path) -> None:
    """Fields, kinds, ends, seeds and infos of a set made by hand; env_spec is text and runs nothing."""
    source = make_set(tmp_path)
    assert formats.detect_format(source) == formats.detect_format(source / "data") == "minari"
    importer = formats.open_importer("minari", source)
    (task,) = importer.tasks()
    assert task.task_id == "minari/lab-toy-v0"
    assert {name: (spec.modality.value, spec.dtype, spec.shape) for name, spec in task.observation_spec.items()} == {
        "pair/0": ("discrete", "int64", ()),
        "pair/1": ("discrete", "int8", (2,)),
        "pos": ("continuous", "float32", (2,)),
        "words": ("text", "str", ()),
    }
    assert (task.observation_spec["pos"].low, task.action_spec["action"].low) == ((), (-1.0, -1.0))
    assert task.max_episode_steps == 40
    episodes = list(importer.episodes())
    assert importer.findings() == []
    assert [(episode.num_steps, episode.terminated, episode.truncated) for episode in episodes] == [
        (3, False, True),
        (4, True, False),
        (5, True, False),
    ]
    with h5py.File(source / "data" / "main_data.hdf5") as file:
        for index, episode in enumerate(episodes):
            episode.validate(task)
            group = file[f"episode_{index}"]
            np.testing.assert_array_equal(episode.observations["pos"], group["observations/pos"])
            np.testing.assert_array_equal(episode.observations["pair/1"], group["observations/pair/_index_1"])
            assert episode.observations["words"] == ["abé"] * (episode.num_steps + 1)
            np.testing.assert_array_equal(episode.step_columns["infos/speed"], group["infos/speed"][1:])
            assert episode.metadata.environment_config["infos_at_reset"] == {"speed": group["infos/speed"][0]}
            assert (episode.metadata.seed, episode.metadata.agent_id) == (7 + index, "scripted")
            assert episode.metadata.environment_config["source"] == f"main_data.hdf5 episode_{index}"
    assert [loss.what for loss in importer.losses()] == [
        "Text: length and characters",
        "Tuple",
        "bounds of observations",
        "agent weights, licence",
    ]
    notes = findings(source, "note")
    assert any("env_spec names code that Minari imports" in note and "os:abort" in note for note in notes)


def test_a_round_trip_loses_nothing(tmp_path: Path) -> None:
    """Every kind of field, step columns and provenance: the same ids again."""
    episodes = _Contract().fill(tmp_path / "store")
    store = EpisodeStore.open(tmp_path / "store")
    tasks = {task_id: task for task_id, task in example_tasks().items() if task_id != "Album-v0"}
    for task_id in tasks:
        result = formats.export_task("minari", store, task_id, tmp_path / "out")
        assert result.destination == tmp_path / "out" / task_id
        report = transfer.import_set(formats.open_importer("minari", result.destination), tmp_path, tmp_path / "back")
        assert (report.losses, report.findings) == ([], [])
        assert findings(result.destination) == findings(result.destination, "warning") == []
    back = EpisodeStore.open(tmp_path / "back")
    assert dict(back.tasks) == tasks
    for episode_id, episode in episodes.items():
        if episode.task_id in tasks:
            assert_episodes_equal(episode, back.read(episode_id))
    with pytest.raises(UserError, match=r"Robot-v1 exists; choose another --output"):
        formats.export_task("minari", store, "Robot-v1", tmp_path / "out")


def test_the_export_says_what_it_cannot_hold(tmp_path: Path) -> None:
    """Exact losses, exact metadata.json."""
    _Contract().fill(tmp_path / "store")
    store = EpisodeStore.open(tmp_path / "store")
    result = formats.export_task("minari", store, "Robot-v1", tmp_path / "out")
    beside = "kept beside in episode_store, which Minari does not read"
    assert [loss.to_json() for loss in result.losses] == [
        {
            "what": "step column exploratory",
            "why": "this episode has none: zeros, which Minari cannot tell apart",
            "count": 1,
        },
        {"what": "agent, provenance, step columns' names", "why": beside, "count": 3},
        {
            "what": "environment",
            "why": f"no env_spec is written, since Minari runs what it names; {beside}",
            "count": 1,
        },
        {
            "what": "observation state/flags: bool",
            "why": f"written as int8, which Gymnasium's space has; {beside}",
            "count": 1,
        },
    ]
    metadata = json.loads((result.destination / "data" / "metadata.json").read_text())
    assert json.loads(metadata["action_space"]) == {
        "type": "Box",
        "dtype": "float32",
        "shape": [2],
        "low": [-1.0, -2.0],
        "high": [1.0, 2.0],
    }
    state = json.loads(metadata["observation_space"])["subspaces"]["state"]["subspaces"]
    assert state["flags"] == {"type": "MultiBinary", "n": 2}
    assert state["counts"]["low"] == [[-32768, -32768], [-32768, -32768]]
    assert (metadata["total_episodes"], metadata["data_format"], metadata["jpeg_encoding"]) == (3, "hdf5", False)
    assert (metadata["dataset_id"], metadata["minari_version"]) == ("Robot-v1", "0.5.4")
    assert "env_spec" not in metadata


_DTYPES = st.sampled_from(
    ["bool", "int8", "int32", "int64", "uint8", "uint16", "uint64", "float16", "float32", "float64"]
)
_SHAPES = st.sampled_from([(), (1,), (3,), (2, 2), (2, 1, 3)])


@st.composite
def _specs(draw: st.DrawFn) -> ArraySpec:
    kind = draw(st.sampled_from(list(Modality)))
    if kind == Modality.TEXT:
        return ArraySpec(modality=kind, dtype="str")
    if kind == Modality.IMAGE:
        shape = (draw(st.integers(1, 40)), draw(st.integers(1, 40)), draw(st.integers(1, 4)))
        return ArraySpec(modality=kind, shape=shape, dtype="uint8")
    shape = draw(_SHAPES)
    if kind == Modality.DISCRETE:
        dtype = draw(st.sampled_from(["bool", "int8", "int32", "int64", "uint16"]))
        size = int(np.prod(shape))
        return ArraySpec(modality=kind, shape=shape, dtype=dtype, num_values=(2 if dtype == "bool" else 5,) * size)
    return ArraySpec(modality=kind, shape=shape, dtype=draw(_DTYPES))


_FIELDS = st.dictionaries(
    st.sampled_from(["observation", "action", "a/x", "a/y", "b", "c/d/e", "state"]), _specs(), min_size=1, max_size=4
)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(observations=_FIELDS, actions=_FIELDS, steps=st.integers(1, 6), seed=st.integers(0, 1 << 30))
def test_every_space_goes_through_every_format(
    tmp_path_factory: pytest.TempPathFactory, observations: Any, actions: Any, steps: int, seed: int
) -> None:
    """Random spaces and episodes: Minari, LeRobot and robomimic give back the same id."""
    task = TaskSpec(task_id="any/Space-v1", observation_spec=observations, action_spec=actions)
    path = tmp_path_factory.mktemp("spaces")
    episode = random_episode(task, np.random.default_rng(seed), steps, exploratory=bool(seed % 2))
    with EpisodeWriter(path / "store") as writer:
        writer.add_task(task)
        episode_id = writer.add_episode(episode)
    store = EpisodeStore.open(path / "store")
    for name in ("minari", "lerobot", "robomimic"):
        if name == "robomimic" and not any(spec.dtype != "str" for spec in actions.values()):
            continue
        result = formats.export_task(name, store, task.task_id, path / name)
        importer = formats.open_importer(name, result.destination)
        (again,) = list(importer.episodes())
        digits = {loss.what for loss in result.losses if loss.what.endswith(": digits")}
        assert importer.findings() == [], name
        if not digits:
            assert again.episode_id() == episode_id, name


def test_texts_with_nul(tmp_path: Path) -> None:
    """HDF5 cannot hold them; our own import still does, and the export says so."""
    task = TaskSpec(
        task_id="Nul-v0",
        observation_spec={"observation": ArraySpec(modality=Modality.TEXT, dtype="str")},
        action_spec={"action": ArraySpec(modality=Modality.DISCRETE, dtype="int64", num_values=(2,))},
    )
    episode = random_episode(task, np.random.default_rng(0), 2)
    episode.observations["observation"][:] = ["a\0b", "", "\0"]  # type: ignore[index]
    with EpisodeWriter(tmp_path / "store") as writer:
        writer.add_task(task)
        episode_id = writer.add_episode(episode)
    result = formats.export_task("minari", EpisodeStore.open(tmp_path / "store"), "Nul-v0", tmp_path / "out")
    assert "observation observation: NUL in a text" in {loss.what for loss in result.losses}
    with h5py.File(result.destination / "data" / "main_data.hdf5") as file:
        assert file["episode_0/observations"].asstr()[()].tolist() == ["a\u2400b", "", "\u2400"]
    (again,) = list(formats.open_importer("minari", result.destination).episodes())
    assert again.episode_id() == episode_id


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (
            lambda file: put(file, "episode_1/observations/pos", np.full((5, 2), np.nan, np.float32)),
            "a finite number, got nan",
        ),
        (
            lambda file: put(file, "episode_1/actions", np.zeros((3, 2), np.float32)),
            "actions/action: 3 actions for 4 rewards",
        ),
        (
            lambda file: put(file, "episode_1/actions", np.full((4, 2), 7, np.float32)),
            "not above its space's high, got 7.0",
        ),
        (
            lambda file: put(file, "episode_1/terminations", np.array([0, 1, 0, 1], bool)),
            "an end in the middle: step 1 of 4",
        ),
        (
            lambda file: put(file, "episode_1/observations/pos", np.zeros((5, 3), np.float32)),
            "steps of shape (3,), expected (2,)",
        ),
        (
            lambda file: put(file, "episode_1/observations/pair/_index_0", np.full(5, 9)),
            "a value of its discrete space, got 9",
        ),
        (
            lambda file: put(file, "episode_1/rewards", np.array([0, np.inf, 0, 0])),
            "rewards: step 1: expected a finite number",
        ),
        (lambda file: file["episode_1"].attrs.__setitem__("total_steps", 9), "says total_steps 9, it has 4 rewards"),
        (lambda file: file.__delitem__("episode_2"), "says total_episodes 3, the data has 2"),
        (lambda file: file.__delitem__("episode_1/rewards"), "has no rewards"),
        (lambda file: put(file, "episode_1/observations/pos", h5py.SoftLink("/episode_0/actions")), "a link"),
        (lambda file: put(file, "episode_1/rewards", h5py.ExternalLink("/etc/passwd", "/")), "a link"),
    ],
)
def test_the_doctor_names_what_is_wrong(tmp_path: Path, edit: Callable[[Any], None], expected: str) -> None:
    """Each fault is an error that names the episode; an import goes on with the others."""
    source = make_set(tmp_path)
    change(source, edit)
    errors = findings(source)
    assert any(expected in error for error in errors), errors
    assert main(["doctor", "--source", str(source), "--json"]) == 1
    report = transfer.import_set(formats.open_importer("minari", source), source, tmp_path / "store")
    assert report.num_added == (3 if "total_steps 9" in expected else 2)


def test_the_doctor_on_milder_things(tmp_path: Path) -> None:
    """No final observation, no end flag, doubled episodes, a renamed folder: warnings, and the episodes are read."""
    source = make_set(tmp_path)

    def edit(file: Any) -> None:
        for name in ("pos", "pair/_index_0", "pair/_index_1"):
            put(file, f"episode_0/observations/{name}", file[f"episode_0/observations/{name}"][:-1])
        del file["episode_0/observations/words"]
        file.create_dataset("episode_0/observations/words", data=["a"] * 3, dtype=h5py.string_dtype())
        put(file, "episode_1/terminations", np.zeros(4, bool))
        del file["episode_2"]
        file.copy("episode_1", "episode_2")

    change(source, edit)
    metadata = json.loads((source / "data/metadata.json").read_text())
    (source / "data/metadata.json").write_text(json.dumps(metadata | {"total_steps": 11}))
    renamed = source.rename(source.parent / "other-v0")
    assert findings(renamed) == []
    warnings = findings(renamed, "warning")
    for expected in (
        "final observation (4): the set has one observation a step",
        "end of the episode (2): neither terminations nor truncations",
        "the same content as main_data.hdf5 episode_1",
        "dataset_id 'lab/toy-v0' is not the folder 'other-v0'",
    ):
        assert any(expected in warning for warning in warnings), (expected, warnings)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_cut_file_is_told(tmp_path: Path, share: float) -> None:
    """Whatever is left, it is an error and never a crash."""
    source = make_set(tmp_path)
    file = source / "data" / "main_data.hdf5"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    assert findings(source)


def test_flipped_bytes_never_crash(tmp_path: Path) -> None:
    """HDF5 has no checksums here, so not each flip can be noticed; none may do more than spoil its set."""
    source = make_set(tmp_path)
    file = source / "data" / "main_data.hdf5"
    data = file.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        changed = bytearray(data)
        changed[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        file.write_bytes(changed)
        transfer.examine(source, "minari")


@pytest.mark.parametrize("name", ["minari", "robomimic"])
def test_a_changed_number_in_our_own_export_is_told(tmp_path: Path, name: str) -> None:
    """HDF5 does not notice it; the content hash that the export wrote does."""
    _Contract().fill(tmp_path / "store")
    result = formats.export_task(name, EpisodeStore.open(tmp_path / "store"), "Robot-v1", tmp_path / "out")
    minari = name == "minari"
    path = result.destination / "data/main_data.hdf5" if minari else result.destination
    with h5py.File(path, "a") as file:
        file["episode_2/rewards" if minari else "data/demo_2/rewards"][0] += 1e-9
    assert findings(result.destination) == []
    (warning,) = findings(result.destination, "warning")
    assert "content hash (1): differs from the exported episode's" in warning


def test_spaces_of_strangers() -> None:
    """What cannot be a space is one line, and sizes are not believed."""
    box = {"type": "Box", "dtype": "uint8", "shape": [84, 84, 1], "low": 0, "high": 255}
    (leaf,) = parse_space(json.dumps(box), "observation", bounds=True)
    assert (leaf.name, leaf.spec.modality, leaf.is_picture) == ("observation", Modality.IMAGE, True)
    discrete = {"type": "Discrete", "dtype": "int64", "start": -1, "n": 3}
    (leaf,) = parse_space(json.dumps(discrete), "action", bounds=True)
    assert (leaf.spec.low, leaf.spec.num_values) == ((-1.0,), (3,))
    deep: Any = discrete
    for _ in range(40):
        deep = {"type": "Dict", "subspaces": {"a": deep}}
    for bad, expected in (
        ("{", "cannot be understood"),
        ("[1]", "cannot be understood"),
        (json.dumps({"type": "Graph"}), "spaces of type 'Graph' are not supported"),
        (json.dumps({"type": "MultiBinary", "n": 10**12}), "shape (1000000000000,)"),
        (json.dumps({"type": "Dict", "subspaces": {"a/b": discrete}}), "the key 'a/b' of a Dict"),
        (json.dumps(box | {"dtype": "object"}), "cannot be understood"),
        (json.dumps(deep), "nested more than 16 deep"),
    ):
        with pytest.raises(UserError, match="observation space") as caught:
            parse_space(bad, "observation", bounds=True)
        assert expected in str(caught.value)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """import, export and doctor find the format out and print what was lost."""
    source = make_set(tmp_path)
    assert main(["import", "--source", str(source), "--store", str(tmp_path / "store"), "--task-id", "Toy-v3"]) == 0
    out = capsys.readouterr().out
    assert "the set lacked: Tuple (1): its members become fields 0, 1" in out
    assert "3 episodes added, 0 there already, 0 refused: 1 tasks" in out
    assert (
        main(["export", "--to", "minari", "--store", str(tmp_path / "store"), "--output", str(tmp_path / "out")]) == 0
    )
    assert "Toy-v3: the format cannot hold: environment (1)" in capsys.readouterr().out
    assert main(["doctor", "--source", str(tmp_path / "out" / "Toy-v3")]) == 0
    assert "minari: 0 errors, 0 warnings, 1 notes" in capsys.readouterr().out
    assert main(["import", "--source", str(source), "--store", str(tmp_path / "s"), "--option", "bounds=no"]) == 2
    assert "option bounds 'no': expected keep or drop" in capsys.readouterr().err
