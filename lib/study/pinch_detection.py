"""Pinches detected by the distance of the tracked tips of thumb and index finger (§5.4, Table 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from jaxtyping import Bool

from lib.metrics import pinch_detections, pinch_distance
from lib.recordings import FRAMES_PER_SECOND
from lib.study.predictions import Predictions
from lib.study.statistics import Pooled

THRESHOLD_MM = 10.0
"""The distance ε1 of the pinch loss. Source: §5.4 ("the same as used in our designed L_pinch")."""
THRESHOLDS_MM = np.arange(1.0, 40.5, 0.5)


def precision_and_recall(predictions: Predictions, threshold_mm: float = THRESHOLD_MM) -> tuple[Pooled, Pooled]:
    """Percent of the detections that are pinches, and of the pinches that are detected, frame by frame.

    Over all valid hand instances of the pinch sequences.
    """
    found = [
        pinch_detections(pinch_distance(s.tracked_keypoints), s.pinch, s.valid, threshold_mm)
        for s in predictions.only(motion="pinch").sequences
    ]
    right = np.array([d.true_positives for d in found], float)
    detected = right + [d.false_positives for d in found]
    labelled = right + [d.false_negatives for d in found]
    return Pooled(100 * right, detected), Pooled(100 * right, labelled)


def precision_recall_curve(predictions: Predictions) -> pd.DataFrame:
    """Precision, recall and their harmonic mean for each of `THRESHOLDS_MM`."""
    rows = [[metric.mean for metric in precision_and_recall(predictions, float(t))] for t in THRESHOLDS_MM]
    curve = pd.DataFrame(rows, columns=["precision_percent", "recall_percent"])
    both = curve.precision_percent + curve.recall_percent
    f1 = 2 * curve.precision_percent * curve.recall_percent / both.where(both > 0)
    return curve.assign(f1_percent=f1.fillna(0.0)).assign(threshold_mm=THRESHOLDS_MM)


def thresholds_table(methods: Sequence[Predictions], thresholds_mm: Mapping[str, float] | None = None) -> pd.DataFrame:
    """Precision and recall of each method at a threshold of its own, by default `THRESHOLD_MM`, and its MPJPE.

    Columns: method, threshold_mm, precision_percent, recall_percent, mpjpe_mm (separate hands).
    """
    rows = []
    for predictions in methods:
        threshold = thresholds_mm[predictions.method] if thresholds_mm else THRESHOLD_MM
        precision, recall = precision_and_recall(predictions, threshold)
        error = predictions.only(protocol="separate_hand").errors().mean
        rows.append((predictions.method, threshold, precision.mean, recall.mean, error))
    return pd.DataFrame(rows, columns=["method", "threshold_mm", "precision_percent", "recall_percent", "mpjpe_mm"])


def tuned_threshold(validation: Predictions) -> float:
    """The threshold, in mm, with the highest F1 on validation sequences; the lowest of equals."""
    curve = precision_recall_curve(validation)
    return float(curve.threshold_mm[curve.f1_percent.idxmax()])


def detection_latency(predictions: Predictions) -> pd.DataFrame:
    """One row per labelled pinch whose beginning is seen: how long after it the detector fires, negative if before.

    NaN where it does not fire during the pinch. An early detection counts from where it began, but not from before the
    end of the pinch before it. Columns: sequence, hand, frame, latency_frames, latency_ms.
    """
    rows = []
    for sequence in predictions.only(motion="pinch").sequences:
        distance = pinch_distance(sequence.tracked_keypoints)
        for hand, valid in enumerate(sequence.valid):
            fires = (distance[hand] < THRESHOLD_MM) & valid
            runs = [(0, 0), *stretches(sequence.pinch[hand] & valid)]
            for (_, free), (start, end) in pairwise(runs):
                if start and valid[start - 1]:
                    rows.append((sequence.name, hand, start, _latency(fires, free, start, end)))
    table = pd.DataFrame(rows, columns=["sequence", "hand", "frame", "latency_frames"]).astype(
        {"latency_frames": float}
    )
    return table.assign(latency_ms=table.latency_frames * 1000 / FRAMES_PER_SECOND)


def latency_table(methods: Sequence[Predictions]) -> pd.DataFrame:
    """The latency of each method: labelled pinches, percent of them missed, and quartiles of the others, ms."""
    rows = []
    for predictions in methods:
        latency = detection_latency(predictions).latency_ms
        quartiles = dict(zip(("early_ms", "median_ms", "late_ms"), latency.quantile((0.25, 0.5, 0.75)), strict=True))
        missed = 100 * latency.isna().mean()
        rows.append({"method": predictions.method, "pinches": len(latency), "missed_percent": missed} | quartiles)
    return pd.DataFrame(rows)


def most_pinched(predictions: Predictions) -> tuple[str, int]:
    """The sequence and the hand with most labelled pinches, and of these the one that is tracked longest."""
    pinching = predictions.only(motion="pinch").sequences
    cases = {
        (s.name, hand): (len(stretches(s.pinch[hand] & s.valid[hand])), int(s.valid[hand].sum()))
        for s in pinching
        for hand in range(len(s.valid))
    }
    return max(cases, key=cases.get)


def _latency(fires: Bool[np.ndarray, "frames"], free: int, start: int, end: int) -> float:
    """The frame in which a detector fires for a pinch in frames [start, end), relative to its start."""
    during = np.flatnonzero(fires[start:end])
    if not len(during):
        return float("nan")
    silent = np.flatnonzero(~fires[free:start])
    before = start - free - 1 - silent[-1] if len(silent) else start - free
    return float(during[0] if during[0] else -before)


def stretches(mask: Bool[np.ndarray, "frames"]) -> list[tuple[int, int]]:
    """First frame and frame after the last of every stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(int)))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]
