"""What the keypoint networks of the baseline see, drawn on the crops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lib.hands import HANDS, SKELETON_EDGES
from lib.multistage.hand_crops import CachedRecording
from lib.multistage.keypoints import Keypoints
from lib.multistage.sources import KeypointRequest, KeypointSource, observed
from lib.multistage.tracker import MultistageTracker
from lib.recordings import FRAMES_PER_SECOND
from lib.study.figures.style import PAGE_WIDTH, TRACKED_COLOR, TRUE_COLOR
from lib.study.sequences import LabelledSequence

NETWORK_NAMES = {"keynet": "given expected\nkeypoints", "keynet_image_only": "image only"}


def most_hidden(sequences: Sequence[LabelledSequence]) -> tuple[LabelledSequence, int]:
    """The sequence, and the hand in it, that is looked for longest while an occluder passes."""
    return max(
        ((sequence, hand) for sequence in sequences for hand in range(HANDS)),
        key=lambda case: len(_hidden_frames(*case)),
    )


def _hidden_frames(sequence: LabelledSequence, hand: int) -> Int[np.ndarray, "frames"]:
    return np.flatnonzero(sequence.occluder & (sequence.crops.views[:, hand] > 0))


def keypoints_figure(
    sequence: LabelledSequence, hand: int, networks: Mapping[str, KeypointSource], columns: int = 7
) -> Figure:
    """Crops of a hand around the passage of an occluder, and the keypoints that each network sees while it tracks them.

    A row for each network; the ground truth is green.
    """
    hidden = _hidden_frames(sequence, hand)
    frames = np.linspace(hidden[0] - 4, hidden[-1] + 4, columns).round().astype(int).clip(0, len(sequence.occluder) - 1)
    size = (PAGE_WIDTH, len(networks) * PAGE_WIDTH / columns)
    figure, grid = plt.subplots(len(networks), columns, figsize=size, squeeze=False)
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    for row, (name, source) in zip(grid, networks.items(), strict=True):
        pictures = _seen(sequence, hand, source, frames.tolist())
        for axes, frame in zip(row, frames.tolist(), strict=True):
            if frame in pictures:
                _draw(axes, *pictures[frame])
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        row[0].set_ylabel(NETWORK_NAMES.get(name, name))
    for axes, frame in zip(grid[0], frames.tolist(), strict=True):
        axes.set_title(f"{frame / FRAMES_PER_SECOND:.2f} s")
    return figure


def _seen(
    sequence: LabelledSequence, hand: int, source: KeypointSource, frames: Sequence[int]
) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
    """The first crop of a hand in some frames, its true keypoints, and those that are seen while it is tracked."""
    pictures = {}

    def remember(request: KeypointRequest, seen: Keypoints, true: Keypoints) -> None:
        crops = (request.hand == hand).nonzero()[:, 0].tolist()
        if request.frame.number in frames and crops:
            pictures[request.frame.number] = request.images[crops[0], 0], true.pixels[crops[0]], seen.pixels[crops[0]]

    cached = CachedRecording.of(sequence.crops, sequence.video)
    MultistageTracker(observed(source, remember)).track_all([cached], [cached.recording.hand_model])
    return pictures


def _draw(axes: Axes, picture: Float[Tensor, "96 96"], true: Tensor, seen: Tensor) -> None:
    axes.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=1)
    for pixels, color in ((true, TRUE_COLOR), (seen, TRACKED_COLOR)):
        for edge in SKELETON_EDGES:
            axes.plot(*pixels[list(edge)].numpy().T, color=color, lw=1.0, solid_capstyle="round")
    axes.set(xlim=(-0.5, 95.5), ylim=(95.5, -0.5))
