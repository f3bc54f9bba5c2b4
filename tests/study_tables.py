"""The released tables come out again, within `TOLERANCE`. Run by `make test`, when the test recordings are rendered.

What a notebook has written since counts as released, so this runs before the notebooks do.
"""

from functools import cache
from io import StringIO

import pandas as pd
import pytest

from lib.multistage.energy import FitWeights
from lib.multistage.fit import FIT_WEIGHTS
from lib.multistage.tracker import MIN_CONFIDENCE
from lib.study.claims import claims_table
from lib.study.error_analysis import conditions_table, instance_errors, memory_table, parts_table
from lib.study.methods import predict_all, predict_seeds
from lib.study.pinch_detection import latency_table
from lib.study.predictions import predict, weights_hash
from lib.study.results import ROOT, results_folder
from lib.study.runs import training_config
from lib.study.sequences import load_sequences
from lib.study.tables import (
    BASELINE,
    TEMPORAL,
    ablation_table,
    intervals_table,
    measure,
    methods_of,
    multistage_table,
    pinch_table,
    scale_table,
    seeds_table,
    smoothing_by_motion_table,
    smoothing_table,
    training_table,
)

PROFILE = "reference"
DATA = ROOT / "data" / PROFILE
TABLES = results_folder(PROFILE) / "tables"
TOLERANCE = 0.1
"""mm, percent, ms."""


@cache
def predictions():
    return predict_all(PROFILE, DATA)


@cache
def cells():
    return measure(predictions())


def training():
    return training_table(PROFILE, TEMPORAL, predict(TEMPORAL, PROFILE, DATA))


def pinch_latency():
    return latency_table([predictions()[name, "known"] for name in methods_of(predictions())])


def memory(name):
    return memory_table(predictions()[name, "known"], predict(name, PROFILE, DATA, without_memory=True)["known"])


def scale():
    return scale_table([predictions()[name, "unknown"] for name in methods_of(predictions())])


@cache
def instances(skeleton):
    methods = [predictions()[name, skeleton] for name in (TEMPORAL, BASELINE)]
    return instance_errors(methods, load_sequences(DATA, "test"))


MAKE = {
    "training": training,
    "table2_ablation": lambda: ablation_table(cells()),
    "table3_multistage": lambda: multistage_table(cells()),
    "table4_pinch": lambda: pinch_table(cells()),
    "pinch_latency": pinch_latency,
    "intervals": lambda: intervals_table(cells()),
    "smoothing": lambda: smoothing_table(predictions(), training_config(PROFILE, TEMPORAL)["clip_frames"]),
    "smoothing_by_motion": lambda: smoothing_by_motion_table(predictions()),
    "seeds": lambda: seeds_table(PROFILE, predict_seeds(PROFILE, DATA)),
    "memory_full": lambda: memory("full"),
    "memory_full_temporal_loss": lambda: memory(TEMPORAL),
    "scale": scale,
    "error_parts": lambda: parts_table({skeleton: instances(skeleton) for skeleton in ("known", "unknown")}),
    "error_conditions": lambda: conditions_table(instances("known")),
    "claims": lambda: claims_table(predictions(), cells()).drop(columns="ours"),
}


def read(name):
    return pd.read_csv(TABLES / f"{name}.csv")


def test_what_was_tuned_is_what_the_tracker_uses():
    """On the weights that are released: these constants stand in the code, their tables are written by `lib tune`."""
    searched, sure = read("fit_weights"), read("hand_confidence")
    for table in (searched, sure):
        assert set(table.keynet_sha256) == {weights_hash(PROFILE, "keynet")}
    best = searched[searched.best].iloc[0]
    assert FitWeights(best.distance, best.temporal, best.outlier_px) == FIT_WEIGHTS
    one_in_a_hundred = sure.set_index("below_percent").confidence[1.0]
    assert pytest.approx(one_in_a_hundred, abs=0.01) == MIN_CONFIDENCE
    assert one_in_a_hundred >= MIN_CONFIDENCE


@pytest.mark.parametrize("name", MAKE)
def test_a_released_table_comes_out_again(name):
    made = pd.read_csv(StringIO(MAKE[name]().to_csv(index=False)))
    released = read(name)[made.columns]
    pd.testing.assert_frame_equal(made, released, check_dtype=False, rtol=0, atol=TOLERANCE)
