"""What the multi-stage tracker looks at: crops of hands that are labelled, expected, detected or kept in a cache.

Deviation from MEgATrack: perspective crops (`lib.crops`), aimed at the hand and fitted to it, instead of square
cut-outs of the fisheye view; this favours the baseline. A right hand arrives mirrored by its crop camera.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from lib.cameras import Pinhole, PosedCamera
from lib.crop_cache import CACHE_SIZE, CropSequence
from lib.crops import CROP_SIZE, MAX_VIEWS, choose_crop_cameras, crop_cameras, crop_points, warp
from lib.hands import HANDS, NUM_LANDMARKS, HandModel
from lib.multistage.detection import Circles
from lib.multistage.fit import Expectation
from lib.recordings import Recording, read_recording
from lib.rendered.scene import nominal_rig
from lib.transforms import apply

CIRCLE_ENLARGEMENT = 1.2
"""Of a detected circle, before it is cropped."""
MIN_KEYPOINTS_SEEN = 11
"""Of the expected keypoints, for a camera to be used."""
_TURN_WEIGHT = 1e-3  # m: cameras lie centimetres apart

Pictures = Float[Tensor, f"crops 1 {CROP_SIZE} {CROP_SIZE}"]
"""Crops as networks see them, in [0, 1]."""


@dataclass(frozen=True)
class HandCrops:
    """The hands that are looked at in a frame, through which cameras, and all their crop cameras."""

    hands: Int[Tensor, "tracked"]
    views: Bool[Tensor, "tracked cameras"]
    cropped: PosedCamera

    def chosen(self) -> PosedCamera:
        """The crop cameras of the chosen views, hand by hand."""
        return self.cropped[self.views.nonzero(as_tuple=True)]

    def joined(self, other: HandCrops) -> HandCrops:
        """The hands of both."""
        parts = self.cropped, other.cropped
        focal = torch.cat([part.camera.focal_px[..., 0] for part in parts])
        poses = torch.cat([part.world_from_camera for part in parts])
        return HandCrops(
            torch.cat((self.hands, other.hands)),
            torch.cat((self.views, other.views)),
            PosedCamera(Pinhole.create(CROP_SIZE, focal), poses),
        )


@dataclass(frozen=True)
class CachedRecording:
    """A recording and, where its labelled crops are kept in a cache, these."""

    recording: Recording
    crops: CropSequence | None = None

    @staticmethod
    def of(crops: CropSequence, video: Path | None) -> CachedRecording:
        """Crops from a cache, with the cameras of their video.

        Deviation: without a video, in the training split, each crop stands for a camera of the nominal lens that is
        turned towards it. What the fit sees differs by that lens only.
        """
        if video is not None:
            return CachedRecording(read_recording(video), crops)
        recording = Recording(
            path=Path("training"),
            camera=nominal_rig().camera[torch.zeros(HANDS * MAX_VIEWS, dtype=torch.long)],
            mounting_angles=torch.zeros(HANDS * MAX_VIEWS).double(),
            world_from_camera=torch.from_numpy(crops.world_from_crop).double().flatten(1, 2),
            hand_model=crops.hand_model.to(dtype=torch.float64),
            joint_angles=torch.from_numpy(crops.joint_angles).double(),
            world_from_wrist=torch.from_numpy(crops.world_from_wrist).double(),
            labelled=torch.from_numpy(crops.views > 0),
        )
        return CachedRecording(recording, crops)

    def frames(self) -> Iterator[Frame]:
        """Every frame, in order."""
        recording = self.recording
        pictures = recording.images() if self.crops is None else iter(self.crops.images)
        for number, images in enumerate(pictures):
            yield Frame(images, recording.cameras(number), recording.mounting_angles, number, self)


@dataclass(frozen=True)
class Frame:
    """What cameras show at one time, and where they are. Labels, if any, are those of the recording it is a frame of.

    `images` are the views of all cameras, of a cached recording its crops; `of` is None in a stream.
    """

    images: UInt8[np.ndarray, "..."]
    cameras: PosedCamera
    mounting_angles: Float[Tensor, "cameras"]
    number: int
    of: CachedRecording | None = None

    @property
    def recording(self) -> Recording:
        """The recording it is a frame of."""
        return self.of.recording

    def view(self, camera: int) -> UInt8[np.ndarray, "rows columns"]:
        """The picture of one camera."""
        return self.cameras.camera.view(self.images, camera)


def labelled_crops(frame: Frame, model: HandModel) -> tuple[HandCrops, Pictures]:
    """The crops of labelled hands and what they show, from the cache where there is one."""
    if frame.of.crops is not None:
        return cached_crops(frame)
    crops = ground_truth_crops(frame.recording, frame.number, model)
    return crops, take_pictures(frame.images, frame.cameras, crops)


def cached_crops(frame: Frame) -> tuple[HandCrops, Pictures]:
    """The crops of a cache, each as a view of the camera it was taken from: of those at its centre, the most alike."""
    crops, number = frame.of.crops, frame.number
    hand, slot = (np.arange(MAX_VIEWS) < crops.views[number][:, None]).nonzero()
    poses = torch.from_numpy(crops.world_from_crop[number][hand, slot]).double()
    difference = poses[:, None, :3, 2:] - frame.cameras.world_from_camera[:, :3, 2:]
    turned, away = torch.linalg.vector_norm(difference, dim=-2).unbind(-1)
    source = (away + _TURN_WEIGHT * turned).argmin(dim=1)
    count = len(frame.mounting_angles)
    views = torch.zeros(HANDS, count, dtype=torch.bool)
    focal, world_from_crop = (
        torch.ones(HANDS, count).double(),
        torch.eye(4).double().repeat(HANDS, count, 1, 1),
    )
    pictures = np.zeros((HANDS, count, CROP_SIZE, CROP_SIZE), np.uint8)
    views[hand, source] = True
    focal[hand, source] = torch.from_numpy(crops.focal_px[number][hand, slot]).double()
    world_from_crop[hand, source] = poses
    margin = (CACHE_SIZE - CROP_SIZE) // 2
    pictures[hand, source] = frame.images[hand, slot, margin:-margin, margin:-margin]
    hands = views.any(dim=1).nonzero()[:, 0]
    cropped = PosedCamera(Pinhole.create(CROP_SIZE, focal), world_from_crop)[hands]
    return HandCrops(hands, views[hands], cropped), _scaled(pictures[views.numpy()])


def ground_truth_crops(recording: Recording, frame: int, model: HandModel) -> HandCrops:
    """The crops of the end-to-end tracker: hands that at least one camera sees, where they are labelled.

    A recording without a hand is cropped around `model`.
    """
    cameras, hands = recording.cameras(frame), recording.hands(frame, model)
    return HandCrops(*choose_crop_cameras(cameras, recording.mounting_angles, hands, min_views=1))


def expected_crops(frame: Frame, model: HandModel, expected: Expectation) -> HandCrops:
    """Crops of hands where they are expected, from the two cameras that see most of their keypoints."""
    hands = expected.exists.nonzero()[:, 0]
    cameras, pose = frame.cameras, expected.pose[hands]
    points = crop_points(model, pose.joint_angles, pose.world_from_wrist)
    crop, exists = crop_cameras(cameras, points, hands, frame.mounting_angles)
    seen = cameras[None].sees(points[:, None, :NUM_LANDMARKS]).sum(dim=-1) * exists
    rank = seen.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    views = (rank < MAX_VIEWS) & (seen >= MIN_KEYPOINTS_SEEN)
    visible = views.any(dim=1)
    return HandCrops(hands[visible], views[visible], crop[visible])


def detected_crops(
    cameras: PosedCamera,
    mounting_angles: Float[Tensor, "cameras"],
    camera: int,
    circles: Circles,
    hands: Int[Tensor, "detected"],
) -> HandCrops:
    """Crops of hands around circles in one camera, enlarged by `CIRCLE_ENLARGEMENT`."""
    corners = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]], dtype=torch.float64)
    radius = CIRCLE_ENLARGEMENT * circles.radius_px[hands, None, None].double()
    rays = cameras.camera[camera].unproject(circles.center_px[hands, None].double() + radius * corners)
    corners_world = apply(cameras.world_from_camera[camera], rays)
    crop, exists = crop_cameras(cameras, corners_world, hands, mounting_angles, fill=1.0)
    views = exists & (torch.arange(exists.shape[1]) == camera)
    visible = views.any(dim=1)
    return HandCrops(hands[visible], views[visible], crop[visible])


def take_pictures(
    images: UInt8[np.ndarray, "cameras height width"], cameras: PosedCamera, crops: HandCrops
) -> Pictures:
    """The crops of a crops, warped from the views of its frame."""
    _, sources = crops.views.nonzero(as_tuple=True)
    return _scaled(warp([images[source] for source in sources], cameras[sources], crops.chosen()))


def _scaled(pictures: UInt8[np.ndarray, "crops size size"]) -> Pictures:
    return torch.from_numpy(pictures).float().div(255)[:, None]
