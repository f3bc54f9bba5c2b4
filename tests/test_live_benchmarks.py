"""Benchmarks of the live tracker measure what they say, on two hands that are known."""

import numpy as np
from test_live import SURE, recording, world_of  # noqa: F401, a fixture

from lib.live.tracker import LiveTracker
from lib.study import live_benchmarks
from lib.study.live_benchmarks import PlainTracker, benchmark_live, soak


def trackers(recording) -> dict[str, LiveTracker]:  # noqa: F811
    world = world_of(recording)
    about = world, world.detect, SURE, recording.mounting_angles, recording.hand_model
    return {"plain": PlainTracker(*about), "compiled": LiveTracker(*about)}


def test_live_trackers_are_timed_in_turns(recording):  # noqa: F811
    table = benchmark_live(recording, trackers(recording), repeats=2).set_index("stage")
    assert list(table.index) == [f"{name}: {stage}" for name in ("plain", "compiled")
                                 for stage in ("decode video", "step", "whole frame")]  # fmt: skip
    assert (table.median_ms > 0).all()
    assert (table.apart_mm < 1e-3).all()


def test_a_soak_goes_to_and_fro(recording, monkeypatch):  # noqa: F811
    monkeypatch.setattr(live_benchmarks, "PART", 20)
    table = soak(recording, trackers(recording)["compiled"], 50)
    assert table.frames.tolist() == [20, 40, 50]
    assert table.finite.all()
    assert np.isfinite(table.memory_mb).all()
    assert table.tracked_percent.tolist() == [95.0, 100.0, 100.0], "the first camera sees no hand"
