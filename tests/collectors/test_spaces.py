"""Spaces become specs and fields and come back."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import data_equivalence

from collectors.spaces import (
    action_spec,
    flatten_action,
    flatten_observation,
    observation_spec,
    unflatten_action,
    unflatten_observation,
)
from episode_store.episode import Episode
from episode_store.errors import UserError
from episode_store.spec import ArraySpec, Modality
from episode_store.task import TaskSpec
from tokenization.episode_tokenizer import EpisodeTokenizer

# 1,024 bins over [-1, 1].
BIN_WIDTH = 2 / 1024

SPACES = {
    "box_float32": spaces.Box(-2.0, 3.0, (3,), np.float32),
    "box_float64": spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, 10.0]), dtype=np.float64),
    "box_matrix": spaces.Box(-1.0, 1.0, (2, 2), np.float32),
    "box_scalar": spaces.Box(-1.0, 1.0, (), np.float32),
    "box_unbounded": spaces.Box(-np.inf, np.inf, (2,), np.float32),
    "box_half_bounded": spaces.Box(0.0, np.inf, (2,), np.float64),
    "box_int8": spaces.Box(-5, 5, (2,), np.int8),
    "box_int64_wide": spaces.Box(-100_000, 100_000, (2,), np.int64),
    "box_uint8": spaces.Box(0, 255, (4,), np.uint8),
    "discrete": spaces.Discrete(5),
    "discrete_start": spaces.Discrete(4, start=-2),
    "multi_discrete": spaces.MultiDiscrete([3, 7]),
    "multi_discrete_matrix": spaces.MultiDiscrete(np.array([[2, 3], [4, 5]])),
    "multi_discrete_start": spaces.MultiDiscrete([3, 7], start=[-1, 10]),
    "multi_binary": spaces.MultiBinary(4),
    "multi_binary_matrix": spaces.MultiBinary((2, 3)),
    "dict": spaces.Dict({"b": spaces.Discrete(3), "a": spaces.Box(-1.0, 1.0, (2,), np.float32)}),
    "tuple": spaces.Tuple((spaces.Discrete(3), spaces.Box(0.0, 1.0, (1,), np.float32))),
    "tuple_of_twelve": spaces.Tuple([spaces.Discrete(place + 1) for place in range(12)]),
    "nested": spaces.Dict(
        {
            "arm": spaces.Dict({"joint": spaces.Box(-1.0, 1.0, (2,), np.float32), "grip": spaces.MultiBinary(2)}),
            "pair": spaces.Tuple((spaces.Discrete(2), spaces.Dict({"x": spaces.Discrete(9, start=1)}))),
        }
    ),
}


@pytest.mark.parametrize("name", SPACES)
def test_flatten_and_unflatten_are_inverse(name: str) -> None:
    space = SPACES[name]
    space.seed(3)
    for _ in range(10):
        value = space.sample()
        fields = flatten_action(space, value)
        assert set(action_spec(space)) == set(fields)
        again = unflatten_action(space, fields)
        assert space.contains(again)
        assert data_equivalence(value, again)
        assert data_equivalence(value, unflatten_observation(space, flatten_observation(space, value)))


@pytest.mark.parametrize("name", SPACES)
def test_actions_survive_tokens_within_half_a_bin(name: str) -> None:
    space = SPACES[name]
    space.seed(5)
    task = TaskSpec(
        task_id="test/space-v0",
        observation_spec=observation_spec(spaces.Discrete(2)),
        action_spec=action_spec(space),
    )
    actions = [space.sample() for _ in range(8)]
    fields = [flatten_action(space, action) for action in actions]
    episode = Episode(
        task_id=task.task_id,
        observations={"observation": np.zeros(len(actions) + 1, np.int64)},
        actions={key: np.stack([step[key] for step in fields]) for key in task.action_spec},
        rewards=np.zeros(len(actions)),
        terminated=True,
        truncated=False,
    )
    episode.validate(task)
    tokenizer = EpisodeTokenizer(task, None)
    sequence = tokenizer.encode(episode)
    for step, action in enumerate(actions):
        # One observation token and the separator come first.
        tokens = sequence.tokens[sequence.timestep_offsets[step] + 2 : sequence.timestep_offsets[step + 1]]
        decoded = unflatten_action(space, tokenizer.decode_action(tokens))
        assert space.contains(decoded)
        for key, want in flatten_action(space, action).items():
            got = flatten_action(space, decoded)[key]
            _assert_within_half_a_bin(task.action_spec[key], np.asarray(want, float), np.asarray(got, float))


def _assert_within_half_a_bin(spec: ArraySpec, want: np.ndarray, got: np.ndarray) -> None:
    if spec.modality == Modality.DISCRETE:
        np.testing.assert_array_equal(want, got)
        return
    rounding = 0.5 if spec.dtype.startswith("int") else 0.0
    if spec.is_bounded:
        low = np.array(spec.low).reshape(spec.shape)
        high = np.array(spec.high).reshape(spec.shape)
        tolerance = BIN_WIDTH / 2 * (high - low) / 2
    else:
        # Half a bin of the companded value, back on the raw scale: |dx/dF| = log(256 * 100 + 1) * (|x| + 1/100).
        tolerance = BIN_WIDTH / 2 * np.log(256 * 100 + 1) * (np.maximum(np.abs(want), np.abs(got)) + 0.01)
    assert (np.abs(want - got) <= tolerance * 1.001 + rounding + 1e-6).all()


def test_specs_of_each_kind() -> None:
    assert action_spec(spaces.Discrete(4, start=-2)) == {
        "action": ArraySpec(modality=Modality.DISCRETE, dtype="int64", low=(-2.0,), num_values=(4,))
    }
    assert action_spec(spaces.Box(-2.0, 3.0, (2,), np.float32)) == {
        "action": ArraySpec(modality=Modality.CONTINUOUS, shape=(2,), low=(-2.0, -2.0), high=(3.0, 3.0))
    }
    # Observations carry no bounds: simulators overstep their own.
    assert observation_spec(spaces.Box(-2.0, 3.0, (2,), np.float32)) == {
        "observation": ArraySpec(modality=Modality.CONTINUOUS, shape=(2,))
    }
    assert observation_spec(spaces.MultiBinary(3))["observation"].num_values == (2, 2, 2)
    assert observation_spec(spaces.Text(8))["observation"].modality == Modality.TEXT
    assert observation_spec(spaces.Box(0, 255, (64, 48, 3), np.uint8))["observation"].modality == Modality.IMAGE
    # Too small for a picture: 256 discrete values each.
    grid = observation_spec(spaces.Box(0, 255, (7, 7, 3), np.uint8))["observation"]
    assert (grid.modality, set(grid.num_values)) == (Modality.DISCRETE, {256})
    assert observation_spec(spaces.Box(0, 2000, (1,), np.int32))["observation"].modality == Modality.CONTINUOUS


def test_names_of_nested_fields() -> None:
    assert list(action_spec(SPACES["nested"])) == ["arm/grip", "arm/joint", "pair/0", "pair/1/x"]
    assert list(action_spec(SPACES["tuple_of_twelve"])) == [f"{place:02d}" for place in range(12)]


def test_text_goes_through() -> None:
    space = spaces.Dict({"mission": spaces.Text(20), "place": spaces.Discrete(3)})
    value = {"mission": "go to the ball", "place": np.int64(2)}
    assert flatten_observation(space, value)["mission"] == "go to the ball"
    assert unflatten_observation(space, flatten_observation(space, value)) == value


def test_a_flattened_observation_is_a_copy() -> None:
    space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    value = np.zeros(2, np.float32)
    fields = flatten_observation(space, value)
    value[:] = 1.0
    np.testing.assert_array_equal(fields["observation"], [0.0, 0.0])


def test_modality_can_be_overridden() -> None:
    space = spaces.Dict({"sonar": spaces.Box(0, 255, (32, 32, 3), np.uint8)})
    assert observation_spec(space, {"sonar": Modality.DISCRETE})["sonar"].modality == Modality.DISCRETE
    with pytest.raises(UserError, match=r"modalities name unknown fields \['radar'\], expected some of \['sonar'\]"):
        observation_spec(space, {"radar": Modality.IMAGE})


@pytest.mark.parametrize(
    ("space", "fields", "message"),
    [
        (spaces.Discrete(3), {"action": 3}, "action: expected a whole number from 0 to 2, got 3"),
        (spaces.Discrete(3), {"move": 1}, r"action lacks the field 'action', got \['move'\]"),
        (SPACES["box_float32"], {"action": [0.0]}, r"action: expected shape \(3,\), got \(1,\)"),
        (SPACES["box_float32"], {"action": [0.0, np.nan, 0.0]}, "action: expected finite numbers"),
    ],
)
def test_actions_that_are_none(space: spaces.Space, fields: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        unflatten_action(space, fields)


def test_actions_are_clipped_into_the_bounds() -> None:
    action = unflatten_action(SPACES["box_float32"], {"action": np.array([-9.0, 0.5, 9.0])})
    np.testing.assert_array_equal(action, np.array([-2.0, 0.5, 3.0], np.float32))
    assert action.dtype == np.float32


def test_unsupported_space_is_named() -> None:
    with pytest.raises(UserError, match="field 'words': spaces of kind Sequence are not supported"):
        observation_spec(spaces.Dict({"words": spaces.Sequence(spaces.Discrete(3))}))
