"""Every method of the study on the test split, and what of the methods is tuned on validation users.

Tuning needs the training split, so it is part of training: what it finds is kept in tables beside the hashes of the
weights it was found with, and refused once these have changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lib.errors import InputError
from lib.files import BROKEN_ARRAYS, load_arrays, save_arrays, working_in
from lib.filters import OneEuroFilter, search_one_euro
from lib.machines import in_processes, without_result
from lib.multistage.fit import FIT_WEIGHTS
from lib.multistage.hand_crops import CachedRecording
from lib.multistage.networks import keypoint_source
from lib.multistage.sources import KeypointSource
from lib.multistage.tracker import MultistageTracker
from lib.rendered.shape import generic_hand
from lib.study.baseline_accuracy import KeypointErrors, track_with_errors
from lib.study.baseline_tuning import confidence_table, search_weights
from lib.study.experiments import (
    END_TO_END,
    OFFICIAL,
    PRETRAINING,
    RELEASED_RUNS,
    REPEATED,
    experiment_and_seed,
    official_is_given,
    trained_weights_path,
)
from lib.study.pinch_detection import precision_and_recall, tuned_threshold
from lib.study.predictions import (
    AllPredictions,
    Predictions,
    SkeletonKind,
    load_or_predict,
    predict,
    provenance,
    trained_weights,
    weights_hash,
)
from lib.study.results import results_folder, save_table
from lib.study.sequences import (
    EvaluatedSplit,
    LabelledSequence,
    keep_test_crops,
    load_sequences,
)
from lib.study.tables import BASELINE, FILTERED, TEMPORAL, WITH_PINCH
from lib.tracking import Tracks

KEYPOINTS = "keynet"
"""The experiment that trains what the baseline needs on labelled crops."""
WITHOUT_MEMORY = (TEMPORAL, "full")
"""The experiments whose networks are compared with themselves without temporal state."""
_FILTERING = ("full", *FILTERED.values())
"""The experiments that the filters are tuned with."""
ONE_EURO, FIT_WEIGHTS_SEARCH, PINCH_THRESHOLDS = "one_euro", "fit_weights", "pinch_thresholds"
HAND_CONFIDENCE = "hand_confidence"


def predict_all(profile: str, data_folder: Path) -> AllPredictions:
    """The predictions of every end-to-end experiment, of `full` filtered, and of `multistage` on the test split.

    As long as the baseline has no weights it is left out, and with it its rows and claims. Raises InputError, naming
    the command to run, if other weights are missing or the filters were tuned with others.
    """
    made = {
        (name, skeleton): predictions
        for name in (*END_TO_END, *_brought())
        for skeleton, predictions in predict(name, profile, data_folder).items()
    }
    for name, target in FILTERED.items():
        made[name, "known"] = made["full", "known"].filtered(tuned_one_euro(profile, target), name)
    if _has_baseline(profile):
        baseline = predict_multistage(profile, data_folder)
        made |= {(BASELINE, skeleton): predictions for skeleton, predictions in baseline.items()}
    return made


def make_predictions(profile: str, data_folder: Path, workers: int, device: str = "cpu") -> None:
    """Make what is missing of all predictions on the test split, `workers` methods at once, each on one thread.

    Raises InputError if weights or data are missing.
    """
    make = partial(predict, profile=profile, data_folder=data_folder, device=device)
    runs = dict.fromkeys((*END_TO_END, *_repeated_runs(profile), *_brought()))  # each once
    jobs: dict[str, Callable[[], object]] = {}
    if _has_baseline(profile):  # first: they take longest
        jobs[BASELINE] = partial(predict_multistage, profile, data_folder, device=device)
        jobs[PRETRAINING] = partial(keypoint_errors, PRETRAINING, profile, data_folder)
    jobs |= {run: partial(make, run, without_memory=run in WITHOUT_MEMORY) for run in runs}
    with working_in(results_folder(profile) / "predictions", wait=True):
        keep_test_crops(data_folder, workers)
        in_processes({n: partial(without_result, job) for n, job in jobs.items()}, workers, "predictions", "method")


def _brought() -> list[str]:
    """The published network, if the user brings it."""
    return [OFFICIAL] if official_is_given() else []


def predict_seeds(profile: str, data_folder: Path) -> dict[str, Predictions]:
    """The predictions for known skeletons of the released runs of `REPEATED`, whatever the seed, that have weights."""
    return {run: predict(run, profile, data_folder)["known"] for run in _repeated_runs(profile)}


def _repeated_runs(profile: str) -> list[str]:
    """The released runs of the experiments of `REPEATED`, whatever the seed, that have weights."""
    runs = [run for run in RELEASED_RUNS if experiment_and_seed(run)[0] in REPEATED]
    return sorted(run for run in runs if trained_weights_path(profile, run).is_file())


def predict_multistage(
    profile: str, data_folder: Path, split: EvaluatedSplit = "test", device: str = "cpu"
) -> dict[SkeletonKind, Predictions]:
    """The predictions of the baseline on labelled crops. Raises InputError if its weights are missing."""
    weights = trained_weights(profile, KEYPOINTS)

    def track(sequences: Sequence[LabelledSequence]) -> dict[tuple[str, SkeletonKind], list[Tracks]]:
        tracker, generic = MultistageTracker(keypoint_source(weights, device)), generic_hand().to(dtype=torch.float64)
        recordings = [CachedRecording.of(s.crops, s.video) for s in sequences]
        known, errors = track_with_errors(sequences, recordings, tracker.keypoints)
        if split == "test":
            _keep_keypoint_errors(KEYPOINTS, profile, data_folder, errors)
        scales = [scale or 1.0 for scale in tracker.calibrate_all(recordings, generic)]  # 1 where nothing can be told
        unknown = tracker.track_all(recordings, [generic.scaled(scale) for scale in scales])
        return {
            (BASELINE, "known"): known,
            (BASELINE, "unknown"): [
                replace(tracks, scale=scale) for tracks, scale in zip(unknown, scales, strict=True)
            ],
        }

    source = _baseline_source(KEYPOINTS, profile)
    made = load_or_predict((BASELINE,), profile, data_folder, source, track, split)
    return {skeleton: predictions for (_, skeleton), predictions in made.items()}


def keypoint_errors(network: str, profile: str, data_folder: Path) -> KeypointErrors:
    """Errors of the keypoints of a KeyNet on the test split while it tracks known skeletons: from a file, or anew.

    Raises InputError if weights or data are missing.
    """
    path, made_from = _keypoint_errors_path(network, profile), _keypoint_errors_source(network, profile, data_folder)
    with suppress(*BROKEN_ARRAYS):
        stored = load_arrays(path)
        if json.loads(str(stored.pop("manifest"))) == made_from:
            return KeypointErrors(**stored)
    keypoints = keypoint_source(trained_weights(profile, network), "cpu")
    sequences = load_sequences(data_folder, "test")
    _, errors = track_with_errors(sequences, [CachedRecording.of(s.crops, s.video) for s in sequences], keypoints)
    _keep_keypoint_errors(network, profile, data_folder, errors)
    return errors


def _keep_keypoint_errors(network: str, profile: str, data_folder: Path, errors: KeypointErrors) -> None:
    manifest = np.array(json.dumps(_keypoint_errors_source(network, profile, data_folder)))
    save_arrays(_keypoint_errors_path(network, profile), {"manifest": manifest, **vars(errors)})


def _keypoint_errors_path(network: str, profile: str) -> Path:
    return results_folder(profile) / "predictions" / f"keypoints_{network}.npz"


def _keypoint_errors_source(network: str, profile: str, data_folder: Path) -> dict[str, str | int]:
    """What errors of keypoints are made from."""
    return provenance(_baseline_source(network, profile), data_folder, "test")


def _baseline_source(network: str, profile: str) -> str:
    """Identifies what tracks: the weights of a KeyNet and those of the fit."""
    return f"{weights_hash(profile, network)} {FIT_WEIGHTS}"


def _has_baseline(profile: str) -> bool:
    return trained_weights_path(profile, KEYPOINTS).is_file()


def tune(
    profile: str, data_folder: Path, device: str = "cpu", names: Sequence[str] | None = None
) -> dict[str, pd.DataFrame]:
    """Tune what is named, or all that there is to tune; write and return tables/NAME.

    Raises InputError if weights or the training split are missing, or a name is unknown.
    """
    of_the_baseline = {FIT_WEIGHTS_SEARCH: search_fit_weights, HAND_CONFIDENCE: measure_hand_confidence}
    parts = {
        ONE_EURO: tune_one_euro,
        **(of_the_baseline if _has_baseline(profile) else {}),
        PINCH_THRESHOLDS: tune_pinch_thresholds,
    }
    if unknown := [name for name in names or () if name not in parts]:
        raise InputError(f"nothing named {', '.join(unknown)} can be tuned; there are {', '.join(parts)}")
    tables = {}
    for name in names or parts:
        tables[name] = parts[name](profile, data_folder, device)
        save_table(tables[name], profile, name)
    return tables


def search_fit_weights(profile: str, data_folder: Path, device: str) -> pd.DataFrame:
    """What `search_weights` tried; `FitWeights` says by default what was found."""
    _, table = search_weights(*_validation(profile, data_folder, device))
    return table.assign(**_hashes(profile, (KEYPOINTS,)))


def measure_hand_confidence(profile: str, data_folder: Path, device: str) -> pd.DataFrame:
    """How sure the keypoints of hands are; `MIN_CONFIDENCE` says what one in a hundred is below."""
    return confidence_table(*_validation(profile, data_folder, device)).assign(**_hashes(profile, (KEYPOINTS,)))


def _validation(profile: str, data_folder: Path, device: str) -> tuple[list[CachedRecording], KeypointSource]:
    """Every third sequence of validation users, and what finds keypoints in it."""
    keypoints = keypoint_source(trained_weights(profile, KEYPOINTS), device)
    return [CachedRecording.of(s.crops, s.video) for s in load_sequences(data_folder, "validation")[::3]], keypoints


def tune_one_euro(profile: str, data_folder: Path, device: str) -> pd.DataFrame:
    """What was tried to bring `full` to the jitter of each target of `FILTERED` by a One-Euro filter, and what chosen.

    On the separate-hand sequences of the validation users, as Table 2 is about those. Source: §5.2.
    """
    full, *targets = (
        predict(name, profile, data_folder, "validation", device)["known"].only(protocol="separate_hand")
        for name in _FILTERING
    )
    tracked, true, valid = (
        _side_by_side([getattr(s, name) for s in full.sequences])
        for name in ("tracked_keypoints", "gt_keypoints", "valid")
    )
    searches = [
        search_one_euro(tracked, true, valid, target.jitter().mean)[1].assign(target=target.method)
        for target in targets
    ]
    return pd.concat(searches, ignore_index=True).assign(**_hashes(profile, _FILTERING))


def tuned_one_euro(profile: str, target: str = TEMPORAL) -> OneEuroFilter:
    """The filter chosen for a target. Raises InputError if nothing was tuned yet, or with other weights."""
    table = _read_tuned(profile, ONE_EURO, _FILTERING, ("target", "beta", "min_cutoff_hz", "chosen"))
    chosen = table[table.chosen & (table.target == target)].iloc[0]
    return OneEuroFilter(float(chosen.min_cutoff_hz), float(chosen.beta))


def tune_pinch_thresholds(profile: str, data_folder: Path, device: str) -> pd.DataFrame:
    """For each method of Table 4 the distance that tells pinches best, with precision and recall on validation users.

    Columns: method, threshold_mm, precision_percent, recall_percent, and the hashes of the weights.
    """
    methods = {name: predict(name, profile, data_folder, "validation", device) for name in (TEMPORAL, WITH_PINCH)}
    if _has_baseline(profile):
        methods[BASELINE] = predict_multistage(profile, data_folder, "validation", device)
    rows = []
    for name, predictions in methods.items():
        threshold = tuned_threshold(predictions["known"])
        precision, recall = precision_and_recall(predictions["known"], threshold)
        rows.append((name, threshold, precision.mean, recall.mean))
    columns = ["method", "threshold_mm", "precision_percent", "recall_percent"]
    return pd.DataFrame(rows, columns=columns).assign(**_hashes(profile, _detecting(profile)))


def tuned_pinch_thresholds(profile: str) -> dict[str, float]:
    """The tuned threshold of each method, mm. Raises InputError if nothing was tuned yet, or with other weights."""
    table = _read_tuned(profile, PINCH_THRESHOLDS, _detecting(profile), ("method", "threshold_mm"))
    return dict(zip(table.method, table.threshold_mm, strict=True))


def _detecting(profile: str) -> tuple[str, ...]:
    """The experiments behind the methods of Table 4."""
    return (TEMPORAL, WITH_PINCH, *((KEYPOINTS,) if _has_baseline(profile) else ()))


def _hashes(profile: str, experiments: Sequence[str]) -> dict[str, str]:
    return {f"{name}_sha256": weights_hash(profile, name) for name in experiments}


def _read_tuned(profile: str, name: str, experiments: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    path = results_folder(profile) / "tables" / f"{name}.csv"
    remedy = f"run python -m lib tune --profile {profile}"
    if not path.is_file():
        raise InputError(f"no {path}: {remedy}")
    hashes = _hashes(profile, experiments)
    try:
        table = pd.read_csv(path)[[*columns, *hashes]]
        if table.empty:
            raise ValueError("no rows")
    except (KeyError, ValueError) as error:
        raise InputError(f"{path} is not what tuning writes ({error}): {remedy}") from error
    changed = [column.removesuffix("_sha256") for column, value in hashes.items() if (table[column] != value).any()]
    if changed:
        raise InputError(f"{path} was made with other weights of {', '.join(changed)}: {remedy}")
    return table


def _side_by_side(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays (2, frames, ...) of several sequences as (hands, frames, ...), the shorter ones padded with zeros."""
    longest = max(array.shape[1] for array in arrays)
    return np.concatenate([np.pad(a, [(0, 0), (0, longest - a.shape[1]), *[(0, 0)] * (a.ndim - 2)]) for a in arrays])
