"""The end-to-end tracker: recordings in, tracked hands out (§3.3, §5.3).

As in the published evaluation the crops come from the labelled pose; a hand is tracked in a frame if one camera sees it
(known skeleton) or two (scale). A hand that was not tracked in the previous frame starts without memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lib.crops import Crops, make_crops
from lib.errors import InputError
from lib.files import BROKEN_ARRAYS, MM, check_shapes, load_arrays, save_arrays
from lib.formats.hand_files import hand_from_json, hand_to_json
from lib.hands import HANDS, NUM_JOINTS, NUM_LANDMARKS, HandModel, HandPoses, for_hand
from lib.network import Features, HandPrediction, TemporalState, UmeTrack
from lib.recordings import Recording

_Network = TypeVar("_Network", bound=nn.Module)
CALIBRATION_SAMPLES = 30


class Pinch(NamedTuple):
    """A pinch of one hand, in seconds since the first frame; one that goes on has no end."""

    hand: int
    begin: float
    end: float | None = None


@dataclass(frozen=True)
class Tracks:
    """Tracked and true landmarks of a recording, mm in the world; zero where `valid_tracking` is False.

    True ones are NaN where a hand was tracked that has no label or hand model. `scale` is the calibrated factor of the
    generic hand, None for a known skeleton. `poses` are those behind the landmarks, and `labelled`
    tells which hands have labels, where that is kept. `pinches` are those that a live tracker tells.
    """

    tracked_keypoints: Float[np.ndarray, "2 frames 21 3"]
    gt_keypoints: Float[np.ndarray, "2 frames 21 3"]
    valid_tracking: Bool[np.ndarray, "2 frames"]
    scale: float | None = None
    poses: HandPoses | None = None
    labelled: Bool[np.ndarray, "2 frames"] | None = None
    pinches: tuple[Pinch, ...] | None = None

    @property
    def evaluated(self) -> Bool[np.ndarray, "2 frames"]:
        """Where a hand was tracked and is labelled."""
        return self.valid_tracking & np.isfinite(self.gt_keypoints).all(axis=(-2, -1))

    @staticmethod
    def of(
        tracked_mm: Float[np.ndarray, "2 frames 21 3"],
        true_mm: Float[np.ndarray, "2 frames 21 3"],
        found: Bool[np.ndarray, "2 frames"],
        poses: HandPoses | None = None,
    ) -> Tracks:
        """The tracks of hands that were found; landmarks that are not finite are none."""
        valid = found & np.isfinite(tracked_mm).all(axis=(-2, -1))
        shown = valid[..., None, None]
        tracked, true = (np.where(shown, keypoints, 0.0) for keypoints in (tracked_mm, true_mm))
        return Tracks(tracked, true, valid, poses=poses, labelled=np.isfinite(true_mm).all(axis=(-2, -1)))

    @staticmethod
    def of_poses(poses: HandPoses, true_mm: Float[np.ndarray, "2 frames 21 3"]) -> Tracks:
        """The tracks of posed hands."""
        return Tracks.of(poses.landmarks().numpy() * MM, true_mm, poses.confidence.numpy() > 0, poses)

    def arrays(self, frames_per_second: float) -> dict[str, np.ndarray]:
        """All that is known, by the names of the .npz file: mm and rad, as the public files have them."""
        arrays: dict[str, Any] = {"tracked_keypoints": self.tracked_keypoints, "gt_keypoints": self.gt_keypoints}
        arrays["valid_tracking"] = self.valid_tracking
        arrays["timestamps"] = np.arange(self.valid_tracking.shape[1]) / frames_per_second
        if self.labelled is not None:
            arrays["labelled"] = self.labelled
        if self.pinches is not None:  # no end: NaN
            arrays["pinches"] = np.array(self.pinches, np.float64).reshape(-1, 3)
        if self.scale is not None:
            arrays["scale"] = np.float64(self.scale)
        if self.poses is not None:
            wrists = self.poses.world_from_wrist.clone()
            wrists[..., :3, 3] *= MM
            arrays |= {"joint_angles": self.poses.joint_angles.numpy(), "world_from_wrist": wrists.numpy()}
            arrays["confidence"] = np.where(self.valid_tracking, self.poses.confidence.numpy(), 0.0)
            arrays["hand_model"] = np.array(json.dumps(hand_to_json(self.poses.model)))
        return arrays

    def save(self, path: Path, frames_per_second: float, made_from: str | None = None) -> None:
        """Write an .npz of `arrays`, and what it is made from, under its final name only when complete."""
        about = {} if made_from is None else {"made_from": np.array(made_from)}
        save_arrays(path, self.arrays(frames_per_second) | about)


def read_tracks(path: Path) -> Tracks:
    """The tracks of an .npz file. Raises InputError if it is none, or was written without poses."""
    try:
        stored = load_arrays(path)
        frames = stored["confidence"].shape[-1]
        points = (np.float64, HANDS, frames, NUM_LANDMARKS, 3)
        shapes = {"joint_angles": (np.float64, HANDS, frames, NUM_JOINTS), "confidence": (np.float64, HANDS, frames)}
        check_shapes(
            stored, shapes | {"world_from_wrist": (np.float64, HANDS, frames, 4, 4), "tracked_keypoints": points}
        )
        model = hand_from_json(json.loads(str(stored["hand_model"])))
    except BROKEN_ARRAYS as error:
        raise InputError(f"{path} is not a file of tracked hands with their poses: {error}") from error
    wrists = torch.from_numpy(stored["world_from_wrist"])
    wrists[..., :3, 3] /= MM
    poses = HandPoses(model, torch.from_numpy(stored["joint_angles"]), wrists, torch.from_numpy(stored["confidence"]))
    scale = float(stored["scale"]) if "scale" in stored else None
    names = ("tracked_keypoints", "gt_keypoints", "valid_tracking")
    pinches = None
    if "pinches" in stored:
        pinches = tuple(Pinch(int(h), b, None if np.isnan(e) else e) for h, b, e in stored["pinches"].tolist())
    return Tracks(*(stored[name] for name in names), scale, poses, stored.get("labelled"), pinches)


def prepare_for_inference(network: _Network) -> _Network:
    """The network in evaluation mode with every batch normalisation folded into the convolution before it.

    Changes `network` and its results by rounding only; do not train it afterwards.
    """
    network.eval()
    for module in network.modules():
        _fold_batch_norms(module)
    return network.to(memory_format=torch.channels_last)


def _fold_batch_norms(module: nn.Module) -> None:
    names = [name for name, _ in module.named_children()]
    for first, second in pairwise(names):
        convolution, norm = getattr(module, first), getattr(module, second)
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(module, first, fuse_conv_bn_eval(convolution, norm))
            setattr(module, second, nn.Identity())


def advance(
    network: UmeTrack,
    extracted: Features,
    crops: Crops,
    hands: Int[Tensor, "tracked"],
    state: TemporalState,
    memory: bool = True,
) -> tuple[Features, TemporalState]:
    """One frame of the recurrence: the features that the regressors take, and the state of all hands after the frame.

    `hands` says which of the hands in `state` are tracked; the others are lost and start anew when they are tracked
    again. Without `memory` every frame is the first.
    """
    device = state.tracked.device
    lost = TemporalState.untracked(len(state.tracked), device)
    before = (state if memory else lost)[hands.to(device)]
    features, after = network.remember(extracted, crops, before)
    return features, lost.update(hands, after)


class Tracker:
    """Runs a network over recordings. Holds no state of its own between calls."""

    def __init__(self, network: UmeTrack, device: torch.device | str = "cpu"):
        self.network = prepare_for_inference(network).to(device)
        self.device = device

    def track_known(self, recording: Recording, model: HandModel) -> Tracks:
        """Track with a known skeleton, `model` (the recording's own, or a calibrated one)."""
        poses = HandPoses.untracked(model, len(recording))
        for frame, hands, _, prediction in self._run(recording, model, self._predict_known(model), min_views=1):
            poses.put(frame, hands, prediction.joint_angles, prediction.world_from_wrist)
        return Tracks.of_poses(poses, true_keypoints(recording))

    def calibrate_scale(self, recording: Recording, generic: HandModel, samples: int = CALIBRATION_SAMPLES) -> float:
        """The mean of the first `samples` scale predictions of regressor U, over hands that two cameras see.

        A recording without a hand is cropped around the `generic` one. Fewer than `samples` are averaged as they are.
        Raises InputError if the recording yields none. Source: §5.3.
        """
        scales: list[float] = []
        for _, _, _, prediction in self._run(recording, generic, self._predict_unknown, min_views=2):
            scales += prediction.scale.tolist()
            if len(scales) >= samples:
                break
        if not scales:
            raise InputError(
                f"{recording.path}: no frame shows a labelled hand to two cameras; its scale cannot be calibrated"
            )
        return float(np.mean(scales[:samples]))

    def track_unknown(self, recording: Recording, generic: HandModel, samples: int = CALIBRATION_SAMPLES) -> Tracks:
        """Calibrate the scale of the generic hand, then track from the start with the scaled hand. Source: §5.3."""
        scale = self.calibrate_scale(recording, generic, samples)
        return replace(self.track_known(recording, generic.scaled(scale)), scale=scale)

    def _predict_known(self, model: HandModel) -> Callable[[Tensor, Crops], HandPrediction]:
        skeleton = model.to(self.device, torch.float32)
        return lambda features, crops: self.network.known(features, crops, skeleton)

    def _predict_unknown(self, features: Tensor, crops: Crops) -> HandPrediction:
        return self.network.unknown(features, crops)

    def _run(
        self,
        recording: Recording,
        model: HandModel,
        predict: Callable[[Tensor, Crops], HandPrediction],
        min_views: int,
    ) -> Iterator[tuple[int, Int[Tensor, "tracked"], Crops, HandPrediction]]:
        """(frame, hands, crops, prediction) of every frame in which a hand is tracked.

        Crops are taken around the labelled poses of the recording's own hand or, where it has none, of `model`.
        """
        state = TemporalState.untracked(HANDS, self.device)
        for frame, images in enumerate(recording.images()):
            posed = recording.hands(frame, model)
            hands, crops = make_crops(images, recording.cameras(frame), recording.mounting_angles, posed, min_views)
            if not len(hands):
                state = TemporalState.untracked(HANDS, self.device)
                continue
            crops = crops.to(self.device)
            with torch.inference_mode():
                features, state = advance(self.network, self.network.extract(crops), crops, hands, state)
                prediction = predict(features, crops)
            yield frame, hands, crops, prediction


def true_keypoints(recording: Recording) -> Float[np.ndarray, "2 frames 21 3"]:
    """The labelled landmarks of a recording, mm in the world; NaN where nothing is labelled, or there is no hand."""
    if recording.hand_model is None:
        return np.full((HANDS, len(recording), NUM_LANDMARKS, 3), np.nan)
    world_from_wrist = for_hand(recording.world_from_wrist, torch.arange(HANDS).expand(len(recording), HANDS))
    landmarks = recording.hand_model.landmarks(recording.joint_angles, world_from_wrist)
    landmarks[~recording.labelled] = torch.nan
    return landmarks.transpose(0, 1).numpy() * MM
