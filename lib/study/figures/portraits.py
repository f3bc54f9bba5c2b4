"""Pictures of the hand alone, in a studio: our own renderer, a long lens, soft light and a white background."""

from __future__ import annotations

from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lib.cameras import Fisheye62
from lib.hands import LEFT, NUM_BONES, NUM_FINGER_JOINTS, HandModel
from lib.rendered.backgrounds import SIZE, Environment
from lib.rendered.bodies import SHEET_BONE, Look, assemble, textures
from lib.rendered.contact import Capsules
from lib.rendered.lighting import Lighting, sky_directions
from lib.rendered.pinches import solve_pinches
from lib.rendered.postures import POSTURES, posture_angles
from lib.rendered.raster import pose_frame, render_view
from lib.rendered.scene import Rig, Scene
from lib.rendered.sensor import Sensor
from lib.rendered.shape import TEST_USERS, generic_hand, user_hand, user_scale, vertex_albedo
from lib.study.figures.style import PAGE_WIDTH, show_picture
from lib.study.inspection import JOINT_NAMES
from lib.transforms import homogeneous

View = Literal["back", "palm", "thumb side", "little finger side", "oblique"]
_FROM = {
    "back": (0.0, 1.0, 0.0),
    "palm": (0.0, -1.0, 0.0),
    "thumb side": (0.0, 0.0, 1.0),
    "little finger side": (0.0, 0.0, -1.0),
    "oblique": (0.15, -0.75, 0.65),
}
"""Where the camera stands, in the rest frame of the left hand."""
_DISTANCE = 3.0
_WRIST_MARGIN = 0.025
"""How much of the arm is shown below the wrist (m)."""
_BARE = Look(skin_albedo=0.62, gloss=0.06, blotches=0.03, creases=0.05, cuff=-0.4,
             cloth_albedo=0.5, cloth_stripes=0.0, seed=1)  # fmt: skip
_NOISELESS = Sensor(shutter=0.0, vignetting=0.0, shot_noise=0.0, read_noise=1e-9, contrast=0.0)
_KEY, _SKY = 2.3, 0.2
"""Irradiance of the key light and of each direction of the soft light around; the background is white."""


def portrait(
    hand: HandModel, joint_angles: Float[Tensor, "22"], view: View, size: int = 400, field: float = 0.23
) -> UInt8[np.ndarray, "size size"]:
    """The left hand with its bare arm, fingers up, in a square `field` metres wide.

    All portraits of one field have one scale. Source: spec synthetic_data.md, "Hand".
    """
    scene = _studio(hand.to(dtype=torch.float64), joint_angles.double(), view, size, field)
    return render_view(scene, pose_frame(scene, 0), 0)


def _studio(hand: HandModel, joint_angles: Tensor, view: View, size: int, field: float) -> Scene:
    """A scene of one frame; the world is the rest frame of the hand, whose bones the arm continues straight."""
    world_from_camera = _world_from_camera(view, field)
    lens = torch.full((4, 2), size * _DISTANCE / field, dtype=torch.float64)
    center = torch.full((4, 2), (size - 1) / 2, dtype=torch.float64)
    camera = Fisheye62(size, size, lens, center, torch.zeros(4, 8, dtype=torch.float64))
    mesh = assemble(hand, vertex_albedo(), _BARE, None)
    bones = np.tile(np.eye(4)[:3], (1, SHEET_BONE + 1, 1, 1))
    bones[0, :NUM_BONES] = hand.bones(joint_angles, torch.eye(4, dtype=torch.float64))[:, :3].numpy()
    drawn = np.zeros((1, len(mesh.vertex_offsets) - 1), bool)
    drawn[:, [LEFT, LEFT + 2]] = True
    key = world_from_camera[:3, :3].numpy() @ (-0.35, -0.4, -0.85)
    directions = np.concatenate((key[None], sky_directions()))
    irradiance = np.append(_KEY, np.full(len(directions) - 1, _SKY))
    return Scene(
        Rig(camera, world_from_camera.expand(4, 4, 4)), mesh, Environment(np.full((SIZE + 2, SIZE + 2), 255, np.uint8)),
        Lighting(directions[None], irradiance[None]), _NOISELESS, textures(), bones, drawn,
        torch.linalg.inv(world_from_camera)[:3].expand(1, 4, 3, 4).contiguous().numpy(), np.ones(1), seed=0,
    )  # fmt: skip


def _world_from_camera(view: View, field: float) -> Float[Tensor, "4 4"]:
    """A camera far off that looks at the middle of the shown square, the resting fingers pointing up."""
    towards = torch.nn.functional.normalize(torch.tensor(_FROM[view], dtype=torch.float64), dim=0)
    fingers = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    right = torch.nn.functional.normalize(torch.linalg.cross(fingers, towards), dim=0)
    rotation = torch.stack((right, torch.linalg.cross(right, towards), -towards), dim=1)
    middle = torch.tensor([field / 2 - _WRIST_MARGIN, -0.01, 0.008], dtype=torch.float64)
    return homogeneous(rotation, middle + _DISTANCE * towards)


def hand_figure() -> Figure:
    """The mean hand: at rest from four sides, and four postures."""
    hand, rest = generic_hand(), torch.zeros(22)
    views = ("back", "palm", "thumb side", "little finger side")
    pictures = {f"at rest, {view}": portrait(hand, rest, view) for view in views}
    for name in ("open", "fist", "point"):
        pictures[name] = portrait(hand, _posture(name), "oblique")
    pictures["pinch"] = portrait(hand, pinch_angles(hand), "oblique")
    figure, grid = plt.subplots(2, 4, figsize=(PAGE_WIDTH, 3.9))
    for axes, (title, picture) in zip(grid.flat, pictures.items(), strict=True):
        _show(axes, picture, title)
    return figure


def limits_figure() -> Figure:
    """Each finger joint of the mean hand at its lower and its upper limit, all other joints at rest."""
    hand = generic_hand()
    figure, grid = plt.subplots(5, 8, figsize=(PAGE_WIDTH, 5.6), layout="constrained")
    for joint in range(NUM_FINGER_JOINTS):
        row, column = divmod(joint, 4)
        view: View = "back" if "abduction" in JOINT_NAMES[joint] else "oblique"
        for axes, limit in zip(grid[row, 2 * column :][:2], hand.joint_limits[joint], strict=True):
            angles = torch.zeros(22)
            angles[joint] = limit
            _show(axes, portrait(hand, angles, view, field=0.215))
            axes.text(0.98, 0.02, f"{torch.rad2deg(limit):.0f}°", transform=axes.transAxes, ha="right", fontsize=7)
        grid[row, 2 * column].set_title(JOINT_NAMES[joint], loc="left")
    figure.get_layout_engine().set(w_pad=0.0, wspace=0.0)
    return figure


def users_figure(users: tuple[int, ...] = tuple(TEST_USERS)[::2]) -> Figure:
    """Users side by side at one scale, from the smallest to the largest hand, with the scale of each."""
    figure, row = plt.subplots(1, len(users), figsize=(PAGE_WIDTH, 1.7))
    for axes, user in zip(row, sorted(users, key=user_scale), strict=True):
        picture = portrait(user_hand(user), _posture("open"), "back", field=0.25)
        _show(axes, picture, f"user {user}: {user_scale(user):.2f}")
    return figure


def _show(axes: Axes, picture: UInt8[np.ndarray, "size size"], title: str = "") -> None:
    show_picture(axes, picture, title)
    axes.images[0].set_interpolation("auto")  # smooth where the page has fewer pixels than the picture


def pinch_angles(hand: HandModel) -> Float[Tensor, "22"]:
    """A pinch: fingertips of thumb and index touching, the other fingers relaxed."""
    prior = posture_angles(POSTURES["ring"])[None]
    angles = solve_pinches(Capsules.of(hand), prior, np.array([0.005]), np.array([True]))[0]
    return torch.from_numpy(np.pad(angles, (0, 2)))


def _posture(name: str) -> Float[Tensor, "22"]:
    return torch.from_numpy(np.pad(posture_angles(POSTURES[name]), (0, 2)))
