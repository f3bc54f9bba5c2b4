"""Recordings shown at their own rate: what is skipped, what is late, and the thread that decodes."""

import itertools
import json
import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from conftest import still_recording
from test_live import SURE, World, world_of

from lib.cli import main
from lib.errors import InputError
from lib.live.realtime import WARM_UP, RealTime, ahead
from lib.live.recordings import StreamTracker
from lib.live.tracker import LiveTracker
from lib.recordings import Recording

FRAMES, RATE = 26, 32.0


class Clock:
    """Time that goes on only while somebody sleeps or works."""

    def __init__(self):
        self.now = 5.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


@pytest.fixture
def recording(tmp_path) -> Recording:
    return replace(still_recording(tmp_path, FRAMES), frames_per_second=RATE)


def played(recording: Recording, work: dict[int, float], otherwise: float) -> RealTime:
    """The recording, shown to one who works so long (in frames) on some frames, and so long on the others."""
    clock = Clock()
    play = RealTime(clock, clock.sleep)
    for frame, images in play(recording):
        assert images.shape == (4, 48, 64)
        clock.now += work.get(frame, otherwise) / RATE
    return play


def test_who_is_fast_enough_sees_every_frame_when_it_comes(recording):
    play = played(recording, {}, 0.75)
    assert play.shown == [*range(FRAMES)]
    assert play.delays == [0.75 / RATE] * (FRAMES - WARM_UP)
    assert "0 of 26 skipped, 0 late" in play.describe(recording)
    assert "23.4 ms (median), 23.4 ms (95th percentile)" in play.describe(recording)


def test_who_is_too_slow_sees_the_newest(recording):
    play = played(recording, dict.fromkeys(range(WARM_UP), 99.0), 1.5)
    assert play.shown == [*range(WARM_UP), 10, 11, 13, 14, 16, 17, 19, 20, 22, 23, 25]
    assert [delay * RATE for delay in play.delays] == [1.5, 2.0] * 5 + [1.5]
    assert "5 of 26 skipped, 11 late" in play.describe(recording)


def test_after_a_pause_it_goes_on_where_the_recording_is(recording):
    play = played(recording, {12: 4.5}, 0.25)
    assert play.shown == [*range(13), *range(16, FRAMES)]
    assert [delay * RATE for delay in play.delays[2:6]] == [4.5, 0.75, 0.25, 0.25]


def test_too_few_frames_are_not_timed(recording):
    assert "too few to be timed" in RealTime().describe(recording)


def decoding() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("decoding")]


def test_a_thread_works_ahead_but_not_far():
    made = []
    items = ahead((made.append(number) or number for number in range(20)), 3)
    assert next(items) == 0
    while len(made) < 4:
        assert decoding()
    assert [*items] == [*range(1, 20)]
    assert not decoding()
    taken = ahead(iter(made), 3)
    next(taken)
    taken.close()
    assert not decoding()


def test_who_stops_early_has_not_decoded_all():
    made = []
    items = ahead((made.append(number) or number for number in range(20)), 3)
    next(items)
    items.close()
    assert made == [0, 1, 2, 3]
    assert not decoding()


def test_what_a_thread_raises_reaches_the_caller():
    def broken():
        yield 1
        raise InputError("broken off")

    items = ahead(broken(), 4)
    assert next(items) == 1
    with pytest.raises(InputError, match="broken off"):
        next(items)
    assert not decoding()


def test_frames_that_were_skipped_are_not_tracked(recording):
    world, clock = world_of(recording), Clock()

    def slow(crops):
        clock.now += 1.5 / RATE
        return World.extract(world, crops)

    world.extract = slow
    play = RealTime(clock, clock.sleep)
    tracks = StreamTracker(partial(LiveTracker, world, world.detect, SURE), play).track_known(
        recording, recording.hand_model
    )
    shown = np.zeros(FRAMES, bool)
    shown[play.shown[1:]] = True
    assert len(play.shown) < FRAMES
    np.testing.assert_array_equal(tracks.valid_tracking, [shown, shown])
    assert (tracks.tracked_keypoints[:, ~shown] == 0).all()


@pytest.fixture
def seeing(recording, monkeypatch) -> None:
    """The command line tracks with a network that sees the hands truly, but for a jitter of 0.4 mm."""
    world, jitter = world_of(recording), itertools.cycle((0.0, 0.0004))

    def known(*about):
        seen = World.known(world, *about)
        seen.world_from_wrist[:, 0, 3] += next(jitter)
        return seen

    world.known = known
    make = partial(LiveTracker, world, world.detect, SURE)
    monkeypatch.setattr("lib.cli.track.Method.files", lambda m: [])
    monkeypatch.setattr("lib.cli.track.Method.tracker", lambda m: StreamTracker(make, m.play))


def track(recording: Recording, *options: str) -> int:
    output = ("--output", str(recording.path.with_name("out.json")), "--format", "json", "--device", "cpu")
    return main(["track", str(recording.path), "--crops", "own", *options, *output])


def test_the_command_says_how_it_went(recording, seeing, capsys):
    overlay = recording.path.with_name("overlay.mp4")
    assert track(recording, "--realtime", "--smooth", "1", "0.01", "--overlay", str(overlay)) == 0
    assert "played at 30 frames a second: " in capsys.readouterr().out
    assert overlay.is_file()
    for wrong in (("--crops", "labelled"), ("--method", "multistage")):
        assert track(recording, "--realtime", *wrong) == 2
        assert "--realtime is for crops of the tracker's own" in capsys.readouterr().err


def test_smoothing_filters_landmarks_and_leaves_poses(recording, seeing):
    written = {}
    for name, options in {"raw": (), "smooth": ("--smooth", "0.1", "0")}.items():
        assert track(recording, *options) == 0
        written[name] = json.loads(recording.path.with_name("out.json").read_text())["left"]
    assert written["raw"]["world_from_wrist"] == written["smooth"]["world_from_wrist"]
    raw, smooth = (np.array(one["landmarks"][3:]) for one in written.values())
    jitter, left = (np.abs(np.diff(landmarks[..., 0], axis=0)).mean() for landmarks in (raw, smooth))
    assert jitter == pytest.approx(0.4, rel=1e-2)
    assert left < 0.03
