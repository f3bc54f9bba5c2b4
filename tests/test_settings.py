"""Configurations changed from the command line."""

from dataclasses import replace

import pytest

from lib.cli import main
from lib.errors import InputError
from lib.study.experiments import EXPERIMENTS, experiment_and_seed, run_name
from lib.study.settings import leaves, read_settings, with_settings

CONFIG = EXPERIMENTS["full"]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("steps=12", replace(CONFIG, steps=12)),
        ("learning_rate=1e-4", replace(CONFIG, learning_rate=1e-4)),
        ("weights.temporal=0.5", replace(CONFIG, weights=replace(CONFIG.weights, temporal=0.5))),
        ("network.temporal_module=false", replace(CONFIG, network=replace(CONFIG.network, temporal_module=False))),
        ("network.widths=8,16,32", replace(CONFIG, network=replace(CONFIG.network, widths=(8, 16, 32)))),
        ("schedule=constant", replace(CONFIG, schedule="constant")),
        ("pretrained=none", replace(CONFIG, pretrained=None)),
    ],
)
def test_a_field_of_any_type_is_set(setting, expected):
    assert with_settings(CONFIG, read_settings([setting])) == expected


def test_fields_are_set_at_once():
    """In whatever order: half of them may be no configuration."""
    settings = ["clip_frames=1", "network.blocks=1,1,1,1", "weights.temporal=0", "network.widths=8,8,8,16"]
    settings += ["network.stem=convolution"]
    changed = with_settings(EXPERIMENTS["full_temporal_loss"], read_settings(settings))
    assert (changed.clip_frames, changed.weights.temporal, changed.network.widths) == (1, 0.0, (8, 8, 8, 16))


def test_every_field_can_be_set_to_what_it_is():
    for name, value in leaves(CONFIG):
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert with_settings(CONFIG, {name: text.lower() if isinstance(value, bool) else text}) == CONFIG


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["weight.temporal=0.5"], "no setting weight.temporal; there are .*weights.temporal"),
        (["weights=0.5"], "no setting weights; there are"),
        (["weights.temporal.more=0.5"], "no setting weights.temporal.more; there are"),
        (["steps=many"], "steps=many: invalid literal"),
        (["learning_rate=nan"], "learning_rate=nan: expected a finite number"),
        (["schedule=linear"], "schedule=linear: expected one of cosine, constant"),
        (["network.temporal_module=no"], "network.temporal_module=no: expected true or false"),
        (["network.blocks=2"], "network.blocks=2: a network with a unshuffle stem needs 3 stages"),
        (["clip_frames=2", "weights.temporal=0.5"], "L_temp needs clips of three frames or more, not 2"),
        (["steps"], "expected NAME=VALUE, say weights.temporal=0.5, got 'steps'"),
        (["steps=1", "steps=2"], "steps is set twice, to 1 and to 2"),
    ],
)
def test_what_cannot_be_set_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        with_settings(CONFIG, read_settings(settings))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "weights.temporal=0.5"], "give it a --name of its own"),
        (["--set", "weights.temporal=0.5", "--name", "full"], "full is the name of an experiment of the study"),
        (["--name", "no_ftl_seed3"], "no_ftl_seed3 is the name of an experiment"),
        (["--name", "single_frames"], "single_frames is the name of an experiment"),
        (["--name", "../elsewhere"], "is no name for a folder"),
    ],
)
def test_a_training_of_ones_own_has_a_name_of_its_own(capsys, arguments, message):
    assert main(["train", "full", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_names_of_runs():
    assert run_name("full", 0) == "full"
    assert run_name("full", 2) == "full_seed2"
    assert experiment_and_seed("full_seed2") == ("full", 2)
