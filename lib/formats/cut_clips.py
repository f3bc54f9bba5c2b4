"""Recordings, and sequences of the training cache, cut into the short clips of training shards.

No clip spans a frame in which no camera sees its hand; what remains shorter than a clip is dropped. The cameras of the
pictures are those of the crop cache, with its margin, but unmirrored. Where only one camera sees the hand, the second
view repeats the first: both cameras have the same centre. Public readers require poses solved for a generic hand: they
are the true ones, and the generic hand is the hand itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from lib.cameras import Pinhole, PosedCamera
from lib.crop_cache import CACHE_SIZE, CropSequence
from lib.crops import choose_views, crop_points, warp
from lib.errors import InputError
from lib.formats.torch_data import ShardClip, SolvedPoses
from lib.hands import HANDS, RIGHT, HandModel, for_hand
from lib.recordings import Recording


@dataclass(frozen=True)
class _Labels:
    """What is known of both hands in all frames."""

    hand_model: HandModel
    joint_angles: Float[Tensor, "frames 2 22"]
    world_from_wrist: Float[Tensor, "frames 2 4 4"]
    pinch: Bool[Tensor, "frames 2"]


@dataclass(frozen=True)
class _Pair:
    """What two cameras, or one camera twice, show of a hand in a frame; nothing mirrored."""

    pictures: UInt8[np.ndarray, "2 size size"]
    focal_px: Float[Tensor, "2"]
    world_from_camera: Float[Tensor, "2 4 4"]


_Seen = Iterable[tuple[_Pair | None, _Pair | None]]
"""What is seen of both hands, frame by frame."""


def clips_of(recording: Recording, frames: int) -> Iterator[ShardClip]:
    """The clips of so many frames of a recording's labelled hands. The pictures are decoded once, and kept for a clip.

    Raises InputError if the recording has no hand model or broken pictures.
    """
    if recording.hand_model is None:
        raise InputError(f"{recording.path} has no hand_model: expected one to cut clips from")
    pinch = torch.zeros_like(recording.labelled) if recording.pinch is None else recording.pinch
    labels = _Labels(recording.hand_model, recording.joint_angles, recording.world_from_wrist, pinch)
    return _cut(labels, _seen_in_recording(recording), frames)


def clips_of_sequence(sequence: CropSequence, frames: int) -> Iterator[ShardClip]:
    """The clips of so many frames of a sequence of the training cache."""
    poses = (torch.from_numpy(poses).double() for poses in (sequence.joint_angles, sequence.world_from_wrist))
    labels = _Labels(sequence.hand_model.to(dtype=torch.float64), *poses, torch.from_numpy(sequence.pinch))
    return _cut(labels, _seen_in_sequence(sequence), frames)


def _cut(labels: _Labels, seen: _Seen, frames: int) -> Iterator[ShardClip]:
    if frames < 1:
        raise InputError(f"clips of {frames} frames: expected at least one")

    def cut() -> Iterator[ShardClip]:
        begun: list[list[_Pair]] = [[] for _ in range(HANDS)]
        for frame, of_hands in enumerate(seen):
            for hand, (pairs, pair) in enumerate(zip(begun, of_hands, strict=True)):
                if pair is None:
                    pairs.clear()
                    continue
                pairs.append(pair)
                if len(pairs) == frames:
                    yield _clip(labels, hand, slice(frame + 1 - frames, frame + 1), pairs)
                    pairs.clear()

    return cut()


def _clip(labels: _Labels, hand: int, part: slice, pairs: list[_Pair]) -> ShardClip:
    model, angles, wrists = labels.hand_model, labels.joint_angles[part, hand], labels.world_from_wrist[part, hand]
    lens = Pinhole.create(CACHE_SIZE, torch.stack([pair.focal_px for pair in pairs]))
    return ShardClip(
        images=np.stack([pair.pictures for pair in pairs]),
        cameras=PosedCamera(lens, torch.stack([pair.world_from_camera for pair in pairs])),
        enclosing_points=crop_points(model, angles, for_hand(wrists, hand)),
        hand=hand,
        hand_model=model,
        joint_angles=angles,
        world_from_wrist=wrists,
        pinch=labels.pinch[part, hand],
        solved=SolvedPoses(model, 1.0, angles, wrists),
    )


def _seen_in_recording(recording: Recording) -> _Seen:
    for frame, images in enumerate(recording.images()):
        cameras = recording.cameras(frame)
        views, crop = choose_views(cameras, recording.mounting_angles, recording.hands(frame))
        yield tuple(_warped(images, cameras, hand, views[hand], crop[hand]) for hand in range(HANDS))


def _warped(
    images: UInt8[np.ndarray, "cameras height width"],
    cameras: PosedCamera,
    hand: int,
    views: Bool[Tensor, "cameras"],
    crop: PosedCamera,
) -> _Pair | None:
    if not views.any():
        return None
    pair = views.nonzero()[:, 0][[0, -1]]
    focal_px, poses = crop.camera.focal_px[pair, 0], for_hand(crop.world_from_camera[pair], hand)
    upright = PosedCamera(Pinhole.create(CACHE_SIZE, focal_px), poses)  # mirrored twice is unmirrored
    return _Pair(warp([images[source] for source in pair], cameras[pair], upright), focal_px, poses)


def _seen_in_sequence(sequence: CropSequence) -> _Seen:
    for frame in range(len(sequence)):
        yield tuple(_cached(sequence, frame, hand) for hand in range(HANDS))


def _cached(sequence: CropSequence, frame: int, hand: int) -> _Pair | None:
    views = int(sequence.views[frame, hand])
    if not views:
        return None
    pair = [0, views - 1]
    pictures = sequence.images[frame, hand][pair]
    focal_px, poses = (getattr(sequence, name)[frame, hand][pair] for name in ("focal_px", "world_from_crop"))
    return _Pair(
        np.ascontiguousarray(pictures[..., ::-1] if hand == RIGHT else pictures),
        torch.from_numpy(focal_px).double(),
        for_hand(torch.from_numpy(poses).double(), hand),
    )
