"""Every space of Gymnasium tokenizes, and actions return within half a bin (through collectors.spaces)."""

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from collectors import spaces as adapter
from episode_store.episode import Episode
from episode_store.task import TaskSpec
from tokenization.episode_tokenizer import EpisodeTokenizer
from tokenization.text import TextTokenizer

INF = np.inf
BOXES = [
    *(spaces.Box(-2, 5, (2, 3), dtype) for dtype in (np.float16, np.float32, np.float64)),
    *(spaces.Box(-INF, INF, (3,), dtype) for dtype in (np.float32, np.float64)),
    spaces.Box(np.array([-1, 0, -INF], np.float32), np.array([1, INF, 4], np.float32)),
    spaces.Box(0, INF, (), np.float64),
    *(spaces.Box(0, 100, (2,), dtype) for dtype in (np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint64)),
    spaces.Box(-30_000, 30_000, (4,), np.int16),
    spaces.Box(0, 1, (3,), np.bool_),
]
LEAVES = [
    *BOXES,
    spaces.Discrete(7),
    spaces.Discrete(1024, start=-5),
    spaces.MultiDiscrete([3, 1024, 2]),
    spaces.MultiDiscrete(np.array([[3, 2], [4, 5]]), start=np.array([[1, -2], [0, 9]])),
    spaces.MultiBinary(5),
    spaces.MultiBinary([2, 3]),
    spaces.Text(12),
]
NESTED = [
    spaces.Dict({"b": LEAVES[0], "a": spaces.Discrete(3), "say": spaces.Text(9), "zz": spaces.Text(4)}),
    spaces.Tuple([spaces.Discrete(2), spaces.Dict({"x": BOXES[3], "y": spaces.Tuple([spaces.MultiBinary(2)])})]),
]


@pytest.mark.parametrize("space", [*LEAVES, *NESTED], ids=repr)
@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31))
def test_actions_return_within_half_a_bin_and_observations_tokenize(
    text: TextTokenizer, space: spaces.Space, seed: int
) -> None:
    space.seed(seed)
    task = TaskSpec(
        task_id="space-v0", observation_spec=adapter.observation_spec(space), action_spec=adapter.action_spec(space)
    )
    value = space.sample()
    observation, action = adapter.flatten_observation(space, value), adapter.flatten_action(space, value)
    episode = Episode(
        task_id="space-v0",
        observations={key: _over_time(field, 2) for key, field in observation.items()},
        actions={key: _over_time(field, 1) for key, field in action.items()},
        rewards=np.zeros(1),
        terminated=True,
        truncated=False,
    )
    episode.validate(task)
    tokenizer = EpisodeTokenizer(task, text)
    sequence = tokenizer.encode(episode)
    (separator,) = np.flatnonzero(sequence.tokens == 33_024)
    ids = sequence.tokens[separator + 1 :]
    decoded = adapter.unflatten_action(space, tokenizer.decode_action(ids))
    assert space.contains(decoded)
    fields = adapter.flatten_action(space, decoded)
    for key, spec in task.action_spec.items():
        if isinstance(action[key], str):
            assert fields[key] == action[key]
            continue
        original, back = (np.asarray(field, np.float64).reshape(-1) for field in (action[key], fields[key]))
        rounding = 1e-3 if spec.dtype == "float16" else 0.5 if np.dtype(spec.dtype).kind in "iu" else 1e-5
        if spec.num_values:
            assert np.array_equal(original, back)
        elif spec.is_bounded:
            half_bin = (np.array(spec.high) - np.array(spec.low)) / 2048
            assert (np.abs(original - back) <= half_bin + rounding).all()
        else:
            # Companded: the bins are wider further out.
            assert (np.abs(original - back) <= (np.abs(original) + 0.01) * 0.01 + rounding).all()


def _over_time(field: np.ndarray | str, num_steps: int) -> np.ndarray | list[str]:
    return [field] * num_steps if isinstance(field, str) else np.stack([np.asarray(field)] * num_steps)
