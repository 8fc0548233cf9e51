import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tokenization.loss_mask import target_kinds
from tokenization.token_sequence import TargetKind
from tokenization.vocabulary import PATCH_PLACEHOLDER, SEPARATOR

T, A, N = TargetKind.OBSERVATION_TEXT, TargetKind.ACTION, TargetKind.NONE


def test_text_and_actions_are_targets_and_nothing_else() -> None:
    step = [11, 12, PATCH_PLACEHOLDER, PATCH_PLACEHOLDER, 3, 32_512, SEPARATOR, 2, 32_000]
    targets = target_kinds(np.array(step), np.array([0, 9]), num_text_tokens=np.array([2]))
    assert targets.dtype == np.uint8
    assert targets.tolist() == [T, T, N, N, N, N, N, A, A]


def test_exploratory_actions_are_no_targets() -> None:
    tokens = np.array([32_512, SEPARATOR, 1] * 3)
    targets = target_kinds(
        tokens, np.array([0, 3, 6, 9]), num_text_tokens=np.zeros(3, int), exploratory=np.array([False, True, False])
    )
    assert targets.tolist() == [N, N, A, N, N, N, N, N, A]


def test_timesteps_of_unequal_length() -> None:
    tokens = np.array([9, 9, 32_000, SEPARATOR, 5, 9, 32_000, SEPARATOR, 5, 6, 2])
    targets = target_kinds(
        tokens, np.array([0, 5, 11]), num_text_tokens=np.array([2, 1]), exploratory=np.array([True, False])
    )
    assert targets.tolist() == [T, T, N, N, N, T, N, N, A, A, A]


def test_an_observation_alone() -> None:
    tokens = np.array([9, 32_000, SEPARATOR])
    assert target_kinds(tokens, np.array([0, 3]), num_text_tokens=np.array([1])).tolist() == [T, N, N]
    assert target_kinds(np.empty(0, np.uint16), np.array([0]), num_text_tokens=np.empty(0, int)).tolist() == []


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.booleans()), max_size=12))
def test_property_equals_a_loop_over_tokens(steps: list[tuple[int, int, int, bool]]) -> None:
    tokens: list[int] = []
    expected: list[int] = []
    offsets = [0]
    for num_text, num_floats, num_actions, exploratory in steps:
        tokens += [9] * num_text + [32_000] * num_floats + [SEPARATOR] + [9] * num_actions
        expected += [T] * num_text + [N] * (num_floats + 1) + [N if exploratory else A] * num_actions
        offsets.append(len(tokens))
    targets = target_kinds(
        np.array(tokens, np.uint16),
        np.array(offsets),
        num_text_tokens=np.array([step[0] for step in steps], int),
        exploratory=np.array([step[3] for step in steps], bool),
    )
    assert targets.tolist() == expected
