"""Tracked hands in motion: the two front views with the hands drawn in, and the hands in space beside them."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from lib.cameras import Pinhole, PosedCamera
from lib.files import write_atomically
from lib.hands import HANDS
from lib.overlay import HAND_COLORS, write_video
from lib.recordings import Recording, read_recording
from lib.study.figures.qualitative import video_of
from lib.study.pages.stage import frusta, stage_from_world
from lib.study.pages.viewer import track
from lib.tracking import Tracks
from lib.transforms import apply, homogeneous, invert

RECORDING = "hand_hand/user_44/recording_01"
VIEWS = (1, 2)
"""The front cameras of the rendered headset."""
HEIGHT, VIEW_WIDTH, SPACE_WIDTH = 352, 266, 268
"""Pixels: 800 in all."""
_OPACITY = 0.75
_BACKGROUND, _CAMERA_GREY = 24, (150, 150, 150)
_SUBPIXEL_BITS, _OVERSAMPLING = 4, 2
_SWING = 0.35
"""How far the viewpoint in space turns to either side in the course of the recording (rad)."""
Mesh = tuple[Float[Tensor, "vertices 3"], Int[Tensor, "triangles 3"], str]
"""Vertices (m, world), triangles wound outwards, and a colour, "#RRGGBB"."""


def write_loop(path: Path, method: str, profile: str, data_folder: Path, recording: str = RECORDING) -> None:
    """Track a recording of the test split with the known skeleton and write it as an animated WebP picture.

    Raises InputError if weights or the recording are missing.
    """
    pictures, rate = _tracked_pictures(method, profile, data_folder, recording)
    first, *others = map(Image.fromarray, pictures)
    about = {"duration": round(1000 / rate), "loop": 0, "quality": 60, "method": 4}
    write_atomically(path, lambda temporary: first.save(temporary, save_all=True, append_images=others, **about))


@dataclass(frozen=True)
class EmbeddedVideo:
    """A video that a notebook shows, and what it shows in words, for those who cannot see it."""

    mp4: bytes
    text: str

    def _repr_html_(self) -> str:
        source = f"data:video/mp4;base64,{b64encode(self.mp4).decode()}"
        return f'<video controls loop muted playsinline width="800" aria-label="{self.text}" src="{source}"></video>'

    def __repr__(self) -> str:
        return self.text


def tracked_video(method: str, profile: str, data_folder: Path, recording: str = RECORDING) -> EmbeddedVideo:
    """What `write_loop` shows as an H.264 video, to be the last value of a notebook's cell. Raises as that does."""
    pictures, rate = _tracked_pictures(method, profile, data_folder, recording)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tracked.mp4"
        write_video(path, pictures, rate)
        mp4 = path.read_bytes()
    text = f"Video: both hands of {recording} as {method} tracks them, drawn on the two front views and seen in space"
    return EmbeddedVideo(mp4, text)


def _tracked_pictures(
    method: str, profile: str, data_folder: Path, name: str
) -> tuple[Iterator[UInt8[np.ndarray, "height width 3"]], float]:
    """The pictures of a tracked recording and their number per second."""
    recording = read_recording(video_of(data_folder, name))
    (tracks,) = track(method, profile, [recording])
    return pictures_of(recording, tracks), recording.frames_per_second


def pictures_of(recording: Recording, tracks: Tracks) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    """Every frame: `VIEWS` upright with the tracked meshes, and the meshes and cameras in space. RGB."""
    stage, pyramids = stage_from_world(recording, tracks.poses), frusta(recording)
    for frame, images in enumerate(recording.images()):
        cameras = recording.cameras(frame)
        meshes = [
            (*tracks.poses.mesh(hand, frame), HAND_COLORS[hand])
            for hand in range(HANDS)
            if tracks.valid_tracking[hand, frame]
        ]
        panels = []
        for view in VIEWS:
            picture = cv2.cvtColor(images[view], cv2.COLOR_GRAY2RGB)
            draw_meshes(picture, cameras[view], meshes, _OPACITY)
            upright = np.rot90(picture, round(float(recording.mounting_angles[view]) / (np.pi / 2)))
            panels.append(cv2.resize(upright, (VIEW_WIDTH, HEIGHT), interpolation=cv2.INTER_AREA))
        space = np.full((_OVERSAMPLING * HEIGHT, _OVERSAMPLING * SPACE_WIDTH, 3), _BACKGROUND, np.uint8)
        onlooker = _onlooker(stage, 2 * np.pi * frame / len(recording))
        for pyramid in apply(cameras.world_from_camera, pyramids):
            _draw_pyramid(space, onlooker, pyramid)
        draw_meshes(space, onlooker, meshes)
        panels.append(cv2.resize(space, (SPACE_WIDTH, HEIGHT), interpolation=cv2.INTER_AREA))
        yield np.concatenate(panels, axis=1)


def _onlooker(stage: Float[Tensor, "4 4"], phase: float) -> PosedCamera:
    """A pinhole camera behind the wearer's right shoulder that looks at the hands."""
    yaw, pitch, distance = 0.65 + _SWING * np.sin(phase), 0.3, 0.76
    back = torch.tensor([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)], dtype=torch.float64)
    right = torch.nn.functional.normalize(torch.linalg.cross(back.new_tensor([0.0, 1.0, 0.0]), back), dim=0)
    down = -torch.linalg.cross(back, right)
    stage_from_camera = homogeneous(torch.stack((right, down, -back), dim=1), distance * back)
    width, height = _OVERSAMPLING * SPACE_WIDTH, _OVERSAMPLING * HEIGHT
    size = back.new_tensor([width, height])
    lens = Pinhole(width, height, size.amax().expand(2), (size - 1) / 2, back.new_zeros(0))
    return PosedCamera(lens, invert(stage) @ stage_from_camera)


def draw_meshes(
    picture: UInt8[np.ndarray, "height width 3"], camera: PosedCamera, meshes: Sequence[Mesh], opacity: float = 1.0
) -> None:
    """Draw meshes into an RGB picture, the far triangles first; those that face away are left out.

    Surfaces are the brighter the more they face the camera.
    """
    if not meshes:
        return
    parts = [_triangles_seen(camera, *mesh) for mesh in meshes]
    distance, pixels, colors = (torch.cat(values) for values in zip(*parts, strict=True))
    order = distance.argsort(descending=True)
    drawn = picture.copy()
    for triangle, color in zip(pixels[order].numpy(), colors[order].tolist(), strict=True):
        cv2.fillConvexPoly(drawn, triangle, color, cv2.LINE_AA, _SUBPIXEL_BITS)
    cv2.addWeighted(drawn, opacity, picture, 1 - opacity, 0, dst=picture)


def _triangles_seen(
    camera: PosedCamera, vertices_world: Float[Tensor, "vertices 3"], triangles: Int[Tensor, "triangles 3"], color: str
) -> tuple[Float[Tensor, "seen"], Int[Tensor, "seen 3 2"], Float[Tensor, "seen 3"]]:
    """Distance, fixed-point pixels and RGB colour of the triangles of a mesh that face the camera and lie in view."""
    points = camera.to_camera(vertices_world)
    corners = points[triangles]
    normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    middles = corners.mean(dim=1)
    facing = -torch.nn.functional.cosine_similarity(normals, middles, dim=-1)
    seen = (facing > 0) & camera.camera.sees(points)[triangles].any(dim=-1)
    pixels = (camera.camera.project(points) * 2**_SUBPIXEL_BITS).round().int()[triangles[seen]]
    rgb = facing.new_tensor([*bytes.fromhex(color[1:])])
    return middles.norm(dim=-1)[seen], pixels, (0.35 + 0.65 * facing[seen, None]) * rgb


def _draw_pyramid(
    picture: UInt8[np.ndarray, "height width 3"], camera: PosedCamera, points_world: Float[Tensor, "5 3"]
) -> None:
    """Draw the edges between a tip, which comes first, and four corners (m, world)."""
    tip, *base = (camera.project(points_world) * 2**_SUBPIXEL_BITS).round().int().numpy()
    lines = [np.stack(base), *(np.stack((tip, corner)) for corner in base)]
    cv2.polylines(picture, lines, True, _CAMERA_GREY, _OVERSAMPLING, cv2.LINE_AA, _SUBPIXEL_BITS)
