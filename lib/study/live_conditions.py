"""Recordings as streams, and conditions that make a stream harder: pure functions of the stream and a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, UInt8

from lib.cameras import PosedCamera
from lib.recordings import Recording
from lib.rendered.dataset import SequenceKey, sample_sequence
from lib.rendered.raster import render_frame
from lib.transforms import axis_angle_rotation, homogeneous

PERIOD, EARLIEST = 2.0, 0.5
"""What befalls a stream for a while does so once in each period, not before its first half second (s)."""
BRIGHTNESS, JUMP_SECONDS = (0.5, 1.6), 0.5
BLACKOUT_SECONDS, CAMERA_OFF_SECONDS = 0.5, 1.0


@dataclass(frozen=True)
class StreamFrame:
    """What a tracker is given of a frame: grey pictures, the cameras as the tracker knows them, and the time (s).

    It is not given the frame of the recording that this is (`source`), nor the cameras that show something (`on`).
    """

    images: UInt8[np.ndarray, "cameras height width"]
    cameras: PosedCamera
    time: float
    source: int
    on: Bool[np.ndarray, "cameras"]


Condition = Callable[[Iterable[StreamFrame], int], Iterator[StreamFrame]]
"""A stream made harder, by a seed."""


def stream_of(recording: Recording) -> Iterator[StreamFrame]:
    """A recording frame by frame."""
    for frame, images in enumerate(recording.images()):
        time = frame / recording.frames_per_second
        yield StreamFrame(images, recording.cameras(frame), time, frame, np.ones(len(images), bool))


def empty_recording(key: SequenceKey) -> Recording:
    """A rendered recording from which hands, arms and what passes before them have vanished: only the room is left."""
    sequence = sample_sequence(key)
    scene = replace(sequence.scene, drawn=np.zeros_like(sequence.scene.drawn))
    nobody = torch.zeros_like(sequence.recording.labelled)
    return replace(
        sequence.recording,
        labelled=nobody,
        pictures=lambda start: (render_frame(scene, frame) for frame in range(start, key.frames)),
    )


def as_rendered(stream: Iterable[StreamFrame], seed: int) -> Iterator[StreamFrame]:
    """Nothing is changed."""
    yield from stream


def sped_up(factor: int, stream: Iterable[StreamFrame], seed: int) -> Iterator[StreamFrame]:
    """Every `factor`-th frame, at the rate of all: what moves is so many times as fast."""
    for frame in stream:
        if frame.source % factor == 0:
            yield replace(frame, time=frame.time / factor)


def dropped(share: float, stream: Iterable[StreamFrame], seed: int) -> Iterator[StreamFrame]:
    """Without a share of the frames, each drawn on its own."""
    generator = np.random.default_rng(seed)
    yield from (frame for frame in stream if generator.random() >= share)


def gaps(seconds: float, stream: Iterable[StreamFrame], seed: int) -> Iterator[StreamFrame]:
    """Without all frames of a while."""
    yield from (frame for frame in stream if not _befalls(frame.time, seconds, seed))


def camera_off(stream: Iterable[StreamFrame], seed: int) -> Iterator[StreamFrame]:
    """The pictures of one camera are black for a while; of another one in each period."""
    for frame in stream:
        off = np.zeros(len(frame.on), bool)
        off[np.random.default_rng([seed, _period(frame.time), 1]).integers(len(off))] = True
        yield _blackened(frame, off) if _befalls(frame.time, CAMERA_OFF_SECONDS, seed) else frame


def blackout(stream: Iterable[StreamFrame], seed: int) -> Iterator[StreamFrame]:
    """All pictures are black for a while."""
    for frame in stream:
        yield _blackened(frame, frame.on) if _befalls(frame.time, BLACKOUT_SECONDS, seed) else frame


def exposure_jumps(stream: Iterable[StreamFrame], seed: int) -> Iterator[StreamFrame]:
    """The pictures are darker for a while, in the next period brighter, and so on."""
    for frame in stream:
        if _befalls(frame.time, JUMP_SECONDS, seed):
            brightness = BRIGHTNESS[_period(frame.time) % len(BRIGHTNESS)]
            frame = replace(frame, images=(brightness * frame.images).round().clip(0, 255).astype(np.uint8))
        yield frame


def principal_points_off(pixels: float, stream: Iterable[StreamFrame], seed: int) -> Iterator[StreamFrame]:
    """The tracker believes that the principal point of each camera is so far off, in a direction that stays."""
    generator = np.random.default_rng(seed)
    for index, frame in enumerate(stream):
        camera = frame.cameras.camera
        if index == 0:
            angles = torch.from_numpy(generator.uniform(0, 2 * np.pi, len(camera.center_px)))
            shift = pixels * torch.stack((angles.cos(), angles.sin()), dim=-1)
        yield replace(frame, cameras=replace(frame.cameras, camera=replace(camera, center_px=camera.center_px + shift)))


def camera_turned(degrees: float, stream: Iterable[StreamFrame], seed: int) -> Iterator[StreamFrame]:
    """The tracker believes that one camera is turned about an axis through its centre, the same throughout."""
    generator = np.random.default_rng(seed)
    axis = torch.from_numpy(generator.normal(size=3))
    turn = axis_angle_rotation(axis / axis.norm(), torch.tensor(np.deg2rad(degrees)))
    which = float(generator.random())
    for frame in stream:
        poses = frame.cameras.world_from_camera.clone()
        camera = int(which * len(poses))
        poses[camera] = poses[camera] @ homogeneous(turn, torch.zeros(3).double())
        yield replace(frame, cameras=replace(frame.cameras, world_from_camera=poses))


AS_RENDERED, BLACKOUT = "as rendered", f"no picture for {BLACKOUT_SECONDS:g} s"
CONDITIONS: dict[str, Condition] = {
    AS_RENDERED: as_rendered,
    "twice as fast": partial(sped_up, 2),
    "three times as fast": partial(sped_up, 3),
    "10 % of the frames dropped": partial(dropped, 0.1),
    "gaps of 0.2 s": partial(gaps, 0.2),
    "gaps of 0.5 s": partial(gaps, 0.5),
    f"one camera off for {CAMERA_OFF_SECONDS:g} s": camera_off,
    BLACKOUT: blackout,
    "brightness × {:g} and × {:g}".format(*BRIGHTNESS): exposure_jumps,
    "principal points off by 1 px": partial(principal_points_off, 1.0),
    "principal points off by 3 px": partial(principal_points_off, 3.0),
    "one camera turned by 1°": partial(camera_turned, 1.0),
    "one camera turned by 2°": partial(camera_turned, 2.0),
}


def _period(time: float) -> int:
    return int(time // PERIOD)


def _befalls(time: float, seconds: float, seed: int) -> bool:
    """Whether a time lies in the while of its period, which begins at random, and ends before the period does."""
    period = _period(time)
    start = period * PERIOD + np.random.default_rng([seed, period]).uniform(EARLIEST, PERIOD - seconds)
    return bool(start <= time < start + seconds)


def _blackened(frame: StreamFrame, off: Bool[np.ndarray, "cameras"]) -> StreamFrame:
    return replace(frame, images=np.where(off[:, None, None], np.uint8(0), frame.images), on=frame.on & ~off)
