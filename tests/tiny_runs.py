"""Tiny trainings: crops of a made-up recording, a configuration that takes seconds, and runs of it."""

from dataclasses import replace
from pathlib import Path

from conftest import TINY, tiny_recording

from lib.clip_training import ClipData, ClipTraining, ClipTrainingConfig, Pretrained
from lib.clips import NO_AUGMENTATION, TRUE_SKELETON, ClipSource
from lib.crop_cache import CropSequence, crop_sequence
from lib.machines import Precision
from lib.recordings import read_recording
from lib.rendered.shape import generic_hand
from lib.training import Run

CONFIG = ClipTrainingConfig(
    network=TINY, augmentation=NO_AUGMENTATION, skeleton_noise=TRUE_SKELETON, steps=12, hands=8, clip_frames=4,
    warmup_steps=2, validation_every=6, validation_hands=8,
)  # fmt: skip
WEIGHTS = "weights.safetensors"


def sequence_of(folder: Path, frames: int) -> CropSequence:
    """Crops of both hands in a tiny recording, each seen by two cameras in every frame."""
    recording = read_recording(tiny_recording(frames).write(folder))
    pictures = list(recording.images())
    return crop_sequence(recording, lambda t, camera, box: pictures[t][camera][box[1] : box[3], box[0] : box[2]])


def made_up_data(folder: Path, device: str = "cpu") -> ClipData:
    """Both hands in six frames, to learn from and to be judged by."""
    source = ClipSource([sequence_of(folder, 6)], device)
    return ClipData(source, source, "made up")


def run(
    folder: Path,
    data: ClipData,
    precision: Precision | None = "float32",
    pretrained: Pretrained | None = None,
    **changes,
) -> Run:
    """A run in the folder, which begins as the `pretrained` network."""
    return Run(folder, ClipTraining(replace(CONFIG, **changes), data, generic_hand(), pretrained), "cpu", precision)
