"""The one rule of return tokens, by literal arrays."""

import numpy as np
import pytest

from episode_store.errors import EpisodeError
from tokenization import bins
from tokenization.return_tokens import ReturnRange, put_first, returns_to_go
from tokenization.vocabulary import SEPARATOR


def test_returns_to_go_are_of_the_rest_of_the_episode() -> None:
    found = returns_to_go(np.array([1.0, 0.0, -2.5, 4.0]))
    assert found.dtype == np.float32
    assert found.tolist() == [2.5, 1.5, 1.5, 4.0]
    # In float64 from the end: 2^24 + 1 + 1 in float32 would lose both ones.
    assert returns_to_go(np.array([2.0**24, 1.0, 1.0])).tolist() == [2.0**24 + 2, 2.0, 1.0]


def test_ids_by_hand() -> None:
    # F(0) = 0, F(1) = 0.4547, F(2) = 0.5225, F(-1) = -0.4547: bins 512, 744, 779, 279.
    assert ReturnRange(random=20.0, expert=120.0).to_ids(np.array([0, 100, 200, -100])).tolist() == [
        32_512, 32_744, 32_779, 32_279,
    ]  # fmt: skip
    # A task of negative returns: what is still to come ends at 0 too. F(-0.2) = -0.2999.
    assert ReturnRange(random=-1200.0, expert=-200.0).to_ids(np.array([-1000.0, -200.0, 0.0])).tolist() == [
        32_279, 32_358, 32_512,
    ]  # fmt: skip
    assert ReturnRange(random=5.0, expert=5.0).to_ids(np.array([1.0])).tolist() == [32_744]
    with pytest.raises(EpisodeError, match="returns-to-go: step 1"):
        ReturnRange(random=0.0, expert=1.0).to_ids(np.array([0.0, np.nan]))


def test_a_bin_is_two_percent_of_the_range_at_the_expert() -> None:
    ids = ReturnRange(random=0.0, expert=1.0).to_ids(np.linspace(0.9, 1.1, 2001))
    assert np.diff(ids.astype(int)).max() == 1
    assert len(np.unique(ids)) == pytest.approx(0.2 / 0.02, abs=2)
    assert bins.companded_from_ids(ReturnRange(random=0.0, expert=7.0).to_ids(np.array([7.0]))) == pytest.approx(
        1.0, abs=0.01
    )


def test_more_than_the_expert_is_better_also_where_returns_are_negative() -> None:
    assert ReturnRange(random=20.0, expert=120.0).target(1.2) == pytest.approx(140.0)
    pendulum = ReturnRange(random=-1200.0, expert=-200.0)
    assert [pendulum.target(scale) for scale in (0.0, 1.0, 1.2)] == pytest.approx([-1200.0, -200.0, 0.0])


def test_one_token_before_each_timestep() -> None:
    tokens = np.array([7, SEPARATOR, 1, 8, 9, SEPARATOR, 2], np.uint16)
    targets = np.array([0, 0, 1, 2, 0, 0, 1], np.uint8)
    tokens, targets, offsets = put_first(np.array([32_001, 32_002]), tokens, targets, np.array([0, 3, 7]))
    assert tokens.tolist() == [32_001, 7, SEPARATOR, 1, 32_002, 8, 9, SEPARATOR, 2]
    assert targets.tolist() == [0, 0, 0, 1, 0, 2, 0, 0, 1]
    assert offsets.tolist() == [0, 4, 9]
    assert (tokens.dtype, targets.dtype) == (np.uint16, np.uint8)
