"""Made-up predictions, whose errors are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lib.hands import INDEX_TIP, THUMB_TIP
from lib.study.predictions import Predictions, TrackedSequence
from lib.tracking import Tracks

FRAMES = 40
PINCHED = np.isin(np.arange(FRAMES), [8, 9, 10, 20, 21, 22])
APART_MM, TOGETHER_MM = 30.0, 5.0
PROTOCOLS = ("separate_hand", "separate_hand", "hand_hand", "occlusion")
MOTIONS = ("separate_hand", "pinch", "hand_hand", "occlusion")


def pinching(rng, distance_mm: np.ndarray):
    """A left hand at rest whose tips of thumb and index finger have given distances; pinched in `PINCHED`."""
    true = np.zeros((2, FRAMES, 21, 3), np.float32)
    true[:, :, INDEX_TIP, 0] = np.where(PINCHED, TOGETHER_MM, APART_MM)
    found = true.copy()
    found[0, :, THUMB_TIP], found[0, :, INDEX_TIP] = 0.0, np.stack((0 * distance_mm, distance_mm, 0 * distance_mm), -1)
    valid = np.stack((np.ones(FRAMES, bool), np.zeros(FRAMES, bool)))
    pinch = np.stack((PINCHED, PINCHED))
    return tracked(rng, frames=FRAMES, tracked_keypoints=found, gt_keypoints=true, valid=valid, pinch=pinch)


def of(*sequences) -> Predictions:
    return Predictions("method", "known", sequences)


def made_up(
    error_mm: float, jitter_mm: float, unknown: float = 0.0, occluder: float = 0.0, spread: float = 0.1
) -> dict:
    """Predictions for both skeletons: hands misplaced along x that tremble along y, differing by sequence."""
    result = {}
    for skeleton, more in (("known", 0.0), ("unknown", unknown)):
        sequences = []
        for index in range(16):
            rng = np.random.default_rng(index)
            base = pinching(rng, np.where(PINCHED, TOGETHER_MM, APART_MM))
            passing = (np.arange(FRAMES) >= 10) & (np.arange(FRAMES) < 20) & (PROTOCOLS[index % 4] == "occlusion")
            offset = error_mm + more + spread * rng.normal() + occluder * passing
            found = base.gt_keypoints.copy()
            found[..., 0] += offset[:, None] if np.ndim(offset) else offset
            found[:, ::2, :, 1] += jitter_mm / 2
            name = f"{PROTOCOLS[index % 4]}/user_{44 + index // 4}/recording_{index:02d}"
            sequences.append(
                replace(base, name=name, motion=MOTIONS[index % 4], tracked_keypoints=found.astype(np.float32),
                        occluder=passing, scale=1.0 if skeleton == "unknown" else float("nan"))
            )  # fmt: skip
        result[skeleton] = Predictions("method", skeleton, tuple(sequences))
    return result


def study(**changes) -> dict:
    """Made-up predictions of all methods, in which all claims about errors hold except that PCK curves cross."""
    methods = {
        "no_ftl": made_up(50.0, 6.0),
        "no_skeleton_encoder": made_up(13.0, 4.0),
        "no_temporal": made_up(9.5, 5.0),
        "no_temporal_temporal_loss": made_up(10.2, 4.0, occluder=40.0),
        "full": made_up(9.0, 3.5),
        "full_one_euro": made_up(10.0, 2.6),
        "full_temporal_loss": made_up(9.1, 2.6, unknown=1.0, occluder=10.0),
        "full_temporal_pinch_loss": made_up(9.2, 2.6, unknown=1.0),
        "multistage": made_up(10.0, 3.4, unknown=3.0),
    } | changes
    return {(method, s): replace(p, method=method) for method, pair in methods.items() for s, p in pair.items()}


def tracked(rng, name: str = "separate_hand/user_44/recording_00", motion: str = "pinch", frames: int = 8, **changes):
    """A sequence whose hands are tracked with an error of 3 mm along x, the left one not in frame 3."""
    true = (100 * rng.normal(size=(2, frames, 21, 3))).astype(np.float32)
    valid = np.ones((2, frames), bool)
    valid[0, 3] = False
    none = np.zeros((2, frames), bool)
    sequence = TrackedSequence(
        name, motion, true + np.float32([3, 0, 0]), true, valid, 2 * valid.astype(int), none, none, none[0],
        scale=float("nan"), fitted_scale=1.1,
    )  # fmt: skip
    return replace(sequence, **changes)


class CountingMethod:
    """Says that every hand is where it is, and counts how often it is asked."""

    def __init__(self, name: str = "method"):
        self.name, self.calls = name, 0

    def __call__(self, sequences):
        self.calls += 1
        tracks = [Tracks(s.true_keypoints(), s.true_keypoints(), s.crops.views.T > 0) for s in sequences]
        unknown = [replace(t, scale=1.25) for t in tracks]
        return {(self.name, "known"): tracks, (self.name, "unknown"): unknown}
