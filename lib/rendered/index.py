"""The index of a rendered split: its sequences, and the hashes of all files. It is written last."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from lib.errors import InputError
from lib.files import fingerprint, read_json, write_atomically

_User = TypeVar("_User")
Split = Literal["train", "test"]
FOLDER_OF_SPLIT: dict[Split, str] = {"train": "training", "test": "testing"}
VALIDATION_SHARE = 0.1
"""Share of the training users that are held out of training as validation users."""


def index_path(folder: Path, split: Split) -> Path:
    """Where the index of a split lies."""
    return folder / f"{FOLDER_OF_SPLIT[split]}.json"


def write_index(folder: Path, split: Split, sequences: list[dict], sha256: Mapping[str, str]) -> Path:
    """Write down what there is: the keys of sequences, and the hashes of files by their paths."""
    content = {"fingerprint": fingerprint(sha256), "sequences": sequences, "sha256": dict(sha256)}
    path = index_path(folder, split)
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(content, indent=1)))
    return path


def read_index(folder: Path, split: Split) -> dict:
    """The index of a split. Raises InputError if it is not rendered, or not completely."""
    path = index_path(folder, split)
    if not path.is_file():
        kind = FOLDER_OF_SPLIT[split]
        raise InputError(f"no complete {kind} data at {folder}: run python -m lib render --output {folder}")
    return read_json(path)


def training_files(folder: Path, form: str) -> dict[str, str]:
    """The hashes of the files of the training split below `form`. Raises InputError if there are none."""
    index = index_path(folder, "train")
    listed = read_json(index)["sha256"] if index.is_file() else {}
    files = {path: sha256 for path, sha256 in listed.items() if Path(path).parts[0] == form}
    if not files:
        raise InputError(f"no {form} in {index}: run python -m lib render --split train --output {folder}")
    return files


def validation_users(users: Sequence[_User]) -> Sequence[_User]:
    """The last of the training users, who are held out: a tenth of them, at least one."""
    return users[-max(1, round(VALIDATION_SHARE * len(users))) :]


def split_users(folder: Path, files: Mapping[str, str]) -> tuple[list[Path], list[Path]]:
    """The sequences to train on, and those of validation users, who are a tenth of the users (at least one).

    Of a single user, whose data are somebody's own, a tenth of the sequences is held out. Raises InputError if there is
    but one.
    """
    stems = sorted({(folder / path).with_suffix("") for path in files})
    users = sorted({stem.parent.name for stem in stems}, key=lambda name: (len(name), name))
    if len(users) == 1:
        kept = len(stems) - max(1, round(VALIDATION_SHARE * len(stems)))
        if not kept:
            raise InputError(f"{folder} holds one sequence, {stems[0].name}: expected two, one of which is held out")
        return stems[:kept], stems[kept:]
    held_out = validation_users(users)
    return (
        [stem for stem in stems if stem.parent.name not in held_out],
        [stem for stem in stems if stem.parent.name in held_out],
    )
