"""Where an episode comes from, put together from its metadata and its task: the same facts for `show` and `view`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from episode_store.episode import EpisodeMetadata
from episode_store.task import TaskSpec

# What an environment_config says of how the environment was made, and where it is in what is shown.
_ENVIRONMENT = {"id": "environment", "kwargs": "environment_kwargs", "wrappers": "wrappers", "versions": "versions"}


def provenance(metadata: EpisodeMetadata, task: TaskSpec) -> dict[str, Any]:
    """Names -> values in the order to be read; what is not known is None.

    An episode that does not say how its environment was made has what its task says. The rest of its
    environment_config is under "source".
    """
    config = {**_object(task.env_spec_json), **metadata.environment_config}
    rest = {key: value for key, value in metadata.environment_config.items() if key not in _ENVIRONMENT}
    return {
        **{name: config.get(key) for key, name in _ENVIRONMENT.items()},
        "seed": metadata.seed,
        "agent": metadata.agent_id or None,
        "agent_hash": metadata.agent_hash or None,
        "collection_index": metadata.collection_index,
        "experiment": metadata.experiment_id or None,
        "success": metadata.success,
        "split_group": metadata.split_group or None,
        "licence": task.licence or None,
        "attribution": metadata.attribution or None,
        "source": rest or None,
    }


def lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, text) of what is known, for people."""
    return [(name, _text(value)) for name, value in facts.items() if value not in (None, {}, [])]


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {one if isinstance(one, str) else json.dumps(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(one if isinstance(one, str) else json.dumps(one) for one in value)
    return str(value)


def _object(text: str) -> dict[str, Any]:
    """A task file's JSON of its environment; it is anybody's text."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
