"""Where the error of the multi-stage tracker comes from: stage after stage, the truth takes the place of a network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd

from lib.metrics import mpjpe
from lib.multistage.sources import Detector, KeypointSource
from lib.multistage.tracker import MultistageTracker
from lib.recordings import Recording


def error_budget(
    recordings: Iterable[Recording],
    keypoints: Mapping[str, KeypointSource],
    crops: Mapping[str, Detector | None],
) -> pd.DataFrame:
    """Track recordings of known skeletons with every named source of keypoints and of crops (None: the labelled ones).

    Columns: recording, crops, keypoints, mpjpe_mm (NaN where no hand was found), hand_frames, found_percent of the
    labelled hand-frames. The difference between two rows is what the stage in which they differ costs.
    """
    rows = []
    for recording in recordings:
        for crop_name, detector in crops.items():
            for keypoint_name, source in keypoints.items():
                tracks = MultistageTracker(source, detector).track_known(recording, recording.hand_model)
                valid = tracks.valid_tracking
                rows.append(
                    {
                        "recording": recording.video.stem,
                        "crops": crop_name,
                        "keypoints": keypoint_name,
                        "mpjpe_mm": mpjpe(tracks.tracked_keypoints, tracks.gt_keypoints, valid),
                        "hand_frames": int(valid.sum()),
                        "found_percent": 100 * valid.sum() / max(int(recording.labelled.sum()), 1),
                    }
                )
    return pd.DataFrame(rows)
