"""Arguments that several commands take, and their types."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from lib.cores import available_cores

FASTEST = "fastest"
"""The device that is taken unless another is given: a GPU, if there is one."""


def add_profile(command: argparse.ArgumentParser) -> None:
    """Add --profile and --data."""
    command.add_argument("--profile", default="reference", help="smoke or reference")
    command.add_argument("--data", type=Path, help="folder of the rendered dataset (default: data/PROFILE)")


def add_device(command: argparse.ArgumentParser) -> None:
    """Add --device; a command that has it computes here."""
    command.add_argument("--device", type=_device, default=FASTEST, help="cpu, cuda, cuda:1 (default: a GPU, if any)")


def add_workers(command: argparse.ArgumentParser) -> None:
    """Add --workers."""
    command.add_argument(
        "--workers", type=positive, default=available_cores(), help="processes (default: one per core)"
    )


def add_method(command: argparse.ArgumentParser, choices: tuple[str, ...] = ("umetrack", "multistage")) -> None:
    """Add --method, --crops and --detector."""
    command.add_argument("--method", choices=choices, default="umetrack")
    command.add_argument(
        "--crops",
        choices=("labelled", "own"),
        default="labelled",
        help="crop around the labelled hands, or detect hands and follow them, without labels",
    )
    command.add_argument(
        "--detector", type=Path, help="weights of the detector of --crops own (default: beside the others, or released)"
    )


def add_calibration(command: argparse.ArgumentParser) -> None:
    """Add what the calibration of an unknown skeleton takes."""
    command.add_argument(
        "--generic-hand", type=Path, help="JSON of the hand whose scale is calibrated (default: this study's own)"
    )
    command.add_argument(
        "--calibration-samples",
        type=positive,
        default=30,
        metavar="N",
        help="scales that umetrack averages (default: %(default)s)",
    )


def add_shard(command: argparse.ArgumentParser) -> None:
    """Add --shard."""
    command.add_argument("--shard", type=_shard, default=(1, 1), metavar="K/N", help="only the K-th of N parts")


def add_precision(command: argparse.ArgumentParser) -> None:
    """Add --precision."""
    command.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        help="of the trained convolutions (default: what the device multiplies natively)",
    )


def positive(text: str) -> int:
    """A whole number above zero."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text}")
    return int(text)


def above_zero(text: str) -> float:
    """A finite number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above zero, got {text}")
    return value


def _device(text: str) -> str:
    """A device that is there. A default is read as if it were given, once it is known which command runs."""
    import torch  # not before: see lib.cli.parser

    if text == FASTEST:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(text)
        if device.type != "cuda":
            torch.empty(0, device=device)
        elif (device.index or 0) >= torch.cuda.device_count():  # asked without taking memory there
            raise RuntimeError(f"there are {torch.cuda.device_count()} GPUs")
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"no device {text} here: {str(error).splitlines()[0]}") from error
    return text


def _shard(text: str) -> tuple[int, int]:
    """K/N."""
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"expected K/N with 1 <= K <= N, got {text}")
    return int(part), int(parts)
