"""Accuracy, jitter and pinch metrics (§5).

Keypoints are (hands, frames, 21, 3) in millimetres, as the files of predictions store them; `valid` (hands, frames)
tells which hand instances (a hand in a frame) count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from lib.hands import INDEX_TIP, THUMB_TIP

KeypointsMm = Float[np.ndarray, "hands frames 21 3"]
Valid = Bool[np.ndarray, "hands frames"]
PCK_THRESHOLDS_MM = np.linspace(0.0, 50.0, 101)


def landmark_errors(tracked_mm: KeypointsMm, true_mm: KeypointsMm) -> Float[np.ndarray, "hands frames 21"]:
    """Distance of each tracked landmark from the true one, mm."""
    return np.linalg.norm(tracked_mm - true_mm, axis=-1)


def mpjpe(tracked_mm: KeypointsMm, true_mm: KeypointsMm, valid: Valid) -> float:
    """Mean per-joint position error over valid hand instances, mm; NaN if there are none. Source: §5."""
    return _mean(landmark_errors(tracked_mm, true_mm)[valid])


def landmark_accelerations(
    keypoints_mm: KeypointsMm, valid: Valid
) -> tuple[Float[np.ndarray, "hands inner 21"], Bool[np.ndarray, "hands inner"]]:
    """|x(t+1) + x(t-1) - 2 x(t)| per landmark, mm per frame², and where all three frames are valid."""
    acceleration = keypoints_mm[:, 2:] + keypoints_mm[:, :-2] - 2 * keypoints_mm[:, 1:-1]
    return np.linalg.norm(acceleration, axis=-1), valid[:, 2:] & valid[:, 1:-1] & valid[:, :-2]


def mpjpa(keypoints_mm: KeypointsMm, valid: Valid) -> float:
    """Mean per-joint position acceleration, mm per frame²; NaN without three valid frames in a row.

    Source: Eq. 10, over frames whose neighbours are valid as in the published evaluation (the printed numbers of the
    paper do not follow Eq. 10; its authors' page corrects them).
    """
    lengths, inner = landmark_accelerations(keypoints_mm, valid)
    return _mean(lengths[inner])


def pck(tracked_mm: KeypointsMm, true_mm: KeypointsMm, valid: Valid) -> Float[np.ndarray, "101"]:
    """Share of valid hand instances, in percent, whose mean landmark error lies below each of `PCK_THRESHOLDS_MM`."""
    errors = landmark_errors(tracked_mm, true_mm).mean(axis=-1)[valid]
    if not len(errors):
        return np.full(len(PCK_THRESHOLDS_MM), np.nan)
    return 100 * (errors[:, None] < PCK_THRESHOLDS_MM).mean(axis=0)


def auc(pck_percent: Float[np.ndarray, "101"]) -> float:
    """Area under a PCK curve, 100 for a perfect one."""
    return float(np.trapezoid(pck_percent, PCK_THRESHOLDS_MM) / PCK_THRESHOLDS_MM[-1])


def error_per_landmark(tracked_mm: KeypointsMm, true_mm: KeypointsMm, valid: Valid) -> Float[np.ndarray, "21"]:
    """Mean error of each landmark over valid hand instances, mm, in the order of `hands.LANDMARKS`."""
    errors = landmark_errors(tracked_mm, true_mm)[valid]
    return errors.mean(axis=0) if len(errors) else np.full(errors.shape[-1], np.nan)


def pinch_distance(keypoints_mm: KeypointsMm) -> Float[np.ndarray, "hands frames"]:
    """Distance between the tips of thumb and index finger, mm. Source: d of Eq. 7 and 8."""
    return np.linalg.norm(keypoints_mm[..., THUMB_TIP, :] - keypoints_mm[..., INDEX_TIP, :], axis=-1)


@dataclass(frozen=True)
class Detections:
    """Counts of a detector against labels."""

    true_positives: int
    false_positives: int
    false_negatives: int

    @property
    def precision_percent(self) -> float:
        """Share of the detections that are right; NaN without detections."""
        return _percent(self.true_positives, self.false_positives)

    @property
    def recall_percent(self) -> float:
        """Share of the labelled events that are detected; NaN without labels."""
        return _percent(self.true_positives, self.false_negatives)


def pinch_detections(
    distance_mm: Float[np.ndarray, "hands frames"],
    pinch: Bool[np.ndarray, "hands frames"],
    valid: Valid,
    threshold_mm: float = 10.0,
) -> Detections:
    """Pinches found by a threshold on the fingertip distance, frame by frame. Source: §5.4; threshold ε1 of Eq. 7."""
    found, labelled = (distance_mm < threshold_mm)[valid], pinch[valid]
    return Detections(
        true_positives=int((found & labelled).sum()),
        false_positives=int((found & ~labelled).sum()),
        false_negatives=int((~found & labelled).sum()),
    )


def _percent(right: int, wrong: int) -> float:
    return 100 * right / (right + wrong) if right + wrong else float("nan")


def _mean(values: Float[np.ndarray, "..."]) -> float:
    return float(values.mean()) if values.size else float("nan")
