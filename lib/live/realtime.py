"""Recordings as a live tracker is shown them: every frame as soon as it is wanted, or at the recording's own rate."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8

from lib.recordings import Recording

Frames = Iterator[tuple[int, UInt8[np.ndarray, "cameras height width"]]]
"""Numbers and views of frames, in order; some may be missing."""
Play = Callable[[Recording], Frames]
AHEAD = 4
"""Frames that are decoded before they are wanted."""
WARM_UP = 10
"""Frames in which kernels are compiled, and hands found."""
_Item = TypeVar("_Item")
_END = object()


def ahead(items: Iterable[_Item], count: int = AHEAD) -> Iterator[_Item]:
    """The same items, made by a thread that is up to `count` of them ahead.

    What it raises is raised here, after the items before. The thread has ended when this has, or is closed.
    """
    source = iter(items)
    with ThreadPoolExecutor(1, "decoding") as thread:
        made = deque(thread.submit(next, source, _END) for _ in range(count))
        while (item := made.popleft().result()) is not _END:
            made.append(thread.submit(next, source, _END))
            yield item


def in_order(recording: Recording) -> Frames:
    """Every frame, as soon as it is wanted."""
    return enumerate(recording.images())


class RealTime:
    """Shows a recording at its own rate, as its cameras did, and keeps how that went.

    A frame comes when it was taken. Who asks for the next one gets the newest that has come, and waits if there is
    none: frames before the newest are skipped. The first `WARM_UP` frames come as soon as they are wanted. `clock` and
    `sleep` are in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter, sleep: Callable[[float], object] = time.sleep):
        self.clock, self.sleep = clock, sleep
        self.shown: list[int] = []
        self.delays: list[float] = []
        """Of each frame after them that was shown: seconds from its coming to the question for the next one."""

    def __call__(self, recording: Recording) -> Frames:
        """The frames of a recording; to be called once."""
        rate, last = recording.frames_per_second, len(recording) - 1
        for frame, images in enumerate(ahead(recording.images())):
            if frame <= WARM_UP:
                start = self.clock() - frame / rate
            if frame < last and self.clock() >= start + (frame + 1) / rate:
                continue
            came = start + frame / rate
            if (early := came - self.clock()) > 0:
                self.sleep(early)
            self.shown.append(frame)
            yield frame, images
            if frame >= WARM_UP:
                self.delays.append(self.clock() - came)

    def describe(self, recording: Recording) -> str:
        """How it went, a line each; a pose is late that was not there when the next frame came."""
        if not self.delays:
            return f"{len(recording)} frames are too few to be timed: the first {WARM_UP} are not"
        late = sum(delay > 1 / recording.frames_per_second for delay in self.delays)
        median, most = np.percentile(self.delays, (50, 95)) * 1000
        return (
            f"played at {recording.frames_per_second:g} frames a second: "
            f"{len(recording) - len(self.shown)} of {len(recording)} skipped, {late} late\n"
            f"from frame to pose      {median:.1f} ms (median), {most:.1f} ms (95th percentile)"
        )
