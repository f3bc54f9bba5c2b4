"""Perspective crops: virtual pinhole cameras that look at a hand, and the pictures they take (§3.1, Figure 3).

A crop camera sits at the centre of a real camera. It shows every hand as a left hand: for a right hand its x axis is
negated, so that its world_from_camera has determinant -1. Geometry is float64.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, UInt8
from torch import Tensor

from lib.cameras import Pinhole, PosedCamera
from lib.hands import HANDS, NUM_LANDMARKS, RIGHT, HandModel, PosedHands
from lib.transforms import apply, axis_angle_rotation, homogeneous, invert, mirror_x

CROP_SIZE = 96
FILL = 0.95
"""Share of the half-image that the crop points may use."""
MIN_FOCAL_PX = 5.0
MIN_LANDMARKS_SEEN = 19
MAX_VIEWS = 2

_Angles = Float[Tensor, "*batch 22"]
_Poses = Float[Tensor, "*batch 4 4"]


@dataclass(frozen=True)
class Crops:
    """Perspective crops of hands (§3.1), each seen by one or two cameras; the first is the reference camera.

    images in [0, 1]; focal_px of the crop cameras; camera_from_world in metres (of determinant -1 for right hands);
    hand 0 left, 1 right. Where `two_views` is False the second view is ignored.
    """

    images: Float[Tensor, f"hands 2 {CROP_SIZE} {CROP_SIZE}"]
    focal_px: Float[Tensor, "hands 2"]
    camera_from_world: Float[Tensor, "hands 2 4 4"]
    hand: Int[Tensor, "hands"]
    two_views: Bool[Tensor, "hands"]

    def to(self, device: torch.device | str) -> Crops:
        """The same crops on another device."""
        return Crops(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def __getitem__(self, hands: slice | Tensor) -> Crops:
        """The crops of some of the hands."""
        return Crops(**{field.name: getattr(self, field.name)[hands] for field in fields(self)})


def crop_points(model: HandModel, joint_angles: _Angles, world_from_wrist: _Poses) -> Float[Tensor, "*batch 63 3"]:
    """World points a crop must hold: the landmarks as posed, with mid-range joint angles and with the open hand.

    `world_from_wrist` is the one that poses the left model (see `hands.for_hand`). Source: conventions of the published
    code; §3.1 speaks of the tracked keypoints only.
    """
    postures = torch.stack(
        torch.broadcast_tensors(joint_angles, model.mid_range_angles.to(joint_angles), torch.zeros_like(joint_angles)),
        dim=-2,
    )
    return model.landmarks(postures, world_from_wrist[..., None, :, :]).flatten(-3, -2)


def crop_cameras(
    cameras: PosedCamera,
    points_world: Float[Tensor, "hands points 3"],
    hand: Int[Tensor, "hands"],
    mounting_angle: Float[Tensor, "cameras"],
    fill: float = FILL,
    size: int = CROP_SIZE,
) -> tuple[PosedCamera, Bool[Tensor, "hands cameras"]]:
    """The crop camera of every hand in every camera, batch (hands, cameras), and whether it exists.

    `cameras` are those of a frame, batch (cameras,), or each hand's own, batch (hands, cameras). The optical axis is
    turned by the smallest rotation towards the centre of the points' world-aligned bounding box, then rolled by the
    mounting angle (rad) of the camera. The focal length fits the points into `fill` of the image.
    There is no crop camera where a point lies behind it or the focal length falls below 5 px. Source: §3.1.
    """
    box_center = (points_world.amin(dim=1) + points_world.amax(dim=1)) / 2
    of_hands = cameras if cameras.world_from_camera.ndim == 4 else cameras[None]
    target = of_hands.to_camera(box_center[:, None, None])[..., 0, :]
    camera_from_aimed = aim(target) @ roll(mounting_angle)
    world_from_crop = cameras.world_from_camera @ homogeneous(camera_from_aimed, torch.zeros_like(target))
    world_from_crop = torch.where((hand == RIGHT)[:, None, None, None], mirror_x(world_from_crop), world_from_crop)
    points = apply(invert(world_from_crop), points_world[:, None])
    slope = (points[..., :2] / points[..., 2:]).abs().amax(dim=(-2, -1))
    focal = fill * (size - 1) / 2 / slope
    exists = (points[..., 2] > 0).all(dim=-1) & (focal >= MIN_FOCAL_PX)
    return PosedCamera(Pinhole.create(size, focal), world_from_crop), exists


def aim(target: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The smallest rotation that takes the optical axis (0, 0, 1) to the direction of `target`."""
    x, y, z = torch.nn.functional.normalize(target, dim=-1).unbind(-1)
    # Rodrigues with axis (-y, x, 0) / sin and cos = z; (1 - cos) / sin^2 = 1 / (1 + z) has no pole in front.
    share = 1 / (1 + z)
    rows = (1 - x * x * share, -x * y * share, x, -x * y * share, 1 - y * y * share, y, -x, -y, z)
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def roll(angle: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotation about the optical axis by `angle` (rad)."""
    return axis_angle_rotation(torch.eye(3).to(angle)[2].expand(*angle.shape, 3), angle)


def roll_of(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch"]:
    """The angle of `aim(axis) @ roll(angle)` (rad)."""
    rolled = aim(rotation[..., 2]).mT @ rotation
    return torch.atan2(rolled[..., 1, 0], rolled[..., 0, 0])


def upright_angles(headset_from_camera: Float[Tensor, "cameras 3 3"]) -> Float[Tensor, "cameras"]:
    """The mounting angles with which crops are upright in the axes of the headset: x right, y down, z forward (rad)."""
    return -roll_of(headset_from_camera)


def perturb(
    crop: PosedCamera,
    look_at: Float[Tensor, "*batch 2"],
    roll_angle: Float[Tensor, "*batch"],
    focal_scale: Float[Tensor, "*batch"],
) -> PosedCamera:
    """Crop cameras that look elsewhere by `look_at` (rad, about their y and x axes), rolled and zoomed.

    The camera parameters stay true to the picture, which an affine warp of the image would not be. Source: §5.1, data
    augmentation.
    """
    axis = torch.cat((torch.tan(look_at), torch.ones_like(look_at[..., :1])), dim=-1)
    crop_from_perturbed = homogeneous(aim(axis) @ roll(roll_angle), torch.zeros_like(axis))
    camera = Pinhole.create(crop.camera.width, crop.camera.focal_px[..., 0] * focal_scale)
    return PosedCamera(camera, crop.world_from_camera @ crop_from_perturbed)


def select_views(seen: Bool[Tensor, "hands cameras"]) -> Bool[Tensor, "hands cameras"]:
    """The first two cameras by index among those that see a hand; the first of them is the reference camera."""
    return seen & (seen.cumsum(dim=-1) <= MAX_VIEWS)


def sees_hand(cameras: PosedCamera, landmarks_world: Float[Tensor, "hands 21 3"]) -> Bool[Tensor, "hands cameras"]:
    """Whether at least 19 of a hand's 21 landmarks fall inside the image of a camera and lie in front of it."""
    return cameras[None].sees(landmarks_world[:, None]).sum(dim=-1) >= MIN_LANDMARKS_SEEN


def make_crops(
    images: UInt8[np.ndarray, "cameras height width"],
    cameras: PosedCamera,
    mounting_angles: Float[Tensor, "cameras"],
    hands: PosedHands,
    min_views: int,
) -> tuple[Int[Tensor, "tracked"], Crops]:
    """The hands that at least `min_views` cameras see, and their crops. Source: §3.1, evaluation as published."""
    chosen, views, crop = choose_crop_cameras(cameras, mounting_angles, hands, min_views)
    return chosen, take_crops(images, cameras, chosen, views, crop)


def choose_crop_cameras(
    cameras: PosedCamera,
    mounting_angles: Float[Tensor, "cameras"],
    hands: PosedHands,
    min_views: int,
) -> tuple[Int[Tensor, "tracked"], Bool[Tensor, "tracked cameras"], PosedCamera]:
    """The hands that `min_views`, 1 or 2, cameras see; the cameras chosen for each; all crop cameras of each."""
    views, crop = choose_views(cameras, mounting_angles, hands)
    chosen = views.sum(dim=1) >= min_views
    return torch.arange(HANDS)[chosen], views[chosen], crop[chosen]


def choose_views(
    cameras: PosedCamera, mounting_angles: Float[Tensor, "cameras"], hands: PosedHands
) -> tuple[Bool[Tensor, "2 cameras"], PosedCamera]:
    """The cameras chosen for each hand, none for one without a pose, and all crop cameras, batch (2, cameras)."""
    points = crop_points(hands.model, hands.joint_angles, hands.wrists)
    crop, exists = crop_cameras(cameras, points, torch.arange(HANDS), mounting_angles)
    seen = sees_hand(cameras, points[:, :NUM_LANDMARKS]) & exists & hands.exists[:, None]
    return select_views(seen), crop


def take_crops(
    images: UInt8[np.ndarray, "cameras height width"],
    cameras: PosedCamera,
    hands: Int[Tensor, "tracked"],
    views: Bool[Tensor, "tracked cameras"],
    crop: PosedCamera,
) -> Crops:
    """The network's input: one or two warped views per hand; a missing second view repeats the first."""
    rows, sources = views.nonzero(as_tuple=True)
    size = crop.camera.width
    chosen = crop[rows, sources]
    pictures = torch.from_numpy(warp([images[source] for source in sources], cameras[sources], chosen))
    counts = views.sum(dim=1)
    first = counts.cumsum(dim=0) - counts
    pair = torch.stack((first, first + counts - 1), dim=1)
    return Crops(
        images=pictures.float().div(255).reshape(-1, size, size)[pair],
        focal_px=chosen.camera.focal_px[pair, 0].float(),
        camera_from_world=chosen.camera_from_world[pair].float(),
        hand=hands,
        two_views=counts > 1,
    )


def warp(
    images: UInt8[np.ndarray, "crops height width"] | list[UInt8[np.ndarray, "height width"]],
    sources: PosedCamera,
    crops: PosedCamera,
) -> UInt8[np.ndarray, "crops size size"]:
    """What the crop cameras see: bilinear samples of one source image each, black outside it or behind its camera.

    `sources` and `crops` are batches of one camera per crop with common centres. Deviation: OpenCV's fixed-point
    bilinear weights, within one grey level of exact ones.
    """
    maps = source_pixels(sources, crops)
    pictures = [sample(image, pixels) for image, pixels in zip(images, maps, strict=True)]
    return np.array(pictures, np.uint8).reshape(maps.shape[:-1])  # also where there is none


def sample(
    image: UInt8[np.ndarray, "height width"], pixels: Float32[np.ndarray, "rows columns 2"]
) -> UInt8[np.ndarray, "rows columns"]:
    """Bilinear samples of an image at pixels; black outside it."""
    return cv2.remap(image, pixels, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)


def source_pixels(sources: PosedCamera, crops: PosedCamera) -> Float32[np.ndarray, "crops size size 2"]:
    """Where each pixel of each crop lies in its source image, float32; far outside if behind the source camera."""
    camera = crops.camera.to(dtype=torch.float32)
    row, column = torch.meshgrid(
        *(torch.arange(size, dtype=torch.float32) for size in (camera.height, camera.width)), indexing="ij"
    )
    grid = torch.stack((column, row)).flatten(1)
    slopes = (grid - camera.center_px[:, :, None]) / camera.focal_px[:, :, None]
    rotation = (invert(sources.world_from_camera) @ crops.world_from_camera)[:, :3, :3].float()
    # Coordinates lie in planes (crops, 3, pixels), which is what makes the projection fast; .mT is only a view.
    rays = (rotation[:, :, :2] @ slopes + rotation[:, :, 2:]).mT
    pixels = sources.camera[:, None].to(dtype=torch.float32).project(rays)
    pixels = torch.where(rays[..., 2:] > 0, pixels, -1e4)
    return pixels.unflatten(1, (camera.height, camera.width)).numpy()
