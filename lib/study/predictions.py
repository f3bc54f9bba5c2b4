"""What every method of the study says about every sequence: computed once, kept in a file, and never mixed.

Tables, figures and claims read predictions and nothing else. A file of predictions carries a manifest of what it was
made from; it is made again when the weights or the data have changed, or one of the versions that code raises.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from lib.checkpoints import load_network
from lib.errors import InputError
from lib.files import BROKEN_ARRAYS, load_arrays, save_arrays, sha256_of
from lib.filters import OneEuroFilter
from lib.hands import HandModel
from lib.machines import commit
from lib.rendered.shape import generic_hand
from lib.study.experiments import trained_weights_path
from lib.study.results import results_folder
from lib.study.sequences import (
    CROPS_VERSION,
    EvaluatedSplit,
    LabelledSequence,
    SequenceName,
    load_sequences,
    split_fingerprint,
)
from lib.study.statistics import Pooled, error_of, jitter_of
from lib.study.streams import ExtractedStreams, HandStreams, track_both
from lib.tracking import Tracks, prepare_for_inference

PREDICTIONS_VERSION = 2
"""Raised whenever the same weights and data no longer give the same predictions."""
SkeletonKind = Literal["known", "unknown"]
TrackSequences = Callable[[Sequence[LabelledSequence]], Mapping[tuple[str, SkeletonKind], list[Tracks]]]
"""Methods: the tracks of all sequences, for each method and kind of skeleton."""


@dataclass(frozen=True)
class TrackedSequence(SequenceName):
    """A sequence as tracked by a method and as labelled; keypoints in mm in the world, zero where not `valid`.

    `views` counts the crops of a hand. `fitted_scale` is the scale at which the generic hand at rest comes closest to
    the user's; `scale` the calibrated one, NaN for a known skeleton.
    """

    tracked_keypoints: Float[np.ndarray, "2 frames 21 3"]
    gt_keypoints: Float[np.ndarray, "2 frames 21 3"]
    valid: Bool[np.ndarray, "2 frames"]
    views: Int[np.ndarray, "2 frames"]
    pinch: Bool[np.ndarray, "2 frames"]
    near_miss: Bool[np.ndarray, "2 frames"]
    occluder: Bool[np.ndarray, "frames"]
    scale: float
    fitted_scale: float

    @staticmethod
    def of(sequence: LabelledSequence, tracks: Tracks, generic: HandModel) -> TrackedSequence:
        """The tracks of a sequence beside its labels."""
        crops = sequence.crops
        return TrackedSequence(
            sequence.name,
            sequence.motion,
            tracked_keypoints=tracks.tracked_keypoints.astype(np.float32),
            gt_keypoints=tracks.gt_keypoints.astype(np.float32),
            valid=tracks.valid_tracking,
            views=crops.views.T,
            pinch=crops.pinch.T,
            near_miss=sequence.near_miss.T,
            occluder=sequence.occluder,
            scale=float("nan") if tracks.scale is None else tracks.scale,
            fitted_scale=fitted_scale(crops.hand_model, generic),
        )


def fitted_scale(hand: HandModel, generic: HandModel) -> float:
    """The factor by which the generic hand at rest comes closest to a hand, in the least squares of their landmarks."""
    target, source = (model.landmark_rest_positions.double() for model in (hand, generic))
    return float((target * source).sum() / (source * source).sum())


@dataclass(frozen=True)
class Predictions:
    """All that a method says about a split, for one kind of skeleton."""

    method: str
    skeleton: SkeletonKind
    sequences: tuple[TrackedSequence, ...]

    def only(self, **names: str) -> Predictions:
        """Those of one `protocol`, `motion` or `user`. Raises InputError if there are none.

        The protocol `separate_hand` holds the pinch sequences and, like `hand_hand`, no occluders.
        """
        chosen = [s for s in self.sequences if all(getattr(s, name) == value for name, value in names.items())]
        if not chosen:
            raise InputError(f"the predictions of {self.method} hold no sequence with {names}")
        return replace(self, sequences=tuple(chosen))

    def filtered(self, smoothing: OneEuroFilter, method: str) -> Predictions:
        """The same predictions, smoothed, under another name."""
        smooth = [
            replace(s, tracked_keypoints=smoothing(s.tracked_keypoints, s.valid).astype(np.float32))
            for s in self.sequences
        ]
        return replace(self, method=method, sequences=tuple(smooth))

    def first_frames(self, frames: int) -> Predictions:
        """The same predictions, of which only the first frames of each sequence count."""
        first = [replace(s, valid=s.valid & (np.arange(s.valid.shape[1]) < frames)) for s in self.sequences]
        return replace(self, sequences=tuple(first))

    def ground_truth(self) -> Predictions:
        """The ground truth as predictions, under the name `ground_truth`."""
        true = [replace(s, tracked_keypoints=s.gt_keypoints) for s in self.sequences]
        return replace(self, method="ground_truth", sequences=tuple(true))

    def errors(self) -> Pooled:
        """MPJPE, mm."""
        sequences = self.sequences
        return error_of(
            [s.tracked_keypoints for s in sequences], [s.gt_keypoints for s in sequences], [s.valid for s in sequences]
        )

    def jitter(self) -> Pooled:
        """MPJPA, mm per frame²."""
        return jitter_of([s.tracked_keypoints for s in self.sequences], [s.valid for s in self.sequences])

    def coverage(self) -> Pooled:
        """Percent of the hand instances with a crop that the method tracks: errors are over those alone."""
        shown = [s.views > 0 for s in self.sequences]
        return Pooled.of([100.0 * s.valid[seen] for s, seen in zip(self.sequences, shown, strict=True)])

    def save(self, path: Path, manifest: Mapping) -> None:
        """Write an .npz of one array per field and sequence and the manifest, when complete."""
        arrays = {"manifest": np.array(json.dumps(manifest))}
        for index, sequence in enumerate(self.sequences):
            arrays |= {f"{index:04d}/{field.name}": np.array(getattr(sequence, field.name)) for field in _FIELDS}
        save_arrays(path, arrays)


AllPredictions = Mapping[tuple[str, SkeletonKind], Predictions]
"""By method and kind of skeleton."""
_FIELDS = fields(TrackedSequence)


def read_manifest(path: Path) -> dict:
    """What a file of predictions was made from. Raises InputError if the file is broken."""
    return _read(path, lambda stored: json.loads(str(stored["manifest"])), ["manifest"])


def read_predictions(path: Path) -> Predictions:
    """The predictions of a file. Raises InputError if the file is broken."""

    def read(stored) -> Predictions:
        manifest = json.loads(str(stored["manifest"]))
        sequences = []
        for index in range(manifest["sequences"]):
            values = {field.name: stored[f"{index:04d}/{field.name}"] for field in _FIELDS}
            sequences.append(TrackedSequence(**{n: v if v.ndim else v.item() for n, v in values.items()}))
        return Predictions(manifest["method"], manifest["skeleton"], tuple(sequences))

    return _read(path, read)


def _read(path: Path, read: Callable, names: Sequence[str] | None = None):
    try:
        return read(load_arrays(path, names))
    except BROKEN_ARRAYS as error:
        raise InputError(
            f"{path} is not a complete file of predictions: {error}; delete it to make it again"
        ) from error


def provenance(source: str, data_folder: Path, split: EvaluatedSplit) -> dict[str, str | int]:
    """What predictions are made from: `source` identifies what tracks. Raises InputError if data are missing."""
    data = split_fingerprint(data_folder, split)
    return {"source": source, "data": data, "version": PREDICTIONS_VERSION, "crops": CROPS_VERSION}


def load_or_predict(
    methods: Sequence[str],
    profile: str,
    data_folder: Path,
    source: str,
    track: TrackSequences,
    split: EvaluatedSplit = "test",
) -> AllPredictions:
    """The predictions of methods for known and unknown skeletons, from their files or, if these are outdated, anew.

    `source` identifies what tracks: a hash of its weights and settings. The files are
    results/PROFILE/predictions/METHOD_SKELETON.npz; those of validation sequences lie in a folder of their own.
    Raises InputError if a file is broken, or data are missing.
    """
    folder = results_folder(profile) / "predictions" / ("" if split == "test" else split)
    paths = {key: folder / "{}_{}.npz".format(*key) for key in product(methods, get_args(SkeletonKind))}
    made_from = provenance(source, data_folder, split)

    def is_made(key: tuple[str, SkeletonKind]) -> bool:
        expected = made_from | {"method": key[0], "skeleton": key[1]}
        return paths[key].exists() and expected.items() <= read_manifest(paths[key]).items()

    if not all(map(is_made, paths)):
        sequences, generic = load_sequences(data_folder, split), generic_hand()
        for (method, skeleton), tracks in track(sequences).items():
            tracked = [TrackedSequence.of(s, t, generic) for s, t in zip(sequences, tracks, strict=True)]
            about = made_from | {"method": method, "skeleton": skeleton}
            about |= {"sequences": len(tracked), "commit": commit()}
            Predictions(method, skeleton, tuple(tracked)).save(paths[method, skeleton], about)
    return {key: read_predictions(path) for key, path in paths.items()}


def predict(
    experiment: str,
    profile: str,
    data_folder: Path,
    split: EvaluatedSplit = "test",
    device: str = "cpu",
    without_memory: bool = False,
) -> dict[SkeletonKind, Predictions]:
    """The predictions of a trained network or, on demand, what it predicts when every frame is the first to it.

    The latter go by the name EXPERIMENT_without_memory, and are made together with the former. Raises InputError if
    weights are missing.
    """
    weights = trained_weights(profile, experiment)
    names = {experiment: True, f"{experiment}_without_memory": False} if without_memory else {experiment: True}

    def track(sequences: Sequence[LabelledSequence]) -> dict[tuple[str, SkeletonKind], list[Tracks]]:
        network, generic = (
            prepare_for_inference(load_network(weights)).to(device),
            generic_hand().to(dtype=torch.float64),
        )
        streams, tracks = ExtractedStreams(network, HandStreams(sequences, device)), {}
        for name, memory in names.items():
            tracks[name, "known"], tracks[name, "unknown"] = track_both(streams, generic, memory)
        return tracks

    made = load_or_predict(tuple(names), profile, data_folder, weights_hash(profile, experiment), track, split)
    asked = [*names][-1]
    return {skeleton: made[asked, skeleton] for skeleton in get_args(SkeletonKind)}


def trained_weights(profile: str, experiment: str) -> Path:
    """The weights of an experiment. Raises InputError, naming the command that trains them, if they are missing."""
    weights = trained_weights_path(profile, experiment)
    if not weights.is_file():
        raise InputError(f"no weights at {weights}: run python -m lib train {experiment} --profile {profile}")
    return weights


def weights_hash(profile: str, experiment: str) -> str:
    """Identifies the weights of an experiment. Raises InputError if they are missing."""
    return sha256_of(trained_weights(profile, experiment))
