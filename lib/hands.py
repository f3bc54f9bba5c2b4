"""The hand model: skeleton, kinematics, landmarks and mesh (§3, Preliminaries).

One left hand serves both sides. A right hand is the left model under a mirrored wrist transform
(`transforms.mirror_x`), whose rotation part has determinant -1 on purpose.

20 joint angles drive the fingers, four each in the order thumb, index, middle, ring, pinky; joints 20 and 21 belong to
the wrist and stay at zero. They move 17 bones: 0 root and 1 wrist, both equal to the wrist transform, then three per
finger: after the first two joints together, after the third, after the fourth.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.transforms import axis_angle_rotation, homogeneous, mirror_x

NUM_JOINTS, NUM_FINGER_JOINTS, NUM_BONES, NUM_LANDMARKS = 22, 20, 17, 21
LEFT, RIGHT = 0, 1
HANDS = 2
HAND_NAMES = ("left", "right")
FINGERS = ("thumb", "index", "middle", "ring", "pinky")
FINGERTIPS = (0, 1, 2, 3, 4)
THUMB_TIP, INDEX_TIP, WRIST, PALM = 0, 1, 5, 20
LANDMARKS = (
    *(f"{finger} tip" for finger in FINGERS),
    "wrist", "thumb intermediate", "thumb distal",
    *(f"{finger} {part}" for finger in FINGERS[1:] for part in ("proximal", "intermediate", "distal")),
    "palm",
)  # fmt: skip
_CHAINS = ((5, 6, 7, 0), *((5, 8 + 3 * f, 9 + 3 * f, 10 + 3 * f, 1 + f) for f in range(4)))
SKELETON_EDGES = tuple(edge for chain in _CHAINS for edge in pairwise(chain))
"""Pairs of landmarks joined by a line in drawings, five chains from the wrist to the fingertips."""


@dataclass(frozen=True)
class HandModel:
    """A left hand at rest. All tensors may carry leading batch dimensions, one hand each; metres and radians.

    Source: §3 Preliminaries; fields as in the public files.
    Deviation: 22 joints and a 132-dimensional skeleton feature, as in the released network (the paper says 20 and 120);
    bone weights are dense.
    """

    joint_rotation_axes: Float[Tensor, "*batch 22 3"]
    joint_rest_positions: Float[Tensor, "*batch 22 3"]
    joint_limits: Float[Tensor, "22 2"]
    landmark_rest_positions: Float[Tensor, "*batch 21 3"]
    landmark_bone_weights: Float[Tensor, "21 17"]
    mesh_vertices: Float[Tensor, "*batch vertices 3"] | None = None
    mesh_triangles: Int[Tensor, "triangles 3"] | None = None
    mesh_bone_weights: Float[Tensor, "vertices 17"] | None = None

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> HandModel:
        """The same hand on another device or in another floating-point type."""

        def moved(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device, dtype if value.is_floating_point() else None)

        return HandModel(**{field.name: moved(getattr(self, field.name)) for field in fields(self)})

    def __getitem__(self, hands: Int[Tensor, "chosen"]) -> HandModel:
        """Some of a batch of hands, without their meshes."""
        names = ("joint_rotation_axes", "joint_rest_positions", "landmark_rest_positions")
        chosen = {name: getattr(self, name)[hands] for name in names}
        return HandModel(joint_limits=self.joint_limits, landmark_bone_weights=self.landmark_bone_weights, **chosen)

    def scaled(self, scale: Float[Tensor, "*#batch"] | float) -> HandModel:
        """The hand enlarged about its wrist by `scale` (one factor per hand of the batch). Source: §3.3."""
        factor = torch.as_tensor(scale, dtype=self.joint_rest_positions.dtype, device=self.joint_rest_positions.device)
        factor = factor[..., None, None]
        return replace(
            self,
            joint_rotation_axes=self.joint_rotation_axes.expand(
                torch.broadcast_shapes(self.joint_rotation_axes.shape, factor.shape)
            ),
            joint_rest_positions=self.joint_rest_positions * factor,
            landmark_rest_positions=self.landmark_rest_positions * factor,
            mesh_vertices=None if self.mesh_vertices is None else self.mesh_vertices * factor,
        )

    @property
    def skeleton_feature(self) -> Float[Tensor, "*batch 132"]:
        """Per joint [axis, rest position in metres]: what the skeleton encoder sees. Source: §3.2."""
        return torch.cat((self.joint_rotation_axes, self.joint_rest_positions), dim=-1).flatten(-2)

    def bones(
        self, joint_angles: Float[Tensor, "*#batch 22"], world_from_wrist: Float[Tensor, "*#batch 4 4"]
    ) -> Tensor:
        """Transforms (*batch, 17, 4, 4) that carry points of the resting hand, bone by bone, into the world.

        Joint j turns by its angle about its axis through its rest position. Source: §3 Preliminaries.
        """
        axes, positions = self.joint_rotation_axes[..., :20, :], self.joint_rest_positions[..., :20, :]
        rotation = axis_angle_rotation(axes, joint_angles[..., :20])
        joints = homogeneous(rotation, positions - (rotation @ positions[..., None])[..., 0])
        first, second, third, fourth = joints.unflatten(-3, (5, 4)).unbind(-3)
        proximal = first @ second
        intermediate = proximal @ third
        fingers = torch.stack((proximal, intermediate, intermediate @ fourth), dim=-3).flatten(-4, -3)
        world_from_wrist = world_from_wrist[..., None, :, :]
        posed = world_from_wrist @ fingers
        root = world_from_wrist.expand(*posed.shape[:-3], 2, 4, 4)
        return torch.cat((root, posed), dim=-3)

    def landmarks(
        self, joint_angles: Float[Tensor, "*#batch 22"], world_from_wrist: Float[Tensor, "*#batch 4 4"]
    ) -> Tensor:
        """The posed landmarks, (*batch, 21, 3) metres in the world, ordered as `LANDMARKS`. Source: p_j of Eq. 4."""
        bones = self.bones(joint_angles, world_from_wrist)
        return skin(self.landmark_rest_positions, self.landmark_bone_weights, bones)

    def mesh(self, joint_angles: Float[Tensor, "*#batch 22"], world_from_wrist: Float[Tensor, "*#batch 4 4"]) -> Tensor:
        """The posed mesh vertices, (*batch, vertices, 3) metres in the world.

        Raises ValueError if the hand carries no mesh. For the triangles see `triangles`.
        """
        if self.mesh_vertices is None or self.mesh_bone_weights is None:
            raise ValueError(
                "this hand model carries no mesh: expected mesh_vertices, mesh_triangles, mesh_bone_weights"
            )
        return skin(self.mesh_vertices, self.mesh_bone_weights, self.bones(joint_angles, world_from_wrist))

    def triangles(self, hand: int) -> Int[Tensor, "triangles 3"]:
        """Triangles with outward winding for the left (0) or the mirrored right (1) hand."""
        if self.mesh_triangles is None:
            raise ValueError("this hand model carries no mesh_triangles")
        return self.mesh_triangles.flip(-1) if hand == RIGHT else self.mesh_triangles

    @property
    def mid_range_angles(self) -> Float[Tensor, "22"]:
        """Every finger joint in the middle of its limits, the wrist joints at zero."""
        angles = self.joint_limits.mean(dim=-1)
        return torch.cat((angles[:NUM_FINGER_JOINTS], angles.new_zeros(2)))


@dataclass(frozen=True)
class PosedHands:
    """Both hands of a user in one frame; the pose of a hand that does not `exist` means nothing."""

    model: HandModel
    joint_angles: Float[Tensor, "2 22"]
    world_from_wrist: Float[Tensor, "2 4 4"]
    exists: Bool[Tensor, "2"]

    @property
    def wrists(self) -> Float[Tensor, "2 4 4"]:
        """The wrist transforms that pose the left model as either hand."""
        return for_hand(self.world_from_wrist, torch.arange(HANDS))

    def landmarks(self) -> Float[Tensor, "2 21 3"]:
        """The landmarks of both hands, metres in the world."""
        return self.model.landmarks(self.joint_angles, self.wrists)


@dataclass(frozen=True)
class HandPoses:
    """The poses of both hands in every frame (rad, m), and the hand that they pose.

    `world_from_wrist` is stored unmirrored: pose the right hand through `for_hand`. `confidence` is zero where a
    hand was not found, and its pose means nothing there. The baseline's is the mean confidence of the keypoints; the
    end-to-end network tells none, and has 1.
    """

    model: HandModel
    joint_angles: Float[Tensor, "2 frames 22"]
    world_from_wrist: Float[Tensor, "2 frames 4 4"]
    confidence: Float[Tensor, "2 frames"]

    @staticmethod
    def untracked(model: HandModel, frames: int) -> HandPoses:
        """Neither hand is found in any frame."""
        return HandPoses(
            model.to("cpu", torch.float64),
            torch.zeros(HANDS, frames, NUM_JOINTS).double(),
            torch.eye(4).double().repeat(HANDS, frames, 1, 1),
            torch.zeros(HANDS, frames).double(),
        )

    def put(
        self,
        frame: int,
        hands: Int[Tensor, "tracked"],
        joint_angles: Float[Tensor, "tracked 22"],
        world_from_wrist: Float[Tensor, "tracked 4 4"],
        confidence: Float[Tensor, "tracked"] | float = 1.0,
    ) -> None:
        """Write down the hands that are found in a frame; a pose that is not finite is none."""
        finite = (joint_angles.isfinite().all(-1) & world_from_wrist.isfinite().flatten(1).all(-1)).cpu()
        kept = hands.cpu()[finite]
        self.joint_angles[kept, frame] = joint_angles.double().cpu()[finite]
        self.world_from_wrist[kept, frame] = world_from_wrist.double().cpu()[finite]
        self.confidence[kept, frame] = torch.as_tensor(confidence).double().cpu().expand(len(hands))[finite]

    @property
    def wrists(self) -> Float[Tensor, "2 frames 4 4"]:
        """The wrist transforms that pose the left model as either hand."""
        return for_hand(self.world_from_wrist, torch.arange(HANDS)[:, None].expand(self.confidence.shape))

    def landmarks(self) -> Float[Tensor, "2 frames 21 3"]:
        """All landmarks, metres in the world."""
        return self.model.landmarks(self.joint_angles, self.wrists)

    def mesh(self, hand: int, frame: int) -> tuple[Float[Tensor, "vertices 3"], Int[Tensor, "triangles 3"]]:
        """The mesh of one hand in one frame, metres in the world. Raises ValueError if the hand model carries none."""
        return self.model.mesh(self.joint_angles[hand, frame], self.wrists[hand, frame]), self.model.triangles(hand)


def skin(points: Float[Tensor, "*#batch points 3"], bone_weights: Float[Tensor, "points 17"], bones: Tensor) -> Tensor:
    """Linear blend skinning of rest-hand points by the bones (*batch, 17, 4, 4); (*batch, points, 3)."""
    blended = (bone_weights @ bones.flatten(-2)[..., :12]).unflatten(-1, (3, 4))
    return (blended[..., :3] @ points[..., None])[..., 0] + blended[..., 3]


def for_hand(world_from_wrist: Float[Tensor, "*#batch 4 4"], hand: Int[Tensor, "*#batch"] | int) -> Tensor:
    """The wrist transform that poses the left model as `hand` (0 left: unchanged, 1 right: mirrored)."""
    is_right = torch.as_tensor(hand, device=world_from_wrist.device)[..., None, None] == RIGHT
    return torch.where(is_right, mirror_x(world_from_wrist), world_from_wrist)
