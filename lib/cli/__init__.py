"""The command line: `python -m lib COMMAND`."""

from __future__ import annotations

import argparse
import sys

import torch

from lib.cli.calibration import add_import_calibration
from lib.cli.evaluate import add_evaluate
from lib.cli.own_data import add_export, add_import, add_survey
from lib.cli.study import ADD_COMMANDS
from lib.cli.track import add_track
from lib.cores import threads_to_use
from lib.errors import InputError


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit code is 2 for wrong usage or input, with a message on standard error."""
    options = _parser().parse_args(arguments)
    torch.backends.cudnn.allow_tf32 = False  # what is float32 shall be so on a GPU, too
    if "device" in options:  # a command that computes here; the others need not wait for the measurement
        torch.set_num_threads(threads_to_use())
    try:
        return options.run(options) or 0
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lib", description="The UmeTrack study's tools.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (add_track, add_evaluate, add_survey, add_import, add_export, add_import_calibration, *ADD_COMMANDS):
        add(commands)
    return parser
