"""Where the error of the multi-stage tracker comes from: one stage after another is replaced by the ground truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lib.cores import available_cores
from lib.machines import in_processes, processor
from lib.multistage.hand_crops import CachedRecording
from lib.multistage.networks import detector, keypoint_source
from lib.multistage.sources import Detector, KeypointSource, labelled_circles, labelled_keypoints
from lib.multistage.tracker import MultistageTracker
from lib.study.statistics import error_of
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


def error_budget(recordings: Sequence[CachedRecording], keynet: Path, detnet: Path) -> pd.DataFrame:
    """Track recordings with known skeletons with the networks of two files in all cases, each in a process of its own.

    Labelled crops may come from their cache. The columns are those of `budget_table`, and `processor`: when a
    hand is detected depends on rounding, and so on the machine. Raises InputError if weights are missing.
    """
    cases = stages(keypoint_source(keynet, "cpu"), detector(detnet, "cpu"))
    jobs = {name: partial(_track_with_weights, recordings, name, keynet, detnet) for name in reversed(cases)}
    tracked = in_processes(jobs, available_cores(), "error budget", "case")
    return budget_table(recordings, {name: tracked[name] for name in cases}).assign(
        processor=processor(torch.device("cpu"))
    )


def _track_with_weights(recordings: Sequence[CachedRecording], case: str, keynet: Path, detnet: Path) -> list[Tracks]:
    return track_case(recordings, stages(keypoint_source(keynet, "cpu"), detector(detnet, "cpu"))[case])


def track_case(recordings: Sequence[CachedRecording], case: Stages) -> list[Tracks]:
    """Track recordings with known skeletons; only ground-truth crops can come from their cache."""
    keypoints, detector = case
    seen = recordings if detector is None else [CachedRecording(one.recording) for one in recordings]
    return MultistageTracker(keypoints, detector).track_all(seen, [one.recording.hand_model for one in recordings])


def budget_table(recordings: Sequence[CachedRecording], tracked: Mapping[str, Sequence[Tracks]]) -> pd.DataFrame:
    """What recordings show of the cases they were tracked in.

    Columns: stages, mpjpe_mm of the hand instances that are found in every case (NaN if there are none), found_percent
    of the labelled hand instances.
    """
    labelled = sum(int(one.recording.labelled.sum()) for one in recordings)
    by_recording = zip(*tracked.values(), strict=True)
    always = [np.logical_and.reduce([one.evaluated for one in cases]) for cases in by_recording]
    rows = []
    for name, tracks in tracked.items():
        error = error_of([one.tracked_keypoints for one in tracks], [one.gt_keypoints for one in tracks], always)
        found = sum(int(one.evaluated.sum()) for one in tracks)
        rows.append({"stages": name, "mpjpe_mm": error.mean, "found_percent": 100 * found / labelled})
    return pd.DataFrame(rows)
