"""Speed of the renderer: four-view frames per second, without encoding."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor

import pandas as pd

from lib.machines import start_worker
from lib.rendered.dataset import SequenceKey, sample_sequence
from lib.rendered.motion import PROTOCOLS
from lib.rendered.raster import render_frame

FRAMES = 60


def benchmark_rendering(workers: int, repeats: int) -> pd.DataFrame:
    """Render `repeats` sequences of every protocol in each worker, all workers at once, after a first one to warm up.

    Columns: stage, workers, median_ms (per four-view frame or per sequence of one worker), frames_per_second (of all).
    """
    jobs = workers * len(PROTOCOLS) * repeats
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker) as pool:
        list(pool.map(_time_sequence, range(workers)))
        measured = pd.DataFrame(list(pool.map(_time_sequence, range(jobs))), columns=["sampling", "rendering"])
    rows = [
        {"stage": "sample sequence", "median_ms": 1e3 * measured.sampling.median()},
        {
            "stage": "render four views",
            "median_ms": 1e3 * measured.rendering.median() / FRAMES,
            "frames_per_second": workers * jobs * FRAMES / measured.rendering.sum(),
        },
    ]
    table = pd.DataFrame(rows)
    table.insert(1, "workers", workers)
    return table


def _time_sequence(job: int) -> tuple[float, float]:
    """Seconds to sample a sequence and to render its frames."""
    start = time.perf_counter()
    sequence = sample_sequence(SequenceKey("train", job % 44, PROTOCOLS[job % len(PROTOCOLS)], job, FRAMES))
    sampled = time.perf_counter()
    for frame in range(FRAMES):
        render_frame(sequence.scene, frame)
    return sampled - start, time.perf_counter() - sampled
