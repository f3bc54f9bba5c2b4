"""Where the error of the multi-stage tracker comes from: stage after stage, the truth takes the place of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from lib.machines import processor
from lib.multistage.looks import Footage
from lib.multistage.sources import Detector, KeypointSource, labelled_circles, labelled_keypoints
from lib.multistage.tracker import MultistageTracker
from lib.statistics import error_of
from lib.tracking import Tracks

Stages = tuple[KeypointSource, Detector | None]
"""Who finds keypoints, and who finds hands that are lost; None: crops are the labelled ones."""


def stages(keypoints: KeypointSource, detector: Detector) -> dict[str, Stages]:
    """From the fit alone to the whole baseline; the difference of two rows is what a stage costs."""
    return {
        "true keypoints, labelled crops": (labelled_keypoints, None),
        "KeyNet, labelled crops": (keypoints, None),
        "KeyNet, own crops, true circles": (keypoints, labelled_circles),
        "KeyNet, own crops, DetNet": (keypoints, detector),
    }


def error_budget(footage: Sequence[Footage], cases: Mapping[str, Stages]) -> pd.DataFrame:
    """Track footage of known skeletons in every case; labelled crops may come from its cache.

    Columns: stages, mpjpe_mm of the hand-frames that are found in every case (NaN if there are none), found_percent of
    the labelled hand-frames, processor: when a hand is detected depends on rounding, and so on the machine.
    """
    models = [one.recording.hand_model for one in footage]
    labelled = sum(int(one.recording.labelled.sum()) for one in footage)
    tracked: dict[str, list[Tracks]] = {}
    for name, (keypoints, detector) in cases.items():
        seen = footage if detector is None else [Footage(one.recording) for one in footage]
        tracked[name] = MultistageTracker(keypoints, detector).track_all(seen, models)
    by_recording = zip(*tracked.values(), strict=True)
    always = [np.logical_and.reduce([one.judged for one in cases]) for cases in by_recording]
    rows = []
    for name, tracks in tracked.items():
        error = error_of([one.tracked_keypoints for one in tracks], [one.gt_keypoints for one in tracks], always)
        found = sum(int(one.judged.sum()) for one in tracks)
        rows.append({"stages": name, "mpjpe_mm": error.mean, "found_percent": 100 * found / labelled})
    return pd.DataFrame(rows).assign(processor=processor(torch.device("cpu")))
