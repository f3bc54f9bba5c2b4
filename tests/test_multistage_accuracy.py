from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from conftest import tiny_recording
from made_up_data import cached, changed

from lib.crop_cache import view_sequence
from lib.multistage.detection import DetNet, DetNetConfig
from lib.multistage.detection_training import as_output
from lib.multistage.hand_crops import CachedRecording
from lib.multistage.sources import labelled_circles, labelled_keypoints
from lib.recordings import Recording, read_recording
from lib.study.baseline_accuracy import detection_table, keypoint_table, track_with_errors
from lib.study.figures.baseline import keypoints_figure, most_hidden
from lib.study.figures.style import use_style
from lib.study.sequences import LabelledSequence

FRAMES = 13


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Recording:
    return read_recording(tiny_recording(FRAMES).write(tmp_path_factory.mktemp("recording")))


def sequence_of(recording: Recording, protocol: str, occluder: slice) -> LabelledSequence:
    passes, none = np.zeros(FRAMES, bool), np.zeros((FRAMES, 2), bool)
    passes[occluder] = True
    name = f"{protocol}/user_44/recording_07"
    return LabelledSequence(name, protocol, cached(recording), none, passes, recording.path)


def worse_behind_the_occluder(request, true):
    """Off by (3, 4) pixels in frames 4 to 6, by 1 pixel elsewhere."""
    off = torch.tensor([3.0, 4.0] if 4 <= request.frame.number < 7 else [0.0, 1.0])
    return replace(true, pixels=true.pixels + off)


def test_errors_of_keypoints_with_and_without_an_occluder(recording):
    hidden = sequence_of(recording, "occlusion", slice(4, 7))
    networks = {"true": labelled_keypoints, "worse": changed(worse_behind_the_occluder)}
    recordings = [CachedRecording.of(hidden.crops, hidden.video)]
    measured = {name: track_with_errors([hidden], recordings, source)[1] for name, source in networks.items()}
    table = keypoint_table(measured).set_index(["network", "frames"])
    crops = int(hidden.crops.views.sum())
    assert table.crops["worse", "all"] == crops
    assert table.crops["worse", "behind an occluder"] == hidden.crops.views[4:7].sum()
    assert table.median_px["worse", "behind an occluder"] == pytest.approx(5.0, abs=1e-3)
    assert table.median_px["worse", "no occluder"] == pytest.approx(1.0, abs=1e-3)
    assert table.hits_percent["worse", "behind an occluder"] == 0.0
    assert table.hits_percent["worse", "no occluder"] == 100.0
    assert table.median_px["true", "all"] == pytest.approx(0.0, abs=1e-3)


def test_a_recording_without_occluder_counts_as_neither(recording):
    sequences = [sequence_of(recording, "separate_hand", slice(0))]
    recordings = [CachedRecording.of(s.crops, s.video) for s in sequences]
    table = keypoint_table({"true": track_with_errors(sequences, recordings, labelled_keypoints)[1]})
    assert table.crops[table.frames != "all"].tolist() == [0, 0]
    assert table.median_px[table.frames != "all"].isna().all()


class Stub(DetNet):
    """In place of DetNet: the labelled circles, off by 3 pixels, and both hands in every view."""

    def __init__(self, recording: Recording):
        super().__init__(DetNetConfig())
        self.recording = recording

    def forward(self, pictures):
        frames = list(CachedRecording(self.recording).frames())[::6]
        circles = [labelled_circles(frame, camera) for frame, camera in product(frames, range(4))]
        shape = torch.tensor(pictures.shape[2:]) * 4.0
        center = torch.stack([c.center_px for c in circles]) + 3.0 * torch.tensor([1.0, 0.0]) - shape.flip(0) / 2
        radius = torch.stack([c.radius_px for c in circles])
        output = as_output(torch.cat((center, radius[..., None]), -1) / shape[1], radius > 0).float()
        output[..., 3] = 10.0
        return output


def test_errors_of_the_detector(recording):
    table = detection_table([recording], Stub(recording)).iloc[0]
    assert table.views == 4 * 3
    assert table.center_px == pytest.approx(3.0, abs=1e-3)
    assert table.radius_px == pytest.approx(0.0, abs=1e-3)
    assert table.recall_percent == 100.0
    pictures = list(recording.images())
    absent = (view_sequence(recording, lambda frame: pictures[frame]).landmarks_seen == 0).sum()
    assert table.false_positives_per_frame == pytest.approx(absent / 3)
    assert absent > 0


def test_the_figure_shows_the_hand_that_is_hidden_longest(recording):
    use_style()
    short, long = (sequence_of(recording, "occlusion", slice(4, end)) for end in (5, 9))
    sequence, hand = most_hidden([short, long])
    assert sequence is long
    figure = keypoints_figure(sequence, hand, {"keynet": labelled_keypoints}, columns=4)
    assert sum(len(axes.images) for axes in figure.axes) == 4
