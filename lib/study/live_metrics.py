"""How well hands are followed without labels: metrics of live trackers, all with 95 % intervals over recordings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from lib.files import MM
from lib.live.confidence import CLOSE_M
from lib.metrics import landmark_errors
from lib.recordings import FRAMES_PER_SECOND
from lib.study.live_runs import LiveRun
from lib.study.predictions import Predictions, TrackedSequence
from lib.study.statistics import CONFIDENCE, Interval, Pooled, combined, drawn, error_of, interval, jitter_of

CONFIDENCE_BINS = 0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99, 1.0 + 1e-9
FAR_MM = 60.0
"""What is tracked with a larger error is not the hand: it is not found."""


@dataclass(frozen=True)
class Metric:
    """How a metric is shown: its name, and digits after the point."""

    title: str
    digits: int


METRICS = {
    "tracked_percent": Metric("visible instances tracked (%)", 1),
    "mpjpe_mm": Metric("MPJPE, self-tracked (mm)", 1),
    "labelled_mpjpe_mm": Metric("MPJPE, ground-truth crops (mm)", 1),
    "more_error_percent": Metric("MPJPE above ground-truth crops (%)", 1),
    "mpjpa_mm_per_frame2": Metric("MPJPA, self-tracked (mm/frame²)", 2),
    "labelled_mpjpa_mm_per_frame2": Metric("MPJPA, ground-truth crops (mm/frame²)", 2),
    "far_percent": Metric(f"instances off by more than {FAR_MM:g} mm (%)", 2),
    "losses_per_minute": Metric("losses per minute", 1),
    "recovery_median_s": Metric("recovery, median (s)", 2),
    "recovery_p95_s": Metric("recovery, p95 (s)", 2),
    "start_median_s": Metric("start-up, median (s)", 2),
    "start_p95_s": Metric("start-up, p95 (s)", 2),
    "unswapped_percent": Metric("recordings without a swap (%)", 1),
    "false_hands_per_minute": Metric("false hands per minute", 1),
}
"""Errors, jitter and the share of instances far off are over the hand instances (a hand in a frame) that are visible
and tracked; beside ground-truth crops the first two are over those that both track. A hand is found where it is tracked
within `FAR_MM`; losses are per minute in which a hand is visible; recovery and start-up: see `waits`. A swap is an
instance nearer to the other hand's ground truth than to its own, and counts in recordings of two hands. False hands
begin to be tracked where there is no such hand; they are per minute in which a hand is missing."""


@dataclass(frozen=True)
class Wait:
    """A hand in view that is not found: how long, whether it was in the end, and whether it never was before."""

    seconds: float
    ended: bool
    first: bool


def waits(
    found: Bool[np.ndarray, "steps"], visible: Bool[np.ndarray, "steps"], seconds: Float[np.ndarray, "steps"]
) -> list[Wait]:
    """How long a hand is in view before it is found.

    A wait begins where a hand that is not found comes into view, or is lost in view; it ends where the hand is found,
    perhaps at once. If the hand leaves the view before, or the stream ends, it has waited so long at least. Waits
    before the hand was ever found are its start-up, later ones its recovery.
    """
    waited, since, before, ever = [], None, False, False
    for now, here, seen in zip(seconds, found, visible, strict=True):
        if seen and since is None and not (before and here):
            since = now
        if since is not None and (here or not seen):
            waited.append(Wait(float(now - since), bool(here), not ever))
            since = None
        before, ever = here, ever or here
    if since is not None:
        waited.append(Wait(float(seconds[-1] - since), False, not ever))
    return waited


def losses(found: Bool[np.ndarray, "steps"], visible: Bool[np.ndarray, "steps"]) -> int:
    """How often a hand that was found in the step before is not, although it is in view."""
    return int((found[:-1] & ~found[1:] & visible[1:]).sum())


def false_hands(tracked: Bool[np.ndarray, "steps"], present: Bool[np.ndarray, "steps"]) -> int:
    """How often a hand begins to be tracked that is not there."""
    before = np.concatenate(([False], tracked[:-1]))
    return int((tracked & ~before & ~present).sum())


def swapped(run: LiveRun) -> Bool[np.ndarray, "2 frames"]:
    """Where both hands are there, and a tracked one is nearer to the other's ground truth than to its own."""
    own, other = (
        landmark_errors(run.tracked_keypoints, true).mean(axis=-1)
        for true in (run.gt_keypoints, run.gt_keypoints[::-1])
    )
    return run.tracked & run.present.all(axis=0) & (other < own)


def reliability_table(runs: Sequence[LiveRun]) -> pd.DataFrame:
    """Of the hands that are followed, how many are right, beside how likely they are said to be.

    A hand is right if it is there, within `CLOSE_M`. Columns: from, to (of the confidence), hands, confidence_percent
    (their mean), right_percent, low, high (95 % bootstrap interval over recordings).
    """
    rows = []
    for low, high in pairwise(CONFIDENCE_BINS):
        chosen = [(run.confidence > 0) & (low <= run.confidence) & (run.confidence < high) for run in runs]
        said = interval(Pooled.of([100.0 * run.confidence[some] for run, some in zip(runs, chosen, strict=True)]))
        right = interval(Pooled.of([100.0 * _right(run)[some] for run, some in zip(runs, chosen, strict=True)]))
        about = {"from": low, "to": min(high, 1.0), "hands": sum(int(some.sum()) for some in chosen)}
        about |= {"confidence_percent": said.value, "right_percent": right.value}
        rows.append(about | {"low": right.low, "high": right.high})
    return pd.DataFrame(rows)


def _right(run: LiveRun) -> Bool[np.ndarray, "2 frames"]:
    error = landmark_errors(run.tracked_keypoints, run.gt_keypoints).mean(axis=-1)
    return run.present & (error < CLOSE_M * MM)


def quantile_of_waits(waited: Sequence[Sequence[Wait]], share: float) -> Interval:
    """The time after which a share of the hands is found (s); `waited` holds the waits of each recording.

    Infinite if they never are, NaN if none waits. Source: Kaplan and Meier 1958, as some are watched for too short.
    """
    owner = np.repeat(np.arange(len(waited)), [len(some) for some in waited])
    listed = list(chain.from_iterable(waited))
    order = sorted(range(len(listed)), key=lambda index: (listed[index].seconds, not listed[index].ended))
    seconds = np.array([listed[index].seconds for index in order] + [np.inf])
    ended = np.array([listed[index].ended for index in order], bool)
    draws = np.array([np.bincount(chosen, minlength=len(waited)) for chosen in drawn(len(waited))])
    counts = np.concatenate((np.ones((1, len(owner))), draws[:, owner[order]]))
    waiting = counts[:, ::-1].cumsum(axis=1)[:, ::-1]
    go_on = 1 - np.divide(counts * ended, waiting, out=np.zeros_like(waiting), where=waiting > 0)
    reached = go_on.cumprod(axis=1) < 1 - share + 1e-9
    reached = np.pad(reached, ((0, 0), (0, 1)), constant_values=True)
    value, *others = np.where(counts.any(axis=1), seconds[reached.argmax(axis=1)], np.nan)
    known = np.sort([other for other in others if not np.isnan(other)])  # np.quantile cannot interpolate to infinity
    tail = round((1 - CONFIDENCE) / 2 * len(known))
    low, high = (known[tail], known[-1 - tail]) if len(known) else (np.nan, np.nan)
    return Interval(float(value), float(low), float(high))


def measure_live(runs: Sequence[LiveRun], labelled: Predictions | None = None) -> dict[str, Interval]:
    """The metrics of streams, without those of ground-truth crops if there are no predictions from these."""
    followed = [run.tracked & run.visible for run in runs]
    tracked, true = ([getattr(run, name) for run in runs] for name in ("tracked_keypoints", "gt_keypoints"))
    far = [landmark_errors(*pair).mean(axis=-1) > FAR_MM for pair in zip(tracked, true, strict=True)]
    right = [run.tracked & ~off for run, off in zip(runs, far, strict=True)]
    waited = [_waits(run, of_it) for run, of_it in zip(runs, right, strict=True)]
    recovery, start = ([[w for w in some if w.first == first] for some in waited] for first in (False, True))
    lost = [sum(losses(*h) for h in _steps(of_it, run.visible, run)) for run, of_it in zip(runs, right, strict=True)]
    false = [sum(false_hands(*hand) for hand in _steps(run.tracked, run.present, run)) for run in runs]
    missing = [run.shown & ~run.present.all(axis=0) for run in runs]
    found = {
        "tracked_percent": interval(Pooled.of([100.0 * run.tracked[run.visible] for run in runs])),
        "mpjpe_mm": interval(error_of(tracked, true, followed)),
        "mpjpa_mm_per_frame2": interval(jitter_of(tracked, followed)),
        "far_percent": interval(Pooled.of([100.0 * off[where] for off, where in zip(far, followed, strict=True)])),
        "losses_per_minute": interval(_per_minute(lost, [run.visible for run in runs])),
        "recovery_median_s": quantile_of_waits(recovery, 0.5),
        "recovery_p95_s": quantile_of_waits(recovery, 0.95),
        "start_median_s": quantile_of_waits(start, 0.5),
        "start_p95_s": quantile_of_waits(start, 0.95),
        "unswapped_percent": interval(Pooled.of([_unswapped(run) for run in runs])),
        "false_hands_per_minute": interval(_per_minute(false, missing)),
    }
    found |= {} if labelled is None else _beside_labelled(runs, labelled)
    return {name: found[name] for name in METRICS if name in found}


def _beside_labelled(runs: Sequence[LiveRun], labelled: Predictions) -> dict[str, Interval]:
    """Error and jitter, self-tracked and with ground-truth crops, over the instances that both track."""
    by_name: Mapping[str, TrackedSequence] = {sequence.name: sequence for sequence in labelled.sequences}
    others = [by_name[run.name] for run in runs]
    both = [run.tracked & run.visible & other.valid for run, other in zip(runs, others, strict=True)]
    true = [run.gt_keypoints for run in runs]
    ways = [run.tracked_keypoints for run in runs], [other.tracked_keypoints for other in others]
    (own_error, error), (own_jitter, jitter) = (
        [metric(way) for way in ways]
        for metric in (lambda way: error_of(way, true, both), lambda way: jitter_of(way, both))
    )
    return {
        "mpjpe_mm": interval(own_error),
        "labelled_mpjpe_mm": interval(error),
        "more_error_percent": combined(lambda own, other: 100 * (own / other - 1), own_error, error),
        "mpjpa_mm_per_frame2": interval(own_jitter),
        "labelled_mpjpa_mm_per_frame2": interval(jitter),
    }


def _waits(run: LiveRun, found: Bool[np.ndarray, "2 frames"]) -> list[Wait]:
    seconds = np.flatnonzero(run.shown) / FRAMES_PER_SECOND
    return [wait for hand in _steps(found, run.visible, run) for wait in waits(*hand, seconds)]


def _steps(one: np.ndarray, other: np.ndarray, run: LiveRun) -> list[tuple[np.ndarray, np.ndarray]]:
    """Two arrays (2, frames) by hand, without the frames that did not reach the tracker."""
    return [*zip(one[:, run.shown], other[:, run.shown], strict=True)]


def _per_minute(events: Sequence[int], frames: Sequence[np.ndarray]) -> Pooled:
    """The events of each run per minute of its frames that are True."""
    return Pooled(np.array(events, float), np.array([some.sum() for some in frames]) / FRAMES_PER_SECOND / 60)


def _unswapped(run: LiveRun) -> Float[np.ndarray, "recordings"]:
    """Percent of one recording; of none, if it does not show two hands."""
    return 100.0 * ~swapped(run).any(keepdims=True)[0] if run.present.all(axis=0).any() else np.zeros(0)
