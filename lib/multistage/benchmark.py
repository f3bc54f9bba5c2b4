"""Speed of the multi-stage tracker, stage by stage."""

from __future__ import annotations

import pandas as pd
import torch

from lib.benchmarks import Stopwatch, benchmark_tracking, summary
from lib.multistage.sources import Detector, KeypointSource
from lib.multistage.tracker import MultistageTracker
from lib.network import UmeTrack
from lib.recordings import Recording


def benchmark_multistage(
    recording: Recording,
    keypoints: KeypointSource,
    detector: Detector | None,
    device: torch.device | str,
    repeats: int,
) -> pd.DataFrame:
    """Time every stage of tracking both hands through a recording, known skeleton, one frame after the other.

    The detector runs where a hand is lost, as a part of "crops". The first pass warms up and is not counted. Columns as
    in `speed.csv`: stage, device, threads, median_ms, p95_ms, processor.
    """
    MultistageTracker(keypoints, detector).track_known(recording, recording.hand_model)
    watch = Stopwatch(device)
    tracker = MultistageTracker(keypoints, detector, stage=watch.stage)
    for _ in range(repeats):
        tracker.track_known(recording, recording.hand_model)
    return summary(watch)


def benchmark_methods(
    recording: Recording,
    network: UmeTrack,
    keypoints: KeypointSource,
    detector: Detector,
    device: torch.device | str,
    repeats: int = 3,
) -> pd.DataFrame:
    """`speed.csv`: every stage of the end-to-end and of the multi-stage tracker, of both hands through a recording.

    The multi-stage tracker takes its own crops.
    """
    tables = {
        "end-to-end": benchmark_tracking(recording, network, device, repeats),
        "multi-stage": benchmark_multistage(recording, keypoints, detector, device, repeats),
    }
    return pd.concat([table.assign(stage=f"{name}: " + table.stage) for name, table in tables.items()])
