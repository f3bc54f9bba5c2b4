"""Training batches: clips of consecutive frames of one hand each, drawn from the crop cache, augmented on the device.

A clip never spans a frame in which its hand is not seen, so that its temporal state starts at its first frame and is
carried to its last. A batch is a pure function of (seed, step): a resumed run draws what it would have drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import grid_sample, normalize

from lib.cameras import Pinhole, PosedCamera
from lib.crop_cache import CACHE_SIZE, CropSequence
from lib.crops import CROP_SIZE, MAX_VIEWS, Crops, perturb
from lib.errors import InputError
from lib.hands import HandModel, for_hand
from lib.transforms import invert


@dataclass(frozen=True)
class Augmentation:
    """Standard deviations of the perturbation of crop cameras and of the brightness; each view is perturbed by itself.

    `look_at` is relative to half the field of view, `roll` in radians, `focal_scale` and `gain` of the logarithm.
    Source: §5.1; the paper publishes no ranges. Deviation: brightness, size, and a view left out in some clips.
    """

    look_at: float = 0.1
    roll: float = 0.2
    focal_scale: float = 0.07
    jitter: float = 0.2
    """How far a perturbation changes from frame to frame, relative to what it is for the whole clip: standard
    deviations, of two draws that are added."""
    gain: float = 0.2
    single_view: float = 0.3
    """Share of clips of which only one view is kept, whichever."""
    world_scale: float = 0.05
    """Of the logarithm of the factor by which a clip's whole world is enlarged, hand and headset alike. The pictures
    stay as they are, so that few users give hands of every size."""


MILD_AUGMENTATION = Augmentation(look_at=0.05, roll=0.1, focal_scale=0.035, gain=0.1, single_view=0.15)
NO_AUGMENTATION = Augmentation(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class SkeletonNoise:
    """Noise on the input skeleton of regressor K: standard deviations, drawn for each clip.

    Rendered hands fit their skeletons exactly, scanned and calibrated ones do not: a network that trusts the size alone
    places these at a wrong distance. Noise also prevents the network from identifying training users by their skeleton.
    Deviation: the paper mentions no such noise.
    """

    scale: float = 0.05
    """Of the logarithm of the size of the hand."""
    finger: float = 0.04
    """Of the logarithm of the factor on the positions of each finger's joints, beside that of the hand."""
    axis: float = 0.07
    """Of each coordinate of the joint axes, which have length 1: 0.07 turns one by 5 degrees in the mean."""


TRUE_SKELETON = SkeletonNoise(scale=0.0, finger=0.0, axis=0.0)


@dataclass(frozen=True)
class ClipBatch:
    """Clips as input of network and losses, time first; crops and hand models hold frames x clips, flattened."""

    crops: Crops
    hand_model: HandModel
    input_model: HandModel
    """The hand whose skeleton regressor K receives."""
    joint_angles: Float[Tensor, "frames clips 22"]
    world_from_wrist: Float[Tensor, "frames clips 4 4"]
    pinch: Bool[Tensor, "frames clips"]
    world_scale: Float[Tensor, "clips"]
    """By what the augmentation has enlarged the world, hands and cameras, about its origin."""

    def __len__(self) -> int:
        """How many crops the network receives."""
        return len(self.crops.two_views) + int(self.crops.two_views.sum())

    @property
    def shape(self) -> tuple[int, int]:
        """Frames and clips."""
        return self.pinch.shape

    @property
    def hand(self) -> Int[Tensor, "frames clips"]:
        """0 left, 1 right."""
        return self.crops.hand.unflatten(0, self.shape)

    def landmarks(self) -> Float[Tensor, "hands 21 3"]:
        """Where the hands are, flattened as the crops; in the world."""
        wrists = for_hand(self.world_from_wrist.flatten(0, 1), self.crops.hand)
        return self.hand_model.landmarks(self.joint_angles.flatten(0, 1), wrists)

    def with_noisy_skeletons(self, noise: SkeletonNoise, generator: torch.Generator) -> ClipBatch:
        """The same clips with a noisy input skeleton each, the same one in all its frames."""
        if noise == TRUE_SKELETON:
            return self
        frames, clips = self.shape

        def drawn(deviation: float, *shape: int) -> Float[Tensor, "hands *shape"]:
            values = deviation * torch.randn(clips, *shape, generator=generator)
            return values.to(self.pinch.device).repeat(frames, *(1 for _ in shape))

        scale, fingers, turns = drawn(noise.scale), drawn(noise.finger, 5, 1), drawn(noise.axis, 22, 3)
        noisy = self.hand_model.scaled(scale.exp())
        joints, wrist = noisy.joint_rest_positions.tensor_split((20,), dim=1)
        joints = joints * fingers.exp().repeat_interleave(4, dim=1)
        axes = normalize(noisy.joint_rotation_axes + turns, dim=-1)
        noisy = replace(noisy, joint_rotation_axes=axes, joint_rest_positions=torch.cat((joints, wrist), dim=1))
        return replace(self, input_model=noisy)

    def occluded(self, share: float, generator: torch.Generator) -> ClipBatch:
        """The same clips; in a share of them a plain occluder passes before the hand, in all views alike.

        It lies between two parallel edges. Along a random direction they move by 0.3 to 1.5 times half the crop in a
        frame, 1 to 6 halves apart, so that a hand is hidden for up to 20 frames.
        """
        frames, clips = self.shape

        def uniform(low: float, high: float) -> Float[Tensor, "clips 1 1 1"]:
            return (low + (high - low) * torch.rand(clips, 1, 1, 1, generator=generator)).to(self.pinch.device)

        passes, angle, speed = uniform(0.0, 1.0) < share, uniform(-torch.pi, torch.pi), uniform(0.3, 1.5)
        width, meets, shade = uniform(1.0, 6.0), uniform(0.0, float(frames)), uniform(0.1, 0.9)
        place = torch.linspace(-1, 1, CROP_SIZE, device=self.pinch.device)
        along = angle.cos() * place + angle.sin() * place[:, None]
        time = torch.arange(frames, device=self.pinch.device)[:, None, None, None, None]
        behind = speed * (time - meets) - along
        hidden = ((behind > 0) & (behind < width) & passes).flatten(0, 1)
        images = torch.where(hidden, shade.repeat(frames, 1, 1, 1), self.crops.images)
        return replace(self, crops=replace(self.crops, images=images))


class ClipSource:
    """Sequences of a cache, or of others whose pictures have cameras of their own.

    Labels lie on the training device, and so do pictures, unless that is the CPU, which reads pictures from the
    mapped files as they are asked for, so that processes share what the system keeps of them in memory, and more may be
    rendered than fits there. Raises InputError if there are no sequences, or none
    holds a clip.
    """

    def __init__(self, sequences: Sequence[CropSequence], device: torch.device | str = "cpu"):
        if not sequences:
            raise InputError(
                "no sequences of crops: render them first with python -m lib render --split train --output DIR"
            )
        self.device = torch.device(device)
        lengths = [len(sequence) for sequence in sequences]
        self.files = [sequence.images for sequence in sequences]
        self.images = self._load(lengths) if self.device.type != "cpu" else None
        self.begins = torch.tensor([0, *lengths]).cumsum(0)
        names = ("views", "focal_px", "world_from_crop", "joint_angles", "world_from_wrist", "pinch")
        names += ("picture_matrix", "world_from_picture") if sequences[0].picture_matrix is not None else ()
        self.labels = {
            n: torch.from_numpy(np.concatenate([getattr(s, n) for s in sequences])).to(device) for n in names
        }
        self.sequence = torch.arange(len(sequences), device=device).repeat_interleave(
            torch.tensor(lengths, device=device)
        )
        self.hand_models = stack_hands([sequence.hand_model for sequence in sequences]).to(device, torch.float32)
        self._clips: dict[tuple[int, int], Int[Tensor, "clips 2"]] = {}

    def _load(self, lengths: list[int]) -> UInt8[Tensor, "frames 2 views height width"]:
        """All pictures on the training device."""
        shape = (sum(lengths), *self.files[0].shape[1:])
        images = torch.empty(shape, dtype=torch.uint8, device=self.device)
        for file, place in zip(self.files, images.split(lengths), strict=True):
            place.copy_(torch.from_numpy(np.array(file)))
        return images

    def _pictures(
        self, frame: Int[Tensor, "crops"], hand: Int[Tensor, "crops"], view: Int[Tensor, "crops"]
    ) -> UInt8[Tensor, "crops height width"]:
        if self.images is not None:
            return self.images[frame, hand, view]
        sequence = self.sequence[frame]
        places = torch.stack((sequence, frame - self.begins[sequence], hand, view), dim=1).tolist()
        return torch.from_numpy(np.stack([self.files[s][f, h, v] for s, f, h, v in places]))

    def opened(
        self, clips: Int[Tensor, "clips 2"], frames: int, before: int = 0
    ) -> tuple[ClipSource, Int[Tensor, "clips 2"]]:
        """The source that holds given clips of this length and what is known of so many frames before them, and the
        clips in it: this one."""
        return self, clips

    def clips(self, frames: int, pinch_copies: int = 1) -> Int[Tensor, "clips 2"]:
        """Every clip of this length: its first frame and its hand. Those whose middle frame shows a pinch are there
        `pinch_copies` times. Raises InputError if there is none."""
        if (frames, pinch_copies) not in self._clips:
            clips = self._find_clips(frames)
            pinching = self.labels["pinch"].cpu()[clips[:, 0] + frames // 2, clips[:, 1]]
            copies = torch.where(pinching, pinch_copies, 1)
            self._clips[frames, pinch_copies] = clips.repeat_interleave(copies, dim=0)
        return self._clips[frames, pinch_copies]

    def _find_clips(self, frames: int) -> Int[Tensor, "clips 2"]:
        seen = self.labels["views"].cpu() > 0
        sequence = self.sequence.cpu()
        if frames > len(sequence):
            raise InputError(f"clips of {frames} frames do not fit into {len(sequence)} frames of data")
        whole = seen.unfold(0, frames, 1).all(dim=-1)
        same = sequence[: len(whole)] == sequence[frames - 1 :]
        clips = (whole & same[:, None]).nonzero()
        if not len(clips):
            raise InputError(f"no hand is seen in {frames} consecutive frames of any of the sequences")
        return clips

    def batch(
        self, clips: Int[Tensor, "clips 2"], frames: int, augmentation: Augmentation, generator: torch.Generator
    ) -> ClipBatch:
        """The given clips, augmented. Random numbers are drawn on the CPU, the same ones for every device."""
        first, hand = clips.to(self.device).unbind(1)
        frame = first + torch.arange(frames, device=self.device)[:, None]
        hand = hand.expand_as(frame)
        labels = {name: values[frame, hand] for name, values in self.labels.items()}
        draws = _Draws.sample(frames, len(clips), augmentation, generator, self.device)
        views, two = draws.choose_views(labels["views"])
        world_from_crop = enlarged(_pick(labels["world_from_crop"], views), draws.world_scale[:, None])
        cached = PosedCamera(Pinhole.create(CACHE_SIZE, labels["focal_px"].gather(2, views)), world_from_crop)
        camera = draws.perturb(cached)
        shown_by = self._picture_cameras(labels, views, draws.world_scale) if "picture_matrix" in labels else cached
        shown = torch.stack((torch.ones_like(two), two), dim=-1)
        place = torch.broadcast_tensors(frame[..., None], hand[..., None], views)
        pictures = self._pictures(*(part[shown] for part in place))
        warped = warp_pinhole(pictures, shown_by[shown], camera[shown]) * draws.gain[shown]
        images = torch.zeros(*shown.shape, CROP_SIZE, CROP_SIZE, device=self.device)
        images[shown] = warped.clamp(0, 1)
        crops = Crops(
            images=images.flatten(0, 1),
            focal_px=camera.camera.focal_px[..., 0].flatten(0, 1),
            camera_from_world=camera.camera_from_world.flatten(0, 1),
            hand=hand.flatten(),
            two_views=two.flatten(),
        )
        models = self.hand_models[self.sequence[frame].flatten()].scaled(draws.world_scale.expand_as(frame).flatten())
        wrists = enlarged(labels["world_from_wrist"], draws.world_scale)
        return ClipBatch(crops, models, models, labels["joint_angles"], wrists, labels["pinch"], draws.world_scale)

    def _picture_cameras(
        self, labels: Mapping[str, Tensor], views: Int[Tensor, "frames clips 2"], world_scale: Float[Tensor, "clips"]
    ) -> PosedCamera:
        """The cameras of pictures that are not those of the crop cameras, batch (frames, clips, 2)."""
        height, width = self.files[0].shape[-2:]
        matrix = _pick(labels["picture_matrix"], views)
        focal_px = matrix.diagonal(dim1=-2, dim2=-1)[..., :2]
        lens = Pinhole(width, height, focal_px, matrix[..., :2, 2], focal_px[..., :0])
        return PosedCamera(lens, enlarged(_pick(labels["world_from_picture"], views), world_scale[:, None]))


@dataclass(frozen=True)
class _Draws:
    """The random numbers of a batch."""

    look_at: Float[Tensor, "frames clips 2 2"]
    roll: Float[Tensor, "frames clips 2"]
    focal_scale: Float[Tensor, "frames clips 2"]
    gain: Float[Tensor, "frames clips 2 1 1"]
    single: Bool[Tensor, "clips"]
    second: Bool[Tensor, "clips"]
    world_scale: Float[Tensor, "clips"]

    @staticmethod
    def sample(
        frames: int, clips: int, augmentation: Augmentation, generator: torch.Generator, device: torch.device
    ) -> _Draws:
        def normal(deviation: float, *shape: int) -> Tensor:
            steady = torch.randn(1, clips, MAX_VIEWS, *shape, generator=generator)
            moving = torch.randn(frames, clips, MAX_VIEWS, *shape, generator=generator)
            return (deviation * (steady + augmentation.jitter * moving)).to(device)

        return _Draws(
            look_at=normal(augmentation.look_at, 2),
            roll=normal(augmentation.roll),
            focal_scale=normal(augmentation.focal_scale).exp(),
            gain=normal(augmentation.gain, 1, 1).exp(),
            single=(torch.rand(clips, generator=generator) < augmentation.single_view).to(device),
            second=(torch.rand(clips, generator=generator) < 0.5).to(device),
            world_scale=(augmentation.world_scale * torch.randn(clips, generator=generator)).exp().to(device),
        )

    def choose_views(
        self, views: Int[Tensor, "frames clips"]
    ) -> tuple[Int[Tensor, "frames clips 2"], Bool[Tensor, "frames clips"]]:
        """Which cached views a hand shows, the reference first, and whether it shows two."""
        both = views == MAX_VIEWS
        reference = (both & self.single & self.second).long()
        return torch.stack((reference, both.long()), dim=-1), both & ~self.single

    def perturb(self, cached: PosedCamera) -> PosedCamera:
        """The crop cameras of the batch, in place of the cached ones."""
        focal = cached.camera.focal_px[..., 0]
        half_view = torch.atan((CROP_SIZE - 1) / 2 / focal)
        return perturb(
            PosedCamera(Pinhole.create(CROP_SIZE, focal), cached.world_from_camera),
            self.look_at * half_view[..., None], self.roll, self.focal_scale,
        )  # fmt: skip


def warp_pinhole(
    pictures: UInt8[Tensor, "*batch height width"], source: PosedCamera, target: PosedCamera
) -> Float[Tensor, "*batch size size"]:
    """What pinhole cameras see of the pictures of others with the same centres, in [0, 1]: one batched homography.

    Bilinear; black outside the pictures.
    """
    batch, device = pictures.shape[:-2], pictures.device
    rotation = (invert(source.world_from_camera) @ target.world_from_camera)[..., :3, :3]
    width, height = source.camera.width, source.camera.height
    scale = torch.tensor([2 / (width - 1), 2 / (height - 1), 1.0]).to(rotation)
    from_pixels = torch.diag(scale) + torch.tensor([[0.0, 0, -1], [0, 0, -1], [0, 0, 0]]).to(rotation)  # to -1..1
    homography = from_pixels @ source.camera.matrix @ rotation @ torch.linalg.inv(target.camera.matrix)
    by_column, by_row, constant = homography.reshape(-1, 3, 3, 1, 1).unbind(2)
    column, row = (torch.arange(size, device=device) for size in (target.camera.width, target.camera.height))
    rays = by_column * column + (by_row * row[:, None] + constant)
    grid = (rays[:, :2] / rays[:, 2:]).movedim(1, -1)
    values = pictures.flatten(0, -3)[:, None].to(homography.dtype)
    warped = grid_sample(values, grid, padding_mode="zeros", align_corners=True)
    return warped.div(255).reshape(*batch, *warped.shape[2:])


def enlarged(
    world_from_a: Float[Tensor, "*batch 4 4"], factor: Float[Tensor, "*#batch"]
) -> Float[Tensor, "*batch 4 4"]:
    """Poses in a world that is larger by a factor: their positions grow, their axes stay."""
    position = world_from_a[..., :3, 3:] * factor[..., None, None]
    return torch.cat((torch.cat((world_from_a[..., :3, :3], position), dim=-1), world_from_a[..., 3:, :]), dim=-2)


def stack_hands(models: Sequence[HandModel]) -> HandModel:
    """One batched hand model. Landmark weights and joint limits are those of the first: all hands share them."""
    shared = {"joint_limits": models[0].joint_limits, "landmark_bone_weights": models[0].landmark_bone_weights}
    names = ("joint_rotation_axes", "joint_rest_positions", "landmark_rest_positions")
    return HandModel(**shared, **{name: torch.stack([getattr(model, name) for model in models]) for name in names})


def _pick(
    values: Float[Tensor, "frames clips 2 n n"], views: Int[Tensor, "frames clips 2"]
) -> Float[Tensor, "frames clips 2 n n"]:
    return values.gather(2, views[..., None, None].expand(*views.shape, *values.shape[-2:]))
