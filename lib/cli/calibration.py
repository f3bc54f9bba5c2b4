"""`import-calibration`: the rig of one's own headset or stand, as a recording's .json describes it."""

from __future__ import annotations

import argparse
import json

import torch

from lib.errors import InputError
from lib.files import refuse_overwriting, write_atomically
from lib.formats.calibrations import read_rig
from lib.recordings import rig_to_json


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
