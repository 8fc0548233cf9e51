import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from episode_store.errors import EpisodeError
from tokenization import mu_law


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (0.0, 0.0),
        (-0.0, 0.0),
        (1.0, 0.45467435),
        (-1.0, -0.45467435),
        (256.0, 1.0),
        (-256.0, -1.0),
        (257.0, 1.0),
        (-1e9, -1.0),
        (1.7e308, 1.0),
        (0.1, 0.23623684),
        (10.0, 0.68063956),
    ],
)
def test_literal_values(x: float, expected: float) -> None:
    assert mu_law.encode(np.array([x]))[0] == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_with_its_place(bad: float) -> None:
    values = np.zeros((5, 2, 3))
    values[3, 1, 2] = bad
    with pytest.raises(EpisodeError) as error:
        mu_law.encode(values, where="observations/state")
    assert str(error.value) == f"observations/state: step 3, element (1, 2): expected a finite number, got {bad}"


@given(st.floats(-256, 256))
def test_decode_inverts_encode(x: float) -> None:
    assert mu_law.decode(mu_law.encode(np.array([x])))[0] == pytest.approx(x, rel=1e-9, abs=1e-12)


def test_dtype_and_shape() -> None:
    encoded = mu_law.encode(np.arange(6, dtype=np.int8).reshape(2, 3))
    assert encoded.dtype == np.float64
    assert encoded.shape == (2, 3)
