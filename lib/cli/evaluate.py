"""`evaluate`: whole folders of recordings of any layout, tracked and compared with their labels."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from lib.cli.track import RELEASED, Method, method_of
from lib.errors import InputError
from lib.files import BROKEN_ARRAYS, load_arrays, working_in, write_atomically
from lib.formats.folders import RecordingName, files_of, find_contents, find_recordings
from lib.machines import in_processes
from lib.recordings import read_recording
from lib.study.evaluation import challenge_table, evaluation_table
from lib.study.results import ROOT
from lib.study.tables import MPJPA, MPJPE
from lib.tracking import Tracks


def run_evaluate(options: argparse.Namespace) -> int:
    """Track what is not tracked yet; print and write the table of all that is. The exit code is 1 if some failed."""
    videos = [v for v in find_recordings(options.folder) if options.split in (None, RecordingName.of(v).split)]
    if not videos:
        raise InputError(f"no recordings in folders named {options.split} below {options.folder}")
    print(f"below {options.folder}: {find_contents(options.folder)}")
    print(f"{len(videos)} to track: {_kinds(videos)}")
    skeletons = ("known", "unknown") if options.skeleton == "both" else (options.skeleton,)
    cases = {(RecordingName.of(video), skeleton): video for video in videos for skeleton in skeletons}
    if len(cases) < len(skeletons) * len(videos):
        raise InputError(f"{options.folder} holds recordings of equal names: protocol, split, user and recording")
    methods, tables, failed = _methods(options), [], False
    output = options.output or ROOT / "results" / "evaluation"
    for name, method in methods.items():
        table, complete = _evaluate(name, method, cases, output / name, options)
        tables += [] if table is None else [table]
        failed |= not complete
    if len(tables) > 1:
        together = pd.concat(tables)
        write_atomically(output / f"{options.metrics}.csv", lambda path: together.to_csv(path, index=False))
    return 1 if failed else 0


def _methods(options: argparse.Namespace) -> dict[str, Method]:
    """What is asked for, by name. Raises InputError for weights that are missing."""
    every, methods = options.method == "all", {}
    for name in RELEASED if every else (options.method,):
        weights = options.weights / RELEASED[name] if every and options.weights else options.weights
        chosen = {"method": name, "weights": weights}
        crops = {"crops": "labelled"} if every and name == "umetrack" else {}
        methods[name] = method_of(argparse.Namespace(**vars(options) | chosen | crops))
    if options.official is not None:
        chosen = {"method": "umetrack", "weights": options.official, "crops": "labelled"}
        methods["official"] = method_of(argparse.Namespace(**vars(options) | chosen))
    for method in methods.values():
        method.identity()
    return methods


Case = tuple[RecordingName, str]
"""A recording and the kind of its skeleton."""


def _evaluate(
    name: str, method: Method, cases: Mapping[Case, Path], output: Path, options: argparse.Namespace
) -> tuple[pd.DataFrame | None, bool]:
    """The table of one method, if anything is tracked, and whether all is that was to be."""
    identity, (part, parts) = method.identity(), options.shard
    jobs = {
        case: partial(_track, method, _made_from(identity, cases[case]), cases[case], case[1], _path(output, *case))
        for case in list(cases)[part - 1 :: parts]
    }
    with working_in(output / f"part_{part}_of_{parts}", wait=False):
        problems = in_processes(jobs, options.workers, f"tracking, {name}", "recording")
    tracked = [
        (*case, _read(_path(output, *case)))
        for case, video in cases.items()
        if _is_made(_path(output, *case), _made_from(identity, video))
    ]
    table = None
    if tracked:
        challenge = options.metrics == "challenge"
        table = challenge_table(tracked) if challenge else evaluation_table(name, tracked)
        table.insert(0, "method", name)
        write_atomically(output / f"{options.metrics}.csv", lambda path: table.to_csv(path, index=False))
        print(f"\n{name}\n{_text(table)}")
    print(f"{len(tracked)} of {len(cases)} are tracked; tracks and table: {output}")
    failed = {case: problem for case, problem in problems.items() if problem}
    for (recording, skeleton), problem in failed.items():
        print(f"not tracked: {recording.path}, {skeleton} skeleton: {problem}", file=sys.stderr)
    return table, not failed


def _track(method: Method, made_from: str, video: Path, skeleton: str, path: Path) -> str | None:
    """Track one recording, if that is not done yet; what kept it from being tracked."""
    if _is_made(path, made_from):
        return None
    try:
        recording = read_recording(video)
        method.track(recording, skeleton).save(path, recording.frames_per_second, made_from)
    except (InputError, OSError) as error:
        return str(error)
    return None


def _path(output: Path, name: RecordingName, skeleton: str) -> Path:
    """Where the tracks of a recording go."""
    return output / skeleton / name.path.with_suffix(".npz")


def _made_from(identity: str, video: Path) -> str:
    """What tracks are made from: the method, and the files of the recording as they are now."""
    files = [path.stat() if path.is_file() else None for path in files_of(video)]
    return json.dumps([identity, *(state and [state.st_size, state.st_mtime_ns] for state in files)])


def _is_made(path: Path, made_from: str) -> bool:
    try:
        return path.is_file() and str(load_arrays(path, ["made_from"])["made_from"]) == made_from
    except BROKEN_ARRAYS:
        return False


def _read(path: Path) -> Tracks:
    """What is compared of the tracks in a file: all of a folder are in memory at once."""
    names = ("tracked_keypoints", "gt_keypoints", "valid_tracking", "labelled")
    stored = load_arrays(path, names)
    keypoints = (stored[name].astype(np.float32) for name in names[:2])
    return Tracks(*keypoints, stored["valid_tracking"], labelled=stored["labelled"])


def _kinds(videos: Sequence[Path]) -> str:
    """How many recordings there are of each protocol."""
    return ", ".join(
        f"{count} {protocol}" for protocol, count in Counter(RecordingName.of(v).protocol for v in videos).items()
    )


def _text(table: pd.DataFrame) -> str:
    """The table as text, the paper's numbers and its authors' corrected ones beside ours."""
    shown = table[["skeleton", "protocol", "recordings"]].copy()
    if "mpjpe_19_mm" in table:
        return table.drop(columns="method").to_string(index=False, float_format="{:.2f}".format, na_rep="")
    shown["tracked (%)"] = table.tracked_percent.map("{:.1f}".format)
    for metric, unit in ((MPJPE, "MPJPE (mm)"), (MPJPA, "MPJPA (mm/frame²)")):
        numbers = zip(table[metric], table[f"{metric}_low"], table[f"{metric}_high"], strict=True)
        shown[unit] = [f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, low, high in numbers]
        for source, name in (("paper", "paper"), ("official", "corrected")):
            shown[f"{unit.split()[0]}, {name}"] = table[f"{metric}_{source}"]
    shown["PCK-AUC (%)"] = table.pck_auc_percent.map("{:.1f}".format)
    return shown.to_string(index=False, na_rep="")
