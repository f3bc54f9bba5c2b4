"""Training from shards (`lib.formats.torch_data`): clips are read as they are drawn, so that memory stays constant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from tqdm import tqdm

from lib.clips import ClipSource
from lib.crop_cache import CropSequence
from lib.crops import MAX_VIEWS, crop_cameras
from lib.errors import InputError
from lib.files import describing, fingerprint, sha256_of
from lib.formats.torch_data import Shard, ShardClip
from lib.hands import HANDS, NUM_JOINTS

VALIDATION_SHARE = 0.1
"""Share of the shards, or of the clips of a single one, that are held out of training."""
ShardPart = tuple[Shard, range]
"""Some clips of a shard."""


class ShardSource:
    """Clips of shards; a hand is looked at as the crop that holds its enclosing points.

    It stands for a `ClipSource`: the frames that are asked for are `opened` as one. Raises InputError if there are no
    clips.
    """

    def __init__(self, parts: Sequence[ShardPart], device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.stored = [(shard, index) for shard, clips in parts for index in clips]
        self.lengths = torch.tensor([shard.frames(index) for shard, index in self.stored], dtype=torch.long)
        self._clips: dict[tuple[int, int], Int[Tensor, "clips 2"]] = {}
        if not self.stored:
            raise InputError("the shards hold no clips, expected at least one")

    def clips(self, frames: int, pinch_copies: int = 1) -> Int[Tensor, "clips 2"]:
        """Every clip of this length: which stored clip it is of, and its first frame there. Those whose middle frame
        shows a pinch are there `pinch_copies` times. Raises InputError if there is none."""
        if (frames, pinch_copies) not in self._clips:
            counts = (self.lengths - frames + 1).clamp(min=0)
            if not counts.any():
                raise InputError(f"no clip of the shards has {frames} frames, the longest {int(self.lengths.max())}")
            number = torch.arange(len(counts)).repeat_interleave(counts)
            first = torch.arange(len(number)) - (counts.cumsum(0) - counts)[number]
            if pinch_copies > 1:
                middle = (self.lengths.cumsum(0) - self.lengths)[number] + first + frames // 2
                copies = torch.where(self._pinching()[middle], pinch_copies, 1)
                number, first = number.repeat_interleave(copies), first.repeat_interleave(copies)
            self._clips[frames, pinch_copies] = torch.stack((number, first), dim=1)
        return self._clips[frames, pinch_copies]

    def _pinching(self) -> Bool[Tensor, "all_frames"]:
        """Whether hands pinch, in the frames of all stored clips."""
        shown = tqdm(self.stored, "pinches", unit="clip")
        return torch.cat([shard.pinch(index) for shard, index in shown])

    def opened(
        self, clips: Int[Tensor, "clips 2"], frames: int, before: int = 0
    ) -> tuple[ClipSource, Int[Tensor, "clips 2"]]:
        """A source that holds given clips of this length and what is known of so many frames before them, and the clips
        in it. Raises InputError for what cannot be read, and for hands that lie partly behind a camera."""
        sequences, places, begin = [], [], 0
        for number, first in clips.tolist():
            shard, index = self.stored[number]
            start = max(0, first - before)
            clip = shard[index]
            with describing(f"{shard.folder}: clip {index}"):
                sequences.append(_sequence(clip, slice(start, first + frames)))
            places.append((begin + first - start, clip.hand))
            begin += first + frames - start
        sizes = {sequence.images.shape[-2:] for sequence in sequences}
        if len(sizes) > 1:
            raise InputError(f"the shards hold pictures of several sizes, {sizes}: train on those of one size")
        return ClipSource(sequences, self.device), torch.tensor(places)


def _sequence(clip: ShardClip, part: slice) -> CropSequence:
    """Some frames of a clip. Its pictures stand for those of the other hand, too, which no camera sees."""
    hand, cameras, pictures = clip.hand, clip.cameras[part], clip.images[part]
    frames = len(pictures)
    sides = torch.full((frames,), hand)
    crop, exists = crop_cameras(cameras, clip.enclosing_points[part], sides, torch.zeros(MAX_VIEWS).double())
    centers = cameras.world_from_camera[..., :3, 3]
    second = exists[:, 1] & (centers[:, 0] != centers[:, 1]).any(dim=-1)
    if not exists[:, 0].all():
        raise InputError("a point that a crop must hold lies behind the first camera")

    def of_both_hands(values: Tensor, rest: float | Tensor) -> np.ndarray:
        """What is known of one hand as the field of a sequence, single precision; `rest` for the other."""
        both = torch.empty(frames, HANDS, *values.shape[1:])
        both[:, 1 - hand], both[:, hand] = rest, values.float()
        return both.numpy()

    views = np.zeros((frames, HANDS), np.int64)
    views[:, hand] = (1 + second.long()).numpy()
    pinch = np.zeros((frames, HANDS), bool)
    pinch[:, hand] = clip.pinch[part].numpy()
    return CropSequence(
        images=np.broadcast_to(pictures[:, None], (frames, HANDS, *pictures.shape[1:])),
        views=views,
        focal_px=of_both_hands(crop.camera.focal_px[..., 0], 1.0),
        world_from_crop=of_both_hands(crop.world_from_camera, torch.eye(4)),
        joint_angles=of_both_hands(clip.joint_angles[part], torch.zeros(NUM_JOINTS)),
        world_from_wrist=of_both_hands(clip.world_from_wrist[part], torch.eye(4)),
        pinch=pinch,
        hand_model=clip.hand_model,
        picture_matrix=of_both_hands(cameras.camera.matrix, torch.eye(3)),
        world_from_picture=of_both_hands(cameras.world_from_camera, torch.eye(4)),
    )


def split_shards(folders: Sequence[Path]) -> tuple[list[ShardPart], list[ShardPart]]:
    """The clips to train on, and those held out: of the last tenth of the shards, or the last tenth of a single one.

    Shards do not tell their users: deviation, the study holds out users. Raises InputError for a broken shard.
    """
    shards = [Shard(folder) for folder in folders]
    if len(shards) == 1:
        (shard,) = shards
        begin = len(shard) - max(1, round(VALIDATION_SHARE * len(shard)))
        return [(shard, range(begin))], [(shard, range(begin, len(shard)))]
    begin = len(shards) - max(1, round(VALIDATION_SHARE * len(shards)))
    parts = [(shard, range(len(shard))) for shard in shards]
    return parts[:begin], parts[begin:]


def shards_fingerprint(folders: Sequence[Path]) -> str:
    """One hash of what shards hold: of their indices, which tell where their contents end."""
    indices = [path for folder in folders for path in folder.glob("*.idx")]
    return fingerprint({"/".join(path.parts[-4:]): sha256_of(path) for path in indices})
