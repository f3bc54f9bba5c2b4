"""Uncertainty: every metric of the study is a mean over hand instances, and its interval comes from the sequences.

Frames of a sequence resemble each other, so what is drawn again and again, with replacement, is sequences.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from lib.metrics import landmark_accelerations, landmark_errors

DRAWS, SEED, CONFIDENCE = 2000, 0, 0.95


def drawn(sequences: int) -> Int[np.ndarray, "draws sequences"]:
    """Which sequences each bootstrap draw holds."""
    return np.random.default_rng(SEED).integers(sequences, size=(DRAWS, sequences))


@dataclass(frozen=True)
class Pooled:
    """A mean over all items of all sequences: for each sequence, the sum over its items and their number."""

    sums: Float[np.ndarray, "sequences"]
    counts: Float[np.ndarray, "sequences"]

    @property
    def mean(self) -> float:
        """The mean over all items; NaN if there are none."""
        return float(self.sums.sum() / self.counts.sum()) if self.counts.any() else float("nan")

    def resampled(self) -> Float[np.ndarray, "draws"]:
        """The mean of each bootstrap draw: equally many sequences always give the same draws, so that methods pair."""
        chosen = drawn(len(self.sums))
        sums, counts = self.sums[chosen].sum(axis=1), self.counts[chosen].sum(axis=1)
        return np.divide(sums, counts, out=np.full(DRAWS, np.nan), where=counts > 0)

    @staticmethod
    def of(values: Sequence[np.ndarray]) -> Pooled:
        """The mean over one array of items per sequence."""
        return Pooled(*np.array([(array.sum(), array.size) for array in values], float).reshape(-1, 2).T)


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    @staticmethod
    def of(value: float, draws: Float[np.ndarray, "draws"]) -> Interval:
        tail = (1 - CONFIDENCE) / 2
        draws = draws[np.isfinite(draws)]
        low, high = np.quantile(draws, (tail, 1 - tail)) if len(draws) else (np.nan, np.nan)
        return Interval(value, float(low), float(high))

    def __str__(self) -> str:
        """`-0.40 [-0.62, -0.19]`, with signs, as differences are written."""
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def interval(metric: Pooled) -> Interval:
    """A metric and its interval."""
    return Interval.of(metric.mean, metric.resampled())


def combined(function: Callable, *metrics: Pooled) -> Interval:
    """A function of metrics of the same sequences, which are drawn together."""
    return Interval.of(function(*(m.mean for m in metrics)), function(*(m.resampled() for m in metrics)))


def difference(first: Pooled, second: Pooled) -> Interval:
    """`first` minus `second` on the same sequences."""
    return combined(operator.sub, first, second)


def error_of(tracked_mm: Sequence[np.ndarray], true_mm: Sequence[np.ndarray], valid: Sequence[np.ndarray]) -> Pooled:
    """MPJPE over sequences, mm; arrays as in `metrics.mpjpe`."""
    return Pooled.of(
        [landmark_errors(x, y)[counts].mean(axis=-1) for x, y, counts in zip(tracked_mm, true_mm, valid, strict=True)]
    )


def jitter_of(tracked_mm: Sequence[np.ndarray], valid: Sequence[np.ndarray]) -> Pooled:
    """MPJPA over sequences, mm per frame²; arrays as in `metrics.mpjpa`."""
    lengths = [landmark_accelerations(x, counts) for x, counts in zip(tracked_mm, valid, strict=True)]
    return Pooled.of([length[inner].mean(axis=-1) for length, inner in lengths])
