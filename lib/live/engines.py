"""What runs the network on the crops of a frame: torch, or onnxruntime, about twice as fast on a CPU core."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from lib.crops import Crops
from lib.hands import HandModel
from lib.live.onnx_files import frame_inputs, run
from lib.network import Features, HandPrediction, TemporalState, UmeTrack
from lib.tracking import advance

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_OUTPUTS = ("extracted", "features", "next_memory", "joint_angles", "world_from_wrist", "landmark_sigma")


@dataclass(frozen=True)
class FrameOutput:
    """Features of the hands in crops before and after the temporal module, their poses by regressor K, and what is
    remembered of all hands."""

    extracted: Features
    features: Features
    known: HandPrediction
    after: TemporalState


Engine = Callable[[Crops, Int[Tensor, "tracked"], HandModel, TemporalState], FrameOutput]
"""Takes crops, the hands in them, their model in float32, and what is remembered of all hands."""


def torch_engine(network: UmeTrack) -> Engine:
    """The network itself, on the device where all that it is given lies."""

    def answer(crops: Crops, hands: Tensor, model: HandModel, before: TemporalState) -> FrameOutput:
        extracted = network.extract(crops)
        features, after = advance(network, extracted, crops, hands, before)
        return FrameOutput(extracted, features, network.known(features, crops, model), after)

    return answer


def onnx_engine(session: InferenceSession) -> Engine:
    """A file that `onnx_files.export_network` has written, opened by `open_session`; on the CPU."""

    def answer(crops: Crops, hands: Tensor, model: HandModel, before: TemporalState) -> FrameOutput:
        extracted, features, memory, *known = run(session, frame_inputs(crops, model, before[hands]), _OUTPUTS)
        seen = TemporalState(memory, crops.camera_from_world[:, 0], torch.ones(len(hands), dtype=torch.bool))
        after = TemporalState.untracked(len(before.tracked)).update(hands, seen)
        return FrameOutput(extracted, features, HandPrediction(*known), after)

    return answer
