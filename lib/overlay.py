"""Tracked hands drawn on the pictures of a recording."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8

from lib.cameras import PosedCamera
from lib.files import MM, write_atomically
from lib.hands import SKELETON_EDGES
from lib.recordings import Recording
from lib.tracking import Tracks

HAND_COLORS = ("#D55E00", "#56B4E9")
"""Left vermilion, right sky blue (Okabe & Ito's colours for the colour-blind)."""
_SUBPIXEL_BITS, _THICKNESS = 4, 2


def draw_hand(
    picture: UInt8[np.ndarray, "height width 3"],
    camera: PosedCamera,
    landmarks_world: Float[np.ndarray, "21 3"],
    color: str,
) -> None:
    """Draw the skeleton of a hand (m, world) into an RGB picture; landmarks behind the camera are left out.

    The color is hexadecimal, "#RRGGBB".
    """
    rgb = tuple(bytes.fromhex(color[1:]))
    points = torch.from_numpy(landmarks_world).double()
    pixels = camera.project(points)
    near = camera.to_camera(points)[..., 2] > 0
    fixed = (pixels * 2**_SUBPIXEL_BITS).round().int().tolist()
    for start, end in SKELETON_EDGES:
        if near[start] and near[end]:
            cv2.line(picture, fixed[start], fixed[end], rgb, _THICKNESS, cv2.LINE_AA, _SUBPIXEL_BITS)
    for point, visible in zip(fixed, near.tolist(), strict=True):
        if visible:
            cv2.circle(picture, point, (_THICKNESS + 1) << (_SUBPIXEL_BITS - 1), rgb, -1, cv2.LINE_AA, _SUBPIXEL_BITS)


def overlay_frames(recording: Recording, tracks: Tracks) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    """The views of every frame side by side, with the tracked hands in colour."""
    for frame, images in enumerate(recording.images()):
        views = []
        for index, image in enumerate(images):
            picture = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
            for hand, color in enumerate(HAND_COLORS):
                if tracks.valid_tracking[hand, frame]:
                    draw_hand(
                        picture, recording.cameras(frame)[index], tracks.tracked_keypoints[hand, frame] / MM, color
                    )
            views.append(picture)
        yield np.concatenate(views, axis=1)


def write_overlay(recording: Recording, tracks: Tracks, path: Path) -> None:
    """Write `overlay_frames` as an H.264 video at the recording's rate, under its final name only when complete."""
    rate = recording.frames_per_second
    write_atomically(path, lambda temporary: write_video(temporary, overlay_frames(recording, tracks), rate))


def write_video(path: Path, frames: Iterator[UInt8[np.ndarray, "height width 3"]], rate: float) -> None:
    """Encode RGB frames as H.264 (yuv420p, which every player shows; of odd sides the last pixel is lost).

    `rate` is in frames per second.
    """
    exact = Fraction(rate).limit_denominator(1001)  # 29.97 Hz are 30000 / 1001
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=exact, options={"crf": "20", "preset": "veryfast"})
        stream.pix_fmt = "yuv420p"
        for index, frame in enumerate(frames):
            height, width = (size // 2 * 2 for size in frame.shape[:2])
            if index == 0:
                stream.height, stream.width = height, width
            even = np.ascontiguousarray(frame[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        container.mux(stream.encode())
