"""The training cache: every labelled hand of a sequence as rectified crops with a margin, ready to be augmented.

A crop camera of the cache has the focal length of the network's crop but `CACHE_SIZE` pixels, so that a camera which
looks a little elsewhere, rolls or zooms (`crops.perturb`) still finds its picture inside. Two files per sequence: the
pictures (`.npy`, to be memory-mapped) and the labels (`.npz`, written last: it marks a complete sequence).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor

from lib.cameras import Pinhole, PosedCamera
from lib.crops import MAX_VIEWS, sample, source_pixels
from lib.errors import InputError
from lib.files import BROKEN_ARRAYS, check_shapes, load_arrays, write_atomically
from lib.hands import NUM_BONES, NUM_JOINTS, NUM_LANDMARKS, HandModel
from lib.recordings import Recording
from lib.tracking import HandLabels, choose_views

CACHE_SIZE = 128
Region = tuple[int, int, int, int]
PictureSource = Callable[[int, int, Region], UInt8[np.ndarray, "height width"]]
"""The picture of (frame, camera) inside the region (x0, y0, x1, y1), x1 and y1 exclusive."""
_SKELETON = (
    "joint_rotation_axes", "joint_rest_positions", "joint_limits", "landmark_rest_positions", "landmark_bone_weights"
)  # fmt: skip


@dataclass(frozen=True)
class CropSequence:
    """Crops and labels of one sequence. Metres, radians; transforms as in `Recording` and `crops.crop_cameras`.

    `views` counts the crops of a hand in a frame; the first is the reference view. Where there are fewer than two,
    pictures and cameras of the missing ones are zero and identity.
    """

    images: UInt8[np.ndarray, "frames 2 2 size size"]
    views: Int64[np.ndarray, "frames 2"]
    focal_px: Float32[np.ndarray, "frames 2 2"]
    world_from_crop: Float32[np.ndarray, "frames 2 2 4 4"]
    joint_angles: Float32[np.ndarray, "frames 2 22"]
    world_from_wrist: Float32[np.ndarray, "frames 2 4 4"]
    pinch: Bool[np.ndarray, "frames 2"]
    hand_model: HandModel

    def __len__(self) -> int:
        return len(self.views)

    def save(self, path: Path) -> None:
        """Write `path`.npy and .npz, each under its final name only when complete."""
        arrays = {name: getattr(self, name) for name in _LABELS}
        arrays |= {name: getattr(self.hand_model, name).float().numpy() for name in _SKELETON}
        write_atomically(path.with_suffix(".npy"), lambda temporary: np.save(temporary, self.images))
        write_atomically(path.with_suffix(".npz"), lambda temporary: np.savez(temporary, **arrays))

    @staticmethod
    def load(path: Path) -> CropSequence:
        """Map `path`.npy into memory, read its labels. Raises InputError if a file is missing or broken or misfits."""
        try:
            images = np.load(path.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
            stored = load_arrays(path.with_suffix(".npz"), _SHAPES)
            check_shapes(stored, _SHAPES)
            if not (np.isin(stored["views"], range(MAX_VIEWS + 1)).all() and (stored["focal_px"] > 0).all()):
                raise ValueError(f"views outside 0..{MAX_VIEWS}, or focal lengths that are not positive")
        except BROKEN_ARRAYS as error:
            raise InputError(
                f"{path}.npy and .npz are not a complete sequence of crops: {error}; render it again"
            ) from error
        frames = len(stored["views"])
        if images.shape[:3] != (frames, 2, MAX_VIEWS) or images.ndim != 5 or images.dtype != np.uint8:
            raise InputError(
                f"{path}.npy has shape {images.shape}, expected {(frames, 2, MAX_VIEWS)} pictures as its labels say"
            )
        labels = {name: stored[name] for name in _LABELS}
        skeleton = {name: torch.from_numpy(stored[name]) for name in _SKELETON}
        return CropSequence(images=images, **labels, hand_model=HandModel(**skeleton))


_LABELS = ("views", "focal_px", "world_from_crop", "joint_angles", "world_from_wrist", "pinch")
_F32 = np.float32
_SHAPES = {
    "views": (np.int64, "frames", 2),
    "focal_px": (_F32, "frames", 2, MAX_VIEWS),
    "world_from_crop": (_F32, "frames", 2, MAX_VIEWS, 4, 4),
    "joint_angles": (_F32, "frames", 2, NUM_JOINTS),
    "world_from_wrist": (_F32, "frames", 2, 4, 4),
    "pinch": (np.bool_, "frames", 2),
    "joint_rotation_axes": (_F32, NUM_JOINTS, 3),
    "joint_rest_positions": (_F32, NUM_JOINTS, 3),
    "joint_limits": (_F32, NUM_JOINTS, 2),
    "landmark_rest_positions": (_F32, NUM_LANDMARKS, 3),
    "landmark_bone_weights": (_F32, NUM_LANDMARKS, NUM_BONES),
}
"""Type and shape of each stored array."""


def crop_sequence(recording: Recording, picture: PictureSource) -> CropSequence:
    """Crops of every labelled hand that at least one camera sees, from the pictures that `picture` gives."""
    frames = len(recording)
    images = np.zeros((frames, 2, MAX_VIEWS, CACHE_SIZE, CACHE_SIZE), np.uint8)
    focal_px = np.ones((frames, 2, MAX_VIEWS), np.float32)
    world_from_crop = np.tile(np.eye(4, dtype=np.float32), (frames, 2, MAX_VIEWS, 1, 1))
    views = np.zeros((frames, 2), np.int64)
    for frame in range(frames):
        chosen, crop = _choose_crops(recording, frame)
        hands, cameras = (index.numpy() for index in chosen.nonzero(as_tuple=True))
        order = chosen.cumsum(dim=1).numpy()[hands, cameras] - 1
        views[frame] = chosen.sum(dim=1).numpy()
        if not len(hands):
            continue
        crop = crop[hands, cameras]
        focal_px[frame, hands, order] = crop.camera.focal_px[:, 0].numpy()
        world_from_crop[frame, hands, order] = crop.world_from_camera.numpy()
        maps = source_pixels(recording.cameras(frame)[cameras], crop)
        for hand, view, camera, pixels in zip(hands, order, cameras, maps, strict=True):
            images[frame, hand, view] = _take(recording, pixels, partial(picture, frame, int(camera)))
    return CropSequence(
        images=images,
        views=views,
        focal_px=focal_px,
        world_from_crop=world_from_crop,
        joint_angles=recording.joint_angles.float().numpy(),
        world_from_wrist=recording.world_from_wrist.float().numpy(),
        pinch=np.zeros((frames, 2), bool) if recording.pinch is None else recording.pinch.numpy(),
        hand_model=recording.hand_model,
    )


def _choose_crops(recording: Recording, frame: int) -> tuple[Bool[Tensor, "2 cameras"], PosedCamera]:
    """The views that are cached in a frame, and all crop cameras (2, cameras), enlarged to `CACHE_SIZE`."""
    labels = HandLabels.of(recording, frame)
    views, crop = choose_views(recording.cameras(frame), recording.mounting_angles, recording.hand_model, labels)
    return views, PosedCamera(Pinhole.create(CACHE_SIZE, crop.camera.focal_px[..., 0]), crop.world_from_camera)


def _take(
    recording: Recording,
    pixels: Float32[np.ndarray, "size size 2"],
    picture: Callable[[Region], UInt8[np.ndarray, "height width"]],
) -> UInt8[np.ndarray, "size size"]:
    """One crop, for which only the part of the picture that it samples is asked for."""
    width, height = recording.camera.width, recording.camera.height
    inside = pixels[(pixels > -1).all(axis=-1) & (pixels < (width, height)).all(axis=-1)]
    (x0, y0), (x1, y1) = np.floor(inside.min(axis=0)).clip(0).astype(int), np.ceil(inside.max(axis=0)).astype(int) + 1
    region = (int(x0), int(y0), min(int(x1), width), min(int(y1), height))
    canvas = np.zeros((height, width), np.uint8)
    canvas[region[1] : region[3], region[0] : region[2]] = picture(region)
    return sample(canvas, pixels)
