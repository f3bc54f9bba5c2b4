"""Speed and endurance of the live tracker. Machines are noisy: compare rows of one run only."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, islice

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from lib.crops import make_crops
from lib.live.hands import LiveHands
from lib.live.tracker import LiveTracker
from lib.recordings import Recording
from lib.study.benchmarks import Stopwatch, own_memory_mb, timing_summary

PART = 1000
"""Frames between two looks at memory and time."""


class PlainTracker(LiveTracker):
    """The live tracker with the crops of `lib.crops`, which the compiled ones are compared with."""

    def _crops(self, images, cameras, hand, posed):
        return make_crops(images, cameras, self.mounting_angles, posed, min_views=1)


def benchmark_live(recording: Recording, trackers: Mapping[str, LiveTracker], repeats: int) -> pd.DataFrame:
    """Time decoding and steps of live trackers through a recording, on the CPU; they take turns.

    The first pass of each warms up and is not counted. Columns as in `speed.csv`, and `apart_mm`: by how much landmarks
    of a tracker differ from those of the first one, in the median over the hands that both track.
    """
    hands = {name: list(_followed(recording, tracker, Stopwatch("cpu"), name)) for name, tracker in trackers.items()}
    watch = Stopwatch("cpu")
    for _ in range(repeats):
        for name, tracker in trackers.items():
            for _ in _followed(recording, tracker, watch, name):
                pass
    first = next(iter(hands.values()))
    apart = {name: _apart_mm(first, other) for name, other in hands.items()}
    table = timing_summary(watch)
    return table.assign(apart_mm=table.stage.str.rpartition(": ")[0].map(apart))


def _apart_mm(hands: Sequence[LiveHands], others: Sequence[LiveHands]) -> float:
    apart = [
        (one.landmarks - other.landmarks).norm(dim=-1).mean(dim=-1)[one.tracked & other.tracked]
        for one, other in zip(hands, others, strict=True)
    ]
    return 1000 * float(torch.cat(apart).median())


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
