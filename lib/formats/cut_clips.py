"""Recordings cut into the short clips of training shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from lib.cameras import Pinhole, PosedCamera
from lib.crop_cache import CACHE_SIZE
from lib.crops import choose_views, crop_points, warp
from lib.errors import InputError
from lib.formats.torch_data import ShardClip, SolvedPoses
from lib.hands import HANDS, for_hand
from lib.recordings import Recording


def clips_of(recording: Recording, frames: int) -> Iterator[ShardClip]:
    """Cut a recording into clips of so many consecutive frames of a hand that is labelled and that a camera sees.

    No clip spans a frame in which none does; what remains shorter is dropped. The pictures are decoded once, and those
    of the clips at hand kept. Their cameras are those of the crop cache, with its margin, but unmirrored (`crops`).
    Where only one camera sees the hand, the second view repeats the first: both cameras have the same centre. Public
    readers require poses solved for a generic hand: they are the true ones, and the generic hand is the hand itself.
    Raises InputError if the recording has no hand model or broken pictures.
    """
    if recording.hand_model is None:
        raise InputError(f"{recording.path} has no hand_model: expected one to cut clips from")
    if frames < 1:
        raise InputError(f"clips of {frames} frames: expected at least one")
    return _cut(recording, frames)


_Pair = tuple[UInt8[np.ndarray, "2 size size"], PosedCamera]
"""Two pictures and their cameras."""


def _cut(recording: Recording, frames: int) -> Iterator[ShardClip]:
    begun: list[list[_Pair]] = [[] for _ in range(HANDS)]
    for frame, images in enumerate(recording.images()):
        cameras = recording.cameras(frame)
        views, crop = choose_views(cameras, recording.mounting_angles, recording.hands(frame))
        for hand, pairs in enumerate(begun):
            if not views[hand].any():
                pairs.clear()
                continue
            pairs.append(_two_views(images, cameras, hand, views[hand], crop[hand]))
            if len(pairs) == frames:
                yield _clip(recording, hand, slice(frame + 1 - frames, frame + 1), pairs)
                pairs.clear()


def _two_views(
    images: UInt8[np.ndarray, "cameras height width"],
    cameras: PosedCamera,
    hand: int,
    views: Bool[Tensor, "cameras"],
    crop: PosedCamera,
) -> _Pair:
    """What the two chosen cameras show of a hand, or the one twice."""
    pair = views.nonzero()[:, 0][[0, -1]]
    chosen = crop[pair]
    lens = Pinhole.create(CACHE_SIZE, chosen.camera.focal_px[:, 0])
    upright = PosedCamera(lens, for_hand(chosen.world_from_camera, hand))  # mirrored twice is unmirrored
    return warp([images[source] for source in pair], cameras[pair], upright), upright


def _clip(recording: Recording, hand: int, part: slice, pairs: Sequence[_Pair]) -> ShardClip:
    model, angles = recording.hand_model, recording.joint_angles[part, hand]
    wrists = recording.world_from_wrist[part, hand]
    focal_px = torch.stack([camera.camera.focal_px[:, 0] for _, camera in pairs])
    poses = torch.stack([camera.world_from_camera for _, camera in pairs])
    return ShardClip(
        images=np.stack([images for images, _ in pairs]),
        cameras=PosedCamera(Pinhole.create(CACHE_SIZE, focal_px), poses),
        enclosing_points=crop_points(model, angles, for_hand(wrists, hand)),
        hand=hand,
        hand_model=model,
        joint_angles=angles,
        world_from_wrist=wrists,
        pinch=torch.zeros(len(pairs), dtype=torch.bool) if recording.pinch is None else recording.pinch[part, hand],
        solved=SolvedPoses(model, 1.0, angles, wrists),
    )
