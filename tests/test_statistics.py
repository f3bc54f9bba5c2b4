"""Means pooled over sequences are the metrics, and their intervals come from the sequences."""

import numpy as np
import pytest

from lib.metrics import mpjpa, mpjpe
from lib.study.statistics import Pooled, combined, difference, error_of, interval, jitter_of


def pooled(rng, sequences: int = 30, spread: float = 1.0) -> Pooled:
    return Pooled.of([rng.normal(rng.normal(10, spread), 0.1, size=rng.integers(5, 50)) for _ in range(sequences)])


def test_pooled_over_sequences_is_the_metric_over_all_frames(rng):
    lengths = (4, 7, 12)
    true = [100 * rng.normal(size=(2, n, 21, 3)) for n in lengths]
    tracked = [keypoints + rng.normal(size=keypoints.shape) for keypoints in true]
    valid = [rng.random((2, n)) < 0.8 for n in lengths]
    joined = [np.concatenate(arrays, axis=1) for arrays in (tracked, true, valid)]
    assert error_of(tracked, true, valid).mean == pytest.approx(mpjpe(*joined))
    gap = [np.zeros((2, 1), bool)]
    apart = np.concatenate([part for mask in valid for part in (mask, *gap)], axis=1)
    spaced = np.concatenate([part for x in tracked for part in (x, np.zeros((2, 1, 21, 3)))], axis=1)
    assert jitter_of(tracked, valid).mean == pytest.approx(mpjpa(spaced, apart))


def test_equal_sequences_leave_no_doubt():
    same = interval(Pooled(np.full(5, 6.0), np.full(5, 2.0)))
    assert (same.value, same.low, same.high) == (3.0, 3.0, 3.0)


def test_the_interval_holds_the_mean_and_comes_out_again(rng):
    metric = pooled(rng)
    first = interval(metric)
    assert first.low < metric.mean < first.high
    assert interval(metric) == first


def test_frames_of_one_sequence_are_no_new_evidence(rng):
    metric = pooled(rng)
    longer = Pooled(100 * metric.sums, 100 * metric.counts)
    assert interval(longer).low == pytest.approx(interval(metric).low)
    more = Pooled(np.tile(metric.sums, 9), np.tile(metric.counts, 9))
    width, narrower = (i.high - i.low for i in (interval(metric), interval(more)))
    assert narrower == pytest.approx(width / 3, rel=0.15)


def test_differences_are_paired(rng):
    """A constant difference is certain, however much the sequences differ."""
    metric = pooled(rng, spread=5.0)
    change = difference(Pooled(metric.sums - 0.5 * metric.counts, metric.counts), metric)
    np.testing.assert_allclose((change.value, change.low, change.high), -0.5)
    assert str(change) == "-0.50 [-0.50, -0.50]"


def test_functions_of_metrics(rng):
    first, second = pooled(rng), pooled(rng)
    assert combined(lambda a, b: a - b, first, second) == difference(first, second)


def test_without_items_there_is_no_number():
    nothing = interval(Pooled.of([np.zeros(0), np.zeros(0)]))
    assert np.isnan((nothing.value, nothing.low, nothing.high)).all()
