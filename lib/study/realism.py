"""Do the rendered hands look like hands to a detector that has seen photographs only?

`python -m lib.study.realism DIR OUT.npz` cuts views of hands out of the test recordings below DIR. Any detector can
be asked about them; it is no dependency of the study. With MediaPipe (in an environment of its own: it wants another
NumPy), where a hand counts as found if it is found in any of the four quarter turns of its view:

    views = numpy.load("OUT.npz")
    detector = mediapipe.solutions.hands.Hands(static_image_mode=True, max_num_hands=1, min_detection_confidence=0.5)
    found = [any(detector.process(numpy.stack([numpy.rot90(picture, turn)] * 3, axis=-1)).multi_hand_landmarks
                 for turn in range(4)) for picture in views["pictures"]]
    numpy.save("FOUND.npy", found)

`realism_table` counts the outcome. Source: spec synthetic_data.md, "Picture".
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Float32, UInt8
from torch import Tensor

from lib.cameras import PosedCamera
from lib.crops import crop_cameras, warp
from lib.errors import InputError
from lib.files import MM, read_json, write_atomically
from lib.formats.checks import json_array
from lib.formats.folders import RecordingName, find_recordings
from lib.hands import LEFT, RIGHT, for_hand
from lib.recordings import Recording, read_recording

VIEW_SIZE = 224
SHARE_OF_VIEW = 0.5
"""The view is twice as wide as the hand."""
COLUMNS = ("protocol", "user", "recording", "frame", "camera", "hand")
"""Where a view comes from."""
ARM_RADIUS = 0.045
"""Of a forearm in its sleeve (m)."""
LENS_RANGE = -0.3
"""Cosine of the largest angle from the optical axis at which the lens forms an image."""


def detector_views(
    recordings: Sequence[Recording], count: int, seed: int
) -> tuple[UInt8[np.ndarray, "views size size"], pd.DataFrame]:
    """Rectified views of `count` hands, or of all there are, that are wholly in the picture and unoccluded.

    At most one view of a frame, as many of each recording as of any other as long as they last. Right hands are not
    mirrored. The table has `COLUMNS`. Raises InputError if there is none.
    """
    candidates = [_whole_views(source, recording, seed) for source, recording in enumerate(recordings)]
    turns = (row for turn in itertools.zip_longest(*candidates) for row in turn if row is not None)
    views = pd.DataFrame(itertools.islice(turns, count), columns=["source", *COLUMNS])
    if views.empty:
        raise InputError("no recording shows a whole and unoccluded hand: render more of them")
    views = views.sort_values("source", kind="stable")
    pictures = [_pictures(recordings[source], rows) for source, rows in views.groupby("source")]
    return np.concatenate(pictures), views[list(COLUMNS)].reset_index(drop=True)


def _whole_views(source: int, recording: Recording, seed: int) -> Iterator[tuple]:
    """One random whole and unoccluded view of each frame that has any, in random order: `source` and `COLUMNS`."""
    generator = np.random.default_rng((seed, source))
    labels = read_json(recording.path.with_suffix(".json"))
    occluder, elbows = (
        json_array(labels, name, shape) for name, shape in (("sheet", (None,)), ("elbows", (None, 2, 3)))
    )
    name = RecordingName.of(recording.path)
    for frame in generator.permutation(len(recording)):
        options = whole_in_frame(recording, int(frame), elbows[frame] / MM).nonzero().tolist()
        if options and not (len(occluder) and occluder[frame]):
            hand, camera = options[generator.integers(len(options))]
            yield source, name.protocol, name.user, name.recording, frame, camera, hand


def whole_in_frame(recording: Recording, frame: int, elbows: Float[Tensor, "2 3"]) -> Bool[Tensor, "2 cameras"]:
    """Which hands are wholly in which pictures, clear of the other hand, its forearm and what their own arm hides.

    `elbows` in metres in the world. Hands and forearms count as the convex outlines of their images.
    """
    cameras, labelled = recording.cameras(frame), recording.labelled[frame]
    meshes, wrists = _meshes(recording, frame), recording.world_from_wrist[frame, :, :3, 3]
    arms = [_forearm(wrists[hand], elbows[hand]) for hand in (LEFT, RIGHT)]
    whole = labelled[:, None] & cameras[None].sees(meshes[:, None, _beyond_wrist(recording)]).all(dim=-1)
    for hand, other in ((LEFT, RIGHT), (RIGHT, LEFT)):
        shown = meshes[hand, _beyond_wrist(recording)]
        nearer = _distance(cameras, arms[hand]) < _distance(cameras, shown)
        whole[hand] &= ~(nearer & _overlap(cameras, shown, arms[hand]))
        if labelled[other]:
            whole[hand] &= ~_overlap(cameras, shown, meshes[other]) & ~_overlap(cameras, shown, arms[other])
    return whole


def _overlap(
    cameras: PosedCamera, first: Float[Tensor, "points 3"], second: Float[Tensor, "others 3"]
) -> Bool[Tensor, "cameras"]:
    """Whether the convex outlines of the images of two sets of points overlap, camera by camera."""
    pairs = zip(_outlines(cameras, first), _outlines(cameras, second), strict=True)
    return torch.tensor([len(a) > 2 and len(b) > 2 and cv2.intersectConvexConvex(a, b)[0] > 0 for a, b in pairs])


def _outlines(cameras: PosedCamera, points: Float[Tensor, "points 3"]) -> list[Float32[np.ndarray, "corners 1 2"]]:
    """Convex outlines of the images of the points that the lens can show."""
    points = cameras.to_camera(points)
    shown = points[..., 2] > LENS_RANGE * points.norm(dim=-1)
    pixels = cameras.camera[:, None].project(points).float()
    return [
        cv2.convexHull(p[s].numpy()) if s.any() else np.zeros((0, 1, 2), np.float32)
        for p, s in zip(pixels, shown, strict=True)
    ]


def _distance(cameras: PosedCamera, points: Float[Tensor, "points 3"]) -> Float[Tensor, "cameras"]:
    return cameras.to_camera(points).norm(dim=-1).mean(dim=-1)


def _forearm(wrist: Float[Tensor, "3"], elbow: Float[Tensor, "3"]) -> Float[Tensor, "points 3"]:
    """Points around a forearm with its sleeve, from behind the wrist to the elbow."""
    along = wrist + torch.linspace(0.25, 1.0, 6, dtype=torch.float64)[:, None] * (elbow - wrist)
    around = torch.cat((torch.eye(3), -torch.eye(3))).double() * ARM_RADIUS
    return (along[:, None] + around).flatten(0, 1)


def _beyond_wrist(recording: Recording) -> Bool[Tensor, "vertices"]:
    return recording.hand_model.mesh_vertices[:, 0] > 0


def _meshes(recording: Recording, frame: int) -> Float[Tensor, "2 vertices 3"]:
    """Both hands' vertices in the world."""
    world_from_wrist = for_hand(recording.world_from_wrist[frame], torch.tensor([LEFT, RIGHT]))
    return recording.hand_model.mesh(recording.joint_angles[frame], world_from_wrist)


def _pictures(recording: Recording, views: pd.DataFrame) -> UInt8[np.ndarray, "views size size"]:
    """Rectified views of a recording, upright as the headset is, in the order of the rows."""
    pictures = {}
    for frame, images in enumerate(recording.images()):
        for row in views[views.frame == frame].itertuples():
            pictures[row.Index] = _rectified(recording, frame, row.camera, row.hand, images[row.camera])
    return np.stack([pictures[index] for index in views.index])


def _rectified(
    recording: Recording, frame: int, camera: int, hand: int, image: UInt8[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "size size"]:
    """The picture of a pinhole camera that looks at a hand from where a camera stands."""
    source = recording.cameras(frame)[[camera]]
    points = _meshes(recording, frame)[[hand]][:, _beyond_wrist(recording)]
    mounting_angle = recording.mounting_angles[[camera]]
    view, _ = crop_cameras(source, points, torch.tensor([LEFT]), mounting_angle, SHARE_OF_VIEW, VIEW_SIZE)
    return warp([image], source, view[0])[0]


def realism_table(
    views: pd.DataFrame, found: Bool[np.ndarray, "views"], detector: str, confidence: float
) -> pd.DataFrame:
    """How many of the views a detector answered, by protocol and overall."""
    by_protocol = pd.concat((views.assign(found=found), views.assign(found=found, protocol="all"))).groupby("protocol")
    table = by_protocol.found.agg(views="size", detected="sum").reset_index()
    table["detected_percent"] = (100 * table.detected / table.views).round(1)
    return table.assign(detector=detector, confidence=confidence)


def score() -> None:
    parser = argparse.ArgumentParser(prog="python -m lib.study.realism", description="Views for a hand detector.")
    parser.add_argument("folder", type=Path, help="dataset with test recordings")
    parser.add_argument("output", type=Path, help=".npz of the pictures and where each comes from")
    parser.add_argument("--count", type=int, default=540, help="views (default: 540)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    recordings = [read_recording(video) for video in find_recordings(options.folder)]
    pictures, views = detector_views(recordings, options.count, options.seed)
    columns = {name: views[name].to_numpy(str if views[name].dtype.kind in "OU" else None) for name in views}
    write_atomically(options.output, lambda temporary: np.savez_compressed(temporary, pictures=pictures, **columns))


if __name__ == "__main__":
    score()
