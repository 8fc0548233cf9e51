"""Means and intervals against values worked out by hand."""

import numpy as np
import pytest

from trainer.statistics import interquartile_interval, interquartile_mean, mean_interval


def test_the_middle_half_counts():
    assert interquartile_mean(np.array([100.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -50.0])) == 3.5
    assert interquartile_mean(np.array([[1.0, 9.0], [2.0, 3.0]])) == 2.5
    assert interquartile_mean(np.array([1.0, 2.0, 4.0, 8.0, 16.0])) == pytest.approx(14.0 / 3.0)  # one cut at each end
    assert interquartile_mean(np.array([7.0])) == 7.0


def test_the_interval_of_a_mean_is_near_the_normal_one():
    values = np.random.default_rng(1).normal(10.0, 2.0, 400)
    low, high = mean_interval(values)
    half = 1.96 * values.std() / 20.0
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
    assert mean_interval(values) == (low, high)
    assert mean_interval(np.full(5, 3.0)) == (3.0, 3.0)


def test_episodes_are_drawn_again_inside_their_task():
    """Two tasks without spread have no spread together, though their scores differ."""
    assert interquartile_interval([np.full(10, 20.0), np.full(10, 80.0)]) == (50.0, 50.0)
    rng = np.random.default_rng(2)
    tasks = [rng.normal(50.0, 10.0, 50) for _ in range(4)]
    low, high = interquartile_interval(tasks)
    assert low < interquartile_mean(np.stack(tasks)) < high
    assert high - low < 8.0
