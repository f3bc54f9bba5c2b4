"""Pinches as events: told in the frame in which they begin and end, and written by every format that has a place."""

import csv
import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import still_recording
from test_live import SURE, world_of

from lib.formats.tracked_files import write_tracks
from lib.live.events import updated
from lib.live.recordings import StreamTracker
from lib.live.tracker import LiveTracker
from lib.recordings import Recording
from lib.tracking import Pinch, Tracks, read_tracks

FRAMES = 12


def events(*pinching: str) -> list[Pinch]:
    """Of frames a second apart, a letter for each hand that pinches in it."""
    pinches = ()
    for frame, hands in enumerate(pinching):
        pinches = updated(pinches, torch.tensor(["l" in hands, "r" in hands]), float(frame))
    return sorted(pinches)


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (("", "l", "l", "", ""), [Pinch(0, 1.0, 3.0)]),
        (("r", "", "r", "lr", "l"), [Pinch(0, 3.0), Pinch(1, 0.0, 1.0), Pinch(1, 2.0, 4.0)]),
        (("", ""), []),
    ],
)
def test_a_pinch_begins_and_ends_in_the_frame_that_shows_it(frames, expected):
    assert events(*frames) == expected


@pytest.fixture
def recording(tmp_path) -> Recording:
    return still_recording(tmp_path, FRAMES)


@pytest.fixture
def tracks(recording, monkeypatch) -> Tracks:
    """The left hand pinches in frames 4 to 6 and, to the end, from 10 on; so says the live tracker."""
    step = LiveTracker.step

    def pinching(tracker, images, cameras, time, state):
        hands, after = step(tracker, images, cameras, time, state)
        left = state.frame in (4, 5, 6) or state.frame >= 10
        return replace(hands, pinching=torch.tensor([left, False])), after

    monkeypatch.setattr(LiveTracker, "step", pinching)
    return tracked(recording)


def tracked(recording: Recording) -> Tracks:
    world = world_of(recording)
    tracker = StreamTracker(partial(LiveTracker, world, world.detect, SURE))
    return tracker.track_known(recording, recording.hand_model)


def test_a_stream_tells_its_pinches(tracks):
    assert tracks.pinches == (Pinch(0, 4 / 30, 7 / 30), Pinch(0, 10 / 30))


def test_a_frame_without_a_headset_pose_ends_them(recording, tracks):
    posed = torch.ones(FRAMES, dtype=torch.bool)
    posed[11] = False
    assert tracked(replace(recording, posed=posed)).pinches[-1].end == 11 / 30


def test_they_are_written_and_read(recording, tracks, tmp_path):
    write_tracks(tracks, recording, tmp_path / "tracks.npz")
    assert read_tracks(tmp_path / "tracks.npz").pinches == tracks.pinches
    write_tracks(replace(tracks, pinches=()), recording, tmp_path / "none.npz")
    assert read_tracks(tmp_path / "none.npz").pinches == ()
    write_tracks(tracks, recording, tmp_path / "tracks.json", "json")
    content = json.loads((tmp_path / "tracks.json").read_text())
    assert content["left"]["pinches"] == [{"begin": 4 / 30, "end": 7 / 30}, {"begin": 10 / 30, "end": None}]
    assert content["right"]["pinches"] == []
    write_tracks(tracks, recording, tmp_path / "tracks.csv", "csv")
    with (tmp_path / "tracks.csv").open() as file:
        pinching = [(row["hand"], int(row["frame"])) for row in csv.DictReader(file) if row["pinching"] == "1"]
    assert pinching == [("left", frame) for frame in (4, 5, 6, 10, 11)]
