"""Conditions change a stream as they say, leave the rest as it was, and are functions of the stream and a seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import headset

from lib.rendered.dataset import SequenceKey, sample_sequence
from lib.rendered.raster import render_frame
from lib.study.live_conditions import (
    AS_RENDERED,
    BLACKOUT,
    CONDITIONS,
    EARLIEST,
    PERIOD,
    StreamFrame,
    empty_recording,
)

FRAMES, RATE = 240, 30.0
PERIODS = int(FRAMES / RATE / PERIOD)


@pytest.fixture(scope="module")
def stream() -> list[StreamFrame]:
    """Eight seconds of four grey pictures."""
    cameras, images = headset(), np.full((4, 48, 64), 120, np.uint8)
    return [StreamFrame(images, cameras, frame / RATE, frame, np.ones(4, bool)) for frame in range(FRAMES)]


def under(name: str, stream: list[StreamFrame], seed: int = 3) -> list[StreamFrame]:
    return list(CONDITIONS[name](iter(stream), seed))


def same(one: StreamFrame, other: StreamFrame) -> bool:
    return (
        (one.time, one.source) == (other.time, other.source)
        and np.array_equal(one.images, other.images)
        and np.array_equal(one.on, other.on)
        and torch.equal(one.cameras.world_from_camera, other.cameras.world_from_camera)
        and torch.equal(one.cameras.camera.center_px, other.cameras.camera.center_px)
    )


@pytest.mark.parametrize("name", CONDITIONS)
def test_conditions_are_pure(stream, name):
    first, again = under(name, stream), under(name, stream)
    assert len(first) == len(again)
    assert all(map(same, first, again))
    assert all((frame.images == 120).all() for frame in stream), "what came in is as it was"
    changed = len(first) < FRAMES or not all(map(same, first, stream))
    assert changed == (name != AS_RENDERED)
    times = [frame.time for frame in first]
    assert times == sorted(set(times))


@pytest.mark.parametrize("name", set(CONDITIONS) - {AS_RENDERED, "twice as fast", "three times as fast"})
def test_another_seed_is_another_stream(stream, name):
    first, other = under(name, stream, 3), under(name, stream, 4)
    assert len(first) != len(other) or not all(map(same, first, other))


@pytest.mark.parametrize(("name", "factor"), [("twice as fast", 2), ("three times as fast", 3)])
def test_a_stream_that_is_sped_up_has_the_rate_of_all(stream, name, factor):
    fast = under(name, stream)
    assert [frame.source for frame in fast] == [*range(0, FRAMES, factor)]
    np.testing.assert_allclose([frame.time for frame in fast], np.arange(len(fast)) / RATE)


def test_frames_are_dropped(stream):
    assert 0.05 < 1 - len(under("10 % of the frames dropped", stream)) / FRAMES < 0.15
    for name, seconds in (("gaps of 0.2 s", 0.2), ("gaps of 0.5 s", 0.5)):
        times = np.array([frame.time for frame in under(name, stream)])
        after = np.flatnonzero(np.diff(times) > 1.5 / RATE)
        assert len(after) == PERIODS, "one in each period"
        np.testing.assert_allclose(np.diff(times)[after], seconds + 1 / RATE, atol=1.01 / RATE)
        assert ((times[after] % PERIOD) > EARLIEST - 1.5 / RATE).all()


def test_pictures_are_black_for_a_while(stream):
    dark = np.array([[(picture == 0).all() for picture in frame.images] for frame in under(BLACKOUT, stream)])
    assert (dark.all(axis=1) == dark.any(axis=1)).all()
    assert np.abs(dark[:, 0].sum() - PERIODS * 0.5 * RATE) <= PERIODS
    frames = under("one camera off for 1 s", stream)
    dark = np.array([[(picture == 0).all() for picture in frame.images] for frame in frames])
    assert np.array_equal(dark, [~frame.on for frame in frames])
    assert set(dark.sum(axis=1)) == {0, 1}
    assert np.abs(dark.sum() - PERIODS * RATE) <= PERIODS


def test_the_exposure_jumps_down_and_up(stream):
    grey = np.array([frame.images[0, 0, 0] for frame in under("brightness × 0.5 and × 1.6", stream)])
    assert set(grey) == {60, 120, 192}
    assert [int(grey[k * 60 : (k + 1) * 60].min()) for k in range(PERIODS)] == [60, 120, 60, 120]
    assert np.abs((grey != 120).sum() - PERIODS * 0.5 * RATE) <= PERIODS
    bright = [StreamFrame(np.full_like(f.images, 200), f.cameras, f.time, f.source, f.on) for f in stream]
    assert max(frame.images.max() for frame in under("brightness × 0.5 and × 1.6", bright)) == 255


@pytest.mark.parametrize("pixels", [1, 3])
def test_principal_points_are_off(stream, pixels):
    frames = under(f"principal points off by {pixels} px", stream)
    shifts = torch.stack([f.cameras.camera.center_px - stream[0].cameras.camera.center_px for f in frames])
    torch.testing.assert_close(shifts.norm(dim=-1), torch.full((FRAMES, 4), float(pixels)).double())
    assert torch.equal(shifts, shifts[:1].expand_as(shifts)), "it stays"


@pytest.mark.parametrize("degrees", [1, 2])
def test_one_camera_is_turned_where_it_is(stream, degrees):
    before, frames = stream[0].cameras.world_from_camera, under(f"one camera turned by {degrees}°", stream)
    poses = torch.stack([frame.cameras.world_from_camera for frame in frames])
    torch.testing.assert_close(poses[..., 3], before[..., 3].expand_as(poses[..., 3]))
    turn = before[:, :3, :3].mT @ poses[:, :, :3, :3]
    angle = torch.rad2deg(torch.acos(((turn.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2).clamp(max=1)))
    assert ((angle - degrees).abs() < 1e-3).sum(dim=1).tolist() == [1] * FRAMES
    assert torch.equal(poses, poses[:1].expand_as(poses)), "it stays"


def test_hands_vanish_and_the_room_stays():
    """Where neither hands, arms nor sleeves were, pictures are the same; there are no labels left."""
    key = SequenceKey("test", 44, "separate_hand", 0, 30)
    recording, whole = empty_recording(key), sample_sequence(key)
    assert not recording.labelled.any()
    empty, full = next(recording.images(start=7)), render_frame(whole.scene, 7)
    same_pixels = (empty == full).mean()
    assert 0.5 < same_pixels < 0.999
    assert np.array_equal(next(empty_recording(key).images(start=7)), empty)
