"""Who says where keypoints and hands are: networks, or the labels in their place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.cameras import PosedCamera
from lib.crop_cache import hand_circles
from lib.hands import NUM_LANDMARKS
from lib.multistage.detection import Circles, DetNet, detect
from lib.multistage.hand_crops import Frame, Pictures
from lib.multistage.keypoints import KeyNet, Keypoints, hand_scale, predict_keypoints, relative_distance

Detector = Callable[[Frame, int], Circles]
"""A frame and the number of a camera, to the circles around both hands in its picture."""


@dataclass(frozen=True)
class KeypointRequest:
    """What a source of keypoints is asked: crops of a frame, and what `lib.multistage.keypoints` calls their prior."""

    frame: Frame
    hand: Int[Tensor, "crops"]
    cameras: PosedCamera
    images: Pictures
    prior: Float[Tensor, "crops 63"]


KeypointSource = Callable[[Sequence[KeypointRequest]], Sequence[Keypoints]]
"""Answers many requests together, each with one set of keypoints per crop, in pixels of the crop."""


def network_keypoints(network: KeyNet, device: torch.device | str = "cpu") -> KeypointSource:
    """The keypoints that a network predicts, all requests in one batch."""
    network = network.eval().to(device)

    def answer(requests: Sequence[KeypointRequest]) -> list[Keypoints]:
        images = torch.cat([request.images for request in requests])
        priors = torch.cat([request.prior for request in requests])
        keypoints = predict_keypoints(network, images.to(device), priors.to(device))
        counts = [len(request.hand) for request in requests]
        fields = (keypoints.pixels, keypoints.relative_distance, keypoints.confidence)
        return [Keypoints(*parts) for parts in zip(*(field.cpu().split(counts) for field in fields), strict=True)]

    return answer


def observed(
    source: KeypointSource, observe: Callable[[KeypointRequest, Keypoints, Keypoints], None]
) -> KeypointSource:
    """The same source; `observe` receives every request, its answer, and the ground-truth keypoints."""

    def answer(requests: Sequence[KeypointRequest]) -> Sequence[Keypoints]:
        answers = source(requests)
        for case in zip(requests, answers, labelled_keypoints(requests), strict=True):
            observe(*case)
        return answers

    return answer


def network_circles(network: DetNet, device: torch.device | str = "cpu") -> Detector:
    """The detection circles that a network predicts."""
    network = network.eval().to(device)
    return lambda frame, camera: detect(network, frame.view(camera))


def labelled_keypoints(requests: Sequence[KeypointRequest]) -> list[Keypoints]:
    """The true keypoints in place of a network's, to measure what its errors cost."""
    return [_labelled_keypoints(request) for request in requests]


def _labelled_keypoints(request: KeypointRequest) -> Keypoints:
    posed, hand = request.frame.recording.hands(request.frame.number), request.hand
    landmarks = posed.landmarks()[hand]
    distance = relative_distance(request.cameras.to_camera(landmarks), hand_scale(posed.model))
    confidence = posed.exists[hand, None].expand(-1, NUM_LANDMARKS).double()
    return Keypoints(request.cameras.project(landmarks), distance, confidence)


def labelled_circles(frame: Frame, camera: int) -> Circles:
    """The true circles in place of a detector's."""
    hands = frame.recording.hands(frame.number)
    circles, _ = hand_circles(frame.cameras[[camera]], hands.landmarks())
    presence = (circles[0, :, 2] > 0) & hands.exists
    return Circles(circles[0, :, :2], circles[0, :, 2], presence.double())
