"""The command line before a command runs: it answers at once, its examples are right, and it ends quietly."""

import argparse
import os
import shlex
import subprocess
import sys
from importlib import import_module
from typing import get_args

import pytest
from conftest import ROOT

import lib
from lib.cli.parser import EXAMPLE, parser
from lib.cli.track import RELEASED, released_weights
from lib.formats.tracked_files import TEXTS
from lib.machines import Precision
from lib.study.experiments import EXPERIMENTS, about_experiment
from lib.study.recipe import VARIANTS, about_variant
from lib.study.settings import differences, with_settings
from lib.tracking import CALIBRATION_SAMPLES

SLOW = {"torch", "numpy", "pandas", "cv2", "av", "scipy", "matplotlib", "numba", "jaxtyping"}
RUN = """
import sys
from lib.cli import main
try:
    main(sys.argv[1:])
finally:
    print(*sys.modules, sep="\\n", file=sys.stderr)
"""


def python(*command: str, **more) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *command], cwd=ROOT, text=True, check=False, **more)


def commands() -> dict[str, argparse.ArgumentParser]:
    (choices,) = [action.choices for action in parser()._actions if action.choices]
    return choices


def examples() -> list[str]:
    texts = [parser().epilog, *(command.epilog for command in commands().values())]
    return [
        line.strip()
        for text in texts
        for line in text.splitlines()
        if line.startswith(EXAMPLE) and "COMMAND" not in line
    ]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in commands())])
def test_nothing_slow_is_imported_before_a_command_runs(arguments):
    done = python("-c", RUN, *arguments, capture_output=True)
    modules = set(done.stderr.split())
    assert "lib.cli.parser" in modules
    assert not modules & SLOW
    assert done.stdout


def test_the_version_is_said_once_and_cited(capsys):
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"umetrack {lib.__version__}\n"
    assert f"\nversion: {lib.__version__}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.parametrize("example", examples())
def test_examples_are_commands(example):
    name, *arguments = shlex.split(example)
    assert name == "umetrack"
    assert parser().parse_args(arguments).run


def test_every_command_has_an_example_and_something_that_runs_it():
    for name, command in commands().items():
        assert f"{EXAMPLE}{name}" in command.epilog
        module, function = command.get_default("run").split(":")
        assert callable(getattr(import_module(f"lib.cli.{module}"), function))


def choices(command: str, option: str) -> argparse.Action:
    (action,) = [action for action in commands()[command]._actions if option in action.option_strings]
    return action


def test_names_and_defaults_are_those_of_the_library():
    assert choices("track", "--calibration-samples").default == CALIBRATION_SAMPLES
    assert tuple(choices("track", "--format").choices) == ("npz", *TEXTS)
    assert tuple(choices("train", "--precision").choices) == get_args(Precision)
    assert [*choices("track", "--method").choices] == [*RELEASED]


def test_weights_are_the_released_ones_unless_others_are_given():
    assert released_weights("umetrack").is_file()
    assert (released_weights("multistage") / "keynet.safetensors").is_file()


@pytest.mark.parametrize("arguments", [["experiments"], ["train", "--help"]])
def test_nobody_complains_of_a_closed_pipe(arguments):
    """As `umetrack experiments | head -1` leaves it, once head has its line."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        assert python("-m", "lib", *arguments, stdout=closed, stderr=subprocess.PIPE).stderr == ""


@pytest.mark.parametrize("base", ["full", "keynet"])
def test_settings_say_all_that_an_experiment_changes(base):
    for config in EXPERIMENTS.values():
        if type(config) is type(EXPERIMENTS[base]):
            assert with_settings(EXPERIMENTS[base], differences(EXPERIMENTS[base], config)) == config


def test_lists_say_what_they_name():
    assert about_experiment("full_temporal_loss") == "full with weights.temporal=0.05"
    assert about_variant("batch x2") == "both phases: hands=192"
    assert about_variant("no occluders") == "second: occluded=0.0"
    assert all(map(about_experiment, EXPERIMENTS))
    assert all(map(about_variant, VARIANTS))
