import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenization.token_sequence import TokenSequence, observation_positions
from tokenization.vocabulary import PATCH_PLACEHOLDER, SEPARATOR


def positions(tokens: list[int], offsets: list[int]) -> list[int]:
    result = observation_positions(np.array(tokens, np.uint16), np.array(offsets))
    assert result.dtype == np.int16
    return result.tolist()


def test_positions_of_a_whole_timestep() -> None:
    tokens = [7, PATCH_PLACEHOLDER, 32_512, SEPARATOR, 1, 32_000]
    assert positions(tokens, [0, 6]) == [0, 1, 2, 3, -1, -1]


def test_positions_of_timesteps_of_unequal_length_and_of_one_without_action() -> None:
    tokens = [5, SEPARATOR, 1, 2, SEPARATOR, 8, 8, 8, SEPARATOR]
    assert positions(tokens, [0, 3, 4, 8, 9]) == [0, 1, -1, 0, 0, -1, -1, -1, 0]
    assert positions([3, 4, SEPARATOR], [0, 3]) == [0, 1, 2]
    assert positions([], [0]) == []
    assert positions([SEPARATOR, 9], [0, 2, 2]) == [0, -1]


def test_positions_are_clipped_to_the_table() -> None:
    tokens = [32_512] * 600 + [SEPARATOR, 4]
    result = positions(tokens, [0, 602])
    assert result[510:513] == [510, 511, 511]
    assert result[599:] == [511, 511, -1]


def make_sequence(num_steps: int) -> TokenSequence:
    """Timestep s: s % 3 patches, one float, the separator, one action."""
    rows = [[*[PATCH_PLACEHOLDER] * (s % 3), 32_000 + s, SEPARATOR, s] for s in range(num_steps)]
    num_patches = sum(s % 3 for s in range(num_steps))
    tokens = np.array([token for row in rows for token in row], np.uint16)
    return TokenSequence(
        task_id="a-v0",
        episode_id="e",
        tokens=tokens,
        targets=(tokens < 1024).astype(np.uint8),
        timestep_offsets=np.cumsum([0] + [len(row) for row in rows]),
        patches=np.random.default_rng(0).integers(0, 256, (max(num_patches, 1), 16, 16, 3), np.uint8),
        patch_index=np.arange(num_patches, dtype=np.int32),
        patch_intervals=np.repeat(np.arange(num_patches, dtype=np.uint8)[:, None], 4, axis=1),
    )


def test_sizes() -> None:
    sequence = make_sequence(5)
    assert (sequence.num_steps, sequence.num_tokens, sequence.num_targets) == (5, 19, 5)


@given(st.integers(0, 20), st.integers(0, 20))
def test_a_window_holds_its_timesteps_and_their_patches(start: int, stop: int) -> None:
    sequence = make_sequence(12)
    window = sequence.window(start, stop)
    steps = list(range(start, min(stop, 12)))
    assert window.num_steps == len(steps)
    assert [int(window.tokens[offset - 1]) for offset in window.timestep_offsets[1:]] == steps
    before = sum(s % 3 for s in range(min(start, 12)))
    assert window.patch_index.tolist() == list(range(before, before + sum(s % 3 for s in steps)))
    assert window.patch_intervals[:, 0].tolist() == window.patch_index.tolist()
    assert int((window.tokens == PATCH_PLACEHOLDER).sum()) == len(window.patch_index)


def test_a_sequence_is_frozen() -> None:
    with pytest.raises(AttributeError):
        make_sequence(1).task_id = "b-v0"  # type: ignore[misc]
