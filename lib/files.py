"""Files that users bring: JSON and arrays, hand models in the public format (mm), atomic writes."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch

from lib.checks import Json, check_hand, json_array, whole_numbers
from lib.errors import InputError
from lib.hands import NUM_BONES, NUM_JOINTS, NUM_LANDMARKS, HandModel

MM = 1000.0
"""The public files store millimetres; they become metres when read and nowhere else."""
NONE = 255
"""Marks an absent joint in the tree of the public hand files."""
MAX_TEXT = 1 << 29
"""Bytes of a JSON, JSONL or CSV file: two hours of labels."""
MAX_ARRAYS = 1 << 30
"""Bytes that the arrays of an .npz file may take in memory."""
BROKEN_ARRAYS = (
    OSError, ValueError, KeyError, EOFError, TypeError, MemoryError, OverflowError, RuntimeError, SyntaxError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What NumPy and zipfile raise for damaged files."""


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


class describing:
    """Turns what a malformed file, or a part of it, raises into an InputError that names it."""

    def __init__(self, path: Path | str):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, InputError):
            raise InputError(f"{self.path}: {error}") from error
        if isinstance(error, KeyError):
            raise InputError(f"{self.path}: the field {error} is missing") from error
        if isinstance(error, TypeError | ValueError | AttributeError | ArithmeticError | IndexError | RecursionError):
            raise InputError(f"{self.path}: not in the expected form: {error}") from error


def read_json(path: Path):
    """The content of a JSON file. Raises InputError if there is none or it is malformed."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error


def read_text(path: Path) -> str:
    """The content of a text file. Raises InputError if there is none, it is no text, or larger than 512 MiB."""
    try:
        refuse_pointer(path)
        if path.stat().st_size > MAX_TEXT:
            raise InputError(f"{path} holds {path.stat().st_size} bytes, expected at most {MAX_TEXT}")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not valid JSON or CSV: it is no text in UTF-8: {error}") from error


def refuse_pointer(path: Path) -> None:
    """Raise InputError if a file is but the pointer that Git LFS leaves in its place."""
    with path.open("rb") as file:
        if file.read(64).startswith(b"version https://git-lfs.github.com/spec"):
            raise InputError(f"{path} is a Git LFS pointer, not the file itself: fetch it with git lfs pull")


def load_arrays(path: Path, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """The named arrays of an .npz file, or all; nothing is unpickled. Raises one of `BROKEN_ARRAYS`, or InputError for
    a Git LFS pointer."""
    refuse_pointer(path)
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > MAX_ARRAYS:
        raise ValueError(f"its arrays take {size} bytes, expected at most {MAX_ARRAYS}")
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        return {name: stored[name] for name in (stored.files if names is None else names)}


def check_shapes(arrays: Mapping[str, np.ndarray], expected: Mapping[str, tuple]) -> None:
    """Raise ValueError unless arrays have the expected (type, lengths...), and finite values.

    A length with a name may be any, but is the same throughout.
    """
    lengths: dict[str, int] = {}
    for name, (dtype, *shape) in expected.items():
        array = arrays[name]
        known = [
            lengths.setdefault(e, a) if isinstance(e, str) else e for e, a in zip(shape, array.shape, strict=False)
        ]
        if array.dtype != dtype or array.ndim != len(shape) or list(array.shape) != known:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, expected {np.dtype(dtype)} {tuple(shape)}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} holds values that are not finite")


def refuse_overwriting(outputs: Mapping[str, Path | None], inputs: Mapping[str, Path]) -> None:
    """Raise InputError if an output is a folder, one of the inputs or another output, by whatever name or link.

    Both are named as the message shall name them; None: there is none.
    """
    taken = dict(inputs)
    for name, path in outputs.items():
        if path is None:
            continue
        if path.is_dir():
            raise InputError(f"{path} is a folder, expected the name of a file to write")
        for other, used in taken.items():
            if path.resolve() == used.resolve() or (path.exists() and used.exists() and path.samefile(used)):
                raise InputError(f"{name} {path} is {other}, which it would overwrite: name another file")
        taken[name] = path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary name beside `path` and rename the result; on failure nothing is left behind.

    The temporary name keeps the suffix, by which many writers choose their format. What processes of this machine left
    that were killed while they wrote the same file is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.stem}.{_MACHINE}-"
    temporary = path.with_name(f"{prefix}{os.getpid()}{path.suffix}")
    for left in path.parent.glob(f"{glob.escape(prefix)}*{glob.escape(path.suffix)}"):
        if not _is_alive(left.name.removeprefix(prefix).removesuffix(path.suffix)):
            left.unlink(missing_ok=True)
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


_MACHINE = re.sub(r"\W", "_", platform.node())
"""In temporary names, since other machines may write to the same folder: their processes cannot be asked after."""


def _is_alive(pid: str) -> bool:
    """Whether a process of this machine is running; of what is no number, and on Windows, nothing is known."""
    if not pid.isdecimal() or os.name == "nt":  # where signal 0 is Ctrl+C
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fingerprint(sha256: Mapping[str, str]) -> str:
    """A short name for the content of files, from their hashes by path."""
    return hashlib.sha256(json.dumps(dict(sorted(sha256.items()))).encode()).hexdigest()[:16]
