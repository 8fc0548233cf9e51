"""What is shown of where an episode comes from."""

from __future__ import annotations

from episode_store.episode import EpisodeMetadata
from episode_store.provenance import lines, provenance
from episode_store.spec import ArraySpec, Modality
from episode_store.task import TaskSpec

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
