"""What is shown of where an episode comes from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from episode_store import change
from episode_store.compact import compact
from episode_store.episode import EpisodeMetadata
from episode_store.formats import format as formats
from episode_store.formats import transfer
from episode_store.merge import merge
from episode_store.provenance import lines, provenance
from episode_store.spec import ArraySpec, Modality
from episode_store.store import EpisodeStore
from episode_store.task import TaskSpec
from episode_store.testing import random_episode
from episode_store.writer import EpisodeWriter

_SCALAR = ArraySpec(modality=Modality.DISCRETE, dtype="int64", num_values=(4,))


def task_of(env_spec_json: str = "{}") -> TaskSpec:
    return TaskSpec(
        task_id="Robot-v1",
        observation_spec={"observation": _SCALAR},
        action_spec={"action": _SCALAR},
        env_spec_json=env_spec_json,
        licence="MIT",
    )


def test_all_that_is_known_is_said_in_order() -> None:
    metadata = EpisodeMetadata(
        agent_id="ppo",
        seed=7,
        collection_index=3,
        experiment_id="run",
        agent_hash="abc",
        attribution="by somebody",
        success=False,
        environment_config={
            "id": "Robot-v1",
            "kwargs": {"size": 5, "mode": "hard"},
            "wrappers": ["Flatten", "Scale(by=2)"],
            "versions": {"gymnasium": "1.4.0", "numpy": "2"},
            "archive": "x.zip",
        },
    )
    assert lines(provenance(metadata, task_of())) == [
        ("environment", "Robot-v1"),
        ("environment_kwargs", "size 5, mode hard"),
        ("wrappers", "Flatten, Scale(by=2)"),
        ("versions", "gymnasium 1.4.0, numpy 2"),
        ("seed", "7"),
        ("agent", "ppo"),
        ("agent_hash", "abc"),
        ("collection_index", "3"),
        ("experiment", "run"),
        ("success", "False"),
        ("licence", "MIT"),
        ("attribution", "by somebody"),
        ("source", "archive x.zip"),
    ]


def test_an_episode_that_does_not_say_has_what_its_task_says() -> None:
    facts = provenance(EpisodeMetadata(), task_of('{"id": "Robot-v1", "wrappers": ["Flatten"], "kwargs": {}}'))
    assert (facts["environment"], facts["wrappers"], facts["versions"]) == ("Robot-v1", ["Flatten"], None)
    assert lines(facts) == [
        ("environment", "Robot-v1"),
        ("wrappers", "Flatten"),
        ("collection_index", "0"),
        ("licence", "MIT"),
    ]


def test_anybodys_task_file_is_no_error() -> None:
    for text in ("", "not json", "[1, 2]", "null"):
        assert provenance(EpisodeMetadata(), task_of(text))["environment"] is None


METADATA = EpisodeMetadata(
    agent_id="ppo",
    agent_hash="abc",
    seed=7,
    collection_index=3,
    experiment_id="run",
    attribution="by somebody",
    environment_config={
        "id": "Robot-v1",
        "kwargs": {"size": 5},
        "wrappers": ["Scale(by=2)"],
        "versions": {"gymnasium": "1.4.0", "python": "3.12.1"},
    },
)


def store_of(path: Path, seed: int) -> EpisodeStore:
    """Two episodes of METADATA."""
    rng = np.random.default_rng(seed)
    with EpisodeWriter(path) as writer:
        writer.add_task(task_of())
        for _ in range(2):
            writer.add_episode(random_episode(task_of(), rng, num_steps=4, metadata=METADATA))
    return EpisodeStore.open(path)


def metadata_of(path: Path) -> list[EpisodeMetadata]:
    store = EpisodeStore.open(path)
    return [store.read_metadata(episode_id) for episode_id in store.episode_ids]


def test_it_is_kept_through_merge_delete_and_compact(tmp_path: Path) -> None:
    store_of(tmp_path / "one", 1)
    store_of(tmp_path / "two", 2)
    merge(tmp_path / "all", [(tmp_path / "one", None), (tmp_path / "two", None)])
    ids = list(EpisodeStore.open(tmp_path / "all").episode_ids)
    change.delete(tmp_path / "all", episode_ids=ids[:1])
    compact(tmp_path / "all")
    assert metadata_of(tmp_path / "all") == [METADATA] * 3


@pytest.mark.parametrize("name", ["rlds", "minari", "robomimic", "lerobot"])
def test_it_comes_back_from_other_formats(tmp_path: Path, name: str) -> None:
    store = store_of(tmp_path / "store", 1)
    result = formats.export_task(name, store, "Robot-v1", tmp_path / "out", options={}, progress=lambda ids: ids)
    importer = formats.open_importer(name, Path(result.destination), task_id=None, options={})
    transfer.import_set(importer, result.destination, tmp_path / "back")
    assert metadata_of(tmp_path / "back") == [METADATA] * 2
