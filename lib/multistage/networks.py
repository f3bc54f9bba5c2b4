"""The trained networks of the baseline, as the tracker calls them."""

from __future__ import annotations

from pathlib import Path

import torch

from lib.checkpoints import load_weights
from lib.multistage.detection import DetNet, DetNetConfig
from lib.multistage.keypoints import KeyNet, KeyNetConfig
from lib.multistage.sources import Detector, KeypointSource, network_circles, network_keypoints
from lib.tracking import prepare_for_inference


def keypoint_source(path: Path, device: torch.device | str) -> KeypointSource:
    """KeyNet with the weights of a file. Raises InputError if there are none, or they are another network's."""
    return network_keypoints(prepare_for_inference(load_weights(path, KeyNet, KeyNetConfig)), device)


def detnet(path: Path, device: torch.device | str) -> DetNet:
    """DetNet with the weights of a file. Raises InputError if there are none, or they are another network's."""
    return prepare_for_inference(load_weights(path, DetNet, DetNetConfig)).to(device)


def detector(path: Path, device: torch.device | str) -> Detector:
    """What `detnet` detects. Raises InputError as it does."""
    return network_circles(detnet(path, device), device)
