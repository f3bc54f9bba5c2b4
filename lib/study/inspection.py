"""A tour of a dataset of any layout: what is in it, counted and drawn (notebook 01, Table 1)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure

from lib.crops import make_crops, sees_hand
from lib.errors import InputError
from lib.files import MM
from lib.formats.folders import RecordingName, find_recordings
from lib.hands import FINGERS, HANDS, NUM_FINGER_JOINTS, SKELETON_EDGES, WRIST
from lib.metrics import pinch_distance
from lib.overlay import HAND_COLORS
from lib.recordings import Recording, read_recording
from lib.rendered.dataset import PROFILES, sequence_keys
from lib.study import paper
from lib.study.figures.style import PAGE_WIDTH
from lib.tracking import true_keypoints
from lib.transforms import acceleration

SHOWN_PROTOCOLS = ("separate_hand", "hand_hand", "occlusion")
_DISPLAY_GAMMA, _GAP_PX, _STRIP_WIDTH = 1.6, 3, 891
JOINT_NAMES = tuple(
    f"{finger} {joint}"
    for finger in FINGERS
    for joint in (
        ("CMC flexion", "CMC abduction", "MCP", "IP") if finger == "thumb" else ("abduction", "MCP", "PIP", "DIP")
    )
)

RENDERED, CAPTURED = "rendered", "captured clip"
_DATASET_COLORS = {RENDERED: "0.4", CAPTURED: "#CC79A7"}


def datasets_table(rendered_frames: int) -> pd.DataFrame:
    """Table 1: the paper's rows, and our rendered dataset with its frames as counted."""
    ours = ("rendered by this study", rendered_frames, True, True, True, False, True, True)
    return pd.DataFrame([*paper.TABLE_1, ours], columns=paper.TABLE_1_COLUMNS)


def rendered_frames(profile: str, recordings: Sequence[Recording]) -> tuple[int, int]:
    """Frames to train on, none of data of one's own, and frames of the recordings."""
    keys = sequence_keys(PROFILES[profile], "train") if profile in PROFILES else []
    return sum(key.frames for key in keys), sum(len(recording) for recording in recordings)


def read_labelled(folder: Path) -> list[Recording]:
    """The recordings below a folder that have labels, a hand and pictures: those that can be counted and shown.

    Raises InputError if there is none.
    """
    found = [read_recording(path) for path in find_recordings(folder)]
    kept = [r for r in found if r.labelled.any() and r.hand_model is not None and r.pictures is not None]
    if not kept:
        raise InputError(f"none of {len(found)} recordings below {folder} has labels and a hand_model")
    return kept


def by_protocol(recordings: Iterable[Recording]) -> dict[str, list[Recording]]:
    """Recordings of each protocol, those of the study first."""
    found: dict[str, list[Recording]] = {}
    for recording in recordings:
        found.setdefault(RecordingName.of(recording.path).protocol, []).append(recording)
    return {name: found[name] for name in dict.fromkeys((*SHOWN_PROTOCOLS, *sorted(found))) if name in found}


def instance_properties(recordings: Iterable[Recording]) -> pd.DataFrame:
    """One row per labelled hand and frame: where it is, how it moves, who sees it.

    Columns: protocol, user, recording, frame, hand, views, distance_m (wrist to the mean of the cameras), speed_m_s
    (of the wrist, since the frame before), jitter_mm (MPJPA of the label), pinch, pinch_distance_mm. Speed and jitter
    are NaN where a neighbouring frame that they need is missing or not labelled.
    """
    return pd.concat([_properties(recording) for recording in recordings], ignore_index=True)


def _properties(recording: Recording) -> pd.DataFrame:
    landmarks = torch.from_numpy(true_keypoints(recording)) / MM
    frames = len(recording)
    views = torch.stack([sees_hand(recording.cameras(t), landmarks[:, t]).sum(dim=1) for t in range(frames)], dim=1)
    wrist = landmarks[:, :, WRIST]
    distance = (wrist - recording.world_from_camera[:, :, :3, 3].mean(dim=1)).norm(dim=-1)
    speed = torch.diff(wrist, dim=1, prepend=wrist[:, :1] * torch.nan).norm(dim=-1) * recording.frames_per_second
    jitter = torch.nn.functional.pad(acceleration(landmarks, dim=1).norm(dim=-1).mean(dim=-1), (1, 1), value=torch.nan)
    pinch = torch.zeros(frames, HANDS, dtype=torch.bool) if recording.pinch is None else recording.pinch
    columns = {
        "views": views,
        "distance_m": distance,
        "speed_m_s": speed,
        "jitter_mm": jitter * MM,
        "pinch": pinch.T,
        "pinch_distance_mm": torch.from_numpy(pinch_distance(landmarks.numpy())) * MM,
    }
    table = pd.DataFrame({name: values.flatten().numpy() for name, values in columns.items()})
    table.insert(0, "hand", np.repeat(np.arange(HANDS), frames))
    table.insert(0, "frame", np.tile(np.arange(frames), HANDS))
    table.insert(0, "recording", recording.path.stem)
    name = RecordingName.of(recording.path)
    table.insert(0, "user", name.user)
    table.insert(0, "protocol", name.protocol)
    return table[recording.labelled.T.flatten().numpy()]


def protocol_summary(frames: pd.DataFrame) -> pd.DataFrame:
    """Counts and medians of `instance_properties` by protocol."""
    named = frames.assign(recording=frames.user + "/" + frames.recording, two_views=100.0 * (frames.views >= 2))
    return named.groupby("protocol").agg(
        users=("user", "nunique"),
        recordings=("recording", "nunique"),
        instances=("frame", "size"),
        two_views_percent=("two_views", "mean"),
        median_distance_m=("distance_m", "median"),
        median_speed_m_s=("speed_m_s", "median"),
        label_mpjpa=("jitter_mm", "mean"),
        pinch_frames=("pinch", "sum"),
    )


def joint_angles(recordings: Iterable[Recording]) -> Float[np.ndarray, "instances 20"]:
    """Finger joint angles of every labelled hand and frame, rad."""
    return np.concatenate([r.joint_angles[r.labelled][:, :NUM_FINGER_JOINTS].numpy() for r in recordings])


def joint_velocities(recordings: Iterable[Recording]) -> Float[np.ndarray, "instances 20"]:
    """Change of the finger joint angles between labelled neighbouring frames, rad/s."""
    velocities = []
    for recording in recordings:
        both = recording.labelled[1:] & recording.labelled[:-1]
        change = torch.diff(recording.joint_angles, dim=0)[both][:, :NUM_FINGER_JOINTS]
        velocities.append(change.numpy() * recording.frames_per_second)
    return np.concatenate(velocities)


def frame_sheet(
    recordings: Sequence[Recording], rows: int, columns: int, seed: int
) -> UInt8[np.ndarray, "height width"]:
    """Random frames, all views, two of each recording, reduced to 35 % or more and brightened, in a grid."""
    strips = [
        _reduced(np.concatenate(images, axis=1))
        for _, _, images in itertools.islice(_random_frames(recordings, seed, per_recording=2), rows * columns)
    ]
    brightened = (255 * (np.arange(256) / 255) ** (1 / _DISPLAY_GAMMA)).round().astype(np.uint8)
    return _grid([brightened[strip] for strip in strips], columns)


def _reduced(strip: UInt8[np.ndarray, "height width"]) -> UInt8[np.ndarray, "rows columns"]:
    scale = min(0.35, _STRIP_WIDTH / strip.shape[1])
    return cv2.resize(strip, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def crop_sheet(
    recordings: Sequence[Recording], rows: int, columns: int, seed: int
) -> UInt8[np.ndarray, "height width"]:
    """Random crops as the network receives them, at most one of each randomly drawn frame, in a grid."""
    return _grid(list(itertools.islice(_random_crops(recordings, seed), rows * columns)), columns)


def _random_frames(
    recordings: Sequence[Recording], seed: int, per_recording: int
) -> Iterator[tuple[Recording, int, UInt8[np.ndarray, "cameras height width"]]]:
    """Frames drawn at random, some of each recording in turn (a video is decoded from its start), without end."""
    generator = np.random.default_rng(seed)
    while True:
        for index in generator.permutation(len(recordings)):
            recording = recordings[index]
            drawn = generator.choice(len(recording), min(per_recording, len(recording)), replace=False)
            for frame, images in enumerate(itertools.islice(recording.images(), int(drawn.max()) + 1)):
                if frame in drawn:
                    yield recording, frame, images


def _random_crops(recordings: Sequence[Recording], seed: int) -> Iterator[UInt8[np.ndarray, "size size"]]:
    generator = np.random.default_rng(seed)
    for recording, frame, images in _random_frames(recordings, seed, per_recording=4):
        posed = recording.hands(frame)
        hands, crops = make_crops(images, recording.cameras(frame), recording.mounting_angles, posed, min_views=1)
        if len(hands):
            yield (255 * crops.images[generator.integers(len(hands)), 0]).round().byte().numpy()


def _grid(pictures: Sequence[UInt8[np.ndarray, "height width"]], columns: int) -> UInt8[np.ndarray, "rows columns"]:
    """Pictures in rows, with white gaps between them; smaller ones are white up to the size of the largest."""
    height, width = (max(picture.shape[axis] for picture in pictures) + _GAP_PX for axis in (0, 1))
    padded = [
        np.pad(picture, ((0, height - len(picture)), (0, width - picture.shape[1])), constant_values=255)
        for picture in pictures
    ]
    rows = [np.concatenate(padded[start : start + columns], axis=1) for start in range(0, len(padded), columns)]
    return np.concatenate(rows)[:-_GAP_PX, :-_GAP_PX]


def reprojection_figure(recording: Recording) -> Figure:
    """The labelled hands of a recording in the pictures of its cameras, at its beginning, its middle and its end."""
    sizes = recording.cameras(0).camera.size_px.tolist()
    figure, axes = plt.subplots(1, len(sizes), figsize=(PAGE_WIDTH, 3.0), squeeze=False)
    for frame, shade in ((0, 0.25), (len(recording) // 2, 0.55), (len(recording) - 1, 1.0)):
        hands = recording.hands(frame)
        pixels = recording.cameras(frame)[:, None].project(hands.landmarks()[None])
        for view, (panel, (width, height)) in enumerate(zip(axes[0], sizes, strict=True)):
            panel.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), aspect="equal", xlabel=f"camera {view} (px)")
            for hand in hands.exists.nonzero()[:, 0].tolist():
                for start, end in SKELETON_EDGES:
                    line = pixels[view, hand, [start, end]]
                    panel.plot(*line.T, color=HAND_COLORS[hand], alpha=shade, linewidth=1.2)
    return figure


def joint_figure(angles: Mapping[str, Float[np.ndarray, "instances 20"]], limits: Float[np.ndarray, "22 2"]) -> Figure:
    """Histograms of every finger joint's angle, one line per dataset, as high as each other; its limits shaded."""
    figure, grid = plt.subplots(5, 4, figsize=(PAGE_WIDTH, 6.4))
    for joint, axes in enumerate(grid.flat):
        low, high = np.degrees(limits[joint])
        axes.axvspan(low, high, color="0.92", zorder=0)
        bins = np.linspace(low - 10, high + 10, 40)
        for name, values in angles.items():
            counts, _ = np.histogram(np.degrees(values[:, joint]), bins)
            axes.stairs(counts / max(counts.max(), 1), bins, label=name, color=_DATASET_COLORS[name])
        axes.set_title(JOINT_NAMES[joint], pad=2)
        axes.set_yticks([])
    for axes in grid[-1]:
        axes.set_xlabel("angle (°)")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def motion_figure(frames: pd.DataFrame, velocities: Mapping[str, Float[np.ndarray, "instances 20"]]) -> Figure:
    """Views per hand, distance, speed, joint velocity, label jitter and pinch distance, by protocol."""
    figure, grid = plt.subplots(2, 3, figsize=(PAGE_WIDTH, 3.8))
    by_protocol = [(protocol, frames[frames.protocol == protocol]) for protocol in sorted(set(frames.protocol))]
    views = np.arange(5)
    for offset, (protocol, rows) in enumerate(by_protocol):
        share = 100 * np.bincount(rows.views, minlength=5)[:5] / len(rows)
        grid[0, 0].bar(
            views + 0.25 * (offset - (len(by_protocol) - 1) / 2), share, 0.25, label=protocol.replace("_", "-")
        )
    grid[0, 0].set(xlabel="cameras that see a hand", ylabel="hand instances (%)", xticks=views)
    for axes, column, label, top in (
        (grid[0, 1], "distance_m", "wrist to headset (m)", 0.9),
        (grid[0, 2], "speed_m_s", "speed of the wrist (m/s)", 2.0),
        (grid[1, 0], "jitter_mm", "true acceleration (mm/frame²)", 20.0),
        (grid[1, 1], "pinch_distance_mm", "thumb tip to index tip (mm)", 200.0),
    ):
        bins = np.linspace(0, top, 50)
        for _, rows in by_protocol:
            axes.hist(rows[column].dropna(), bins, density=True, histtype="step")
        axes.set(xlabel=label, yticks=[], ylabel="density")
    bins = np.linspace(-20, 20, 80)
    for name, values in velocities.items():
        grid[1, 2].hist(values.ravel(), bins, density=True, histtype="step", label=name, color=_DATASET_COLORS[name])
    grid[1, 2].set(xlabel="velocity of the finger joints (rad/s)", yscale="log", ylabel="density")
    grid[1, 2].legend(frameon=False, handlelength=1.0)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return figure
