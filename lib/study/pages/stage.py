"""Where hands and cameras are shown: axes of the headset's mean pose, around what is to be seen."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lib.crops import roll
from lib.hands import HandPoses
from lib.recordings import Recording
from lib.transforms import homogeneous, invert

_TOWARDS_HEADSET = 0.35
"""Where the origin lies between the middle of the hands (0) and that of the cameras (1)."""
_FRUSTUM_DEPTH = 0.04
"""Of the drawn cameras (m)."""


def stage_from_world(recording: Recording, poses: HandPoses) -> Float[Tensor, "4 4"]:
    """The axes of the stage: x right, y up, z towards the wearer; upright as the mounted cameras are, on average."""
    rotations = recording.world_from_camera[..., :3, :3] @ roll(recording.mounting_angles)
    up, back = -rotations[..., 1].mean(dim=(0, 1)), -rotations[..., 2].mean(dim=(0, 1))
    back = torch.nn.functional.normalize(back, dim=0)
    right = torch.nn.functional.normalize(torch.linalg.cross(up, back), dim=0)
    rotation = torch.stack((right, torch.linalg.cross(back, right), back), dim=1)
    hands = poses.landmarks()[poses.confidence > 0].mean(dim=(0, 1))
    headset = recording.world_from_camera[..., :3, 3].mean(dim=(0, 1))
    return invert(homogeneous(rotation, torch.lerp(hands, headset, _TOWARDS_HEADSET)))


def frusta(recording: Recording) -> Float[Tensor, "cameras 5 3"]:
    """The tip of each camera's view and four corners `_FRUSTUM_DEPTH` before it, in camera axes.

    They enclose the middle half of the picture: what a fisheye sees at its border is no pyramid.
    """
    camera = recording.cameras(0).camera
    corners = torch.tensor([[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]], dtype=torch.float64)
    rays = camera[:, None].unproject(corners * (camera.size_px - 1)[:, None])
    ends = _FRUSTUM_DEPTH * rays / rays[..., 2:]
    return torch.cat((torch.zeros_like(ends[:, :1]), ends), dim=1)
