"""Data of one's own: what a folder offers, what it lacks, and its training recordings as a training cache.

An imported folder is `data/NAME`: `crops` and `views` as the rendered dataset keeps them, `training.json`, and
`own.json`, which says where it is from. Training shards stay where they are, and are read there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from lib.clip_training import ClipTrainingConfig
from lib.errors import InputError
from lib.files import read_json, sha256_of, working_in, write_atomically
from lib.formats.folders import Contents, RecordingName, find_contents
from lib.formats.torch_data import shard_clip
from lib.machines import in_processes
from lib.multistage.detection import is_learnt_from
from lib.multistage.detection_training import DetectionTrainingConfig
from lib.recordings import Recording, read_recording
from lib.rendered.index import write_index
from lib.study.results import ROOT
from lib.study.sequences import crops_of_recording, views_of_recording
from lib.training import TrainingConfig

OWN = "own.json"
LAYOUTS = ("raw_data", "clips in .tar", "training shards", "HOT3D without pictures")
LACKS = {
    "pictures": "nothing can be tracked or trained: of HOT3D, bring its clips (.tar)",
    "labels": "no errors are measured, nothing is trained, crops are the trackers' own (--crops own)",
    "hand_model": "skeletons are unknown (--skeleton unknown), no errors are measured, nothing is trained",
    "pinch": "pinches are neither learnt (L_pinch) nor evaluated (Table 4)",
    "views": "DetNet is not trained, so hands are not detected (--crops own) but by the released network",
    "two cameras": "the scale of an unknown skeleton is not found (--skeleton unknown)",
    "training": "nothing is trained: there is no folder named training",
    "testing": "nothing is evaluated with --split testing: there is no folder named testing",
}
"""What may be missing, and what that disables."""


def survey(folder: Path) -> pd.DataFrame:
    """What a folder offers: a row for each layout, protocol and split, of which the first recording speaks for all.

    Columns: layout, protocol, split, recordings (shards count once), cameras, size, labels, hand_model, pinch, problem
    (why the first one cannot be read).
    """
    groups: dict[tuple[str, str, str], list[Path]] = {}
    for layout, paths in _by_layout(find_contents(folder)).items():
        for path in paths:
            name = RecordingName.of(path)
            groups.setdefault((layout, name.protocol, name.split), []).append(path)
    rows = [
        {"layout": layout, "protocol": protocol, "split": split, "recordings": len(paths)} | _offers(paths[0])
        for (layout, protocol, split), paths in groups.items()
    ]
    if not rows:
        raise InputError(f"{folder} holds no recordings, clips (.tar) or training shards")
    return pd.DataFrame(rows)


def _by_layout(contents: Contents) -> dict[str, Sequence[Path]]:
    shards = [shard_clip(shard, 0) for shard in contents.shards]
    return dict(zip(LAYOUTS, (contents.videos, contents.tars, shards, contents.without_pictures), strict=True))


def _offers(path: Path) -> dict[str, object]:
    """What a recording offers."""
    nothing = dict.fromkeys(("labels", "hand_model", "pinch", "pictures"), False)
    try:
        recording = read_recording(path)
    except InputError as error:
        return {"cameras": 0, "size": ""} | nothing | {"problem": str(error)}
    sizes = {f"{int(width)}x{int(height)}" for width, height in recording.cameras(0).camera.size_px.tolist()}
    return {
        "cameras": len(recording.mounting_angles),
        "size": ", ".join(sorted(sizes)),
        "labels": bool(recording.labelled.any()),
        "hand_model": recording.hand_model is not None,
        "pinch": recording.pinch is not None,
        "pictures": recording.pictures is not None,
        "problem": "",
    }


def missing(offered: pd.DataFrame) -> dict[str, str]:
    """What is missing in all that can be read of a folder, and what that disables."""
    known = offered[offered.problem == ""]
    whole = ~known.layout.isin(LAYOUTS[2:])  # shards hold crops alone
    has = {name: bool(known[name].any()) for name in ("pictures", "labels", "hand_model", "pinch")}
    has |= {"views": bool(whole.any()), "two cameras": bool((known.cameras > 1).any())}
    has = has if len(known) else {}
    has |= {split: bool((offered.split == split).any()) for split in ("training", "testing")}
    return {name: LACKS[name] for name, there in has.items() if not there}


def import_training(folder: Path, name: str, workers: int) -> dict[Path, str]:
    """Make `data/NAME` of the training recordings of a folder; what keeps single ones from being used.

    What is there already is kept. Shards are trained from as they are; whole recordings beside them give views alone.
    Raises InputError if there is nothing to train on.
    """
    if name in ("smoke", "reference"):
        raise InputError(f"{name} is the name of a dataset of the study: rename the folder, or give another --name")
    contents, output = find_contents(folder), ROOT / "data" / name
    recordings = [p for p in (*contents.videos, *contents.tars) if RecordingName.of(p).split == "training"]
    shards = [str(shard.absolute()) for shard in contents.shards if shard.name == "training"]
    if not recordings and not shards:
        raise InputError(f"{folder} holds nothing to train on: {LACKS['training']} ({contents})")
    with working_in(output, wait=False):
        jobs = {path: partial(_keep, path, output, not shards) for path in recordings}
        told = in_processes(jobs, workers, "importing", "recording") if jobs else {}
        problems = {path: problem for path, problem in told.items() if problem}
        files = [p for form in ("crops", "views") for p in sorted((output / form).rglob("*.np[yz]"))]
        if not files and not shards:
            raise InputError(f"none of {len(recordings)} recordings can be used: {next(iter(problems.values()))}")
        write_index(output, "train", [], {str(path.relative_to(output)): sha256_of(path) for path in files})
        pinch = bool(shards) or _offers(recordings[0])["pinch"]
        about = {"folder": str(folder.absolute()), "shards": shards, "pinch": pinch}
        about["views"] = (output / "views").is_dir()
        write_atomically(output / OWN, lambda path: path.write_text(json.dumps(about, indent=1)))
    return problems


def _keep(path: Path, output: Path, with_crops: bool) -> str | None:
    """Write what is learnt from a recording, if it is not there yet; what keeps it from being used."""
    stem = RecordingName.of(path).path
    try:
        recording = read_recording(path)
        if recording.hand_model is None or not recording.labelled.any():
            return f"{path} has no labels, or no hand_model"
        if with_crops and not (output / "crops" / stem).with_suffix(".npz").is_file():
            crops_of_recording(recording).save(output / "crops" / stem)
        if _can_be_detected_in(recording) and not (output / "views" / stem).with_suffix(".npz").is_file():
            views_of_recording(recording).save(output / "views" / stem)
    except (InputError, OSError) as error:
        return str(error)
    return None


def _can_be_detected_in(recording: Recording) -> bool:
    """Whether DetNet learns from views of this size."""
    camera = recording.camera
    return camera.extent_px is None and is_learnt_from(camera.height, camera.width)


def read_own(folder: Path) -> Mapping | None:
    """What is known of an imported folder; None for one that is not."""
    path = folder / OWN
    return read_json(path) if path.is_file() else None


def can_be_trained(config: TrainingConfig, own: Mapping | None) -> bool:
    """Whether data of one's own hold what a training learns from."""
    if own is None:
        return True
    if isinstance(config, DetectionTrainingConfig):
        return own["views"]
    return not isinstance(config, ClipTrainingConfig) or not config.weights.pinch or own["pinch"]
