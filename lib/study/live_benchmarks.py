"""Speed and endurance of the live tracker. Machines are noisy: compare rows of one run only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from lib.crops import make_crops
from lib.live.confidence import Confidence
from lib.live.hands import Detect, LiveHands
from lib.live.tracker import LiveTracker
from lib.network import UmeTrack
from lib.recordings import Recording
from lib.study.benchmarks import Stopwatch, own_memory_mb, timing_summary

PART = 1000
"""Frames between two looks at memory and time."""


class PlainTracker(LiveTracker):
    """The live tracker with the crops of `lib.crops`, which the compiled ones are compared with."""

    def _crops(self, images, cameras, hand, posed):
        return make_crops(images, cameras, self.mounting_angles, posed, min_views=1)


def benchmark_live(
    recording: Recording, make_network: Callable[[], UmeTrack], detect: Detect, confidence: Confidence, repeats: int
) -> pd.DataFrame:
    """Time decoding and steps of the live tracker through a recording with a known skeleton, on the CPU.

    The tracker with plain crops takes turns with it. The first pass of each warms up and is not counted. Columns as in
    `speed.csv`, and `apart_mm`: by how much landmarks of the two differ at most.
    """
    about = detect, confidence, recording.mounting_angles, recording.hand_model
    trackers = {"live": LiveTracker(make_network(), *about), "live, plain crops": PlainTracker(make_network(), *about)}
    hands = {name: list(_followed(recording, tracker, Stopwatch("cpu"), name)) for name, tracker in trackers.items()}
    watch = Stopwatch("cpu")
    for _ in range(repeats):
        for name, tracker in trackers.items():
            for _ in _followed(recording, tracker, watch, name):
                pass
    apart = [
        (one.landmarks - other.landmarks).norm(dim=-1)[one.tracked & other.tracked].flatten()
        for one, other in zip(*hands.values(), strict=True)
    ]
    return timing_summary(watch).assign(apart_mm=1000 * float(torch.cat(apart).max()))


def _followed(recording: Recording, tracker: LiveTracker, watch: Stopwatch, name: str) -> Iterator[LiveHands]:
    state, pictures = tracker.start(), recording.images()
    for frame in range(len(recording)):
        with watch.stage(f"{name}: whole frame"):
            with watch.stage(f"{name}: decode video"):
                images = next(pictures)
            cameras = recording.cameras(frame)
            with watch.stage(f"{name}: step"):
                hands, state = tracker.step(images, cameras, frame / recording.frames_per_second, state)
        yield hands


def soak(recording: Recording, tracker: LiveTracker, frames: int) -> pd.DataFrame:
    """Track a recording to and fro for many frames. One row for each `PART` of them.

    Columns: frames (so far), memory_mb (of this process alone), median_ms, p95_ms, tracked_percent (of both hands in
    all frames), finite (whether every pose that was tracked is).
    """
    seen = [(images.copy(), recording.cameras(frame)) for frame, images in enumerate(recording.images())]
    state, rows = tracker.start(), []
    to_and_fro = islice(cycle(seen + seen[-2:0:-1]), frames)
    seconds, tracked, finite = [], [], True
    for frame, (images, cameras) in enumerate(tqdm(to_and_fro, "soak", total=frames, unit="frame"), start=1):
        start = time.perf_counter()
        hands, state = tracker.step(images, cameras, frame / recording.frames_per_second, state)
        seconds.append(time.perf_counter() - start)
        tracked.append(hands.tracked.double().mean().item())
        finite = finite and bool(hands.landmarks[hands.tracked].isfinite().all())
        if frame % PART == 0 or frame == frames:
            rows.append(
                {
                    "frames": frame,
                    "memory_mb": own_memory_mb(),
                    "median_ms": 1e3 * np.median(seconds),
                    "p95_ms": 1e3 * np.percentile(seconds, 95),
                    "tracked_percent": 100 * np.mean(tracked),
                    "finite": finite,
                }
            )
            seconds, tracked, finite = [], [], True
    return pd.DataFrame(rows)
