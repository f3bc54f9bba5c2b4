"""Tracked hands drawn on the pictures: Figures 5 and 6."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import torch
from jaxtyping import UInt8
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.ticker import MultipleLocator

from lib.cameras import PosedCamera
from lib.crops import crop_cameras, warp
from lib.files import MM
from lib.hands import LEFT
from lib.overlay import HAND_COLORS, draw_hand
from lib.recordings import FRAMES_PER_SECOND, Recording, read_recording
from lib.study.claims import OCCLUDED
from lib.study.figures.plots import METHOD_COLORS, METHOD_NAMES, error_over_time, named, seconds, shade_spans
from lib.study.figures.style import PAGE_WIDTH, TRUE_COLOR, show_picture
from lib.study.predictions import AllPredictions, Predictions, TrackedSequence

PICTURE_SIZE = 240


def qualitative_figure(predictions: Predictions, data_folder: Path, columns: int = 8) -> Figure:
    """Figure 5: randomly drawn pictures of separate hands and, below, of two hands together, tracked and plain."""
    generator = np.random.default_rng(0)
    figure, grid = plt.subplots(4, columns, figsize=(PAGE_WIDTH, 4 * PAGE_WIDTH / columns))
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    for rows, protocol in zip((grid[:2], grid[2:]), ("separate_hand", "hand_hand"), strict=True):
        sequences = predictions.only(protocol=protocol).sequences
        for column, index in zip(rows.T, np.resize(generator.permutation(len(sequences)), columns), strict=True):
            tracked = sequences[index]
            hand, frame = generator.choice(np.argwhere(tracked.valid)).tolist()
            recording = read_recording(video_of(data_folder, tracked.name))
            picture, camera = picture_of(recording, next(recording.images(start=frame)), tracked, frame, hand)
            for axes, shown in zip(column, (with_hands(picture, camera, tracked, frame), picture), strict=True):
                show_picture(axes, shown)
    return figure


def occlusion_figure(predictions: AllPredictions, data_folder: Path, sequence: str | None = None) -> Figure:
    """Figure 6: a hand behind an occluder, tracked with and without the temporal module; green is where it is.

    Pictures and the error over time are those of one sequence, by default the one in which the temporal module helps
    most; the last panel is the mean over all occlusion sequences around the middle of each passage.
    """
    with_module, without = (predictions[method, "known"].only(protocol="occlusion") for method in OCCLUDED)
    gains = {(s.name, hand): _gain(s, named(without, s.name), hand) for s in with_module.sequences for hand in range(2)}
    best, hand = max((case for case in gains if sequence in (None, case[0])), key=gains.get)
    pair = [named(predicted, best) for predicted in (with_module, without)]
    first, last = np.flatnonzero(pair[0].occluder)[[0, -1]]
    frames = np.linspace(first - 5, last + 5, 5).round().astype(int).clip(0, len(pair[0].occluder) - 1)
    figure = plt.figure(figsize=(PAGE_WIDTH, 4.7))
    upper, lower = figure.add_gridspec(2, 1, height_ratios=(2.0, 1.0))
    _occlusion_pictures(figure, upper, pair, read_recording(video_of(data_folder, best)), frames.tolist(), hand)
    left, right = (figure.add_subplot(cell) for cell in lower.subgridspec(1, 2, width_ratios=(1.4, 1)))
    for predicted, tracked, method in zip((with_module, without), pair, OCCLUDED, strict=True):
        error, color = error_over_time(tracked, hand), METHOD_COLORS[method]
        left.plot(seconds(error), error, color=color, lw=1.2, label=METHOD_NAMES[method])
        right.plot(*_around_passage(predicted), color=color, lw=1.2)
    left.plot(seconds(error)[frames], np.zeros(5), "^", color="black", ms=4, clip_on=False, label="times of the images")
    shade_spans(left, pair[0].occluder, "occluder passes")
    left.plot([], [], color=TRUE_COLOR, lw=1.2, label="ground truth (in the images)")
    left.set(title="the hand above", xlabel="time (s)", ylabel="error (mm)", ylim=(0, None))
    count = len(with_module.sequences)
    right.set(title=f"mean of {count} recordings", xlabel="time from the middle of the passage (s)", ylim=(0, None))
    right.xaxis.set_major_locator(MultipleLocator(0.5))
    figure.legend(loc="outside lower center", ncols=5, frameon=False)
    return figure


def _occlusion_pictures(
    figure: Figure,
    cell: SubplotSpec,
    pair: Sequence[TrackedSequence],
    recording: Recording,
    frames: Sequence[int],
    hand: int,
) -> None:
    """A hand in some frames, a row for each method."""
    rows = cell.subgridspec(2, len(frames), hspace=0.02, wspace=0.02)
    for frame, images in enumerate(islice(recording.images(), frames[-1] + 1)):
        for column in np.flatnonzero(np.array(frames) == frame).tolist():
            picture, camera = picture_of(recording, images, pair[0], frame, hand)
            for row, (tracked, method) in enumerate(zip(pair, OCCLUDED, strict=True)):
                axes = figure.add_subplot(rows[row, column])
                axes.imshow(with_truth(picture, camera, tracked, frame, hand, METHOD_COLORS[method]))
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
                if row == 0:
                    axes.set_title(f"{frame / recording.frames_per_second:.2f} s")
                if column == 0:
                    axes.set_ylabel(METHOD_NAMES[method].replace(", ", "\n"))


def picture_of(
    recording: Recording,
    images: UInt8[np.ndarray, "cameras height width"],
    tracked: TrackedSequence,
    frame: int,
    hand: int,
) -> tuple[UInt8[np.ndarray, "size size"], PosedCamera]:
    """An upright picture of what surrounds a hand, twice as wide as the hand, and the pinhole camera that took it.

    In the view that sees most of the hand's landmarks, and of equals in the closest.
    """
    points, cameras = torch.from_numpy(tracked.gt_keypoints[hand, frame]).double() / MM, recording.cameras(frame)
    distance = cameras.to_camera(points).norm(dim=-1).mean(dim=-1)
    view = int((cameras.sees(points).sum(dim=-1) - distance).argmax())
    unmirrored = torch.tensor([LEFT])
    crop, _ = crop_cameras(cameras, points[None], unmirrored, recording.mounting_angles, fill=0.5, size=PICTURE_SIZE)
    chosen = slice(view, view + 1)
    return warp(images[chosen], cameras[chosen], crop[0, chosen])[0], crop[0, view]


def with_hands(
    picture: UInt8[np.ndarray, "size size"],
    camera: PosedCamera,
    tracked: TrackedSequence,
    frame: int,
) -> UInt8[np.ndarray, "size size 3"]:
    """The picture with the tracked hands drawn into it."""
    colored = cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB)
    for hand in np.flatnonzero(tracked.valid[:, frame]).tolist():
        draw_hand(colored, camera, tracked.tracked_keypoints[hand, frame] / MM, HAND_COLORS[hand])
    return colored


def with_truth(
    picture: UInt8[np.ndarray, "size size"],
    camera: PosedCamera,
    tracked: TrackedSequence,
    frame: int,
    hand: int,
    color: str,
) -> UInt8[np.ndarray, "size size 3"]:
    """The picture with one hand drawn into it where it is (green) and, if it is tracked, where it was found."""
    colored = cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB)
    drawn = [(tracked.gt_keypoints, TRUE_COLOR)]
    if tracked.valid[hand, frame]:
        drawn.append((tracked.tracked_keypoints, color))
    for landmarks, line_color in drawn:
        draw_hand(colored, camera, landmarks[hand, frame] / MM, line_color)
    return colored


def video_of(data_folder: Path, name: str) -> Path:
    """The video of a test sequence."""
    protocol, user, recording = name.split("/")
    return data_folder / "raw_data" / "synthetic" / protocol / "testing" / user / f"{recording}.mp4"


def _gain(with_module: TrackedSequence, without: TrackedSequence, hand: int) -> float:
    """How much larger the error of a hand is without the module, summed over the frames of the occluder; mm."""
    gain = error_over_time(without, hand) - error_over_time(with_module, hand)
    return float(np.nansum(gain[with_module.occluder]))


def _around_passage(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Seconds from the middle of an occluder's passage, and the mean error of all hands then."""
    errors, reach = [], 30
    for sequence in predictions.sequences:
        middle = int(np.flatnonzero(sequence.occluder).mean())
        for hand in range(2):
            padded = np.pad(error_over_time(sequence, hand), reach, constant_values=np.nan)
            errors.append(padded[middle : middle + 2 * reach + 1])
    values = np.ma.masked_invalid(errors).mean(axis=0).filled(np.nan)
    return np.arange(-reach, reach + 1) / FRAMES_PER_SECOND, values
