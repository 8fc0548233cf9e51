"""Specs: bounds, validation texts, JSON."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from episode_store.errors import EpisodeError, UserError
from episode_store.spec import ArraySpec, Modality, uniform_bounds
from episode_store.task import TaskSpec, check_task_id, task_file_name
from episode_store.testing import example_tasks


def test_json_round_trip_keeps_infinities() -> None:
    """Infinite bounds are strings, since JSON has none."""
    spec = ArraySpec(modality=Modality.CONTINUOUS, shape=(2,), low=(-np.inf, 0.0), high=(1.5, np.inf))
    assert spec.to_json() == {
        "modality": "continuous",
        "shape": [2],
        "dtype": "float32",
        "low": ["-inf", 0.0],
        "high": [1.5, "inf"],
    }
    assert ArraySpec.from_json(spec.to_json()) == spec
    assert not spec.is_bounded
    for task in example_tasks().values():
        assert TaskSpec.from_json(task.to_json()) == task


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"modality": Modality.DISCRETE, "dtype": "int64"}, "needs 1 num_values"),
        ({"modality": Modality.IMAGE, "dtype": "float32", "shape": (1, 1, 3)}, r"is uint8 \(height, width, channels\)"),
        ({"modality": Modality.TEXT}, "a TEXT ArraySpec cannot have dtype 'float32'"),
        ({"modality": Modality.CONTINUOUS, "dtype": "O"}, "ArraySpec.dtype 'O': expected one of str, bool"),
        ({"modality": Modality.CONTINUOUS, "shape": (-1,)}, "negative side"),
        ({"modality": Modality.IMAGE, "dtype": "uint8", "shape": (-1, 4, 3)}, "negative side"),
        ({"modality": Modality.IMAGE, "dtype": "uint8", "shape": (-1, -1, 0)}, "only an IMAGE of 1 or more channels"),
        ({"modality": Modality.CONTINUOUS, "shape": (-1, -1, 3)}, "only an IMAGE of 1 or more channels can vary"),
        ({"modality": Modality.CONTINUOUS, "shape": (2,), "low": (0.0,)}, "has 1 values, expected 0 or 2"),
    ],
)
def test_impossible_specs_are_refused(arguments: dict, text: str) -> None:
    """When they are made, not when data arrives."""
    with pytest.raises(ValueError, match=text):
        ArraySpec(**arguments)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (np.zeros((2, 4, 4, 3), np.uint8), "x: expected a list of images, got ndarray"),
        ([np.zeros((4, 4, 3), np.uint8)], "x: expected 2 images, got 1"),
        ([np.zeros((4, 4, 3), np.uint8), "text"], "x: step 1: expected a uint8 array, got str"),
        ([np.zeros((4, 4, 3), np.float32)] * 2, "x: step 0: expected a uint8 array, got dtype float32"),
        ([np.zeros((4, 4, 1), np.uint8)] * 2, r"step 0: expected an image \(height, width, 3\).*got shape \(4, 4, 1\)"),
        ([np.zeros((4, 0, 3), np.uint8)] * 2, r"at least 1 x 1, got shape \(4, 0, 3\)"),
        ([np.broadcast_to(np.uint8(0), (1 << 14, 1 << 14, 3))] * 2, "an image of 805306368 bytes, expected at most"),
    ],
)
def test_images_of_varying_size_are_checked(values: Any, text: str) -> None:
    """Their number, dtype, channels and size."""
    spec = ArraySpec(modality=Modality.IMAGE, shape=(-1, -1, 3), dtype="uint8")
    assert spec.to_json() == {"modality": "image", "shape": [-1, -1, 3], "dtype": "uint8"}
    spec.validate([np.zeros((4, 6, 3), np.uint8), np.zeros((1, 1, 3), np.uint8)], length=2, where="x")
    with pytest.raises(EpisodeError, match=text):
        spec.validate(values, length=2, where="x")


def test_discrete_values_count_from_their_start() -> None:
    """Discrete(3, start=5) is 5, 6, 7."""
    spec = ArraySpec(modality=Modality.DISCRETE, dtype="int64", num_values=(3,), low=(5.0,))
    spec.validate(np.array([5, 6, 7]), length=3, where="x")
    for value in (4, 8):
        with pytest.raises(EpisodeError, match=rf"x: step 1, element \(0,\): expected .* discrete space, got {value}"):
            spec.validate(np.array([5, value, 6]), length=3, where="x")


def test_bounds_have_the_slack_of_float_rounding_only() -> None:
    """0.3 in float32 and float16 is a little above 0.3."""
    for dtype in ("float16", "float32", "float64"):
        spec = ArraySpec(modality=Modality.CONTINUOUS, dtype=dtype, low=(-0.3,), high=(0.3,))
        spec.validate(np.array([-0.3, 0.3], dtype), length=2, where="x")
        with pytest.raises(EpisodeError, match="not above its space's high"):
            spec.validate(np.array([0.31], dtype), length=1, where="x")
    spec = ArraySpec(modality=Modality.CONTINUOUS, dtype="int8", low=(-np.inf,), high=(3.0,))
    spec.validate(np.array([-128, 3], np.int8), length=2, where="x")
    with pytest.raises(EpisodeError, match="not above"):
        spec.validate(np.array([4], np.int8), length=1, where="x")


def test_text_must_be_unicode() -> None:
    """A lone surrogate has no UTF-8."""
    spec = ArraySpec(modality=Modality.TEXT, dtype="str")
    spec.validate(["é", ""], length=2, where="x")
    with pytest.raises(EpisodeError, match="x: step 1 is not valid Unicode text"):
        spec.validate(["", "\ud800"], length=2, where="x")
    with pytest.raises(EpisodeError, match="x: expected 3 texts, got 2"):
        spec.validate(["a", "b"], length=3, where="x")
    with pytest.raises(EpisodeError, match="x: expected a list of strings, got ndarray"):
        spec.validate(np.array(["a"]), length=1, where="x")


def test_generated_values_are_valid() -> None:
    """For every field of every example task."""
    rng = np.random.default_rng(0)
    for task in example_tasks().values():
        for spec in (*task.observation_spec.values(), *task.action_spec.values()):
            spec.validate(spec.generate_value(rng, length=7), length=7, where="x")


def test_task_ids() -> None:
    """The grammar, and file names that tell ids apart."""
    assert check_task_id("metaworld/reach-v3") == "metaworld/reach-v3"
    assert task_file_name("metaworld/reach-v3") == "metaworld--reach-v3"
    assert task_file_name("CartPole-v1") == "CartPole-v1"
    for task_id in ("CartPole", "a.b-v1", "-v1", "a/b/c-v1", "a--b-v1"):
        with pytest.raises(UserError, match=r"expected \[namespace/\]name-vN"):
            check_task_id(task_id)


def test_uniform_bounds() -> None:
    """One bound an element."""
    assert uniform_bounds(2, (2, 2)) == (2.0, 2.0, 2.0, 2.0)
