"""The folders of the public recordings: raw_data/KIND/PROTOCOL/SPLIT/user_NN/recording_NN.mp4, labels in .json.

KIND is real or synthetic, PROTOCOL separate_hand, hand_hand or, in the rendered dataset, occlusion, SPLIT training or
testing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lib.errors import InputError


@dataclass(frozen=True, order=True)
class RecordingName:
    """Where a recording lies below its KIND: `user` is user_NN, `recording` is recording_NN."""

    protocol: str
    split: str
    user: str
    recording: str

    @staticmethod
    def of(path: Path) -> RecordingName:
        """The name of the recording at a path, with or without suffix. Raises InputError if it has too few folders."""
        parts = path.with_suffix("").parts[-4:]
        if len(parts) < 4:
            raise InputError(f"{path} is not in the raw_data layout: expected PROTOCOL/SPLIT/user_NN/recording_NN.mp4")
        return RecordingName(*parts)

    @property
    def path(self) -> Path:
        """Folder and name, without suffix."""
        return Path(self.protocol, self.split, self.user, self.recording)


def find_recordings(folder: Path) -> list[Path]:
    """The videos below a folder of the layout, in order. Raises InputError if there are none."""
    videos = sorted(folder.glob("**/recording_*.mp4"))
    if not videos:
        raise InputError(
            f"no recordings below {folder}: render them with make data, or give a folder in the raw_data layout"
        )
    return videos
