"""The tokens of a step as the viewer of the store asks for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from episode_store.episode import Episode
from episode_store.errors import UserError
from episode_store.spec import ArraySpec, Modality
from episode_store.task import TaskSpec
from episode_store.testing import example_tasks, random_episode
from tokenization.describe import describe
from tokenization.episode_tokenizer import EpisodeTokenizer
from tokenization.token_view import TokenView
from tokenization.vocabulary import SEPARATOR

ROBOT = example_tasks()["Robot-v1"]
GRID = example_tasks()["grid/Example-v0"]


def step_of(episode: Episode, step: int) -> Episode:
    """The episode cut to one step, as the viewer cuts it."""
    return Episode(
        task_id=episode.task_id,
        observations={key: values[step : step + 2] for key, values in episode.observations.items()},
        actions={key: values[step : step + 1] for key, values in episode.actions.items()},
        rewards=episode.rewards[step : step + 1],
        terminated=False,
        truncated=False,
        step_columns={key: values[step : step + 1] for key, values in episode.step_columns.items()},
    )


def test_a_step_has_the_tokens_it_has_in_the_whole_episode() -> None:
    episode = random_episode(ROBOT, np.random.default_rng(0), num_steps=6)
    tokenizer = EpisodeTokenizer(ROBOT)
    whole = describe(tokenizer.encode(episode), tokenizer)
    view = TokenView()
    for step in range(6):
        rows = view(ROBOT, step_of(episode, step), "id")
        expected = [token for token in whole if token.timestep == step]
        assert [row["meaning"] for row in rows] == [token.meaning for token in expected]
        assert [row["id"] for row in rows] == [token.token for token in expected]
        assert [bool(row["target"]) for row in rows] == [token.target != "none" for token in expected]
        assert SEPARATOR in [row["id"] for row in rows]


def test_patches_that_follow_each_other_are_one_row() -> None:
    task = TaskSpec(
        task_id="Pixels-v0",
        observation_spec={"image": ArraySpec(modality=Modality.IMAGE, shape=(32, 48, 3), dtype="uint8")},
        action_spec={"action": ArraySpec(modality=Modality.DISCRETE, dtype="int64", num_values=(4,))},
    )
    episode = random_episode(task, np.random.default_rng(0), num_steps=2)
    action = int(episode.actions["action"][1])
    assert TokenView()(task, step_of(episode, 1), "id") == [
        {
            "position": "0 to 5",
            "id": "6 patches",
            "place in observation": "0 to 5",
            "target": "",
            "meaning": "observation/image patch row 0 column 0 to row 1 column 2",
        },
        {"position": 6, "id": SEPARATOR, "place in observation": 6, "target": "", "meaning": "separator"},
        {"position": 7, "id": action, "place in observation": "", "target": "action", "meaning": f"action = {action}"},
    ]


def test_text_needs_a_text_model(tmp_path: Path) -> None:
    episode = random_episode(GRID, np.random.default_rng(0), num_steps=2)
    with pytest.raises(UserError, match="grid/Example-v0 has text: give the text model with --text-model"):
        TokenView()(GRID, step_of(episode, 0), "id")
    (tmp_path / "text.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match="expected a SentencePiece model"):
        TokenView(tmp_path / "text.model")
