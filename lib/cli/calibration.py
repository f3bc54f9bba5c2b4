"""`import-calibration`: the rig of one's own headset or stand, as a recording's .json describes it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from lib.errors import InputError
from lib.files import refuse_overwriting, write_atomically
from lib.formats.calibrations import read_rig
from lib.recordings import rig_to_json


def add_import_calibration(commands) -> None:
    """Add `import-calibration`."""
    command = commands.add_parser(
        "import-calibration",
        help="write the rig part of a recording's .json from a Kalibr, Basalt, OpenCV file",
    )
    command.set_defaults(run=import_calibration)
    command.add_argument("calibration", type=Path, nargs="+", help="one file of all cameras; of OpenCV or ROS one each")
    command.add_argument("--output", type=Path, required=True, help=".json beside the video, of the same name")
    command.add_argument(
        "--angles",
        type=float,
        nargs="+",
        metavar="DEG",
        help="by how much each camera is turned from upright (default: as if the first one were upright)",
    )


def import_calibration(options: argparse.Namespace) -> None:
    """Read a calibration and write what a recording needs of it."""
    refuse_overwriting({"--output": options.output}, {f"the calibration {path}": path for path in options.calibration})
    rig = read_rig(options.calibration)
    camera = rig.as_one()
    angles = rig.mounting_angles() if options.angles is None else torch.deg2rad(torch.tensor(options.angles).double())
    if len(angles) != len(rig.cameras):
        raise InputError(f"{len(angles)} --angles, expected one for each of {len(rig.cameras)} cameras")
    content = rig_to_json(camera, angles, rig.rig_from_camera)
    write_atomically(options.output, lambda path: path.write_text(json.dumps(content, indent=1)))
    degrees = ", ".join(f"{float(angle):.0f}" for angle in torch.rad2deg(angles))
    print(f"{len(angles)} cameras, {type(camera).__name__}, turned from upright by {degrees} degrees: {options.output}")
