"""The One-Euro filter, which smooths tracked hands frame by frame, and the search for its parameters (Table 2).

Source: Casiez, Roussel & Vogel, "1€ Filter: A Simple Speed-based Low-pass Filter for Noisy Input in Interactive
Systems", CHI 2012.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from lib.errors import InputError
from lib.metrics import KeypointsMm, Valid, mpjpa, mpjpe
from lib.recordings import FRAMES_PER_SECOND

DERIVATIVE_CUTOFF_HZ = 1.0
BETAS = (0.0, *np.geomspace(1e-4, 1.0, 17).round(6).tolist())
CUTOFF_RANGE_HZ = (1e-3, 1e3)
"""Below the lower end a filter holds its first value for minutes, above the upper end it passes everything."""
_TOLERANCE = 0.01


@dataclass(frozen=True)
class Smoothed:
    """What the filter remembers of a frame. A value: the caller keeps it."""

    keypoints_mm: Float[np.ndarray, "hands 21 3"]
    velocity: Float[np.ndarray, "hands 21 3"]
    """mm/s."""
    valid: Bool[np.ndarray, "hands"]
    time: float


@dataclass(frozen=True)
class OneEuroFilter:
    """A low-pass filter with a cutoff of `min_cutoff_hz` + `beta` x speed in mm/s: smooth at rest, quick in motion.

    Deviation: the speed is that of the landmark in space, not of each coordinate, so that the result does not depend on
    the axes.
    """

    min_cutoff_hz: float
    beta: float
    frames_per_second: float = FRAMES_PER_SECOND

    def __post_init__(self):
        if not (0 < self.min_cutoff_hz < np.inf and 0 <= self.beta < np.inf):
            raise InputError(
                f"a filter with a cutoff of {self.min_cutoff_hz} Hz and a beta of {self.beta}: "
                "expected a cutoff above 0 and a beta that is not below"
            )

    def __call__(self, keypoints_mm: KeypointsMm, valid: Valid) -> Float[np.ndarray, "hands frames 21 3"]:
        """The keypoints, filtered along the frames; a hand that was lost starts afresh, invalid frames stay."""
        filtered, state, rate = keypoints_mm.copy(), None, float(self.frames_per_second)
        for frame in range(keypoints_mm.shape[1]):
            state = self._after(keypoints_mm[:, frame], valid[:, frame], frame / rate, state, rate)
            filtered[:, frame] = state.keypoints_mm
        return filtered

    def smooth(
        self,
        keypoints_mm: Float[np.ndarray, "hands 21 3"],
        valid: Bool[np.ndarray, "hands"],
        time: float,
        state: Smoothed | None,
    ) -> Smoothed:
        """The keypoints of a frame at a `time` (s), filtered, and what to hand in with the next one; None at first.

        The time since the frame before counts, not `frames_per_second`, so frames may be missing.
        """
        return self._after(keypoints_mm, valid, time, state, 0.0 if state is None else 1 / (time - state.time))

    def _after(
        self,
        keypoints_mm: Float[np.ndarray, "hands 21 3"],
        valid: Bool[np.ndarray, "hands"],
        time: float,
        before: Smoothed | None,
        rate: float,
    ) -> Smoothed:
        """The state after a frame; `rate` is one by the time since the frame before it, in Hz."""
        if before is None:
            return Smoothed(keypoints_mm, np.zeros_like(keypoints_mm), valid, time)
        follows = (valid & before.valid)[:, None, None]
        change = keypoints_mm - before.keypoints_mm
        slow = _weight(DERIVATIVE_CUTOFF_HZ, rate)
        velocity = np.where(follows, before.velocity + slow * (rate * change - before.velocity), 0.0)
        speed = np.linalg.norm(velocity, axis=-1, keepdims=True)
        smooth = before.keypoints_mm + _weight(self.min_cutoff_hz + self.beta * speed, rate) * change
        return Smoothed(np.where(follows, smooth, keypoints_mm), velocity, valid, time)


def _weight(cutoff_hz: Float[np.ndarray, "..."] | float, rate: float) -> Float[np.ndarray, "..."] | float:
    """The weight of the newest value in an exponential average."""
    return 1 / (1 + rate / (2 * np.pi * cutoff_hz))


def search_one_euro(
    tracked_mm: KeypointsMm, true_mm: KeypointsMm, valid: Valid, target_mpjpa: float
) -> tuple[OneEuroFilter, pd.DataFrame]:
    """The filter with the lowest error among those that reach a jitter, and what was tried.

    For each beta of `BETAS`, bisection finds the minimal cutoff at which the filtered MPJPA is `target_mpjpa`; of those
    that come within 1 % of it or below, the one with the lowest MPJPE is `chosen`. If none does, the smoothest is.
    Source: §5.2 ("tuned to produce identical MPJPA"), to the filter's advantage.
    """
    rows = []
    for beta in BETAS:
        low, high = np.log(CUTOFF_RANGE_HZ)
        for _ in range(16):
            middle = (low + high) / 2
            smooth = mpjpa(OneEuroFilter(float(np.exp(middle)), beta)(tracked_mm, valid), valid) < target_mpjpa
            low, high = (middle, high) if smooth else (low, middle)
        cutoff = float(np.exp(low))
        filtered = OneEuroFilter(cutoff, beta)(tracked_mm, valid)
        rows.append((beta, cutoff, mpjpe(filtered, true_mm, valid), mpjpa(filtered, valid)))
    table = pd.DataFrame(rows, columns=["beta", "min_cutoff_hz", "mpjpe_mm", "mpjpa_mm_per_frame2"])
    excess = (table.mpjpa_mm_per_frame2 - (1 + _TOLERANCE) * target_mpjpa).clip(lower=0)
    best = table.assign(excess=excess).sort_values(["excess", "mpjpe_mm"]).index[0]
    table = table.assign(target_mpjpa=target_mpjpa, chosen=table.index == best)
    return OneEuroFilter(float(table.min_cutoff_hz[best]), float(table.beta[best])), table
