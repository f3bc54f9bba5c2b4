"""The weights of the pose fit, which the published description leaves open: a search, meant for training users."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lib.metrics import landmark_accelerations, landmark_errors
from lib.multistage.energy import FitWeights
from lib.multistage.fit import FIT_WEIGHTS
from lib.multistage.looks import Footage
from lib.multistage.sources import KeypointSource
from lib.multistage.tracker import MultistageTracker

CANDIDATES = {
    "distance": (0.0, 0.01, 0.04, 0.16),
    "temporal": (0.0, 20.0, 100.0, 400.0, 1600.0),
    "outlier_px": (1.0, 2.0, 4.0, 8.0),
}


def search_weights(
    footage: Sequence[Footage], keypoints: KeypointSource, start: FitWeights = FIT_WEIGHTS
) -> tuple[FitWeights, pd.DataFrame]:
    """The weights of least error, one after the other over `CANDIDATES`, and a table of all that were tried.

    Known skeletons, labelled crops. Columns: distance, temporal, outlier_px, mpjpe_mm, mpjpa_mm_per_frame2,
    found_percent (of the labelled hand-frames).
    """
    tried: dict[FitWeights, dict[str, float]] = {}
    best = start
    for name, values in CANDIDATES.items():
        for value in (getattr(best, name), *values):
            weights = best._replace(**{name: value})
            if weights not in tried:
                tried[weights] = _accuracy(footage, keypoints, weights)
        best = min(tried, key=lambda weights: tried[weights]["mpjpe_mm"])
    return best, pd.DataFrame([weights._asdict() | accuracy for weights, accuracy in tried.items()])


def _accuracy(footage: Sequence[Footage], keypoints: KeypointSource, weights: FitWeights) -> dict[str, float]:
    tracks = MultistageTracker(keypoints, weights=weights).track_all(
        footage, [one.recording.hand_model for one in footage]
    )
    errors = [landmark_errors(t.tracked_keypoints, t.gt_keypoints)[t.valid_tracking] for t in tracks]
    accelerations = [landmark_accelerations(t.tracked_keypoints, t.valid_tracking) for t in tracks]
    labelled = sum(int(one.recording.labelled.sum()) for one in footage)
    return {
        "mpjpe_mm": float(np.concatenate(errors).mean()),
        "mpjpa_mm_per_frame2": float(np.concatenate([lengths[inner] for lengths, inner in accelerations]).mean()),
        "found_percent": 100 * sum(len(found) for found in errors) / labelled,
    }
