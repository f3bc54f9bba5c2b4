"""Speed of the tracker, stage by stage. Machines are noisy: compare stages and networks within one run only."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch

from lib.hands import for_hand
from lib.network import TemporalState, UmeTrack
from lib.recordings import Recording
from lib.tracking import HANDS, HandLabels, choose_crop_cameras, prepare_for_inference, take_crops


class Stopwatch:
    """Collects the durations of named stages, in seconds."""

    def __init__(self, device: torch.device | str):
        self.durations: dict[str, list[float]] = defaultdict(list)
        self.device = torch.device(device)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block, and wait for the device to finish it."""
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.durations[name].append(time.perf_counter() - start)


def benchmark_tracking(recording: Recording, network: UmeTrack, device: torch.device | str, repeats: int) -> pd.DataFrame:
    """Time every stage of tracking both hands through a recording, known skeleton, one frame after the other.

    The first pass warms up and is not counted. Columns as in `speed.csv`: stage, device, threads, median_ms, p95_ms.
    """
    network = prepare_for_inference(network).to(device)
    _time_recording(recording, network, Stopwatch(device))
    watch = Stopwatch(device)
    for _ in range(repeats):
        _time_recording(recording, network, watch)
    return summary(watch)


@torch.inference_mode()
def _time_recording(recording: Recording, network: UmeTrack, watch: Stopwatch) -> None:
    model = recording.hand_model
    skeleton = model.to(watch.device, torch.float32)
    state = TemporalState.untracked(HANDS, watch.device)
    frames = recording.images()
    for frame in range(len(recording)):
        with watch.stage("whole frame"):
            with watch.stage("decode video"):
                images = next(frames)
            labels = HandLabels(
                recording.joint_angles[frame], recording.world_from_wrist[frame], recording.labelled[frame]
            )
            cameras = recording.cameras(frame)
            with watch.stage("crop cameras"):
                hands, views, crop = choose_crop_cameras(cameras, recording.mounting_angles, model, labels, min_views=1)
            if not len(hands):
                continue
            with watch.stage("warp crops"):
                crops = take_crops(images, cameras, hands, views, crop)
            with watch.stage("network"):
                crops = crops.to(watch.device)
                features, after = network.features(crops, state[hands])
                prediction = network.known(features, crops, skeleton)
                state = state.update(hands, after)
            with watch.stage("decode pose"):
                model.landmarks(prediction.joint_angles.double().cpu(), for_hand(prediction.world_from_wrist.double().cpu(), hands))


def summary(watch: Stopwatch) -> pd.DataFrame:
    """Median and 95th percentile of each stage."""
    rows = [
        {
            "stage": stage,
            "device": watch.device.type,
            "threads": torch.get_num_threads(),
            "median_ms": 1e3 * np.median(seconds),
            "p95_ms": 1e3 * np.percentile(seconds, 95),
        }
        for stage, seconds in watch.durations.items()
    ]
    return pd.DataFrame(rows)
