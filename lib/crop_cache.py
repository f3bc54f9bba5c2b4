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

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Int64, UInt8
from torch import Tensor

from lib.cameras import Pinhole, PosedCamera
from lib.crops import MAX_VIEWS, MIN_LANDMARKS_SEEN, choose_views, sample, source_pixels
from lib.errors import InputError
from lib.files import BROKEN_ARRAYS, check_shapes, load_arrays, save_arrays, write_atomically
from lib.hands import NUM_BONES, NUM_JOINTS, NUM_LANDMARKS, HandModel
from lib.recordings import Recording

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
    pictures and cameras of the missing ones are zero and identity. The pictures are those of the crop cameras, with
    `CACHE_SIZE` pixels, unless they have cameras of their own: `picture_matrix`, K, and `world_from_picture`.
    """

    images: UInt8[np.ndarray, "frames 2 2 height width"]
    views: Int64[np.ndarray, "frames 2"]
    focal_px: Float32[np.ndarray, "frames 2 2"]
    world_from_crop: Float32[np.ndarray, "frames 2 2 4 4"]
    joint_angles: Float32[np.ndarray, "frames 2 22"]
    world_from_wrist: Float32[np.ndarray, "frames 2 4 4"]
    pinch: Bool[np.ndarray, "frames 2"]
    hand_model: HandModel
    picture_matrix: Float32[np.ndarray, "frames 2 2 3 3"] | None = None
    world_from_picture: Float32[np.ndarray, "frames 2 2 4 4"] | None = None

    def __len__(self) -> int:
        return len(self.views)

    def save(self, path: Path) -> None:
        """Write `path`.npy and .npz, each under its final name only when complete."""
        arrays = {name: getattr(self, name) for name in _LABELS}
        arrays |= {name: getattr(self.hand_model, name).float().numpy() for name in _SKELETON}
        write_atomically(path.with_suffix(".npy"), lambda temporary: np.save(temporary, self.images))
        save_arrays(path.with_suffix(".npz"), arrays)

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
    views, crop = choose_views(recording.cameras(frame), recording.mounting_angles, recording.hands(frame))
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


SHRINK = 4
FRAME_STEP = 6
"""Of a training sequence every sixth frame is kept: neighbours look alike."""


def shrink(picture: UInt8[np.ndarray, "height width"]) -> UInt8[np.ndarray, "rows columns"]:
    """The mean of each 4x4 block, black columns added on the right up to a multiple of 8: 636x480 becomes 160x120.

    Source: MEgATrack, DetNet. Raises InputError for a picture whose sides are no multiples of 4.
    """
    height, width = picture.shape
    if height % SHRINK or width % SHRINK:
        raise InputError(f"a view of {width}x{height} pixels cannot be shrunk: expected multiples of {SHRINK}")
    small = cv2.resize(picture, (width // SHRINK, height // SHRINK), interpolation=cv2.INTER_AREA)
    return np.pad(small, ((0, 0), (0, -small.shape[1] % 8)))


@dataclass(frozen=True)
class ViewSequence:
    """Shrunk views of a sequence and what they show of each hand, left first; pixels of the view as taken.

    `circles` are centre x, centre y and radius, zero unless `landmarks_seen` is at least 19, as a crop asks for.
    """

    images: UInt8[np.ndarray, "views rows columns"]
    circles: Float32[np.ndarray, "views 2 3"]
    landmarks_seen: Int64[np.ndarray, "views 2"]

    def __len__(self) -> int:
        return len(self.images)

    def save(self, path: Path) -> None:
        """Write `path`.npz, under its final name only when complete."""
        save_arrays(path.with_suffix(".npz"), vars(self))

    @staticmethod
    def load(path: Path) -> ViewSequence:
        """Read `path`.npz. Raises InputError if it is missing or broken."""
        try:
            stored = load_arrays(path.with_suffix(".npz"), _VIEW_SHAPES)
            check_shapes(stored, _VIEW_SHAPES)
            return ViewSequence(**stored)
        except BROKEN_ARRAYS as error:
            raise InputError(
                f"{path}.npz is not a complete sequence of views: {error}; delete it and render it again"
            ) from error


_VIEW_SHAPES = {
    "images": (np.uint8, "views", "rows", "columns"),
    "circles": (np.float32, "views", 2, 3),
    "landmarks_seen": (np.int64, "views", 2),
}
"""Type and shape of each stored array."""


def view_sequence(
    recording: Recording, pictures: Callable[[int], UInt8[np.ndarray, "cameras height width"]]
) -> ViewSequence:
    """Every sixth frame of a recording, all cameras, from the views that `pictures` gives for a frame."""
    images, circles, seen = [], [], []
    for frame in range(0, len(recording), FRAME_STEP):
        images += [shrink(picture) for picture in pictures(frame)]
        around, count = hand_circles(recording.cameras(frame), recording.hands(frame).landmarks())
        circles.append(around)
        seen.append(count * recording.labelled[frame])
    return ViewSequence(np.stack(images), torch.cat(circles).float().numpy(), torch.cat(seen).numpy())


def hand_circles(
    cameras: PosedCamera, landmarks_world: Float[Tensor, "hands 21 3"]
) -> tuple[Float[Tensor, "cameras hands 3"], Int[Tensor, "cameras hands"]]:
    """The circle (x, y, radius, px) around each hand in each view, and how many of its landmarks the view holds.

    Its centre is that of the landmarks' bounding box, its radius reaches the farthest landmark. Zeros where fewer than
    19 landmarks are seen. Source: MEgATrack; the definition of the circle is ours.
    """
    cameras = cameras[:, None]
    seen = cameras.sees(landmarks_world).sum(dim=-1)
    pixels = cameras.project(landmarks_world)
    center = (pixels.amin(dim=-2) + pixels.amax(dim=-2)) / 2
    radius = (pixels - center[..., None, :]).norm(dim=-1).amax(dim=-1)
    circles = torch.cat((center, radius[..., None]), dim=-1)
    return torch.where((seen >= MIN_LANDMARKS_SEEN)[..., None], circles, 0), seen
