"""What runs on a GPU keeps its tensors together there, and gives what the CPU gives."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny_network, tiny_recording
from simulated_gpu import SimulatedGpu
from tiny_runs import CONFIG, made_up_data, sequence_of

from lib.checkpoints import save_network
from lib.clip_training import ClipTraining
from lib.clips import SkeletonNoise
from lib.crop_cache import ViewSequence
from lib.multistage.detection import DetNet, DetNetConfig
from lib.multistage.detection_training import DetectionTraining, DetectionTrainingConfig, ViewData, ViewSource
from lib.multistage.keypoint_training import KeypointTraining, KeypointTrainingConfig
from lib.multistage.keypoints import KeyNet, KeyNetConfig
from lib.multistage.networks import detector, keypoint_source
from lib.multistage.tracker import MultistageTracker
from lib.recordings import Recording, read_recording
from lib.rendered.shape import generic_hand
from lib.study.benchmarks import benchmark_multistage, benchmark_tracking
from lib.study.sequences import LabelledSequence
from lib.study.streams import ExtractedStreams, HandStreams, track_both, track_streams
from lib.tracking import Tracker, prepare_for_inference
from lib.training import Run, Task

FRAMES = 6


@pytest.fixture
def gpu(monkeypatch) -> Iterator[None]:
    """A simulated GPU, onto which modules can be moved."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "simulated")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # their data cannot take on another class
    with SimulatedGpu():
        yield
    torch.__future__.set_overwrite_module_params_on_conversion(overwrite)


def recording_in(folder: Path) -> Recording:
    return read_recording(tiny_recording(FRAMES).write(folder))


def labelled_sequence(folder: Path) -> LabelledSequence:
    never = np.zeros((FRAMES, 2), bool)
    return LabelledSequence(
        "separate_hand/user_44/recording_00", "made up", sequence_of(folder, FRAMES), never, never[:, 0]
    )


def clip_training(folder: Path, device: str) -> Task:
    config = replace(CONFIG, skeleton_noise=SkeletonNoise(), optimizer="muon", steps=4, validation_every=2)
    return ClipTraining(config, made_up_data(folder, device), generic_hand())


def keypoint_training(folder: Path, device: str) -> Task:
    few = {"hands": 4, "validation_hands": 4, "validation_every": 2, "warmup_steps": 1, "steps": 2}
    config = KeypointTrainingConfig(KeyNetConfig(blocks="residual"), optimizer="muon", **few)
    return KeypointTraining(config, made_up_data(folder, device))


def detection_training(folder: Path, device: str) -> Task:
    rng = np.random.default_rng(0)
    images, circles = rng.integers(0, 256, (8, 48, 64), dtype=np.uint8), rng.uniform(5, 40, (8, 2, 3))
    views = ViewSequence(images, circles.astype(np.float32), rng.choice([0, 21], (8, 2)))
    source = ViewSource([views], device)
    few = {"views": 4, "validation_views": 4, "validation_every": 2, "warmup_steps": 1, "steps": 2}
    return DetectionTraining(DetectionTrainingConfig(**few), ViewData(source, source, "made up"))


@pytest.mark.parametrize("task_on", [clip_training, keypoint_training, detection_training])
def test_a_training_on_a_gpu_is_that_on_the_cpu(gpu, tmp_path, task_on: Callable[[Path, str], Task]):
    logs = []
    for device in ("cpu", "cuda"):
        task = task_on(tmp_path, device)
        run = Run(tmp_path / device / "run", task, device, "float32")
        rows = pd.DataFrame([run.one_step() for _ in range(task.config.steps)])
        logs.append(rows.drop(columns=["seconds", "waiting"]))
    pd.testing.assert_frame_equal(*logs, rtol=1e-6, atol=1e-12)


def test_tracking_on_a_gpu_is_that_on_the_cpu(gpu, tmp_path):
    recording = recording_in(tmp_path)
    generic = generic_hand().to(dtype=torch.float64)
    cpu, cuda = (Tracker(tiny_network(), device) for device in ("cpu", "cuda"))
    for tracks in (
        lambda t: t.track_known(recording, recording.hand_model),
        lambda t: t.track_unknown(recording, generic),
    ):
        np.testing.assert_allclose(tracks(cuda).tracked_keypoints, tracks(cpu).tracked_keypoints)
    assert set(benchmark_tracking(recording, tiny_network(), "cuda", repeats=1).device) == {"cuda"}


def test_many_sequences_are_tracked_on_a_gpu(gpu, tmp_path):
    sequence = labelled_sequence(tmp_path)
    network = prepare_for_inference(tiny_network()).to("cuda")
    known, unknown = track_both(ExtractedStreams(network, HandStreams([sequence], "cuda")), generic_hand())
    assert known[0].valid_tracking.all()
    assert unknown[0].valid_tracking.all()
    (again,) = track_streams(ExtractedStreams(network, HandStreams([sequence], "cuda")), [sequence.crops.hand_model])
    np.testing.assert_allclose(again[0].tracked_keypoints, known[0].tracked_keypoints)


def test_the_baseline_on_a_gpu_is_that_on_the_cpu(gpu, tmp_path):
    recording = recording_in(tmp_path)
    torch.manual_seed(0)
    save_network(KeyNet(KeyNetConfig(blocks="residual")), tmp_path / "keynet.safetensors")
    save_network(DetNet(DetNetConfig()), tmp_path / "detnet.safetensors")
    tracked = {}
    for device in ("cpu", "cuda"):
        keypoints = keypoint_source(tmp_path / "keynet.safetensors", device)
        circles = detector(tmp_path / "detnet.safetensors", device)
        tracked[device] = MultistageTracker(keypoints).track_known(recording, recording.hand_model).tracked_keypoints
        assert set(benchmark_multistage(recording, keypoints, circles, device, repeats=1).device) == {device}
    np.testing.assert_allclose(tracked["cuda"], tracked["cpu"])


@pytest.mark.parametrize(
    "operation",
    [
        lambda there, here: there + here,
        lambda there, here: torch.cat((there, here)),
        lambda there, here: here[there.long()],
        lambda there, here: there.numpy(),
        lambda there, here: torch.randn(3, generator=torch.Generator(), device="cuda"),
        lambda there, here: torch.nn.Linear(3, 1)(there),
    ],
)
def test_the_simulated_gpu_refuses_what_a_gpu_does(gpu, operation):
    with pytest.raises(RuntimeError, match="GPU"):
        operation(torch.ones(3, device="cuda"), torch.ones(3))
