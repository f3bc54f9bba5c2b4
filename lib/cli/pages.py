"""`viewer` and `loop`: tracked hands in motion."""

from __future__ import annotations

import argparse

from lib.errors import InputError
from lib.files import refuse_overwriting
from lib.recordings import read_recording
from lib.study.pages.loop import write_loop
from lib.study.pages.viewer import METHODS, RECORDINGS, TrackedRecording, write_page, write_viewer
from lib.study.results import ROOT
from lib.study.tables import TEMPORAL
from lib.tracking import read_tracks


def run_viewer(options: argparse.Namespace) -> None:
    """Write the page of recordings of the test split, or of one that was tracked before."""
    if (options.recording is None) != (not options.tracks):
        raise InputError("viewer needs both --recording and --tracks, or neither of them")
    if options.recording is None:
        write_viewer(options.output, list(RECORDINGS), list(METHODS), options.profile, options.data)
        return
    inputs = {"the recording": options.recording} | {f"the tracks {path}": path for path in options.tracks}
    refuse_overwriting({"--output": options.output}, inputs)
    tracks = {path.stem: read_tracks(path) for path in options.tracks}
    recording = read_recording(options.recording)
    write_page(options.output, [TrackedRecording(options.recording.stem, recording, tracks)])


def run_loop(options: argparse.Namespace) -> None:
    """Write the animated picture of a test recording that the README begins with."""
    write_loop(options.output, TEMPORAL, options.profile, options.data or ROOT / "data" / options.profile)
