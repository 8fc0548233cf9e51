import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from episode_store.errors import EpisodeError
from episode_store.spec import ArraySpec, Modality
from tokenization import action_values, mu_law

INF = math.inf


def box(low: float, high: float, dtype: str = "float32", shape: tuple[int, ...] = (1,)) -> ArraySpec:
    size = math.prod(shape)
    bounds = (low,) * size, (high,) * size
    return ArraySpec(modality=Modality.CONTINUOUS, shape=shape, dtype=dtype, low=bounds[0], high=bounds[1])


def encode(spec: ArraySpec, *values: float) -> list[int]:
    array = np.array(values, spec.dtype).reshape(-1, *spec.shape)
    return action_values.to_ids(array, spec, where="actions/action").reshape(-1).tolist()


def test_bounded_actions_are_binned_without_companding() -> None:
    assert encode(box(-1, 1), -1, 1, 0, 0.5, -0.001) == [32_000, 33_023, 32_512, 32_768, 32_511]
    assert encode(box(-2, 2), -2, 2, 0, 1, 0.0078125) == [32_000, 33_023, 32_512, 32_768, 32_514]
    assert encode(box(0, 10), 0, 10, 5, 2.5) == [32_000, 33_023, 32_512, 32_256]


def test_each_element_has_its_own_bounds() -> None:
    spec = ArraySpec(modality=Modality.CONTINUOUS, shape=(2,), low=(-1.0, 0.0), high=(1.0, 4.0))
    assert encode(spec, 0, 1) == [32_512, 32_256]
    assert action_values.from_ids(np.array([32_512, 32_256]), spec).tolist() == pytest.approx([1 / 1024, 1 + 2 / 1024])


@pytest.mark.parametrize("bounds", [(-INF, INF), (0, INF), (-INF, 1)])
def test_actions_with_an_infinite_bound_are_companded(bounds: tuple[float, float]) -> None:
    assert encode(box(*bounds), 1, 0) == [32_744, 32_512]
    decoded = action_values.from_ids(np.array([32_744]), box(*bounds))
    assert decoded[0] == pytest.approx(min(1.0, bounds[1]), abs=0.01)


def test_actions_without_bounds_at_all() -> None:
    spec = ArraySpec(modality=Modality.CONTINUOUS, shape=(), dtype="float64")
    assert encode(spec, -1) == [32_279]
    assert action_values.from_ids(np.array([32_279]), spec).shape == ()


def test_a_space_of_one_value() -> None:
    assert encode(box(3, 3), 3) == [32_000]
    assert action_values.from_ids(np.array([32_000]), box(3, 3)).tolist() == [3.0]


def test_the_range_of_a_dtype() -> None:
    largest = float(np.finfo(np.float64).max)
    spec = box(-largest, largest, "float64")
    assert encode(spec, -largest, 0, largest) == [32_000, 32_512, 33_023]
    assert np.isfinite(action_values.from_ids(np.array([33_023]), spec)).all()
    spec = box(-(2.0**63), 2.0**63, "int64")
    assert encode(spec, -(2**63), 0) == [32_000, 32_512]
    assert action_values.from_ids(np.array([33_023]), spec).dtype == np.int64
    assert action_values.from_ids(np.array([33_023]), spec)[0] > 9.2e18


def test_discrete_values_count_from_their_start() -> None:
    spec = ArraySpec(modality=Modality.DISCRETE, shape=(), dtype="int64", low=(-3,), num_values=(5,))
    assert encode(spec, -3, 1) == [0, 4]
    value = action_values.from_ids(np.array([4]), spec)
    assert value.shape == ()
    assert value.dtype == np.int64
    assert int(value) == 1
    flags = ArraySpec(modality=Modality.DISCRETE, shape=(3,), dtype="int8", num_values=(2, 2, 2))
    assert encode(flags, 1, 0, 1) == [1, 0, 1]


@pytest.mark.parametrize("bad", [-4, 2, 127])
def test_a_value_outside_its_discrete_space(bad: int) -> None:
    spec = ArraySpec(modality=Modality.DISCRETE, shape=(2,), dtype="int8", low=(0, -3), num_values=(9, 5))
    with pytest.raises(EpisodeError) as error:
        encode(spec, 1, -3, 0, bad)
    assert str(error.value) == f"actions/action: step 1, element 1: expected a value in [-3, 2), got {bad}"


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(EpisodeError) as error:
        encode(box(-1, 1, shape=(2,)), 0, 0, 0, math.nan)
    assert str(error.value) == "actions/action: step 1, element (1,): expected a finite number, got nan"


def test_all_1024_values() -> None:
    spec = ArraySpec(modality=Modality.DISCRETE, shape=(), dtype="int64", num_values=(1024,))
    assert encode(spec, *range(1024)) == list(range(1024))


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from(["float16", "float32", "float64", "int8", "uint8", "int32", "int64", "bool"]))
def test_property_bounded_actions_come_back_within_half_a_bin(data: st.DataObject, dtype: str) -> None:
    kind = np.dtype(dtype)
    if kind.kind == "f":
        bounds = st.floats(-1e4, 1e4, width=16) if dtype == "float16" else st.floats(-1e6, 1e6, width=32)
        low, high = sorted(data.draw(st.lists(bounds, min_size=2, max_size=2)))
        low, high = low + 0.0, high + 0.0  # no negative zero
        value = data.draw(st.floats(low, high))
    else:
        limits = (0, 1) if kind.kind == "b" else (int(np.iinfo(kind).min), int(np.iinfo(kind).max))
        limits = max(limits[0], -(2**53)), min(limits[1], 2**53)  # a spec's bounds are float64
        low, high = sorted(data.draw(st.lists(st.integers(*limits), min_size=2, max_size=2)))
        value = data.draw(st.integers(low, high))
    spec = box(float(low), float(high), dtype)
    original = np.array([value]).astype(kind)
    ids = action_values.to_ids(original[None], spec, where="x")
    decoded = action_values.from_ids(ids[0], spec)
    assert decoded.dtype == kind
    assert decoded.shape == (1,)
    assert low <= float(decoded[0]) <= max(high, float(high))
    rounding = 0.5 if kind.kind in "iu" else 1.0 if kind.kind == "b" else float(np.spacing(np.abs(decoded[0])))
    half_bin = (float(high) - float(low)) / 2048
    assert abs(float(decoded[0]) - float(original[0])) <= half_bin * (1 + 1e-9) + rounding + 1e-12 * abs(high)


@settings(max_examples=100, deadline=None)
@given(st.floats(-256, 256))
def test_property_unbounded_actions_come_back_within_half_a_companded_bin(value: float) -> None:
    spec = box(-INF, INF, "float64")
    ids = action_values.to_ids(np.array([[value]]), spec, where="x")
    decoded = action_values.from_ids(ids[0], spec)
    distance = mu_law.encode(decoded) - mu_law.encode(np.array([value]))
    assert abs(distance[0]) <= 1 / 1024 + 1e-9
