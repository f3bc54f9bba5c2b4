"""The figures: one style, one function each; all of them drawn from data that they are given."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import matplotlib.pyplot as plt
import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MultipleLocator, NullFormatter
from torch import Tensor

from lib.cameras import PosedCamera
from lib.crops import crop_cameras, crop_points, perturb, warp
from lib.errors import InputError
from lib.hands import HAND_NAMES, LANDMARKS, SKELETON_EDGES, for_hand
from lib.overlay import HAND_COLORS
from lib.recordings import Recording

TRUE_COLOR, TRACKED_COLOR = "#009E73", "#E69F00"
"""Of hands that are drawn beside each other: green where they are, orange where they are predicted."""
COLUMN_WIDTH, PAGE_WIDTH = 3.5, 7.2
"""Inches."""


@dataclass(frozen=True)
class HandScene:
    """Both hands seen by one camera, and their perspective crops."""

    picture: UInt8[np.ndarray, "height width"]
    camera: PosedCamera
    mounting_angle: float
    landmarks: Float[Tensor, "2 21 3"]
    points: Float[Tensor, "2 points 3"]
    crop: PosedCamera
    crops: UInt8[np.ndarray, "2 size size"]


def hand_scene(recording: Recording, frame: int, view: int) -> HandScene:
    """What one camera of a recording shows in a frame, and the crops of both hands.

    Raises InputError if a hand is unlabelled there or has no crop camera in that view.
    """
    images = next(recording.images(start=frame))
    hands, cameras = torch.arange(2), recording.cameras(frame)
    world_from_wrist = for_hand(recording.world_from_wrist[frame], hands)
    points = crop_points(recording.hand_model, recording.joint_angles[frame], world_from_wrist)
    crop, exists = crop_cameras(cameras, points, hands, recording.mounting_angles)
    if not bool((exists[:, view] & recording.labelled[frame]).all()):
        raise InputError(f"{recording.path}: camera {view} does not show both hands in frame {frame}; choose another")
    chosen = crop[:, view]
    crops = warp([images[view]] * 2, cameras[torch.tensor([view, view])], chosen)
    angle = float(recording.mounting_angles[view])
    return HandScene(images[view], cameras[view], angle, points[:, : len(LANDMARKS)], points, chosen, crops)


def use_style() -> None:
    """Set the style of every figure of the study."""
    plt.rcParams.update(
        {
            "figure.dpi": 110,
            "savefig.dpi": 220,
            "savefig.bbox": "tight",
            "figure.constrained_layout.use": True,
            "font.size": 8,
            "axes.titlesize": 8,
            "axes.labelsize": 8,
            "legend.fontsize": 7,
            "xtick.labelsize": 7,
            "ytick.labelsize": 7,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": plt.cycler(color=["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]),
            "svg.hashsalt": "umetrack-study",
            "svg.fonttype": "none",
        }
    )


def use_log_scale(axes: Axes) -> None:
    """Errors on a logarithmic axis, labelled 1, 2, 5, 10, ..."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def show_picture(axes: Axes, picture: UInt8[np.ndarray, "height width *rgb"], title: str = "") -> None:
    """A grey or coloured picture without axes."""
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_title(title)
    axes.axis("off")


def square_crop(
    picture: UInt8[np.ndarray, "height width"],
    pixels: Float[Tensor, "points 2"],
    mounting_angle: float,
    mirror: bool,
    size: int,
) -> UInt8[np.ndarray, "size size"]:
    """The square around pixels, enlarged by a fifth: the crop of earlier work that Figure 3 compares with.

    Turned upright by the mounting angle of the camera (rad), and mirrored, as the perspective crop is.
    """
    low, high = pixels.amin(dim=0), pixels.amax(dim=0)
    scale = 1.2 * float((high - low).max()) / size
    cosine, sine = np.cos(mounting_angle), np.sin(mounting_angle)
    picture_from_crop = scale * np.array([[cosine, -sine], [sine, cosine]]) @ np.diag([-1.0 if mirror else 1.0, 1.0])
    offset = ((low + high) / 2).numpy() - picture_from_crop @ np.full(2, (size - 1) / 2)
    inverse_map = np.column_stack((picture_from_crop, offset))
    return cv2.warpAffine(picture, inverse_map, (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def crop_outline(source: PosedCamera, crop: PosedCamera) -> Float[np.ndarray, "points 2"]:
    """The border of a crop in the pixels of its source camera: curved, because the lens bends straight lines."""
    size = crop.camera.width
    side = torch.linspace(-0.5, size - 0.5, 24, dtype=torch.float64)
    low, high = torch.full_like(side, -0.5), torch.full_like(side, size - 0.5)
    border = torch.cat(
        [torch.stack(p, dim=-1) for p in ((side, low), (high, side), (side.flip(0), high), (low, side.flip(0)))]
    )
    rays = crop.camera.unproject(border)
    source_from_crop = source.camera_from_world @ crop.world_from_camera
    return source.camera.project(rays @ source_from_crop[:3, :3].mT).numpy()


def draw_crop_outline(axes: Axes, source: PosedCamera, crop: PosedCamera, hand: int) -> None:
    """Outline a crop on the picture of its source camera, with a mark where its optical axis points."""
    outline = crop_outline(source, crop)
    axes.plot(*np.vstack((outline, outline[:1])).T, color=HAND_COLORS[hand], linewidth=1.2)
    axis = source.camera_from_world[:3, :3] @ crop.world_from_camera[:3, 2]
    axes.plot(*source.camera.project(axis).numpy(), "+", color=HAND_COLORS[hand], markersize=5)


def draw_landmarks(axes: Axes, pixels: Float[Tensor, "21 2"], hand: int) -> None:
    """The hand's skeleton in pixels."""
    points = pixels.numpy()
    for start, end in SKELETON_EDGES:
        axes.plot(*points[[start, end]].T, color=HAND_COLORS[hand], linewidth=0.8, solid_capstyle="round")


def draw_frustum(axes: Axes, camera: PosedCamera, depth: float, color: str, corners: Float[Tensor, "4 2"]) -> None:
    """A camera in a 3D plot (x right, z forward, -y up): a pyramid through the corner pixels, `depth` metres long."""
    rays = camera.camera.unproject(corners)
    tips = rays / rays[:, 2:].clamp(min=0.2) * depth
    tips = (camera.world_from_camera[:3, :3] @ tips.T).T + camera.world_from_camera[:3, 3]
    apex = camera.world_from_camera[:3, 3]
    for start, end in zip(tips, tips.roll(-1, dims=0), strict=True):
        _line3d(axes, torch.stack((start, end)), color)
        _line3d(axes, torch.stack((apex, start)), color)


def draw_hand3d(axes: Axes, landmarks: Float[Tensor, "21 3"], hand: int) -> None:
    """The hand's skeleton in a 3D plot."""
    for edge in SKELETON_EDGES:
        _line3d(axes, landmarks[list(edge)], HAND_COLORS[hand], linewidth=1.5)


def _line3d(axes: Axes, points: Float[Tensor, "points 3"], color: str, linewidth: float = 0.8) -> None:
    x, y, z = points.T.numpy()
    axes.plot(x, z, -y, color=color, linewidth=linewidth)


def perspective_crop_figure(scene: HandScene) -> Figure:
    """Figure 3: a fisheye picture with its crop cameras, the cameras in space, square against perspective crops."""
    figure = plt.figure(figsize=(PAGE_WIDTH, 4.3))
    upper, lower = figure.add_gridspec(2, 1, height_ratios=(2.3, 1.3), hspace=0.06)
    left, right = upper.subgridspec(1, 2, width_ratios=(1.35, 1))
    axes = figure.add_subplot(left)
    show_picture(axes, scene.picture, "fisheye image, crop borders and optical axes")
    for hand in range(2):
        draw_crop_outline(axes, scene.camera, scene.crop[hand], hand)
    _draw_cameras_in_space(figure.add_subplot(right, projection="3d", computed_zorder=False), scene)
    cells = lower.subgridspec(1, 4)
    for hand, name in enumerate(HAND_NAMES):
        pixels = scene.camera.project(scene.points[hand])
        square = square_crop(scene.picture, pixels, scene.mounting_angle, mirror=hand == 1, size=scene.crops.shape[-1])
        shown = f"{name} hand" + (", mirrored" if hand == 1 else "")
        for column, (picture, kind) in enumerate(((square, "square crop"), (scene.crops[hand], "perspective crop"))):
            axes = figure.add_subplot(cells[2 * hand + column])
            show_picture(axes, picture, f"{kind}\n{shown}")
            axes.add_patch(
                plt.Rectangle((0, 0), 1, 1, transform=axes.transAxes, fill=False, color=HAND_COLORS[hand], lw=1.5)
            )
    return figure


def _draw_cameras_in_space(axes: Axes, scene: HandScene) -> None:
    """The real camera (grey), the crop cameras and the hands, in the axes of the real camera."""
    width, height = scene.camera.camera.width, scene.camera.camera.height
    camera_from_world = scene.camera.camera_from_world
    here = PosedCamera(scene.camera.camera, torch.eye(4, dtype=torch.float64))
    corners = torch.tensor([[0.0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]], dtype=torch.float64)
    draw_frustum(axes, here, 0.12, "0.45", corners * 0.5 + torch.tensor([width, height]) * 0.25)
    for hand in range(2):
        crop = scene.crop[hand]
        size = crop.camera.width - 1.0
        corners = torch.tensor([[0.0, 0], [size, 0], [size, size], [0, size]], dtype=torch.float64)
        placed = PosedCamera(crop.camera, camera_from_world @ crop.world_from_camera)
        landmarks = scene.camera.to_camera(scene.landmarks[hand])
        draw_frustum(axes, placed, float(landmarks.norm(dim=-1).mean()), HAND_COLORS[hand], corners)
        draw_hand3d(axes, landmarks, hand)
    axes.set_aspect("equal")
    axes.set_box_aspect(None, zoom=0.9)
    axes.view_init(elev=20, azim=-60)
    axes.set_title("crop cameras share the centre of the real one (grey)")
    for axis, name in ((axes.xaxis, "x (m)"), (axes.yaxis, "z (m)"), (axes.zaxis, "-y (m)")):
        axis.set_label_text(name)
        axis.labelpad = -4
        axis.set_major_locator(MultipleLocator(0.1))
        axis.set_tick_params(pad=-3)


def augmentation_figure(scene: HandScene, look_at: float, roll: float, focal_scale: float) -> Figure:
    """One hand through perturbed crop cameras, its landmarks projected through the same cameras (§5.1)."""
    changes = (
        ("unchanged", (0.0, 0.0), 0.0, 1.0),
        ("look-at", (look_at, -look_at), 0.0, 1.0),
        ("in-plane rotation", (0.0, 0.0), roll, 1.0),
        ("focal length", (0.0, 0.0), 0.0, focal_scale),
        ("all three", (look_at, -look_at), roll, focal_scale),
    )
    figure, grid = plt.subplots(2, len(changes), figsize=(PAGE_WIDTH, 3.1))
    for hand, row in enumerate(grid):
        for axes, (name, aim_at, turn, zoom) in zip(row, changes, strict=True):
            values = (torch.tensor(value, dtype=torch.float64) for value in (aim_at, turn, zoom))
            camera = perturb(scene.crop[hand], *values)
            one = PosedCamera(scene.camera.camera[None], scene.camera.world_from_camera[None])
            picture = warp([scene.picture], one, PosedCamera(camera.camera[None], camera.world_from_camera[None]))[0]
            show_picture(axes, picture, name if hand == 0 else "")
            draw_landmarks(axes, camera.project(scene.landmarks[hand]), hand)
            axes.set(xlim=(-0.5, picture.shape[1] - 0.5), ylim=(picture.shape[0] - 0.5, -0.5))
    return figure
