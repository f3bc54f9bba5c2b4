"""The released tables come out again, within `TOLERANCE`. Run by `make test`, when the test recordings are rendered.

What a notebook has written since counts as released, so this runs before the notebooks do.
"""

from functools import cache
from io import StringIO

import pandas as pd
import pytest

from lib.claims import claims_table
from lib.methods import predict_all, predict_seeds
from lib.pinch_detection import latency_table
from lib.predictions import predict
from lib.results import ROOT, results_folder
from lib.tables import (
    TEMPORAL,
    ablation_table,
    intervals_table,
    measure,
    methods_of,
    multistage_table,
    pinch_table,
    seeds_table,
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
    return training_table({(TEMPORAL, s): made for s, made in predict(TEMPORAL, PROFILE, DATA).items()}, PROFILE)


def pinch_latency():
    return latency_table([predictions()[name, "known"] for name in methods_of(predictions())])


MAKE = {
    "training": training,
    "table2_ablation": lambda: ablation_table(cells()),
    "table3_multistage": lambda: multistage_table(cells()),
    "table4_pinch": lambda: pinch_table(cells()),
    "pinch_latency": pinch_latency,
    "intervals": lambda: intervals_table(cells()),
    "smoothing": lambda: smoothing_table(predictions()),
    "seeds": lambda: seeds_table(PROFILE, predict_seeds(PROFILE, DATA)),
    "claims": lambda: claims_table(predictions(), cells()).drop(columns="ours"),
}


@pytest.mark.parametrize("name", MAKE)
def test_a_released_table_comes_out_again(name):
    made = pd.read_csv(StringIO(MAKE[name]().to_csv(index=False)))
    released = pd.read_csv(TABLES / f"{name}.csv")[made.columns]
    pd.testing.assert_frame_equal(made, released, check_dtype=False, rtol=0, atol=TOLERANCE)
