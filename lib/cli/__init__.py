"""The command line: `umetrack COMMAND`, or `python -m lib COMMAND`."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module

from lib.cli.parser import parser
from lib.cores import threads_to_use
from lib.errors import InputError


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit code is 2 for wrong usage or input, with a message on standard error."""
    try:
        return _run(arguments)
    except BrokenPipeError:  # who read standard output has seen enough; Python would complain once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(arguments: list[str] | None) -> int:
    try:
        options = parser().parse_args(arguments)
        _prepare(options)
        module, function = options.run.split(":")
        return getattr(import_module(f"lib.cli.{module}"), function)(options) or 0
    finally:
        sys.stdout.flush()


def _prepare(options: argparse.Namespace) -> None:
    import torch  # not before: it takes seconds, and --help needs none of it

    torch.backends.cudnn.allow_tf32 = False  # what is float32 shall be so on a GPU, too
    if "device" in options:  # a command that computes here; the others need not wait for the measurement
        torch.set_num_threads(threads_to_use())
