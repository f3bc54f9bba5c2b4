"""The detector's pictures: whole views, 4x4 pixels averaged into one, and a circle around each hand they show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int64, UInt8
from torch import Tensor

from lib.cameras import PosedCamera
from lib.crops import MIN_LANDMARKS_SEEN
from lib.errors import InputError
from lib.files import BROKEN_ARRAYS, check_shapes, load_arrays, write_atomically
from lib.hands import for_hand
from lib.recordings import Recording

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
        write_atomically(path.with_suffix(".npz"), lambda temporary: np.savez(temporary, **vars(self)))

    @staticmethod
    def load(path: Path) -> ViewSequence:
        """Read `path`.npz. Raises InputError if it is missing or broken."""
        try:
            stored = load_arrays(path.with_suffix(".npz"), _SHAPES)
            check_shapes(stored, _SHAPES)
            return ViewSequence(**stored)
        except BROKEN_ARRAYS as error:
            raise InputError(
                f"{path}.npz is not a complete sequence of views: {error}; delete it and render it again"
            ) from error


_SHAPES = {
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
        world_from_wrist = for_hand(recording.world_from_wrist[frame], torch.arange(2))
        landmarks = recording.hand_model.landmarks(recording.joint_angles[frame], world_from_wrist)
        around, count = hand_circles(recording.cameras(frame), landmarks)
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
