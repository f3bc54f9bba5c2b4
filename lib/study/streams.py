"""Many hands at once: the sequences of a split run side by side through a network, frame by frame.

All hands of all sequences are one batch, each with a temporal state of its own: what `tracking.Tracker` does with one
recording after the other, without its video, and with one pass for known and unknown skeletons.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from lib.clips import stack_hands
from lib.crop_cache import CACHE_SIZE
from lib.crops import CROP_SIZE, MAX_VIEWS, Crops
from lib.errors import InputError
from lib.files import MM
from lib.hands import HANDS, HandModel, for_hand
from lib.network import Features, TemporalState, UmeTrack
from lib.study.sequences import LabelledSequence
from lib.tracking import CALIBRATION_SAMPLES, Tracks, advance
from lib.transforms import invert

_MARGIN = (CACHE_SIZE - CROP_SIZE) // 2


class HandStreams:
    """Both hands of many sequences side by side: stream 2 i + h is hand h of sequence i."""

    def __init__(self, sequences: Sequence[LabelledSequence], device: torch.device | str = "cpu"):
        self.sequences, self.device = sequences, torch.device(device)
        self.frames = max(len(sequence.crops) for sequence in sequences)
        self.views, self.focal_px, world_from_crop = (
            torch.from_numpy(self._stacked(name)) for name in ("views", "focal_px", "world_from_crop")
        )
        self.camera_from_world = invert(world_from_crop)

    def __len__(self) -> int:
        return HANDS * len(self.sequences)

    def _stacked(self, name: str) -> np.ndarray:
        """A label of all streams, (frames, streams, ...); zeros after the end of a sequence."""
        columns = [getattr(sequence.crops, name) for sequence in self.sequences]
        padded = [np.pad(c, [(0, self.frames - len(c)), *[(0, 0)] * (c.ndim - 1)]) for c in columns]
        return np.concatenate(padded, axis=1)

    def crops(self, frame: int, chosen: Bool[Tensor, "streams"]) -> tuple[Int[Tensor, "tracked"], Crops]:
        """The chosen streams, whose hands must be seen in the frame, and their crops."""
        streams = chosen.nonzero()[:, 0]
        two = self.views[frame, streams] == MAX_VIEWS
        pair = torch.stack((torch.zeros_like(streams), two.long()), dim=1)
        rows = streams[:, None]
        inner = slice(_MARGIN, _MARGIN + CROP_SIZE)
        images = np.zeros((len(streams), MAX_VIEWS, CROP_SIZE, CROP_SIZE), np.uint8)
        for image, stream in zip(images, streams.tolist(), strict=True):
            image[:] = self.sequences[stream // HANDS].crops.images[frame, stream % HANDS, :, inner, inner]
        crops = Crops(
            images=torch.from_numpy(images).float().div(255),
            focal_px=self.focal_px[frame, rows, pair],
            camera_from_world=self.camera_from_world[frame, rows, pair],
            hand=streams % HANDS,
            two_views=two,
        )
        return streams.to(self.device), crops.to(self.device)


class ExtractedStreams:
    """Streams, and what the feature extractor of a network makes of all their crops: once, for every pass over them.

    `network` must be prepared for inference.
    """

    @torch.inference_mode()
    def __init__(self, network: UmeTrack, streams: HandStreams):
        self.network, self.streams, self.extracted = network, streams, []
        for frame in tqdm(range(streams.frames), "extracting features", unit="frame"):
            rows, crops = streams.crops(frame, streams.views[frame] > 0)
            self.extracted.append(network.extract(crops) if len(rows) else None)

    def features(
        self, min_views: int, memory: bool = True, finished: Bool[Tensor, "streams"] | None = None
    ) -> Iterator[tuple[int, Int[Tensor, "tracked"], Crops, Features]]:
        """(frame, streams, crops, features) of every frame in which a hand is seen by at least `min_views` cameras.

        A hand that was not tracked in the frame before starts without memory, as in `tracking.Tracker`; without
        `memory`, every hand does in every frame. Streams that the caller marks as `finished` on the way are left out
        from then on.
        """
        streams = self.streams
        state = TemporalState.untracked(len(streams), streams.device)
        for frame, extracted in enumerate(self.extracted):
            views = streams.views[frame]
            chosen = views >= min_views if finished is None else (views >= min_views) & ~finished
            rows, crops = streams.crops(frame, chosen)
            if not len(rows):
                state = TemporalState.untracked(len(streams), streams.device)
                continue
            own = extracted[chosen[views > 0].to(streams.device)]
            features, state = advance(self.network, own, crops, rows, state, memory)
            yield frame, rows, crops, features


@torch.inference_mode()
def track_streams(streams: ExtractedStreams, *choices: Sequence[HandModel], memory: bool = True) -> list[list[Tracks]]:
    """Tracks of every sequence, once for each choice of hand models (one per sequence), which share the features.

    Equal to `Tracker.track_known` on each recording.
    """
    network, device, sequences = streams.network, streams.streams.device, streams.streams.sequences
    stacked = [stack_hands([model for model in models for _ in range(HANDS)]) for models in choices]
    stacked = [models.to(device, torch.float32) for models in stacked]
    landmarks = torch.zeros(len(choices), HANDS * len(sequences), streams.streams.frames, 21, 3, dtype=torch.float64)
    for frame, rows, crops, features in streams.features(min_views=1, memory=memory):
        for choice, models in enumerate(stacked):
            hands = models[rows]
            prediction = network.known(features, crops, hands)
            wrists = for_hand(prediction.world_from_wrist.double(), crops.hand)
            posed = hands.to(dtype=torch.float64).landmarks(prediction.joint_angles.double(), wrists)
            landmarks[choice, rows.cpu(), frame] = posed.cpu() * MM
    return [
        [_tracks(s, rows.numpy()) for s, rows in zip(sequences, part.split(HANDS), strict=True)] for part in landmarks
    ]


def _tracks(sequence: LabelledSequence, landmarks: Float[np.ndarray, "2 longest 21 3"]) -> Tracks:
    valid = sequence.crops.views.T > 0
    return Tracks.of(landmarks[:, : len(sequence.crops)], sequence.true_keypoints(), valid)


@torch.inference_mode()
def calibrate_scales(streams: ExtractedStreams, samples: int = CALIBRATION_SAMPLES, memory: bool = True) -> list[float]:
    """The scale of the generic hand for each sequence, equal to `Tracker.calibrate_scale`. Source: §5.3.

    Raises InputError if a sequence shows no hand to two cameras.
    """
    sequences = streams.streams.sequences
    scales: list[list[float]] = [[] for _ in sequences]
    finished = torch.zeros(HANDS * len(sequences), dtype=torch.bool)
    for _, rows, crops, features in streams.features(MAX_VIEWS, memory, finished):
        for stream, scale in zip(rows.tolist(), streams.network.unknown(features, crops).scale.tolist(), strict=True):
            scales[stream // HANDS].append(scale)
        enough = torch.tensor([len(seen) >= samples for seen in scales])
        finished[:] = enough.repeat_interleave(HANDS)
    for sequence, seen in zip(sequences, scales, strict=True):
        if not seen:
            raise InputError(
                f"{sequence.name}: no frame shows a labelled hand to two cameras to calibrate its scale by"
            )
    return [float(np.mean(seen[:samples])) for seen in scales]


def track_both(streams: ExtractedStreams, generic: HandModel, memory: bool = True) -> tuple[list[Tracks], list[Tracks]]:
    """Tracks with known skeletons, and with the generic hand at its calibrated scale."""
    scales = calibrate_scales(streams, memory=memory)
    own = [sequence.crops.hand_model for sequence in streams.streams.sequences]
    known, unknown = track_streams(streams, own, [generic.scaled(scale) for scale in scales], memory=memory)
    return known, [replace(tracks, scale=scale) for tracks, scale in zip(unknown, scales, strict=True)]
