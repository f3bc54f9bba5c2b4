"""What the trackers of a stream have in common: the frames that they take, and what they tell of the hands in them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from lib.cameras import PosedCamera
from lib.errors import InputError
from lib.hands import INDEX_TIP, THUMB_TIP
from lib.multistage.detection import Circles

Detect = Callable[[UInt8[np.ndarray, "height width"]], Circles]
"""Where a detector sees either hand in one picture."""
PINCH_BEGINS, PINCH_ENDS = 0.0155, 0.022
"""Distances of the tips of thumb and index finger (m). The first is the threshold tuned on validation users."""


@dataclass(frozen=True)
class LiveHands:
    """Both hands in a frame, left first; poses mean nothing where a hand is not `tracked`.

    `confidence`, in [0, 1], is how likely a hand is within `confidence.CLOSE_M` of the truth; of the baseline, how sure
    its keypoints are in the mean. `world_from_wrist` is stored unmirrored (`hands.for_hand`). Metres, radians.
    """

    tracked: Bool[Tensor, "2"]
    confidence: Float[Tensor, "2"]
    joint_angles: Float[Tensor, "2 22"]
    world_from_wrist: Float[Tensor, "2 4 4"]
    landmarks: Float[Tensor, "2 21 3"]
    pinching: Bool[Tensor, "2"]


def check_frame(images: np.ndarray, cameras: PosedCamera, count: int, time: float, time_before: float | None) -> None:
    """Raise InputError for what `step` refuses; there are `count` cameras."""
    shape = (count, cameras.camera.height, cameras.camera.width)
    if images.shape != shape or images.dtype != np.uint8 or len(cameras.world_from_camera) != count:
        raise InputError(
            f"pictures of shape {images.shape}, {images.dtype}, by {len(cameras.world_from_camera)} cameras: "
            f"expected {shape} of uint8, as cameras and mounting angles say"
        )
    if not cameras.world_from_camera.isfinite().all():
        raise InputError("a camera's pose is not finite: leave out (`skip`) frames in which the headset is not tracked")
    if not math.isfinite(time) or (time_before is not None and time <= time_before):
        raise InputError(f"a frame at {time} s after one at {time_before} s: expected a later one")


def pinching(
    landmarks: Float[Tensor, "2 21 3"], tracked: Bool[Tensor, "2"], before: Bool[Tensor, "2"]
) -> Bool[Tensor, "2"]:
    """Which hands pinch that are `tracked`: beginning takes a smaller distance than going on, as `before`."""
    distance = (landmarks[:, THUMB_TIP] - landmarks[:, INDEX_TIP]).norm(dim=-1)
    return (distance < torch.where(before & tracked, PINCH_ENDS, PINCH_BEGINS)) & tracked
