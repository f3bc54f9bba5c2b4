"""The end-to-end tracker: recordings in, tracked hands out (§3.3, §5.3).

As in the published evaluation the crops come from the labelled pose; a hand is tracked in a frame if one camera sees it
(known skeleton) or two (scale). A hand that was not tracked in the previous frame starts without memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lib.cameras import PosedCamera
from lib.crops import crop_cameras, crop_points, sees_hand, select_views, warp
from lib.errors import InputError
from lib.files import MM, write_atomically
from lib.hands import NUM_LANDMARKS, HandModel, for_hand
from lib.network import Crops, HandPrediction, TemporalState, UmeTrack
from lib.recordings import Recording

Network = TypeVar("Network", bound=nn.Module)
HANDS = 2
CALIBRATION_SAMPLES = 30


@dataclass(frozen=True)
class HandLabels:
    """The labelled pose of both hands in a frame; the pose of a hand that is not `labelled` means nothing."""

    joint_angles: Float[Tensor, "2 22"]
    world_from_wrist: Float[Tensor, "2 4 4"]
    labelled: Bool[Tensor, "2"]

    @staticmethod
    def of(recording: Recording, frame: int) -> HandLabels:
        """The labels of a recording in a frame."""
        return HandLabels(recording.joint_angles[frame], recording.world_from_wrist[frame], recording.labelled[frame])


@dataclass(frozen=True)
class Tracks:
    """Tracked and true landmarks of a recording, mm in the world; zero where `valid_tracking` is False.

    True ones are NaN where a hand was tracked that has no label or hand model. `scale` is the calibrated factor of the
    generic hand, None for a known skeleton.
    """

    tracked_keypoints: Float[np.ndarray, "2 frames 21 3"]
    gt_keypoints: Float[np.ndarray, "2 frames 21 3"]
    valid_tracking: Bool[np.ndarray, "2 frames"]
    scale: float | None = None

    @property
    def judged(self) -> Bool[np.ndarray, "2 frames"]:
        """Where a hand was tracked and is labelled."""
        return self.valid_tracking & np.isfinite(self.gt_keypoints).all(axis=(-2, -1))

    @staticmethod
    def of(
        tracked_mm: Float[np.ndarray, "2 frames 21 3"],
        true_mm: Float[np.ndarray, "2 frames 21 3"],
        found: Bool[np.ndarray, "2 frames"],
    ) -> Tracks:
        """The tracks of hands that were found; a pose that is not finite is none."""
        valid = found & np.isfinite(tracked_mm).all(axis=(-2, -1))
        shown = valid[..., None, None]
        return Tracks(np.where(shown, tracked_mm, 0.0), np.where(shown, true_mm, 0.0), valid)

    def save(self, path: Path) -> None:
        """Write an .npz with one array per field, under its final name only when complete."""
        arrays = {"tracked_keypoints": self.tracked_keypoints, "gt_keypoints": self.gt_keypoints}
        arrays["valid_tracking"] = self.valid_tracking
        if self.scale is not None:
            arrays["scale"] = np.float64(self.scale)

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:  # np.savez would append .npz to a name without it
                np.savez(file, **arrays)

        write_atomically(path, write)


def prepare_for_inference(network: Network) -> Network:
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


def make_crops(
    images: UInt8[np.ndarray, "cameras height width"],
    cameras: PosedCamera,
    mounting_angles: Float[Tensor, "cameras"],
    model: HandModel,
    labels: HandLabels,
    min_views: int,
) -> tuple[Int[Tensor, "tracked"], Crops]:
    """The hands that at least `min_views` cameras see, and their crops. Source: §3.1, evaluation as published."""
    hands, views, crop = choose_crop_cameras(cameras, mounting_angles, model, labels, min_views)
    return hands, take_crops(images, cameras, hands, views, crop)


def choose_crop_cameras(
    cameras: PosedCamera,
    mounting_angles: Float[Tensor, "cameras"],
    model: HandModel,
    labels: HandLabels,
    min_views: int,
) -> tuple[Int[Tensor, "tracked"], Bool[Tensor, "tracked cameras"], PosedCamera]:
    """The hands that `min_views`, 1 or 2, cameras see; the cameras chosen for each; all crop cameras of each."""
    views, crop = choose_views(cameras, mounting_angles, model, labels)
    chosen = views.sum(dim=1) >= min_views
    return torch.arange(HANDS)[chosen], views[chosen], crop[chosen]


def choose_views(
    cameras: PosedCamera, mounting_angles: Float[Tensor, "cameras"], model: HandModel, labels: HandLabels
) -> tuple[Bool[Tensor, "2 cameras"], PosedCamera]:
    """The cameras chosen for each hand, none for one that is not labelled, and all crop cameras, batch (2, cameras)."""
    hands = torch.arange(HANDS)
    world_from_wrist = for_hand(labels.world_from_wrist, hands)
    points = crop_points(model, labels.joint_angles, world_from_wrist)
    crop, exists = crop_cameras(cameras, points, hands, mounting_angles)
    seen = sees_hand(cameras, points[:, : len(model.landmark_bone_weights)]) & exists & labels.labelled[:, None]
    return select_views(seen), crop


def take_crops(
    images: UInt8[np.ndarray, "cameras height width"],
    cameras: PosedCamera,
    hands: Int[Tensor, "tracked"],
    views: Bool[Tensor, "tracked cameras"],
    crop: PosedCamera,
) -> Crops:
    """The network's input: one or two warped views per hand; a missing second view repeats the first."""
    rows, sources = views.nonzero(as_tuple=True)
    size = crop.camera.width
    chosen = crop[rows, sources]
    pictures = torch.from_numpy(warp([images[source] for source in sources], cameras[sources], chosen))
    counts = views.sum(dim=1)
    first = counts.cumsum(dim=0) - counts
    pair = torch.stack((first, first + counts - 1), dim=1)
    return Crops(
        images=pictures.float().div(255).reshape(-1, size, size)[pair],
        focal_px=chosen.camera.focal_px[pair, 0].float(),
        camera_from_world=chosen.camera_from_world[pair].float(),
        hand=hands,
        two_views=counts > 1,
    )


class Tracker:
    """Runs a network over recordings. Holds no state of its own between calls."""

    def __init__(self, network: UmeTrack, device: torch.device | str = "cpu"):
        self.network = prepare_for_inference(network).to(device)
        self.device = device

    def track_known(self, recording: Recording, model: HandModel) -> Tracks:
        """Track with a known skeleton, `model` (the recording's own, or a calibrated one)."""
        tracked = np.zeros((HANDS, len(recording), 21, 3))
        valid = np.zeros((HANDS, len(recording)), bool)
        for frame, hands, _, prediction in self._run(recording, model, self._predict_known(model), min_views=1):
            landmarks = model.landmarks(
                prediction.joint_angles.double().cpu(), for_hand(prediction.world_from_wrist.double().cpu(), hands)
            )
            tracked[hands, frame] = landmarks.numpy() * MM
            valid[hands, frame] = True
        return Tracks.of(tracked, true_keypoints(recording), valid)

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
                f"{recording.video}: no frame shows a labelled hand to two cameras; its scale cannot be calibrated"
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
        model = recording.hand_model or model
        for frame, images in enumerate(recording.images()):
            labels = HandLabels.of(recording, frame)
            hands, crops = make_crops(
                images, recording.cameras(frame), recording.mounting_angles, model, labels, min_views
            )
            if len(hands):
                crops = crops.to(self.device)
                with torch.inference_mode():
                    features, after = self.network.features(crops, state[hands])
                    prediction = predict(features, crops)
                yield frame, hands, crops, prediction
            state = TemporalState.untracked(HANDS, self.device)
            if len(hands):
                state = state.update(hands, after)


def true_keypoints(recording: Recording) -> Float[np.ndarray, "2 frames 21 3"]:
    """The labelled landmarks of a recording, mm in the world; NaN where nothing is labelled, or there is no hand."""
    if recording.hand_model is None:
        return np.full((HANDS, len(recording), NUM_LANDMARKS, 3), np.nan)
    world_from_wrist = for_hand(recording.world_from_wrist, torch.arange(HANDS).expand(len(recording), HANDS))
    landmarks = recording.hand_model.landmarks(recording.joint_angles, world_from_wrist)
    landmarks[~recording.labelled] = torch.nan
    return landmarks.transpose(0, 1).numpy() * MM
