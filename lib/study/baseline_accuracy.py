"""How well the networks of the baseline do on recordings of users that they have not seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from tqdm import tqdm

from lib.crop_cache import FRAME_STEP, ViewSequence, view_sequence
from lib.multistage.detection import DetNet, to_circles
from lib.multistage.detection_training import ViewSource, as_output, detection_errors
from lib.multistage.hand_crops import CachedRecording
from lib.multistage.keypoint_training import HIT_PX
from lib.multistage.keypoints import Keypoints
from lib.multistage.sources import KeypointRequest, KeypointSource, observed
from lib.multistage.tracker import MultistageTracker
from lib.recordings import Recording
from lib.study.sequences import LabelledSequence
from lib.tracking import Tracks

_AT_ONCE = 128


@dataclass(frozen=True)
class KeypointErrors:
    """Errors (px) in all crops; whether each is of an occlusion recording, and of a frame with an occluder."""

    errors: Float[np.ndarray, "crops 21"]
    occlusion: Bool[np.ndarray, "crops"]
    occluder: Bool[np.ndarray, "crops"]


def keypoint_table(measured: Mapping[str, KeypointErrors]) -> pd.DataFrame:
    """What networks find in the crops of test recordings.

    Columns: network; frames ("all", then of the occlusion recordings "behind an occluder" and "no occluder"); crops;
    median_px; hits_percent (of the keypoints, within `HIT_PX`).
    """
    rows = []
    for name, seen in measured.items():
        parts = {
            "all": slice(None),
            "behind an occluder": seen.occlusion & seen.occluder,
            "no occluder": seen.occlusion & ~seen.occluder,
        }
        for frames, chosen in parts.items():
            some = seen.errors[chosen]
            median = float(np.median(some)) if some.size else float("nan")
            hits = 100 * float((some < HIT_PX).mean()) if some.size else float("nan")
            rows.append((name, frames, len(some), median, hits))
    return pd.DataFrame(rows, columns=["network", "frames", "crops", "median_px", "hits_percent"])


def track_with_errors(
    sequences: Sequence[LabelledSequence], recordings: Sequence[CachedRecording], source: KeypointSource
) -> tuple[list[Tracks], KeypointErrors]:
    """The tracks of the recordings of sequences, and the errors of the keypoints; skeletons are known."""
    sequence_of = {id(one.recording): sequence for one, sequence in zip(recordings, sequences, strict=True)}
    errors, occlusion, occluder = [], [], []

    def compare(request: KeypointRequest, seen: Keypoints, true: Keypoints) -> None:
        sequence, crops = sequence_of[id(request.frame.recording)], len(request.hand)
        errors.append((seen.pixels - true.pixels).norm(dim=-1))
        occlusion.extend(crops * [sequence.protocol == "occlusion"])
        occluder.extend(crops * [bool(sequence.occluder[request.frame.number])])

    tracker = MultistageTracker(observed(source, compare))
    tracks = tracker.track_all(recordings, [one.recording.hand_model for one in recordings])
    return tracks, KeypointErrors(torch.cat(errors).numpy(), np.array(occlusion), np.array(occluder))


def detection_table(recordings: Iterable[Recording], network: DetNet) -> pd.DataFrame:
    """Errors of the detector on every sixth frame of recordings, all cameras, in one row.

    Columns: views; center_px and radius_px (medians over hands that are found); recall_percent of the hands that are
    there; false_positives_per_frame, of all views. Hands that are half in view do not count.
    """
    device = next(network.parameters()).device
    source = ViewSource([_every_sixth_frame(one) for one in tqdm(recordings, "views", unit="recording")], device)
    parts = [source.batch(rows, 0.0, torch.Generator()) for rows in torch.arange(len(source)).split(_AT_ONCE)]
    circles, present, absent = (torch.cat([getattr(p, n) for p in parts]) for n in ("circles", "present", "absent"))
    with torch.inference_mode():
        output = torch.cat([network(part.pictures) for part in parts])
    both = output, as_output(circles, present)
    found, true = (to_circles(values, *source.images.shape[1:]) for values in both)
    errors = {name: float(value) for name, value in detection_errors(found, true, present, absent).items()}
    false = errors.pop("false_positives_percent") / 100 * int(absent.sum())
    frames = len(source) / len(recordings[0].mounting_angles)
    return pd.DataFrame([{"views": len(source)} | errors | {"false_positives_per_frame": false / frames}])


def _every_sixth_frame(recording: Recording) -> ViewSequence:
    """The views of a recording that are looked at, its video decoded once."""
    pictures = {frame: views for frame, views in enumerate(recording.images()) if frame % FRAME_STEP == 0}
    return view_sequence(recording, pictures.get)
