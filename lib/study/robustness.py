"""What methods make of recordings that are worse than rendered ones: is the study's data too easy for one of them?

The same crops are corrupted as captured ones are: noisy, blurred, seen by one camera, by cameras whose
calibration is off, or of a hand whose skeleton was measured wrong. Beyond the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch

from lib.checkpoints import load_network
from lib.cores import available_cores
from lib.crop_cache import CropSequence
from lib.hands import HandModel
from lib.machines import in_processes
from lib.multistage.hand_crops import CachedRecording
from lib.multistage.networks import keypoint_source
from lib.multistage.sources import KeypointSource
from lib.multistage.tracker import MultistageTracker
from lib.study.sequences import LabelledSequence
from lib.study.statistics import error_of, interval, jitter_of
from lib.study.streams import ExtractedStreams, HandStreams, track_streams
from lib.tracking import Tracks, prepare_for_inference
from lib.transforms import axis_angle_rotation

NOISE, BLUR_PX, TURNED_DEGREES, MISMEASURED = 15.0, 1.5, 0.5, 1.05
"""Grey levels of 255, pixels of the crop (standard deviations), degrees by which the second camera is turned, and the
factor by which the input skeleton is too large."""
Corruption = Callable[[CropSequence, np.random.Generator], CropSequence]
TrackCase = Callable[[Sequence[LabelledSequence], Sequence[HandModel]], list[Tracks]]
"""Tracks sequences with input hand models."""


def noisy(crops: CropSequence, generator: np.random.Generator) -> CropSequence:
    """Pictures with the noise of a sensor in the dark."""
    noise = generator.normal(scale=NOISE, size=crops.images.shape).astype(np.float32)
    return replace(crops, images=(crops.images + noise).round().clip(0, 255).astype(np.uint8))


def blurred(crops: CropSequence, generator: np.random.Generator) -> CropSequence:
    """Pictures out of focus."""
    size = crops.images.shape[-2:]
    pictures = [cv2.GaussianBlur(picture, (0, 0), BLUR_PX) for picture in crops.images.reshape(-1, *size)]
    return replace(crops, images=np.stack(pictures).reshape(crops.images.shape))


def seen_once(crops: CropSequence, generator: np.random.Generator) -> CropSequence:
    """The reference view alone."""
    return replace(crops, views=crops.views.clip(max=1))


def miscalibrated(crops: CropSequence, generator: np.random.Generator) -> CropSequence:
    """The second view is turned about a random axis, the same throughout, by more than its calibration knows."""
    axis = torch.from_numpy(generator.normal(size=3))
    turn = axis_angle_rotation(axis / axis.norm(), torch.tensor(np.deg2rad(TURNED_DEGREES))).numpy()
    world_from_crop = crops.world_from_crop.copy()
    world_from_crop[:, :, 1, :3, :3] = turn @ world_from_crop[:, :, 1, :3, :3]
    return replace(crops, world_from_crop=world_from_crop)


def as_rendered(crops: CropSequence, generator: np.random.Generator) -> CropSequence:
    """Nothing is corrupted."""
    return crops


CORRUPTIONS: dict[str, tuple[Corruption, float]] = {
    "as rendered": (as_rendered, 1.0),
    f"noise of {NOISE:g} grey levels": (noisy, 1.0),
    f"blur of {BLUR_PX:g} px": (blurred, 1.0),
    f"second camera turned by {TURNED_DEGREES:g}°": (miscalibrated, 1.0),
    f"given a skeleton {100 * (MISMEASURED - 1):.0f} % too large": (as_rendered, MISMEASURED),
    "one view": (seen_once, 1.0),
}
"""What is done to the crops, and how much too large the input skeleton is."""


def robustness_table(sequences: Sequence[LabelledSequence], methods: Mapping[str, TrackCase]) -> pd.DataFrame:
    """Every method under every condition, with the (mismeasured) input skeletons; each pair in a process of its own.

    Columns: condition, method, mpjpe_mm, low, high (95 % interval over sequences), mpjpa_mm_per_frame2.
    """
    jobs = {}
    for condition, (corrupt, too_large) in CORRUPTIONS.items():
        generator = np.random.default_rng(0)
        corrupted = [replace(s, crops=corrupt(s.crops, generator)) for s in sequences]
        models = [s.crops.hand_model.scaled(too_large) for s in sequences]
        jobs |= {(condition, name): partial(method, corrupted, models) for name, method in methods.items()}
    rows = []
    for (condition, name), tracks in in_processes(jobs, available_cores(), "robustness", "case").items():
        tracked, valid = [one.tracked_keypoints for one in tracks], [one.valid_tracking for one in tracks]
        error = interval(error_of(tracked, [s.true_keypoints() for s in sequences], valid))
        row = {"condition": condition, "method": name, "mpjpe_mm": error.value, "low": error.low}
        rows.append(row | {"high": error.high, "mpjpa_mm_per_frame2": jitter_of(tracked, valid).mean})
    return pd.DataFrame(rows)


def end_to_end(weights: Path) -> TrackCase:
    """The network of a file as a method."""
    return partial(_track_end_to_end, weights)


def _track_end_to_end(
    weights: Path, sequences: Sequence[LabelledSequence], models: Sequence[HandModel]
) -> list[Tracks]:
    network = prepare_for_inference(load_network(weights))
    return track_streams(ExtractedStreams(network, HandStreams(sequences)), models)[0]


def multistage(weights: Path) -> TrackCase:
    """The baseline with the KeyNet of a file, on labelled crops, as a method."""
    return partial(_track_multistage, weights)


def _track_multistage(
    weights: Path, sequences: Sequence[LabelledSequence], models: Sequence[HandModel]
) -> list[Tracks]:
    return track_cached(keypoint_source(weights, "cpu"), sequences, models)


def track_cached(
    keypoints: KeypointSource, sequences: Sequence[LabelledSequence], models: Sequence[HandModel]
) -> list[Tracks]:
    """The baseline's tracks; its cameras are where the crops, not their videos, say."""
    recordings = [CachedRecording.of(s.crops, None) for s in sequences]
    return MultistageTracker(keypoints).track_all(recordings, [model.to(dtype=torch.float64) for model in models])
