"""What the confidence of the live tracker is fitted to: crops that miss their hand, in recordings of validation users.

Each recording is tracked several times, with crops around true hands that wander off, by millimetres or by decimetres,
along the line of sight or across it, or go over to the other hand. The network stays as it is.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from scipy.signal import lfilter
from scipy.spatial.transform import Rotation
from torch import Tensor

from lib.checkpoints import load_network
from lib.errors import InputError
from lib.files import read_json, sha256_of
from lib.hands import HANDS, PosedHands, for_hand
from lib.live.confidence import CLOSE_M, Confidence, confidence_path, signs
from lib.live.crops import PreparedHand, crop_hands
from lib.live.engines import torch_engine
from lib.machines import commit, in_processes
from lib.network import TemporalState
from lib.recordings import Recording, read_recording
from lib.rendered.dataset import PROFILES, SEED, SequenceKey, write_sequences
from lib.rendered.index import validation_users
from lib.rendered.motion import Protocol
from lib.tracking import prepare_for_inference

MOTIONS: tuple[Protocol, ...] = ("separate_hand", "hand_hand", "occlusion", "pinch")
RECORDINGS_PER_USER = 4
FIRST_INDEX = 900
"""Of these recordings: no other split of the dataset counts so far."""
WANDERING_M = (0.006, 0.02, 0.05, 0.10)
"""How far crops are off in each of the times that a recording is tracked, about."""
_FRAMES, _SPREAD, _TO_OTHER = 25.0, 0.8, 1.4
"""Frames in which crops wander; spread of the logarithm of how far; how rarely (standard deviations) to the other hand.
"""


def fit_confidence(weights: Path, profile: str, data_folder: Path, workers: int) -> Path:
    """Fit the confidence of a network, on the recordings of validation users, which are rendered if they are missing.

    Writes it beside the weights (`confidence_path`), with what it is made from; what is there of the same weights is
    kept. Raises InputError if weights are none.
    """
    load_network(weights)
    path = confidence_path(weights)
    if path.is_file() and read_json(path).get("network_sha256") == sha256_of(weights):
        return path
    folder = data_folder / "validation"
    keys = validation_keys(profile)
    write_sequences(keys, folder, workers, "rendering validation users")
    videos = [(folder / "raw_data/synthetic" / key.path).with_suffix(".mp4") for key in keys]
    jobs = {video: partial(judged_predictions, weights, video) for video in videos}
    judged = in_processes(jobs, workers, "predicting from crops that are off", "recording")
    seen, error = (torch.cat(parts) for parts in zip(*(judged[video] for video in videos), strict=True))
    about = {
        "network_sha256": sha256_of(weights), "hands": len(seen), "right": int((error < CLOSE_M).sum()),
        "users": sorted({key.user for key in keys}), "seed": SEED, "commit": commit(),
    }  # fmt: skip
    Confidence.fit(seen, error < CLOSE_M).save(path, about)
    return path


def validation_keys(profile: str) -> list[SequenceKey]:
    """Recordings of the users that are held out of training, all motions in turn."""
    if profile not in PROFILES:
        raise InputError(f"no profile {profile!r}: there are {', '.join(PROFILES)}")
    held_out = validation_users(list(PROFILES[profile].users("train")))
    return [
        SequenceKey("test", user, MOTIONS[(turn + place) % len(MOTIONS)], FIRST_INDEX + turn, PROFILES[profile].frames)
        for turn in range(RECORDINGS_PER_USER)
        for place, user in enumerate(held_out)
    ]


@torch.inference_mode()
def judged_predictions(weights: Path, video: Path) -> tuple[Float[Tensor, "hands signs"], Float[Tensor, "hands"]]:
    """What the predictions of a recording are judged by, and their errors (m): of all times that it is tracked."""
    recording, predict = read_recording(video), torch_engine(prepare_for_inference(load_network(weights)))
    model = recording.hand_model
    prepared, skeleton = PreparedHand.of(model), model.to("cpu", torch.float32)
    wandering = [
        wandering_hands(recording, far, along, np.random.default_rng([SEED, FIRST_INDEX, time]))
        for time, (far, along) in enumerate(zip(WANDERING_M, (False, True) * 2, strict=True))
    ]
    states, seen, errors = [TemporalState.untracked(HANDS)] * len(wandering), [], []
    for frame, images in enumerate(recording.images()):
        true, cameras = recording.hands(frame).landmarks(), recording.cameras(frame)
        for time, hands in enumerate(wandering):
            posed = hands[frame]
            tracked, crops = crop_hands(images, cameras, recording.mounting_angles, posed, prepared)
            if not len(tracked):
                states[time] = TemporalState.untracked(HANDS)
                continue
            output = predict(crops, tracked, skeleton, states[time])
            states[time] = output.after
            wrists = for_hand(output.known.world_from_wrist.double(), tracked)
            landmarks = model.landmarks(output.known.joint_angles.double(), wrists)
            seen.append(signs(output.extracted, crops, landmarks - posed.landmarks()[tracked]))
            errors.append((landmarks - true[tracked]).norm(dim=-1).mean(dim=-1))
    return torch.cat(seen), torch.cat(errors)


def wandering_hands(recording: Recording, far: float, along: bool, generator: np.random.Generator) -> list[PosedHands]:
    """The true hands of each frame, moved and turned: by about `far` (m), `along` the line of sight more than across.

    Now and then a hand begins at the other one.
    """
    frames = len(recording)
    distance = far * np.exp(_SPREAD * _slowly_changing(generator, frames, HANDS))
    shift = distance[..., None] * _slowly_changing(generator, frames, HANDS, 3)
    turn = np.minimum(8.0 * distance, 1.0)[..., None] * _slowly_changing(generator, frames, HANDS, 3)
    to_other = _slowly_changing(generator, frames, HANDS) > _TO_OTHER
    return [_moved(recording, frame, shift[frame], turn[frame], to_other[frame], along) for frame in range(frames)]


def _moved(
    recording: Recording,
    frame: int,
    shift: Float[np.ndarray, "2 3"],
    turn: Float[np.ndarray, "2 3"],
    to_other: np.ndarray,
    along: bool,
) -> PosedHands:
    posed = recording.hands(frame)
    wrists, true = posed.wrists.numpy().copy(), posed.wrists.numpy()
    center = recording.cameras(frame).world_from_camera[:, :3, 3].mean(dim=0).numpy()
    for hand in posed.exists.nonzero()[:, 0].tolist():
        if to_other[hand] and posed.exists[1 - hand]:
            wrists[hand, :3, 3] = true[1 - hand, :3, 3]
        sight = (wrists[hand, :3, 3] - center) / np.linalg.norm(wrists[hand, :3, 3] - center)
        moved = 0.3 * shift[hand] + 1.5 * sight * (shift[hand] @ sight) if along else shift[hand]
        wrists[hand, :3, 3] += moved
        wrists[hand, :3, :3] = Rotation.from_rotvec(turn[hand]).as_matrix() @ wrists[hand, :3, :3]
    stored = for_hand(torch.from_numpy(wrists), torch.arange(HANDS))
    return PosedHands(posed.model, posed.joint_angles, stored, posed.exists)


def _slowly_changing(generator: np.random.Generator, frames: int, *shape: int) -> Float[np.ndarray, "frames ..."]:
    """Normally distributed numbers that forget themselves in `_FRAMES` frames."""
    kept = np.exp(-1 / _FRAMES)
    noise = generator.standard_normal((frames, *shape))
    noise[1:] *= np.sqrt(1 - kept**2)
    return lfilter([1.0], [1.0, -kept], noise, axis=0)
