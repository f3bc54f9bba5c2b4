"""The rendered dataset on disk: test recordings in the public layout, training sequences as caches of crops and views.

Every sequence is a pure function of (seed, user, protocol, index) and is written by whichever worker comes to it, under
its final name only when complete; what already exists is kept, so that a broken-off run goes on where it stopped.

    DIR/dataset.json                                                    what it is; written first
    DIR/raw_data/synthetic/PROTOCOL/testing/user_NN/recording_NN.{mp4,json}
    DIR/crops/PROTOCOL/training/user_NN/recording_NN.{npy,npz}          pictures and labels of the training cache
    DIR/views/PROTOCOL/training/user_NN/recording_NN.npz                whole views, shrunk, for the baseline's detector
    DIR/{testing,training}.json                                         index of what is complete, with hashes
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

import av
import numpy as np
import torch
from jaxtyping import UInt8

from lib.crop_cache import crop_sequence, view_sequence
from lib.errors import InputError
from lib.files import MM, read_json, sha256_of, working_in, write_atomically
from lib.formats.folders import RecordingName
from lib.machines import in_processes
from lib.recordings import Recording, labels_to_json
from lib.rendered.bodies import FOREARM, FOREARM_BONES
from lib.rendered.index import FOLDER_OF_SPLIT, Split, index_path, read_index, write_index
from lib.rendered.motion import FRAMES_PER_SECOND, Motion, Protocol, sample_motion
from lib.rendered.raster import pose_frame, render_frame, render_view
from lib.rendered.scene import Scene, sample_rig, sample_scene
from lib.rendered.shape import EXTRA_USERS, TEST_USERS, TRAIN_USERS, user_hand, vertex_albedo

DATASET_VERSION = 2
"""Raised whenever the same seed no longer gives the same bytes."""
SEED = 2022
_CYCLE: tuple[Protocol, ...] = (
    "separate_hand", "hand_hand", "pinch", "separate_hand", "hand_hand", "separate_hand", "hand_hand", "occlusion"
)  # fmt: skip
"""The protocols of a user's sequences in order, again and again; occlusion in the test split only."""


@dataclass(frozen=True)
class Profile:
    """How much is rendered: users (the `extra` ones, too, are trained on), sequences per user, frames per sequence."""

    name: str
    train_users: int
    extra_users: int
    test_users: int
    train_sequences: int
    extra_sequences: int
    test_sequences: int
    frames: int

    def users(self, split: Split) -> dict[int, int]:
        """The users of a split, and how many sequences each has."""
        if split == "test":
            return dict.fromkeys(TEST_USERS[: self.test_users], self.test_sequences)
        train = dict.fromkeys(TRAIN_USERS[: self.train_users], self.train_sequences)
        return train | dict.fromkeys(EXTRA_USERS[: self.extra_users], self.extra_sequences)


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("smoke", 3, 1, 2, train_sequences=3, extra_sequences=3, test_sequences=8, frames=30),
        Profile("reference", 44, 132, 9, train_sequences=22, extra_sequences=6, test_sequences=8, frames=120),
    )
}


@dataclass(frozen=True)
class SequenceKey:
    """Which sequence: together with the seed, all that it depends on."""

    split: Split
    user: int
    protocol: Protocol
    index: int
    frames: int
    seed: int = SEED

    @property
    def generator(self) -> np.random.Generator:
        """The source of all randomness of the sequence."""
        return np.random.default_rng([self.seed, self.user, get_args(Protocol).index(self.protocol), self.index])

    @property
    def path(self) -> Path:
        """Folder and name below the folder of its form, without suffix. Pinches are part of separate-hand."""
        protocol = "separate_hand" if self.protocol == "pinch" else self.protocol
        name = (protocol, FOLDER_OF_SPLIT[self.split], f"user_{self.user:02d}", f"recording_{self.index:02d}")
        return RecordingName(*name).path


def sequence_keys(profile: Profile, split: Split, scale: float = 1.0) -> list[SequenceKey]:
    """The sequences of a split, user after user; `scale` multiplies the number per user."""
    cycle = [protocol for protocol in _CYCLE if split == "test" or protocol != "occlusion"]
    return [
        SequenceKey(split, user, cycle[index % len(cycle)], index, profile.frames, SEED)
        for user, count in profile.users(split).items()
        for index in range(round(scale * count))
    ]


@dataclass(frozen=True)
class Sequence:
    """A sampled sequence: its labels and cameras, and the scene that gives its pictures."""

    key: SequenceKey
    recording: Recording
    motion: Motion
    scene: Scene

    def below(self, root: Path) -> Sequence:
        """The same sequence, to be stored below `root`."""
        return replace(self, recording=replace(self.recording, path=(root / self.key.path).with_suffix(".mp4")))


def sample_sequence(key: SequenceKey, root: Path = Path()) -> Sequence:
    """Sample hand, rig, motion and scene of a sequence, to be stored below `root`."""
    generator = key.generator
    hand = user_hand(key.user).to(dtype=torch.float64)
    rig = sample_rig(generator)
    motion = sample_motion(key.protocol, hand, generator, key.frames)
    recording = Recording(
        path=Path(),
        camera=rig.camera,
        mounting_angles=torch.deg2rad(torch.tensor(rig.camera_angles_deg, dtype=torch.float64)),
        world_from_camera=rig.posed(torch.from_numpy(motion.world_from_headset)).world_from_camera,
        hand_model=hand,
        joint_angles=torch.from_numpy(motion.joint_angles),
        world_from_wrist=torch.from_numpy(motion.world_from_wrist),
        labelled=torch.from_numpy(motion.present),
        pinch=torch.from_numpy(motion.pinch),
    )
    scene = sample_scene(motion, hand, vertex_albedo(), rig, generator)
    return Sequence(key, recording, motion, scene).below(root)


def write_recording(sequence: Sequence) -> None:
    """Render all views of a sequence and write its video and labels; the labels last, marking a complete recording.

    Besides the public fields the labels hold `pinch`, `near_miss`, `sheet` (the frames in which an occluder passes),
    `elbows` (mm, in the world) and `motion`.
    """
    motion, video = sequence.motion, sequence.recording.path
    frames = (render_frame(sequence.scene, frame) for frame in range(sequence.key.frames))
    write_atomically(video, lambda temporary: encode_gray(temporary, frames))
    elbows = sequence.scene.bones[:, FOREARM_BONES] @ (-FOREARM, 0.0, 0.0, 1.0)
    labels = labels_to_json(sequence.recording) | {
        "near_miss": motion.near_miss.astype(int).tolist(),
        "sheet": [] if motion.occluder is None else motion.occluder.active.astype(int).tolist(),
        "elbows": (MM * elbows).round(2).tolist(),
        "motion": sequence.key.protocol,
    }
    text = json.dumps(labels, separators=(",", ":"))
    write_atomically(video.with_suffix(".json"), lambda temporary: temporary.write_text(text))


def write_crops(sequence: Sequence) -> None:
    """Render the hands of a sequence, and only them, and write its training cache."""
    states = functools.lru_cache(maxsize=1)(lambda frame: pose_frame(sequence.scene, frame))
    crops = crop_sequence(
        sequence.recording, lambda frame, camera, region: render_view(sequence.scene, states(frame), camera, region)
    )
    crops.save(sequence.recording.path.with_suffix(""))


def write_views(sequence: Sequence) -> None:
    """Render whole views of a sequence, now and then, and write them shrunk."""
    views = view_sequence(sequence.recording, lambda frame: render_frame(sequence.scene, frame))
    views.save(sequence.recording.path.with_suffix(""))


def encode_gray(path: Path, frames: Iterator[UInt8[np.ndarray, "views height width"]]) -> None:
    """Encode views side by side as full-range H.264; one thread, since x264 gives other bytes on another number."""
    options = {"crf": "16", "preset": "ultrafast", "threads": "1"}
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=options)
        stream.pix_fmt, stream.codec_context.color_range = "yuvj420p", 2
        for index, views in enumerate(frames):
            gray = np.ascontiguousarray(views.swapaxes(0, 1)).reshape(views.shape[1], -1)
            if index == 0:
                stream.height, stream.width = gray.shape
            neutral = np.full((gray.shape[0] // 2, gray.shape[1]), 128, np.uint8)
            frame = av.VideoFrame.from_ndarray(np.concatenate((gray, neutral)), format="yuvj420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@dataclass(frozen=True)
class Form:
    """A form in which sequences are kept: its folder, the suffixes of a sequence's files, and what writes them."""

    folder: str
    suffixes: tuple[str, ...]
    write: Callable[[Sequence], None]


FORMS: dict[Split, tuple[Form, ...]] = {
    "train": (Form("crops", (".npy", ".npz"), write_crops), Form("views", (".npz",), write_views)),
    "test": (Form("raw_data/synthetic", (".mp4", ".json"), write_recording),),
}


def render_dataset(profile: Profile, split: Split, output: Path, workers: int, scale: float = 1.0) -> Path:
    """Render what is missing of a split below `output` and return its index.

    Raises InputError if the folder holds another dataset (version, seed, profile or frames differ), if a file differs
    from what its index says, or if a worker dies; OSError if a file cannot be written. What is complete is kept. While
    another process renders there, it is waited for.
    """
    with working_in(output, wait=True):
        return _render_dataset(profile, split, output, workers, scale)


def _render_dataset(profile: Profile, split: Split, output: Path, workers: int, scale: float) -> Path:
    _claim(output, profile)
    keys = sequence_keys(profile, split, scale)
    files = dict(sorted(write_sequences(keys, output, workers, f"rendering {split}").items()))
    known = read_index(output, split)["sha256"] if index_path(output, split).exists() else {}
    changed = [path for path in files.keys() & known if files[path] != known[path]]
    if changed:
        raise InputError(f"{output / min(changed)} is not what was rendered: delete it, and it is rendered again")
    return write_index(output, split, [asdict(key) for key in keys], files)


def render_shard(
    profile: Profile, split: Split, output: Path, workers: int, shard: tuple[int, int], scale: float = 1.0
) -> None:
    """Render what is missing of the K-th of N parts of a split, beside others that render theirs.

    No index is written: `render_dataset` does, when all parts are there. Raises as that does.
    """
    part, parts = shard
    with working_in(output / f"part_{part}_of_{parts}", wait=True):
        _claim(output, profile)
        keys = sequence_keys(profile, split, scale)[part - 1 :: parts]
        write_sequences(keys, output, workers, f"rendering {split}, part {part} of {parts}")


def write_sequences(keys: list[SequenceKey], output: Path, workers: int, title: str) -> dict[str, str]:
    """Write what is missing of some sequences on several processes; the hashes of all files by their paths."""
    jobs = {key: functools.partial(_write_sequence, key, output) for key in keys}
    written = in_processes(jobs, workers, title, "sequence")
    return dict(file for files in written.values() for file in files.items())


def _claim(output: Path, profile: Profile) -> None:
    """Write down what the folder holds, or check that it holds that already."""
    marker = output / "dataset.json"
    mine = {"version": DATASET_VERSION, "seed": SEED, "profile": profile.name, "frames": profile.frames}
    if marker.exists():
        theirs = read_json(marker)
        if theirs != mine:
            raise InputError(
                f"{output} holds another dataset: {theirs}, asked for {mine}; choose another folder or remove it"
            )
    else:
        write_atomically(marker, lambda temporary: temporary.write_text(json.dumps(mine)))


def _write_sequence(key: SequenceKey, output: Path) -> dict[str, str]:
    """Write a sequence unless it is there; the hashes of its files by their paths below `output`."""
    paths = {
        form: [(output / form.folder / key.path).with_suffix(suffix) for suffix in form.suffixes]
        for form in FORMS[key.split]
    }
    missing = [form for form, files in paths.items() if not all(path.is_file() for path in files)]
    if missing:
        sequence = sample_sequence(key)
        for form in missing:
            form.write(sequence.below(output / form.folder))
    files = [path for files in paths.values() for path in files]
    return {str(path.relative_to(output)): sha256_of(path) for path in files}
