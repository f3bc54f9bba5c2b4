"""The public training data, `torch_data`: shards of short clips of one hand each, seen by two upright pinhole cameras.

A shard is a folder `torch_data/{real,synthetic}/{protocol}/NNNNN/{training,testing}` of two indexed files: `mono`, the
pictures, and `labels`. A clip becomes a `ShardClip`, in metres and radians. Source: the published reader, `sample.py`
and `data_transform.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from lib.cameras import Pinhole, PosedCamera
from lib.errors import InputError
from lib.files import MM, describing
from lib.formats import checks
from lib.formats.checks import MAX_JOINT_ANGLE, MAX_POSITION, MAX_SIDE, check_lens, check_rigid, json_array, refuse
from lib.formats.hand_files import hand_from_json, hand_to_json
from lib.formats.indexed_files import IndexedFile, index_and_content, type_name, write_together
from lib.hands import HAND_NAMES, LEFT, NUM_JOINTS, RIGHT, HandModel, for_hand
from lib.transforms import in_other_unit, invert

VIEWS = 2
MONO, LABELS = "mono", "labels"
_CLIP = re.compile(r"clip_(\d{1,9})")


@dataclass(frozen=True)
class SolvedPoses:
    """The poses of a clip as solved for a generic hand, `hand_model`, to which its solved `scale` is applied."""

    hand_model: HandModel
    scale: float
    joint_angles: Float[Tensor, "frames 22"]
    world_from_wrist: Float[Tensor, "frames 4 4"]


@dataclass(frozen=True)
class ClipLabels:
    """One hand over the frames of a clip, and the two cameras, batch (frames, 2), that see it. Float64.

    Nothing is mirrored but the hand model, which is the left one for both hands (see `hands.for_hand`). `hand` is 0 for
    left, 1 for right. `enclosing_points` are points of the world that a crop must hold. `solved` may be missing.
    """

    cameras: PosedCamera
    enclosing_points: Float[Tensor, "frames points 3"]
    hand: int
    hand_model: HandModel
    joint_angles: Float[Tensor, "frames 22"]
    world_from_wrist: Float[Tensor, "frames 4 4"]
    pinch: Bool[Tensor, "frames"]
    solved: SolvedPoses | None

    def __len__(self) -> int:
        return len(self.joint_angles)

    def landmarks(self) -> Float[Tensor, "frames 21 3"]:
        """The posed landmarks, metres in the world."""
        return self.hand_model.landmarks(self.joint_angles, for_hand(self.world_from_wrist, self.hand))


@dataclass(frozen=True)
class ShardClip(ClipLabels):
    """Labels and pictures of a clip; the pictures are upright, those of right hands unmirrored."""

    images: UInt8[np.ndarray, "frames 2 height width"]


class Shard:
    """The clips of a shard's folder; cheap to pickle (see `IndexedFile`)."""

    def __init__(self, folder: Path):
        """Raises InputError if a file is missing or broken, of another type, or the two differ in length."""
        self.folder = folder
        self._mono, self._labels = IndexedFile(folder / MONO), IndexedFile(folder / LABELS)
        for file, dtype in ((self._mono, np.dtype(np.uint8)), (self._labels, None)):
            if file.dtype != dtype:
                raise InputError(f"{file.path} holds {file.holds}, expected {type_name(dtype)}")
        if len(self._mono) != len(self._labels):
            raise InputError(f"{folder}: {len(self._mono)} clips in {MONO}, {len(self._labels)} in {LABELS}")

    def __len__(self) -> int:
        return len(self._mono)

    def __getitem__(self, index: int) -> ShardClip:
        """A clip; its images are a view of the file that cannot be written to.

        Raises InputError, which names file, clip and field, for values that cannot be.
        """
        return ShardClip(**vars(self.labels(index)), images=self._mono[index])

    def frames(self, index: int) -> int:
        """How many frames a clip has, from the index alone."""
        return self._picture_shape(index)[0]

    def pinch(self, index: int) -> Bool[Tensor, "frames"]:
        """Whether the hand of a clip pinches, without a look at the rest. Raises InputError as `[index]` does."""
        with describing(f"{self._labels.path}: clip {index}"):
            return _ClipMap(self._labels[index], self.frames(index)).pinch()

    def labels(self, index: int) -> ClipLabels:
        """The labels of a clip, without a look at its pictures. Raises InputError as `[index]` does."""
        shape = self._picture_shape(index)
        stored = self._labels[index]
        with describing(f"{self._labels.path}: clip {index}"):
            return _ClipMap(stored, shape[0]).labels(*shape[2:])

    def _picture_shape(self, index: int) -> tuple[int, ...]:
        """Frames, views, height and width. Raises InputError for other shapes."""
        shape = self._mono.shape(index)
        if len(shape) != 4 or shape[1] != VIEWS or min(shape) < 1 or max(shape[2:]) > MAX_SIDE:
            raise InputError(
                f"{self._mono.path}: clip {index} has shape {shape}, expected (frames, {VIEWS}, height, width)"
            )
        return shape


def shard_clip(folder: Path, index: int) -> Path:
    """The made-up path of a clip of a shard."""
    return folder / f"clip_{index:06d}"


def is_shard_clip(path: Path) -> bool:
    """Whether a path is that of a clip of a shard."""
    return _CLIP.fullmatch(path.name) is not None and is_shard(path.parent)


def is_shard(folder: Path) -> bool:
    """Whether a folder holds a file of a shard."""
    return any(path.is_file() for stem in (MONO, LABELS) for path in index_and_content(folder / stem))


def read_shard_clip(path: Path) -> ShardClip:
    """The clip at its made-up path. Raises InputError."""
    shard, index = Shard(path.parent), int(path.name.removeprefix("clip_"))
    if index >= len(shard):
        raise InputError(f"{path.parent} holds {len(shard)} clips, there is no {path.name}")
    return shard[index]


def write_shard(folder: Path, clips: Iterable[ShardClip]) -> None:
    """Write clips to a shard, taken one at a time: the inverse of reading.

    Its four files get their names when all are complete; on failure nothing changes. Raises InputError if there is no
    clip, or one is too long.
    """
    write_together([folder / MONO, folder / LABELS], ((clip.images, _map_from_labels(clip)) for clip in clips))


@dataclass(frozen=True)
class _ClipMap:
    """The map of a clip (mm) whose pictures show so many frames; its fields are given in metres, checked."""

    stored: Mapping[str, Any]
    frames: int

    def labels(self, height: int, width: int) -> ClipLabels:
        """All of it, for pictures of this size."""
        hand = self.hand()
        lenses = _lenses(self.array("intrinsics", VIEWS, 3, 3), height, width)
        camera_from_world = self.poses("extrinsics", [f"camera {view}" for view in range(VIEWS)], VIEWS)
        return ClipLabels(
            cameras=PosedCamera(lenses, invert(camera_from_world)),
            enclosing_points=self.array("enclosing_points", None, 3, limit=MAX_POSITION * MM) / MM,
            hand=hand,
            hand_model=self.hand_model("hand_model", hand),
            joint_angles=self.array("joint_angles", NUM_JOINTS, limit=MAX_JOINT_ANGLE),
            world_from_wrist=self.poses("wrist", [HAND_NAMES[hand]]),
            pinch=self.pinch(),
            solved=self.solved(hand),
        )

    def array(self, name: str, *shape: int | None, limit: float = torch.inf) -> Float[Tensor, "..."]:
        """A field with an entry per frame, as stored."""
        why = f": {MONO} has {self.frames} frames"
        return json_array(self.stored, name, (self.frames, *shape), -limit, limit, why=why)

    def poses(self, name: str, parts: Sequence[str], *shape: int) -> Float[Tensor, "..."]:
        """Rigid transforms of the named parts."""
        transforms = in_other_unit(self.array(name, *shape, 4, 4), 1 / MM)
        used = torch.ones(self.frames, len(parts), dtype=torch.bool)
        check_rigid(name, parts, transforms.reshape(*used.shape, 4, 4), used)
        return transforms

    def pinch(self) -> Bool[Tensor, "frames"]:
        """Whether the hand pinches."""
        return self.array("pinch", 1)[:, 0] > 0

    def hand(self) -> int:
        """0 or 1, the same in all frames."""
        hands = self.array("hand")
        refuse((hands != LEFT) & (hands != RIGHT), "hand{place} is {value}, expected 0 or 1", hands)
        refuse(hands != hands[0], "hand{place} is {value}, expected that of the first frame", hands)
        return int(hands[0])

    def hand_model(self, name: str, hand: int) -> HandModel:
        """The left model of a stored hand, which is a right one if `hand` is."""
        stored = checks.field(self.stored, name)
        with describing(name):
            return _mirrored(hand_from_json(stored), hand)

    def solved(self, hand: int) -> SolvedPoses | None:
        """None if all of its fields are missing."""
        generic, angles, wrist = "generic_hand_model", "solved_joint_angles", "solved_wrist_xfs"
        if not any(name in self.stored for name in (generic, angles, wrist)):
            return None
        model = self.hand_model(generic, hand)
        scale = self.stored[generic].get("hand_scale")
        return SolvedPoses(
            hand_model=model,
            scale=1.0 if scale is None else float(scale),
            joint_angles=self.array(angles, NUM_JOINTS, limit=MAX_JOINT_ANGLE),
            world_from_wrist=self.poses(wrist, [HAND_NAMES[hand]]),
        )


def _lenses(matrices: Float[Tensor, "frames 2 3 3"], height: int, width: int) -> Pinhole:
    """Pinhole cameras of matrices K. Raises InputError if K has other entries than a pinhole's, or impossible ones."""
    with describing("intrinsics"):
        focal_px, center_px = matrices.diagonal(dim1=-2, dim2=-1)[..., :2], matrices[..., :2, 2]
        camera = Pinhole(width, height, focal_px, center_px, matrices.new_zeros(*matrices.shape[:2], 0))
        wrong = (matrices - camera.matrix).abs() > 1e-6
        refuse(wrong, "{place} is {value}, expected focal lengths, principal point and 0 0 1 alone", matrices)
        check_lens(camera)
    return camera


def _mirrored(model: HandModel, hand: int) -> HandModel:
    """The left model as that of a right hand and the reverse; for `hand` 0, as it is.

    Points have x negated, axes y and z: an axis is mirrored as rotations about it are. Triangles keep their order.
    """
    if hand == LEFT:
        return model
    points = torch.tensor([-1.0, 1.0, 1.0]).to(model.joint_rest_positions)
    return replace(
        model,
        joint_rotation_axes=model.joint_rotation_axes * -points,
        joint_rest_positions=model.joint_rest_positions * points,
        landmark_rest_positions=model.landmark_rest_positions * points,
        mesh_vertices=None if model.mesh_vertices is None else model.mesh_vertices * points,
    )


def _map_from_labels(clip: ClipLabels) -> dict[str, Any]:
    """The map of a clip's labels (mm)."""
    frames = len(clip)
    stored = {
        "extrinsics": in_other_unit(clip.cameras.camera_from_world, MM),
        "intrinsics": clip.cameras.camera.matrix,
        "enclosing_points": clip.enclosing_points * MM,
        "hand": torch.full((frames,), clip.hand),
        "wrist": in_other_unit(clip.world_from_wrist, MM),
        "joint_angles": clip.joint_angles,
        "pinch": clip.pinch.double()[:, None],
    }
    models = {"hand_model": _skeleton_to_json(clip.hand_model, clip.hand)}
    if clip.solved is not None:
        unscaled = _skeleton_to_json(clip.solved.hand_model.scaled(1 / clip.solved.scale), clip.hand)
        models["generic_hand_model"] = unscaled | {"hand_scale": clip.solved.scale}
        stored["solved_joint_angles"] = clip.solved.joint_angles
        stored["solved_wrist_xfs"] = in_other_unit(clip.solved.world_from_wrist, MM)
    return {name: tensor.tolist() for name, tensor in stored.items()} | models


def _skeleton_to_json(model: HandModel, hand: int) -> dict[str, Any]:
    """A hand as shards store it: a right one for `hand` 1, without its mesh."""
    return hand_to_json(
        replace(_mirrored(model, hand), mesh_vertices=None, mesh_triangles=None, mesh_bone_weights=None)
    )
