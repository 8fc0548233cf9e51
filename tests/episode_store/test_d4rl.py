"""D4RL's HDF5 layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from episode_store.errors import UserError
from episode_store.formats import format as formats
from episode_store.formats import transfer
from episode_store.store import EpisodeStore


def arrays() -> dict[str, Any]:
    """Seven rows: an episode of 3 that terminates, one of 2 that times out, and 2 rows without an end."""
    return {
        "observations": np.arange(14, dtype=np.float32).reshape(7, 2),
        "actions": np.arange(7, dtype=np.float32).reshape(7, 1),
        "rewards": np.arange(7, dtype=np.float32),
        "terminals": np.array([0, 0, 1, 0, 0, 0, 0], bool),
        "timeouts": np.array([0, 0, 0, 0, 1, 0, 0], bool),
        "infos/qpos": np.arange(7, dtype=np.float64),
        "metadata/algorithm": np.bytes_(b"SAC"),
        "metadata/note": "of variable length",
    }


def write(path: Path, content: dict[str, Any]) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in content.items():
            file.create_dataset(name, data=values)
    return path


def run(source: Path, tmp_path: Path) -> tuple[list[Any], transfer.ImportReport]:
    report = transfer.import_set(formats.open_importer("d4rl", source), source, tmp_path / "store")
    store = EpisodeStore.open(tmp_path / "store")
    return [store.read(i) for i in store.table()["episode_id"].to_pylist()], report


def test_flat_rows_become_episodes(tmp_path: Path) -> None:
    source = write(tmp_path / "hopper-medium-v2.hdf5", arrays())
    assert formats.detect_format(source) == "d4rl"
    episodes, report = run(source, tmp_path)
    assert report.tasks == ["d4rl/hopper-medium-v2"]
    assert [(e.num_steps, e.terminated, e.truncated) for e in episodes] == [
        (3, True, False),
        (2, False, True),
        (2, False, True),
    ]
    assert episodes[1].observations["observation"].tolist() == [[6, 7], [8, 9], [8, 9]]
    assert episodes[1].actions["action"].tolist() == [[3], [4]]
    assert episodes[1].rewards.tolist() == [3, 4]
    assert episodes[1].step_columns["infos/qpos"].tolist() == [3, 4]
    assert episodes[1].metadata.environment_config["source"] == "hopper-medium-v2.hdf5 rows 3 to 4"
    assert {loss.what: loss.count for loss in report.losses} == {
        "bounds, seed, agent, environment": 1,
        "metadata": 1,
        "final observation": 3,
        "end of the last episode": 1,
    }
    task = EpisodeStore.open(tmp_path / "store").tasks["d4rl/hopper-medium-v2"]
    assert task.env_spec_json == '{"file": "hopper-medium-v2.hdf5", "metadata": {"algorithm": "SAC"}}'


def test_next_observations_give_the_final_one(tmp_path: Path) -> None:
    content = arrays() | {"next_observations": 100 + arrays()["observations"]}
    del content["timeouts"]
    episodes, report = run(write(tmp_path / "x.hdf5", content), tmp_path)
    assert episodes[0].observations["observation"].tolist() == [[0, 1], [2, 3], [4, 5], [104, 105]]
    assert [episode.num_steps for episode in episodes] == [3, 4]
    assert {loss.what for loss in report.losses} == {
        "bounds, seed, agent, environment",
        "metadata",
        "timeouts",
        "end of the last episode",
    }


def test_a_bad_value_is_named(tmp_path: Path) -> None:
    content = arrays()
    content["rewards"][3] = np.nan
    source = write(tmp_path / "x.hdf5", content)
    _, findings = transfer.examine(source)
    (error,) = [finding for finding in findings if finding.severity == "error"]
    assert error.where == "x.hdf5 rows 3 to 4"
    assert "rewards: step 0: expected a finite number, got nan" in error.what
    episodes, report = run(source, tmp_path)
    assert (len(episodes), report.num_refused, report.ok) == (2, 1, False)


def test_nothing_outside_the_file_is_read(tmp_path: Path) -> None:
    """Links to other files, data kept in other files, sizes that the file cannot hold."""
    other = write(tmp_path / "other.hdf5", arrays())
    content = arrays()
    del content["observations"]

    def bad(name: str, add: Any) -> str:
        source = write(tmp_path / name, content)
        with h5py.File(source, "a") as file:
            add(file)
        with pytest.raises(UserError) as caught:
            formats.open_importer("d4rl", source)
        return str(caught.value)

    def external_link(file: Any) -> None:
        file["observations"] = h5py.ExternalLink(str(other), "observations")

    def external_data(file: Any) -> None:
        (tmp_path / "raw").write_bytes(bytes(28))
        file.create_dataset("observations", (7, 1), "f4", external=[(str(tmp_path / "raw"), 0, 28)])

    def virtual(file: Any) -> None:
        layout = h5py.VirtualLayout((7, 2), "f4")
        layout[:] = h5py.VirtualSource(str(other), "observations", (7, 2))
        file.create_virtual_dataset("observations", layout)

    def huge(file: Any) -> None:
        file.create_dataset("observations", (7, 1 << 40), "f4", chunks=(1, 1024))

    assert "observations: a link, which may lead out of the file" in bad("link.hdf5", external_link)
    assert "observations: its data lies in other files" in bad("external.hdf5", external_data)
    assert "observations: its data lies in other files" in bad("virtual.hdf5", virtual)
    assert "observations: shape (7, 1099511627776) is more than the file can hold" in bad("huge.hdf5", huge)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"terminals": None}, "has no terminals: not a D4RL file"),
        ({"actions": np.zeros((6, 1))}, "actions has shape (6, 1), rewards 7 rows"),
        ({"observations": np.array([b"x"] * 7)}, "expected numbers"),
    ],
)
def test_files_that_are_not_d4rl(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    content = {name: values for name, values in (arrays() | change).items() if values is not None}
    source = write(tmp_path / "x.hdf5", content)
    with pytest.raises(UserError) as caught:
        formats.open_importer("d4rl", source)
    assert problem in str(caught.value)


def test_cut_files_are_told(tmp_path: Path) -> None:
    source = write(tmp_path / "x.hdf5", arrays())
    data = source.read_bytes()
    for size in (len(data) // 2, 600, 8):
        source.write_bytes(data[:size])
        _, findings = transfer.examine(source, "d4rl")
        assert findings[0].severity == "error"


def test_changed_bytes_never_crash(tmp_path: Path) -> None:
    """An error or, since HDF5 need not have checksums, nothing; the doctor says so."""
    source = write(tmp_path / "x.hdf5", arrays())
    good = source.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(good)
        place = int(rng.integers(len(changed)))
        changed[place : place + 4] = rng.bytes(4)
        source.write_bytes(changed)
        _, findings = transfer.examine(source, "d4rl")
        assert "a changed bit may go unnoticed" in findings[-1].what
