"""What the lecture on training draws: the network as it is (Figure 2), a clip, its augmentation, a training."""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from torch import Tensor, nn

from lib.cameras import Pinhole, PosedCamera
from lib.clips import NO_AUGMENTATION, Augmentation, ClipBatch, ClipSource
from lib.crops import CROP_SIZE, Crops
from lib.files import MM
from lib.hands import SKELETON_EDGES, HandModel
from lib.network import MEMORY_CHANNELS, TemporalState, UmeTrack
from lib.study.figures.style import PAGE_WIDTH, TRACKED_COLOR, TRUE_COLOR, use_log_scale
from lib.transforms import invert

LEARNED, GEOMETRIC, INPUT = "#CFE3F2", "#FCE3CF", "#ECECEC"


@torch.no_grad()
def layer_shapes(network: UmeTrack, crops: Crops, model: HandModel) -> dict[str, str]:
    """Shape of the output of each part for one hand, as "channels×height×width"; parts that are off are missing."""
    shapes, hooks = {}, []
    for name, part in network.named_children():
        part = part.layers if name.startswith("regressor") else part
        hooks.append(part.register_forward_hook(lambda _, __, output, name=name: shapes.update({name: _text(output)})))
    try:
        features, _ = network.eval().features(crops, TemporalState.untracked(len(crops.images), crops.images.device))
        network.known(features, crops, model)
        network.unknown(features[crops.two_views], crops[crops.two_views])
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


def _text(output: torch.Tensor) -> str:
    return "×".join(str(size) for size in output.shape[1:])


@dataclass(frozen=True)
class _Box:
    """A box of the diagram: centre, size, and what stands in it."""

    x: float
    y: float
    text: str
    color: str
    width: float = 1.32
    height: float = 0.62

    def draw(self, axes: Axes) -> None:
        corner = (self.x - self.width / 2, self.y - self.height / 2)
        shape = FancyBboxPatch(
            corner, self.width, self.height, "round,pad=0,rounding_size=0.08", facecolor=self.color, edgecolor="#444444"
        )
        axes.add_patch(shape)
        axes.text(self.x, self.y, self.text, ha="center", va="center", fontsize=6.5, linespacing=1.15)


def architecture_figure(network: UmeTrack, crops: Crops, model: HandModel) -> Figure:
    """Figure 2: how the crops of a hand that two cameras see become its pose, with the shapes of `network`."""
    shapes = layer_shapes(network, crops, model)
    pair = int(crops.two_views.nonzero()[0])
    figure, axes = plt.subplots(figsize=(PAGE_WIDTH, 2.75))
    axes.set(xlim=(-0.62, 12.05), ylim=(-1.52, 2.92), aspect="equal")
    axes.axis("off")
    for y, view in ((1.4, 0), (0.0, 1)):
        axes.imshow(crops.images[pair, view], cmap="gray", vmin=0, vmax=1, extent=(-0.55, 0.55, y - 0.55, y + 0.55))
        axes.text(0, y + 0.62, f"crop {view + 1}, 1×96×96", ha="center", va="bottom", fontsize=6.5)
    boxes = _boxes(shapes)
    for box in boxes.values():
        box.draw(axes)
    arrows = _ARROWS if "temporal" in boxes else (*_ARROWS, ("ftl 3", "regressor k"), ("ftl 3", "regressor u"))
    for start, end in arrows:
        if start in boxes and end in boxes:
            _arrow(axes, boxes[start], boxes[end])
    for y in (1.4, 0.0):
        axes.add_patch(_line((0.58, y), (1.05, y)))
    if "temporal" in boxes:
        _memory(axes, boxes["temporal"])
    axes.set(xlim=(-0.62, 12.05), ylim=(-1.52, 2.92))
    return figure


def _boxes(shapes: dict[str, str]) -> dict[str, _Box]:
    """The boxes by name; those of parts that are switched off are missing."""
    boxes = {
        "backbone 1": _Box(1.72, 1.4, f"backbone\n{shapes['backbone']}", LEARNED),
        "backbone 2": _Box(1.72, 0.0, f"backbone\n{shapes['backbone']}", LEARNED),
        "ftl 1": _Box(3.28, 1.4, "FTL $S_1^{-1}S_1$\n(identity)", GEOMETRIC, 1.3),
        "ftl 2": _Box(3.28, 0.0, "FTL\n$S_1^{-1}T_{2,1}S_2$", GEOMETRIC, 1.3),
        "fusion": _Box(4.84, 0.7, f"fusion\n{shapes['fusion']}", LEARNED, 1.2),
        "ftl 3": _Box(6.2, 0.7, "FTL $S_1$", GEOMETRIC, 1.0),
        "regressor k": _Box(9.35, 0.7, f"regressor K\n{shapes['regressor_known']}", LEARNED, 1.4),
        "regressor u": _Box(9.35, -0.85, f"regressor U\n{shapes['regressor_unknown']}", LEARNED, 1.4),
        "pose k": _Box(11.2, 0.7, "20 angles\n7×3 root points\n→ SVD → pose", INPUT, 1.5, 0.82),
        "pose u": _Box(11.2, -0.85, "the same\n+ scale of the\ngeneric hand", INPUT, 1.5, 0.82),
    }
    if "temporal" in shapes:
        boxes["temporal"] = _Box(7.65, 0.7, f"temporal\n{shapes['temporal']}", LEARNED, 1.3)
    if "skeleton_encoder" in shapes:
        boxes["skeleton"] = _Box(7.0, 2.45, "skeleton\n22×6", INPUT, 1.1)
        boxes["encoder"] = _Box(8.9, 2.45, f"skeleton encoder\n{shapes['skeleton_encoder']}", LEARNED, 1.7)
    return boxes


_ARROWS = (
    ("backbone 1", "ftl 1"), ("backbone 2", "ftl 2"), ("ftl 1", "fusion"), ("ftl 2", "fusion"), ("fusion", "ftl 3"),
    ("ftl 3", "temporal"), ("temporal", "regressor k"), ("temporal", "regressor u"), ("skeleton", "encoder"),
    ("encoder", "regressor k"), ("regressor k", "pose k"), ("regressor u", "pose u"),
)  # fmt: skip


def _arrow(axes: Axes, start: _Box, end: _Box) -> None:
    if start.y - end.y > 1.7:  # from the skeleton encoder, above
        axes.add_patch(_line((start.x + 0.45, start.y - start.height / 2), (end.x, end.y + end.height / 2)))
    else:
        axes.add_patch(_line((start.x + start.width / 2, start.y), (end.x - end.width / 2, end.y)))


def _memory(axes: Axes, box: _Box) -> None:
    """The loop of the temporal module: its memory of the previous frame, moved to the camera of this one."""
    top = box.y + box.height / 2
    loop = _line((box.x + 0.4, top), (box.x - 0.4, top), "arc3,rad=1.1")
    axes.add_patch(loop)
    label = f"hidden state {MEMORY_CHANNELS}×6×6, by\nFTL to the current camera"
    axes.text(box.x - 0.62, top + 0.42, label, ha="right", va="center", fontsize=6.5, linespacing=1.15)


def _line(start: tuple[float, float], end: tuple[float, float], style: str = "arc3") -> FancyArrowPatch:
    return FancyArrowPatch(
        start, end, connectionstyle=style, arrowstyle="-|>", mutation_scale=7, linewidth=0.9, color="#444444",
        shrinkA=0, shrinkB=0,
    )  # fmt: skip


def parameters(module: nn.Module) -> int:
    """How many numbers a module learns."""
    return sum(parameter.numel() for parameter in module.parameters())


def loss_figure(batch: ClipBatch, predicted: Float[Tensor, "hands 21 3"], true: Float[Tensor, "hands 21 3"]) -> Figure:
    """A clip with its true (green) and predicted (orange) hand drawn in, the error of every frame above it."""
    frames, clips = batch.shape
    clip = int(batch.crops.two_views.unflatten(0, (frames, clips)).all(dim=0).nonzero()[0])
    figure, grid = plt.subplots(1, frames, figsize=(PAGE_WIDTH, 1.15))
    for frame, axes in enumerate(grid):
        row = frame * clips + clip
        camera = _crop_camera(batch.crops, row)
        _show_crop(axes, batch.crops, row)
        _draw_hand(axes, camera.project(true[row]), TRUE_COLOR)
        _draw_hand(axes, camera.project(predicted[row]), TRACKED_COLOR)
        axes.set_title(f"{MM * float((predicted[row] - true[row]).norm(dim=-1).mean()):.0f} mm")
    return figure


def augmentation_sheet(source: ClipSource, clip: Int[Tensor, "2"], augmentation: Augmentation) -> Figure:
    """One crop as it is cached (first), then under random cameras, with its true landmarks."""
    figure, grid = plt.subplots(2, 8, figsize=(PAGE_WIDTH, 1.96))
    for seed, axes in enumerate(grid.flat):
        drawn = augmentation if seed else NO_AUGMENTATION
        batch = source.batch(clip[None], 1, drawn, torch.Generator().manual_seed(seed))
        _show_crop(axes, batch.crops, 0)
        _draw_hand(axes, _crop_camera(batch.crops, 0).project(batch.landmarks()[0]), TRUE_COLOR)
    return figure


def live_figure(log: pd.DataFrame) -> Figure:
    """The error of a training, on the hands it learns and on the validation user."""
    figure, axes = plt.subplots(figsize=(PAGE_WIDTH / 2, 2.2))
    axes.plot(log.step, log.known_mpjpe_mm, alpha=0.3, lw=0.8, color="C0")
    axes.plot(
        log.step, log.known_mpjpe_mm.ewm(halflife=8).mean(), color="C0", label="training hands, with augmentation"
    )
    measured = log.validation_known_mpjpe_mm.notna()
    axes.plot(log.step[measured], log.validation_known_mpjpe_mm[measured], "o-", color="C1", label="validation user")
    axes.set(xlabel="step", ylabel="MPJPE (mm)")
    use_log_scale(axes)
    axes.legend(frameon=False)
    return figure


def _crop_camera(crops: Crops, row: int) -> PosedCamera:
    """The reference camera of a hand."""
    return PosedCamera(Pinhole.create(CROP_SIZE, crops.focal_px[row, 0]), invert(crops.camera_from_world[row, 0]))


def _show_crop(axes: Axes, crops: Crops, row: int) -> None:
    axes.imshow(crops.images[row, 0], cmap="gray", vmin=0, vmax=1)
    axes.set(xlim=(-0.5, CROP_SIZE - 0.5), ylim=(CROP_SIZE - 0.5, -0.5))
    axes.axis("off")


def _draw_hand(axes: Axes, pixels: Float[Tensor, "21 2"], color: str) -> None:
    for edge in SKELETON_EDGES:
        axes.plot(*np.asarray(pixels)[list(edge)].T, color=color, lw=0.8, solid_capstyle="round")
