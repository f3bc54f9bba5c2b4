"""Files that users bring: JSON read and checked, hand models in the public format (mm), atomic writes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lib.errors import InputError
from lib.hands import NUM_BONES, NUM_JOINTS, NUM_LANDMARKS, HandModel

MM = 1000.0
"""The public files store millimetres; they become metres when read and nowhere else."""
NONE = 255
"""Marks an absent joint in the tree of the public hand files."""


def read_hand(path: Path) -> HandModel:
    """The hand model of a JSON file: a bare one, or the `hand_model` of a recording. Raises InputError."""
    content = read_json(path)
    with describing(path):
        return hand_from_json(content.get("hand_model", content))


def hand_from_json(stored: Mapping) -> HandModel:
    """A hand model from the fields of the public files (mm); a scale other than one is applied. Float64."""
    indices = json_array(stored, "landmark_rest_bone_indices", (NUM_LANDMARKS, 3)).long()
    weights = json_array(stored, "landmark_rest_bone_weights", (NUM_LANDMARKS, 3))
    if indices.min() < 0 or indices.max() >= NUM_BONES:
        raise InputError(f"landmark_rest_bone_indices must lie in 0..{NUM_BONES - 1}")
    has_mesh = stored.get("mesh_vertices") is not None
    limits = stored.get("joint_limits")
    model = HandModel(
        joint_rotation_axes=json_array(stored, "joint_rotation_axes", (NUM_JOINTS, 3)),
        joint_rest_positions=json_array(stored, "joint_rest_positions", (NUM_JOINTS, 3)) / MM,
        joint_limits=GENERIC_JOINT_LIMITS if limits is None else json_array(stored, "joint_limits", (NUM_JOINTS, 2)),
        landmark_rest_positions=json_array(stored, "landmark_rest_positions", (NUM_LANDMARKS, 3)) / MM,
        landmark_bone_weights=weights.new_zeros(NUM_LANDMARKS, NUM_BONES).scatter_add_(1, indices, weights),
        mesh_vertices=json_array(stored, "mesh_vertices", (None, 3)) / MM if has_mesh else None,
        mesh_triangles=json_array(stored, "mesh_triangles", (None, 3)).long() if has_mesh else None,
        mesh_bone_weights=json_array(stored, "dense_bone_weights", (None, NUM_BONES)) if has_mesh else None,
    )
    scale = float(stored.get("hand_scale") or 1.0)
    return model if scale == 1.0 else model.scaled(scale)


GENERIC_JOINT_LIMITS = torch.deg2rad(
    torch.tensor(
        [[-45, 74], [-35, 35], [0, 74], [-15, 62],
         [-19, 28], [-16, 77], [0, 108], [0, 82],
         [-28, 16], [-16, 82], [0, 108], [0, 82],
         [-16, 16], [-16, 88], [0, 108], [0, 82],
         [-39, 28], [-28, 94], [0, 108], [0, 82],
         [-45, 45], [-45, 45]], dtype=torch.float64
    )
)  # fmt: skip
"""Joint limits of a hand without its own, rounded from the published generic hand."""


def hand_to_json(model: HandModel) -> dict:
    """The fields of the public files (mm) for a hand, tree bookkeeping included; the inverse of `hand_from_json`."""
    joint = np.arange(NUM_JOINTS)
    starts = joint % 4 == 0
    weights, indices = model.landmark_bone_weights.topk(3, dim=1)
    stored = {
        "joint_rotation_axes": model.joint_rotation_axes,
        "joint_rest_positions": model.joint_rest_positions * MM,
        "joint_frame_index": [NONE if k == 0 else 3 * f + k + 1 for f in range(5) for k in range(4)] + [NONE, 0],
        "joint_parent": np.where(starts, NONE, joint - 1),
        "joint_first_child": np.where((joint % 4 == 3) | (joint == NUM_JOINTS - 1), NONE, joint + 1),
        "joint_next_sibling": np.where(starts & (joint < 20), joint + 4, NONE),
        "joint_limits": model.joint_limits,
        "landmark_rest_positions": model.landmark_rest_positions * MM,
        "landmark_rest_bone_weights": weights,
        "landmark_rest_bone_indices": indices,
        "hand_scale": 1.0,
    }
    if model.mesh_vertices is not None:
        stored |= {
            "mesh_vertices": model.mesh_vertices * MM,
            "mesh_triangles": model.mesh_triangles,
            "dense_bone_weights": model.mesh_bone_weights,
        }
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in stored.items()}


class describing:
    """Turns what a malformed file raises into an InputError that names the file."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, InputError):
            raise InputError(f"{self.path}: {error}") from error
        if isinstance(error, KeyError):
            raise InputError(f"{self.path}: the field {error} is missing") from error
        if isinstance(error, TypeError | ValueError | AttributeError):
            raise InputError(f"{self.path}: not in the expected form: {error}") from error


def read_json(path: Path):
    """The content of a JSON file. Raises InputError if there is none or it is malformed."""
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error


def json_array(stored: Mapping, name: str, shape: tuple[int | None, ...]) -> Tensor:
    """A float64 field of a JSON file whose shape must fit (None: any length)."""
    value = stored[name]
    try:
        tensor = float64(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is not an array of numbers with equal rows: {error}") from error
    expected = tuple("any" if length is None else length for length in shape)
    if tensor.ndim != len(shape) or any(e not in ("any", a) for e, a in zip(expected, tensor.shape, strict=True)):
        raise InputError(f"{name} has shape {tuple(tensor.shape)}, expected {expected}")
    return tensor


def float64(values) -> Float[Tensor, "..."]:
    return torch.tensor(values, dtype=torch.float64)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary name beside `path` and rename the result; on failure nothing is left behind.

    The temporary name keeps the suffix, by which many writers choose their format.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fingerprint(sha256: Mapping[str, str]) -> str:
    """A short name for the content of files, from their hashes by path."""
    return hashlib.sha256(json.dumps(dict(sorted(sha256.items()))).encode()).hexdigest()[:16]
