"""Speed of tracking and training. Machines are noisy: compare stages and networks within one run only."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import msgpack
import numpy as np
import pandas as pd
import torch

from lib.clip_training import ClipData, ClipTraining, ClipTrainingConfig
from lib.clips import ClipSource
from lib.crop_cache import CACHE_SIZE, CropSequence
from lib.crops import choose_crop_cameras, take_crops
from lib.formats.challenge_tars import write_challenge_tar
from lib.formats.cut_clips import clips_of
from lib.formats.indexed_files import MAGIC, MSGPACK, VERSION, IndexedFile, index_and_content
from lib.formats.shard_source import ShardSource
from lib.formats.torch_data import LABELS, MONO, Shard, write_shard
from lib.hands import HANDS, HandModel, for_hand
from lib.machines import Precision, machine, native_precision, processor, start_worker
from lib.multistage.sources import Detector, KeypointSource
from lib.multistage.tracker import MultistageTracker
from lib.network import NetworkConfig, TemporalState, UmeTrack
from lib.recordings import Recording, read_recording
from lib.rendered.dataset import SequenceKey, sample_sequence
from lib.rendered.motion import PROTOCOLS
from lib.rendered.raster import render_frame
from lib.study.experiments import REFERENCE_NETWORK
from lib.study.sequences import crops_of_recording
from lib.tracking import advance, prepare_for_inference
from lib.training import Run


class Stopwatch:
    """Collects the durations of named stages, in seconds."""

    def __init__(self, device: torch.device | str):
        self.durations: dict[str, list[float]] = defaultdict(list)
        self.device = torch.device(device)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block, and wait for the device to finish it."""
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.durations[name].append(time.perf_counter() - start)


def benchmark_tracking(
    recording: Recording, network: UmeTrack, device: torch.device | str, repeats: int
) -> pd.DataFrame:
    """Time every stage of tracking both hands through a recording, known skeleton, one frame after the other.

    The first pass warms up and is not counted. Columns as in `speed.csv`: stage, device, threads, median_ms, p95_ms,
    processor.
    """
    network = prepare_for_inference(network).to(device)
    _time_recording(recording, network, Stopwatch(device))
    watch = Stopwatch(device)
    for _ in range(repeats):
        _time_recording(recording, network, watch)
    return timing_summary(watch)


@torch.inference_mode()
def _time_recording(recording: Recording, network: UmeTrack, watch: Stopwatch) -> None:
    model = recording.hand_model
    skeleton = model.to(watch.device, torch.float32)
    state = TemporalState.untracked(HANDS, watch.device)
    frames = recording.images()
    for frame in range(len(recording)):
        with watch.stage("whole frame"):
            with watch.stage("decode video"):
                images = next(frames)
            cameras, posed = recording.cameras(frame), recording.hands(frame)
            with watch.stage("crop cameras"):
                hands, views, crop = choose_crop_cameras(cameras, recording.mounting_angles, posed, min_views=1)
            if not len(hands):
                state = TemporalState.untracked(HANDS, watch.device)
                continue
            with watch.stage("warp crops"):
                crops = take_crops(images, cameras, hands, views, crop)
            with watch.stage("network"):
                crops = crops.to(watch.device)
                features, state = advance(network, network.extract(crops), crops, hands, state)
                prediction = network.known(features, crops, skeleton)
            with watch.stage("decode pose"):
                model.landmarks(
                    prediction.joint_angles.double().cpu(), for_hand(prediction.world_from_wrist.double().cpu(), hands)
                )


def timing_summary(watch: Stopwatch) -> pd.DataFrame:
    """Median and 95th percentile of each stage, and what they were measured on."""
    rows = [
        {
            "stage": stage,
            "device": watch.device.type,
            "threads": torch.get_num_threads(),
            "median_ms": 1e3 * np.median(seconds),
            "p95_ms": 1e3 * np.percentile(seconds, 95),
            "processor": processor(watch.device),
        }
        for stage, seconds in watch.durations.items()
    ]
    return pd.DataFrame(rows)


def benchmark_training(
    networks: Mapping[str, NetworkConfig], device: torch.device | str, steps: int, precision: Precision | None = None
) -> pd.DataFrame:
    """Crops per second of whole training steps: in plain float32, and in the `precision` asked for, eager and compiled.

    The default is what the device multiplies natively. The clips are noise. Steps of the variants take turns, so that
    all run on the same machine. Columns: network, precision, compiled, instructions (the set that the kernels are
    chosen by), threads, crops_per_second, speedup (over plain float32), waiting_percent (share of the time spent on
    making batches).
    """
    source = ClipSource([_noise_sequence(60)], device)
    data = ClipData(source, source, "noise")
    asked = precision or native_precision(torch.device(device).type)
    variants = dict.fromkeys((("float32", False), (asked, False), (asked, True)))  # in this order, each once
    about = machine(torch.device(device))
    hand = _noise_sequence(1).hand_model
    rows = []
    with TemporaryDirectory() as scratch:
        for name, network in networks.items():
            task = ClipTraining(ClipTrainingConfig(network, optimizer="muon"), data, hand)
            runs = {
                variant: Run(Path(scratch, name, "_".join(map(str, variant))), task, device, *variant)
                for variant in variants
            }
            for _ in range(steps + WARM_UP_STEPS):
                for run in runs.values():
                    run.one_step()
            for (used, compiled), run in runs.items():
                row = {"network": name, "precision": used, "compiled": compiled}
                row |= {"instructions": about["instructions"], "threads": about["threads"]}
                rows.append(row | _throughput(run))
    table = pd.DataFrame(rows)
    plain = table[(table.precision == "float32") & ~table.compiled].set_index("network").crops_per_second
    table["speedup"] = table.crops_per_second / table.network.map(plain)
    return table


WARM_UP_STEPS = 5


def _throughput(run: Run) -> dict[str, float]:
    log = pd.DataFrame(run.log)
    seconds = log.seconds.diff()[WARM_UP_STEPS:]
    crops = log.crops.diff()[WARM_UP_STEPS:]
    return {
        "crops_per_second": float(np.median(crops / seconds)),
        "waiting_percent": 100 * float(log.waiting[WARM_UP_STEPS:].sum() / seconds.sum()),
    }


def _noise_sequence(frames: int) -> CropSequence:
    """Both hands, seen by two cameras in every frame; pictures of noise."""
    generator = np.random.default_rng(0)
    poses = np.tile(np.eye(4, dtype=np.float32), (frames, 2, 1, 1))
    poses[..., 2, 3] = 0.4
    cameras = np.tile(np.eye(4, dtype=np.float32), (frames, 2, 2, 1, 1))
    cameras[:, :, 1, 0, 3] = 0.1
    axes = torch.nn.functional.normalize(torch.from_numpy(generator.normal(size=(22, 3))), dim=-1)
    points = torch.from_numpy(generator.normal(size=(22, 3))) * 0.05
    weights = torch.nn.functional.one_hot(torch.arange(21) % 17, 17).double()
    return CropSequence(
        images=generator.integers(0, 256, (frames, 2, 2, CACHE_SIZE, CACHE_SIZE), dtype=np.uint8),
        views=np.full((frames, 2), 2),
        focal_px=np.full((frames, 2, 2), 200, np.float32),
        world_from_crop=cameras,
        joint_angles=np.zeros((frames, 2, 22), np.float32),
        world_from_wrist=poses,
        pinch=np.zeros((frames, 2), bool),
        hand_model=HandModel(axes, points, torch.zeros(22, 2), points[:21], weights),
    )


def benchmark_multistage(
    recording: Recording,
    keypoints: KeypointSource,
    detector: Detector | None,
    device: torch.device | str,
    repeats: int,
) -> pd.DataFrame:
    """Time every stage of tracking both hands through a recording, known skeleton, one frame after the other.

    The detector runs where a hand is lost, as a part of "crops". The first pass warms up and is not counted. Columns as
    in `speed.csv`: stage, device, threads, median_ms, p95_ms, processor.
    """
    MultistageTracker(keypoints, detector).track_known(recording, recording.hand_model)
    watch = Stopwatch(device)
    tracker = MultistageTracker(keypoints, detector, stage=watch.stage)
    for _ in range(repeats):
        tracker.track_known(recording, recording.hand_model)
    return timing_summary(watch)


def benchmark_methods(
    recording: Recording,
    network: UmeTrack,
    keypoints: KeypointSource,
    detector: Detector,
    device: torch.device | str,
    repeats: int = 3,
) -> pd.DataFrame:
    """`speed.csv`: every stage of the end-to-end and of the multi-stage tracker, of both hands through a recording.

    The multi-stage tracker takes its own crops.
    """
    tables = {
        "end-to-end": benchmark_tracking(recording, network, device, repeats),
        "multi-stage": benchmark_multistage(recording, keypoints, detector, device, repeats),
    }
    return pd.concat([table.assign(stage=f"{name}: " + table.stage) for name, table in tables.items()])


SPARSE_BYTES = 50 << 30
"""Of the pictures of the shard that memory is measured on; they take no place on the disk."""
_SPARSE_SIDE = 256
_CLIP_FRAMES = 32
_BATCHES = 20


def benchmark_data(recording: Recording, device: torch.device | str) -> pd.DataFrame:
    """Crops per second of everything that training can read, beside what training uses of the reference network.

    Recordings are imported once, then trained from as a cache. Columns: reader, crops_per_second, times_training (None
    for training itself), memory_mb (by how much the process's own memory grows over the last three quarters of the
    batches, mapped files not counted; NaN where the system does not tell).
    """
    rows = [{"reader": "training itself", "crops_per_second": _training_speed(device)}]
    with TemporaryDirectory() as folder:
        scratch = Path(folder)
        sequence = crops_of_recording(recording)
        sequence.save(scratch / "cache")
        write_shard(scratch / "shard", clips_of(recording, _CLIP_FRAMES))
        write_challenge_tar(recording, scratch / "clip.tar")
        sparse = _write_sparse_shard(scratch / "shard", scratch / "sparse")
        sources = {
            "training cache": ClipSource([CropSequence.load(scratch / "cache")], device),
            "torch_data": _shard_source(scratch / "shard", device),
            f"torch_data, {SPARSE_BYTES >> 30} GB of {_SPARSE_SIDE}x{_SPARSE_SIDE} px": _shard_source(sparse, device),
        }
        rows += [{"reader": name} | _reading_speed(source) for name, source in sources.items()]
        for name, path in (("raw_data, imported", recording.path), (".tar, imported", scratch / "clip.tar")):
            start = time.perf_counter()
            crops = int(crops_of_recording(read_recording(path)).views.sum())
            rows.append({"reader": name, "crops_per_second": crops / (time.perf_counter() - start)})
    table = pd.DataFrame(rows)
    table.insert(2, "times_training", table.crops_per_second / table.crops_per_second[0])
    return table


def _training_speed(device: torch.device | str) -> float:
    """Crops per second of the second phase of the reference network, in what the device multiplies natively."""
    source = ClipSource([_noise_sequence(60)], device)
    config = ClipTrainingConfig(REFERENCE_NETWORK, optimizer="muon", keep_batch_norms=True)
    task = ClipTraining(config, ClipData(source, source, "noise"), _noise_sequence(1).hand_model)
    with TemporaryDirectory() as scratch:
        run = Run(Path(scratch, "run"), task, device)
        for _ in range(_BATCHES + WARM_UP_STEPS):
            run.one_step()
        return _throughput(run)["crops_per_second"]


def _reading_speed(source: ClipSource | ShardSource) -> dict[str, float]:
    """Crops per second of batches as the second phase draws them, and by how much memory grows meanwhile."""
    task = ClipTraining(
        ClipTrainingConfig(pinch_copies=1), ClipData(source, source, "read"), _noise_sequence(1).hand_model
    )
    crops, seconds, memory = [], [], []
    for step in range(4 * _BATCHES):
        start = time.perf_counter()
        crops.append(len(task.batch(step, 0, 1)))
        seconds.append(time.perf_counter() - start)
        memory.append(own_memory_mb())
    speed = float(np.median(np.array(crops) / seconds))
    return {"crops_per_second": speed, "memory_mb": memory[-1] - memory[_BATCHES]}


def own_memory_mb() -> float:
    """What this process has in memory for itself alone, mapped files not counted (MB); NaN where that is unknown."""
    status = Path("/proc/self/status")
    found = re.search(r"RssAnon:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    return int(found[1]) / 1000 if found else float("nan")


def _shard_source(folder: Path, device: torch.device | str) -> ShardSource:
    shard = Shard(folder)
    return ShardSource([(shard, range(len(shard)))], device)


def _write_sparse_shard(like: Path, folder: Path) -> Path:
    """A shard of black pictures that are larger than `like`'s, with the labels of its first clip in every clip."""
    shape = _CLIP_FRAMES, 2, _SPARSE_SIDE, _SPARSE_SIDE
    count, size = SPARSE_BYTES // math.prod(shape), math.prod(shape)
    message = msgpack.packb(IndexedFile(like / LABELS)[0])
    folder.mkdir()
    for stem, kind, item, dims in ((MONO, 1, size, shape), (LABELS, MSGPACK, len(message), ())):
        index, content = index_and_content(folder / stem)
        header, places = (MAGIC, VERSION, kind, 1, count, count * len(dims)), np.arange(count + 1)
        np.concatenate([header, len(dims) * places, item * places, np.tile(dims, count)]).astype("<i8").tofile(index)
        with content.open("wb") as file:
            file.truncate(count * size) if stem == MONO else file.writelines(itertools.repeat(message, count))
    return folder


RENDERED_FRAMES = 60


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
            "median_ms": 1e3 * measured.rendering.median() / RENDERED_FRAMES,
            "frames_per_second": workers * jobs * RENDERED_FRAMES / measured.rendering.sum(),
        },
    ]
    table = pd.DataFrame(rows)
    table.insert(1, "workers", workers)
    return table


def _time_sequence(job: int) -> tuple[float, float]:
    """Seconds to sample a sequence and to render its frames."""
    start = time.perf_counter()
    sequence = sample_sequence(SequenceKey("train", job % 44, PROTOCOLS[job % len(PROTOCOLS)], job, RENDERED_FRAMES))
    sampled = time.perf_counter()
    for frame in range(RENDERED_FRAMES):
        render_frame(sequence.scene, frame)
    return sampled - start, time.perf_counter() - sampled
