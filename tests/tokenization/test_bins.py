import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from episode_store.errors import EpisodeError, UserError
from tokenization import bins, mu_law

ALL_IDS = np.arange(32_000, 33_024)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (-1.0, 32_000),
        (1.0, 33_023),  # not 33024, which is the separator
        (0.0, 32_512),
        (-1e-12, 32_511),
        (1 / 512, 32_513),
        (0.999, 33_023),
        (-2.0, 32_000),
        (7.5, 33_023),
    ],
)
def test_literal_ids(value: float, expected: int) -> None:
    assert bins.to_ids(np.array([value])).tolist() == [expected]


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (0.0, 32_512),
        (-0.0, 32_512),
        (1.0, 32_744),
        (-1.0, 32_279),
        (0.1, 32_632),
        (10.0, 32_860),
        (256.0, 33_023),
        (-256.0, 32_000),
        (300.0, 33_023),
        (-3e38, 32_000),
    ],
)
@pytest.mark.parametrize("repeats", [1, 5_000])  # the short path and the fast one
def test_literal_companded_ids(x: float, expected: int, repeats: int) -> None:
    for dtype in (np.float32, np.float64):
        ids = bins.companded_to_ids(np.full(repeats, x, dtype))
        assert ids.dtype == np.uint16
        assert set(ids.tolist()) == {expected}


def test_decoding_returns_centres() -> None:
    centres = bins.from_ids(ALL_IDS)
    assert centres[0] == -1 + 1 / 1024
    assert centres[512] == 1 / 1024
    assert centres[1023] == 1 - 1 / 1024
    assert np.allclose(np.diff(centres), 1 / 512)


def test_every_id_survives_decoding_and_encoding() -> None:
    assert bins.to_ids(bins.from_ids(ALL_IDS)).tolist() == ALL_IDS.tolist()
    for dtype in (np.float64, np.float32):
        values = bins.companded_from_ids(ALL_IDS).astype(dtype)
        assert bins.companded_to_ids(values).tolist() == ALL_IDS.tolist()
        assert bins.to_ids(bins.from_ids(ALL_IDS).astype(dtype)).tolist() == ALL_IDS.tolist()


@pytest.mark.parametrize("token", [0, 31_999, 33_024, 65_535])
def test_ids_of_other_ranges_are_refused(token: int) -> None:
    with pytest.raises(UserError) as error:
        bins.from_ids(np.array([32_000, token]))
    assert str(error.value) == f"token {token}: expected the id of a continuous value in [32000, 33024)"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("steps", [200, 100_000])
def test_what_is_not_finite_is_refused_with_its_place(bad: float, dtype: type, steps: int) -> None:
    values = np.zeros((steps, 3), dtype)
    values[steps - 7, 2] = bad
    for function in (bins.to_ids, bins.companded_to_ids):
        with pytest.raises(EpisodeError) as error:
            function(values, where="observations/state")
        expected = f"observations/state: step {steps - 7}, element (2,): expected a finite number, got {bad}"
        assert str(error.value) == expected


def definition(values: np.ndarray) -> np.ndarray:
    """The issue's formula, written again."""
    x = values.astype(np.float64)
    with np.errstate(over="ignore"):
        f = np.sign(x) * np.log(100 * np.abs(x) + 1) / np.log(256 * 100 + 1)
    return 32_000 + np.minimum(1023, np.floor((np.clip(f, -1, 1) + 1) / 2 * 1024)).astype(np.int64)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_the_fast_path_gives_exactly_the_ids_of_the_definition(dtype: type) -> None:
    rng = np.random.default_rng(0)
    spread = rng.standard_normal(300_000) * 10 ** rng.uniform(-6, 3, 300_000)
    # The hardest values: the edges of all bins, and their nearest neighbours in float32 and float64.
    edges = mu_law.decode(np.arange(-512, 513) / 512)
    near = [edges, np.nextafter(edges, np.inf), np.nextafter(edges, -np.inf)]
    singles = edges.astype(np.float32)
    near += [singles, np.nextafter(singles, np.float32(np.inf)), np.nextafter(singles, np.float32(-np.inf))]
    near += [edges * (1 + scale) for scale in np.geomspace(1e-9, 1e-3, 60)]
    values = np.concatenate([spread, np.zeros(5_000), *near, *(-part for part in near)]).astype(dtype)
    assert np.array_equal(bins.companded_to_ids(values), definition(values))


def test_every_float32_of_one_binade_is_exact() -> None:
    for exponent in (-10, 0, 6):
        values = np.ldexp(np.arange(1 << 23, 1 << 24, 31, dtype=np.float64), exponent - 23).astype(np.float32)
        assert np.array_equal(bins.companded_to_ids(values), definition(values))


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint8, np.int32, np.int64, np.uint64])
def test_integers_are_companded_too(dtype: type) -> None:
    values = np.arange(2_000).astype(dtype).reshape(-1, 4)
    assert np.array_equal(bins.companded_to_ids(values), definition(values))
    if dtype in (np.int64, np.uint64):
        assert set(bins.companded_to_ids(np.full(2_000, np.iinfo(dtype).max, dtype)).tolist()) == {33_023}


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.float16, np.float32, np.float64]),
        hnp.array_shapes(max_dims=3, max_side=40),
        elements={"allow_nan": False, "allow_infinity": False},
        fill=st.just(0.5),
    )
)
def test_property_fast_equals_definition(values: np.ndarray) -> None:
    repeated = np.concatenate([values.reshape(-1)] * (1 + 2_048 // values.size))
    assert np.array_equal(bins.companded_to_ids(repeated), definition(repeated))
    assert np.array_equal(bins.companded_to_ids(values), definition(values))


def test_memory_order_and_slices_do_not_matter() -> None:
    values = np.asfortranarray(np.random.default_rng(0).normal(size=(800, 6)).astype(np.float32))
    assert np.array_equal(bins.companded_to_ids(values), definition(values))
    assert np.array_equal(bins.companded_to_ids(values[::2, 1:]), definition(values[::2, 1:]))


def test_nothing_in_nothing_out() -> None:
    assert bins.companded_to_ids(np.empty((0, 3), np.float32)).shape == (0, 3)
    assert bins.to_ids(np.empty((4, 0))).shape == (4, 0)


def test_every_cell_of_the_table_is_exact_at_its_ends_and_beside_its_edge() -> None:
    """The ids grow with the values, so between these places nothing else can happen."""
    cells = np.arange(65_536)
    edges = -bins._table() & 0xFFFF
    values = np.concatenate(
        [
            ((cells << 16) | (places & 0xFFFF)).astype(np.uint32).view(np.float32)
            for places in (0, 0xFFFF, edges, edges - 1)
        ]
    )
    values = values[np.isfinite(values)]
    assert np.array_equal(bins.companded_to_ids(values), definition(values))
