"""Hyperparameters that the published description does not give: a search for the weights of the pose fit, and how sure
keypoints are of a hand. On validation users."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from lib.multistage.energy import FitWeights
from lib.multistage.fit import FIT_WEIGHTS
from lib.multistage.hand_crops import CachedRecording
from lib.multistage.sources import KeypointSource
from lib.multistage.tracker import MultistageTracker
from lib.study.statistics import error_of, jitter_of

CANDIDATES = {
    "distance": (0.0, 0.01, 0.04, 0.16),
    "temporal": (0.0, 5.0, 10.0, 20.0),
    "outlier_px": (1.0, 2.0, 4.0),
}
"""No larger temporal weight: from 50 on the fit lags more than 0.5 mm behind true keypoints that move 5 mm a frame,
though 400 had less error (1 %) and less jitter (15 %) with the keypoints of an earlier KeyNet. No larger `outlier_px`:
at 8 one keypoint that is 60 px off moves the other fingers by 2.6 mm in the median, for 0.02 mm less error
elsewhere."""
BELOW_PERCENT = (0.1, 0.5, 1.0, 2.0, 5.0, 50.0)


def search_weights(
    recordings: Sequence[CachedRecording], keypoints: KeypointSource, start: FitWeights = FIT_WEIGHTS
) -> tuple[FitWeights, pd.DataFrame]:
    """The weights of least error, one after the other over `CANDIDATES`, and a table of all that were tried.

    Known skeletons, labelled crops. Columns: distance, temporal, outlier_px, mpjpe_mm, mpjpa_mm_per_frame2,
    found_percent (of the labelled hand instances), best.
    """
    tried: dict[FitWeights, dict[str, float]] = {}
    best = start
    for name, values in CANDIDATES.items():
        for value in (getattr(best, name), *values):
            weights = best._replace(**{name: value})
            if weights not in tried:
                tried[weights] = _accuracy(recordings, keypoints, weights)
        best = min(tried, key=lambda weights: tried[weights]["mpjpe_mm"])
    rows = [weights._asdict() | accuracy | {"best": weights == best} for weights, accuracy in tried.items()]
    return best, pd.DataFrame(rows)


def confidence_table(recordings: Sequence[CachedRecording], keypoints: KeypointSource) -> pd.DataFrame:
    """How sure the keypoints of true hands are: the mean confidence that a percentage of them is below.

    Known skeletons, labelled crops. Columns: below_percent, confidence (NaN if no hand is found).
    """
    found = pd.Series(MultistageTracker(keypoints).confidences(recordings).numpy())
    return pd.DataFrame(
        {"below_percent": BELOW_PERCENT, "confidence": found.quantile([p / 100 for p in BELOW_PERCENT]).to_numpy()}
    )


def _accuracy(
    recordings: Sequence[CachedRecording], keypoints: KeypointSource, weights: FitWeights
) -> dict[str, float]:
    tracks = MultistageTracker(keypoints, weights=weights).track_all(
        recordings, [one.recording.hand_model for one in recordings]
    )
    tracked, valid = [t.tracked_keypoints for t in tracks], [t.valid_tracking for t in tracks]
    labelled = sum(int(one.recording.labelled.sum()) for one in recordings)
    return {
        "mpjpe_mm": error_of(tracked, [t.gt_keypoints for t in tracks], valid).mean,
        "mpjpa_mm_per_frame2": jitter_of(tracked, valid).mean,
        "found_percent": 100 * sum(int(found.sum()) for found in valid) / labelled,
    }
