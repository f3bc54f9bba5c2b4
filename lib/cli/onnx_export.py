"""`export --format onnx`: networks as ONNX files, compared with torch before they are kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from lib.checkpoints import load_network, load_weights, read_metadata
from lib.crops import CROP_SIZE, MAX_VIEWS, Crops, make_crops
from lib.files import refuse_overwriting
from lib.hands import HANDS
from lib.live.onnx_files import export_network, export_plain, require_onnx
from lib.multistage.detection import DetNet, DetNetConfig
from lib.multistage.keypoints import KeyNet, KeyNetConfig
from lib.rendered.dataset import SequenceKey, sample_sequence
from lib.rendered.motion import FRAMES_PER_SECOND
from lib.rendered.raster import render_frame
from lib.rendered.shape import generic_hand
from lib.transforms import homogeneous, quaternion_rotation

FRAMES = 8
"""Of noise, and as many rendered ones."""


def export_onnx(weights: Path, output: Path) -> None:
    """Write the network of a weights file as ONNX: the end-to-end one, KeyNet or DetNet.

    Raises InputError without onnx or onnxruntime, for what is no weights file, and if the file computes something else.
    """
    require_onnx()
    refuse_overwriting({"--output": output}, {"the weights": weights})
    stored = read_metadata(weights).get("class") if weights.suffix == ".safetensors" and weights.is_file() else None
    generator = torch.Generator().manual_seed(0)
    if stored == KeyNet.__name__:
        network = load_weights(weights, KeyNet, KeyNetConfig)
        crops = torch.rand(3, 1, CROP_SIZE, CROP_SIZE, generator=generator)
        inputs, outputs = {"images": crops, "prior": torch.rand(3, 63, generator=generator)}, ("plane", "distance")
        export_plain(Heatmaps(network), inputs, outputs, output, {name: {0: "crops"} for name in (*inputs, *outputs)})
    elif stored == DetNet.__name__:
        network = load_weights(weights, DetNet, DetNetConfig)
        pictures = torch.rand(2, 1, 120, 160, generator=generator)
        sizes = {"pictures": {0: "views", 2: "rows", 3: "columns"}, "circles": {0: "views"}}
        export_plain(network, {"pictures": pictures}, ("circles",), output, sizes)
    else:
        frames = [*_noise(generator), *_rendered()]
        export_network(load_network(weights), output, generic_hand().to(dtype=torch.float64), frames)
    print(f"written, and equal to torch: {output}")


class Heatmaps(torch.nn.Module):
    """KeyNet, with tensors for outputs."""

    def __init__(self, network: KeyNet):
        super().__init__()
        self.network = network

    def forward(self, images, prior):
        heatmaps = self.network(images, prior)
        return heatmaps.plane, heatmaps.distance


def _noise(generator: torch.Generator) -> Iterator[tuple[Tensor, Crops]]:
    """Both hands, or one of them, in crops of noise by one or two cameras anywhere."""
    for frame in range(FRAMES):
        hands = torch.arange(HANDS)[int(frame % 4 == 3) :]
        shape = len(hands), MAX_VIEWS
        turns = quaternion_rotation(torch.randn(*shape, 4, generator=generator))
        yield (
            hands,
            Crops(
                images=torch.rand(*shape, CROP_SIZE, CROP_SIZE, generator=generator),
                focal_px=100 + 200 * torch.rand(*shape, generator=generator),
                camera_from_world=homogeneous(turns, torch.rand(*shape, 3, generator=generator) - 0.5),
                hand=hands,
                two_views=torch.rand(len(hands), generator=generator) < 0.5 if frame else torch.ones(HANDS).bool(),
            ),
        )


def _rendered() -> Iterator[tuple[Tensor, Crops]]:
    """Frames of a rendered recording."""
    sequence = sample_sequence(SequenceKey("test", 44, "separate_hand", 0, FRAMES_PER_SECOND))
    recording = sequence.recording
    for frame in range(FRAMES):
        cameras, posed = recording.cameras(frame), recording.hands(frame)
        images = render_frame(sequence.scene, frame)
        yield make_crops(images, cameras, recording.mounting_angles, posed, min_views=1)
