"""Hand models in the public format: JSON, millimetres, landmarks and mesh weighted by bones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from lib.errors import InputError
from lib.files import MM, describing, read_json
from lib.formats.checks import Json, check_hand, json_array, whole_numbers
from lib.hands import NUM_BONES, NUM_JOINTS, NUM_LANDMARKS, HandModel

NONE = 255
"""Marks an absent joint in the tree of the public hand files."""


def read_hand(path: Path) -> HandModel:
    """The hand model of a JSON file: a bare one, or the `hand_model` of a recording. Raises InputError."""
    content = read_json(path)
    with describing(path):
        return hand_from_json(content.get("hand_model", content))


def hand_from_json(stored: Json) -> HandModel:
    """A hand model from the fields of the public files (mm); a scale other than one is applied. Float64."""
    if not isinstance(stored, Mapping):
        raise InputError(
            f"not in the expected form: a hand model is an object of arrays, got a {type(stored).__name__}"
        )
    indices = whole_numbers(stored, "landmark_rest_bone_indices", (NUM_LANDMARKS, 3), NUM_BONES - 1)
    weights = json_array(stored, "landmark_rest_bone_weights", (NUM_LANDMARKS, 3), *WEIGHT)
    limits = stored.get("joint_limits")
    model = HandModel(
        joint_rotation_axes=json_array(stored, "joint_rotation_axes", (NUM_JOINTS, 3)),
        joint_rest_positions=json_array(stored, "joint_rest_positions", (NUM_JOINTS, 3)) / MM,
        joint_limits=GENERIC_JOINT_LIMITS if limits is None else json_array(stored, "joint_limits", (22, 2), *LIMIT),
        landmark_rest_positions=json_array(stored, "landmark_rest_positions", (NUM_LANDMARKS, 3)) / MM,
        landmark_bone_weights=weights.new_zeros(NUM_LANDMARKS, NUM_BONES).scatter_add_(1, indices, weights),
        **({} if stored.get("mesh_vertices") is None else _mesh_from_json(stored)),
    )
    scale = 1.0 if stored.get("hand_scale") is None else float(json_array(stored, "hand_scale", (), 0.1, 10.0))
    model = model if scale == 1.0 else model.scaled(scale)
    check_hand(model)
    return model


WEIGHT = -0.01, 1.01
"""Range of a bone weight."""
LIMIT = -2 * np.pi, 2 * np.pi
"""Range of a joint limit (rad)."""


def _mesh_from_json(stored: Mapping) -> dict[str, torch.Tensor]:
    """The fields of a hand model that describe its mesh."""
    vertices = json_array(stored, "mesh_vertices", (None, 3)) / MM
    return {
        "mesh_vertices": vertices,
        "mesh_triangles": whole_numbers(stored, "mesh_triangles", (None, 3), len(vertices) - 1),
        "mesh_bone_weights": json_array(stored, "dense_bone_weights", (len(vertices), NUM_BONES), *WEIGHT),
    }


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
