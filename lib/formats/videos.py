"""Grey videos of recordings: all views side by side in one file, or one file per camera."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8

from lib.errors import InputError
from lib.files import refuse_pointer

FRAMES_PER_SECOND = 30
_EIGHT_BIT_LUMA = re.compile("gray|yuvj?4(11|20|22|40|44)p|nv(12|21|16)")
"""Pixel formats whose first plane is luma, a byte a pixel."""
_LIMITED_RANGE = np.clip((np.arange(256) - 16) * 255 // 219, 0, 255).astype(np.uint8)
"""Luma of limited-range video to grey, truncated as the published decoding does (one channel of its RGB)."""
_BROKEN_VIDEO = (av.FFmpegError, IndexError, OSError, ValueError, MemoryError)


@dataclass(frozen=True)
class Videos:
    """The pictures of a recording of so many `frames`: in one file with all views side by side, or in one per camera.

    `sizes` are width and height of each camera. Called with a frame to start from, it yields the views of every frame,
    decoded one at a time, those of smaller cameras black on the right and below.
    """

    files: tuple[Path, ...]
    sizes: tuple[tuple[int, int], ...]
    frames: int

    def __call__(self, start: int = 0) -> Iterator[UInt8[np.ndarray, "cameras height width"]]:
        """Raises InputError if a video is broken, has another size than the cameras, or another number of frames."""
        together = len(self.files) == 1
        shapes = [self._side_by_side] if together else [(rows, columns) for columns, rows in self.sizes]
        decoded = [self._decode(*pair, start) for pair in zip(self.files, shapes, strict=True)]
        for pictures in zip(*decoded, strict=True):
            yield padded(self._cut(pictures[0]) if together else pictures)

    @property
    def _side_by_side(self) -> tuple[int, int]:
        """Rows and columns of a picture of all views."""
        return max(rows for _, rows in self.sizes), sum(columns for columns, _ in self.sizes)

    def _cut(self, picture: UInt8[np.ndarray, "height all"]) -> list[UInt8[np.ndarray, "_ _"]]:
        ends = itertools.accumulate(columns for columns, _ in self.sizes)
        return [picture[:rows, end - columns : end] for (columns, rows), end in zip(self.sizes, ends, strict=True)]

    def _decode(self, video: Path, shape: tuple[int, int], start: int) -> Iterator[UInt8[np.ndarray, "height width"]]:
        """The pictures of one file, checked."""
        count = 0
        for count, picture in enumerate(decode_gray(video, start), start=start + 1):
            if picture.shape != shape:
                raise InputError(
                    f"{video} shows {picture.shape[1]}x{picture.shape[0]} pixels, but its json describes "
                    f"{self._described()} ({shape[1]}x{shape[0]})"
                )
            if count > self.frames:
                break
            yield picture
        if count != self.frames:
            more = "more than " if count > self.frames else ""
            raise other_length(video, f"{more}{min(count, self.frames)}", self.frames)

    def _described(self) -> str:
        if len(self.files) > 1:
            return "one video per camera"
        views = {f"{columns}x{rows}" for columns, rows in self.sizes}
        return f"{len(self.sizes)} views of {', '.join(sorted(views))} side by side"


def padded(views: Sequence[UInt8[np.ndarray, "_ _"]]) -> UInt8[np.ndarray, "cameras height width"]:
    """Pictures of several sizes, black on the right and below up to the size of the largest."""
    height, width = (max(view.shape[axis] for view in views) for axis in (0, 1))
    pictures = np.zeros((len(views), height, width), np.uint8)
    for picture, view in zip(pictures, views, strict=True):
        picture[: view.shape[0], : view.shape[1]] = view
    return pictures


def other_length(video: Path, frames: int | str, labelled: int) -> InputError:
    """What is wrong with a video that is not as long as its labels."""
    return InputError(
        f"{video} holds {frames} frames, but its json labels {labelled}: "
        "one of the two files is truncated or belongs to another recording"
    )


def decode_gray(video: Path, start: int = 0) -> Iterator[UInt8[np.ndarray, "height width"]]:
    """Grey frames of a video from `start` on, its luma plane.

    Raises InputError if it cannot be read to the end, or its pixels are no bytes of luma.
    """
    try:
        with av.open(str(video), metadata_errors="replace") as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            stream.codec_context.options = {"err_detect": "explode"}  # else what is damaged is painted over
            for frame in itertools.islice(container.decode(stream), start, None):
                if not _EIGHT_BIT_LUMA.fullmatch(frame.format.name):
                    raise InputError(
                        f"{video} holds pixels of the format {frame.format.name}, expected gray, yuv420p or another "
                        "with eight bits of luma: convert it, say with ffmpeg -pix_fmt yuv420p"
                    )
                plane = frame.planes[0]
                luma = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
                full_range = frame.color_range == av.video.reformatter.ColorRange.JPEG or frame.format.name.startswith(
                    "yuvj"
                )
                yield luma if full_range or frame.format.name == "gray" else _LIMITED_RANGE[luma]
    except _BROKEN_VIDEO as error:
        raise InputError(f"{video} is not a video that can be decoded to its end: {error}") from error


def count_frames(video: Path, expected: int) -> tuple[int, float]:
    """How many frames a video holds, undecoded, and how many a second.

    The container's own count is believed if it is the expected one; else packets are counted. Where the container gives
    no rate between 1 and 1000 Hz, it is taken to be 30 Hz. Raises InputError if there is no video.
    """
    try:
        refuse_pointer(video)
        with av.open(str(video), metadata_errors="replace") as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate or FRAMES_PER_SECOND)
            count = stream.frames
            if count != expected:
                count = sum(packet.size > 0 and not packet.is_discard for packet in container.demux(stream))
            return count, rate if 1 <= rate <= 1000 else float(FRAMES_PER_SECOND)
    except _BROKEN_VIDEO as error:
        raise InputError(f"{video} is not a video that can be decoded to its end: {error}") from error


def count_all_frames(videos: Sequence[Path], expected: int) -> tuple[int, float]:
    """`count_frames` of several videos that show the same time. Raises InputError if they differ in length."""
    counts = [count_frames(video, expected) for video in videos]
    for video, (count, _) in zip(videos, counts, strict=True):
        if count != counts[0][0]:
            raise InputError(
                f"{video} holds {count} frames, {videos[0].name} {counts[0][0]}: expected videos of equal length"
            )
    return counts[0]
