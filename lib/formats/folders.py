"""What lies in a folder that a user brings: recordings of all public layouts, and their names.

Of `raw_data`, KIND/PROTOCOL/SPLIT/user_NN/recording_NN.mp4 with labels in .json: KIND is real or synthetic, PROTOCOL
separate_hand, hand_hand or, in the rendered dataset, occlusion, SPLIT training or testing. Clips of the hand tracking
challenge and of HOT3D are .tar files. Clips of training shards have made-up paths, SHARD/clip_NNNNNN.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from lib.errors import InputError
from lib.formats.hot3d import is_hot3d_recording, is_tar
from lib.formats.torch_data import Shard, is_shard, is_shard_clip, shard_clip

_SPLIT = re.compile(r"(?:(train|test)(?:ing)?(?:[_-]|$))?(.*)")


@dataclass(frozen=True, order=True)
class RecordingName:
    """Where a recording lies below its KIND: `user` is user_NN, `recording` is recording_NN.

    A clip of a shard has the shard's number as user. A .tar is a user of its own; the folder that it is in is its
    protocol, after the split if it begins with one: train_quest3.
    """

    protocol: str
    split: str
    user: str
    recording: str

    @staticmethod
    def of(path: Path) -> RecordingName:
        """The name of the recording at a path, with or without suffix. Raises InputError if it has too few folders."""
        whole = Path(os.path.abspath(path))
        parts = whole.parts[-4:]
        if is_tar(path):
            kind, protocol = _SPLIT.match(whole.parent.name).groups()
            split = {"train": "training", "test": "testing"}.get(kind, "unknown")
            return RecordingName(protocol, split, path.name.split(".tar")[0], "clip")
        if len(parts) < 4:
            raise InputError(f"{path} is not in the raw_data layout: expected PROTOCOL/SPLIT/user_NN/recording_NN.mp4")
        if is_shard_clip(path):
            return RecordingName(parts[0], parts[2], parts[1], parts[3])
        return RecordingName(*whole.with_suffix("").parts[-4:])

    @property
    def path(self) -> Path:
        """Folder and name, without suffix."""
        return Path(self.protocol, self.split, self.user, self.recording)


@dataclass(frozen=True)
class Contents:
    """What a folder holds, by layout; paths in order."""

    videos: tuple[Path, ...]
    """Of `raw_data`: the video of a recording, or the .json that names its videos."""
    tars: tuple[Path, ...]
    shards: tuple[Path, ...]
    without_pictures: tuple[Path, ...]
    """Recordings of HOT3D: poses and cameras alone."""

    def recordings(self) -> list[Path]:
        """All that can be read by `read_recording` and has pictures; of a broken shard the first clip, which tells."""
        return [*self.videos, *self.tars, *(clip for shard in self.shards for clip in _clips(shard))]

    def __str__(self) -> str:
        counts = {
            "raw_data recordings": len(self.videos),
            "clips in .tar files": len(self.tars),
            "training shards": len(self.shards),
            "HOT3D recordings without pictures": len(self.without_pictures),
        }
        return ", ".join(f"{count} {kind}" for kind, count in counts.items() if count) or "nothing"


def find_contents(folder: Path) -> Contents:
    """What lies at any depth below a folder. Raises InputError if there is no folder."""
    if not folder.is_dir():
        raise InputError(f"no folder {folder}")
    paths = sorted(folder.rglob("*"))
    labels = {path for path in paths if path.match("recording_*.json") and path.is_file()}
    videos = {path for path in paths if path.match("recording_*.mp4") and path.is_file()}
    named = {path for path in labels if path.with_suffix(".mp4") not in videos}
    folders = [path for path in [folder, *paths] if path.is_dir()]
    return Contents(
        videos=tuple(sorted(videos | named)),
        tars=tuple(path for path in paths if is_tar(path)),
        shards=tuple(path for path in folders if is_shard(path)),
        without_pictures=tuple(path for path in folders if is_hot3d_recording(path)),
    )


def find_recordings(folder: Path) -> list[Path]:
    """The recordings below a folder, of any layout, in order. Raises InputError if there are none."""
    contents = find_contents(folder)
    found = contents.recordings()
    if not found:
        raise InputError(
            f"no recordings below {folder} ({contents}): render them with make data, or give a folder of videos in the "
            "raw_data layout, of clips (.tar), or of training shards"
        )
    return found


def _clips(shard: Path) -> list[Path]:
    try:
        return [shard_clip(shard, index) for index in range(len(Shard(shard)))]
    except InputError:
        return [shard_clip(shard, 0)]


def files_of(path: Path) -> list[Path]:
    """The files that a recording is read from; of videos that a .json names, all in its folder."""
    if is_shard_clip(path):
        return sorted(path.parent.glob("*.torch.*"))
    if is_tar(path):
        return [path]
    labels = path.with_suffix(".json")
    return [labels, path] if path.suffix != ".json" else [labels, *sorted(path.parent.glob("*.mp4"))]
