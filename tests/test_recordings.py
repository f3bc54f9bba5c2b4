import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import (
    HEADSET_POSITIONS,
    MOUNTING_ANGLES_DEG,
    TinyRecording,
    hand_in_front,
    headset,
    tiny_recording,
    write_gray_video,
)
from made_up_data import drop, put
from torch.testing import assert_close

from lib.cameras import Fisheye62
from lib.crops import choose_views
from lib.errors import InputError
from lib.files import write_atomically
from lib.formats.hand_files import GENERIC_JOINT_LIMITS, hand_from_json, hand_to_json, read_hand
from lib.formats.videos import decode_gray
from lib.recordings import CAMERA_MODELS, labels_to_json, read_recording
from lib.rendered.shape import generic_hand

FRAMES = 4


@pytest.fixture
def tiny():
    return tiny_recording(FRAMES)


def test_labels_come_back_in_metres_and_radians(tiny, tmp_path):
    recording = read_recording(tiny.write(tmp_path))
    assert len(recording) == FRAMES
    assert recording.labelled.all()
    assert recording.pinch is None
    positions = torch.tensor(HEADSET_POSITIONS, dtype=torch.float64)
    assert_close(recording.world_from_camera[2, :, :3, 3], positions, atol=1e-12, rtol=0)
    assert_close(recording.world_from_wrist[0, 1], hand_in_front(0.08), atol=1e-12, rtol=0)
    assert_close(recording.joint_angles, torch.tensor(tiny.labels["joint_angles"], dtype=torch.float64))
    assert_close(recording.mounting_angles, torch.deg2rad(torch.tensor(MOUNTING_ANGLES_DEG, dtype=torch.float64)))


def test_cameras_come_back(tiny, tmp_path):
    recording, expected = read_recording(tiny.write(tmp_path)), headset()
    assert isinstance(recording.camera, Fisheye62)
    points = torch.tensor([[0.02, 0.15, 0.3], [-0.1, 0.1, 0.4]], dtype=torch.float64).expand(4, 2, 3)
    assert_close(recording.cameras(1).project(points), expected.project(points), atol=1e-9, rtol=0)
    assert (recording.camera.width, recording.camera.height) == (64, 48)


def test_the_order_of_lens_parameters(tiny, tmp_path):
    """They go by name, whatever their order in the file; against the projection written out, eight different values."""
    lens = {
        "k5": 0.0021,
        "p2": -0.0013,
        "k1": -0.021,
        "k6": -0.0006,
        "k3": -0.064,
        "p1": 0.0034,
        "k2": 0.093,
        "k4": 0.01,
    }
    for camera in tiny.labels["cameras"]:
        for name in lens:
            del camera[name]
        camera |= lens
    x, y, z = 0.31, -0.22, 0.27
    radius = np.hypot(x, y)
    angle = np.arctan2(radius, z)
    bent = angle / radius * (1 + sum(lens[f"k{n}"] * angle ** (2 * n) for n in range(1, 7)))
    x, y, p1, p2 = bent * x, bent * y, lens["p1"], lens["p2"]
    s2 = x * x + y * y
    expected = x + 2 * p2 * x * y + p1 * (s2 + 2 * x * x), y + 2 * p1 * x * y + p2 * (s2 + 2 * y * y)
    camera = read_recording(tiny.write(tmp_path)).camera[0]
    pixel = camera.project(torch.tensor([0.31, -0.22, 0.27], dtype=torch.float64))
    stored = tiny.labels["cameras"][0]
    focal, center = (stored["fx"], stored["fy"]), (stored["cx"], stored["cy"])
    np.testing.assert_allclose(pixel, np.array(focal) * expected + center, atol=1e-9)


def test_labels_as_written_equal_labels_as_read(tiny, tmp_path):
    tiny.labels["pinch"] = [[0, 1]] * FRAMES
    written = labels_to_json(read_recording(tiny.write(tmp_path)))
    assert written.keys() == tiny.labels.keys()
    for name in written.keys() - {"cameras", "hand_model"}:
        np.testing.assert_allclose(written[name], tiny.labels[name], atol=1e-9)
    assert written["cameras"] == tiny.labels["cameras"]
    for name, value in written["hand_model"].items():
        np.testing.assert_allclose(value, tiny.labels["hand_model"][name], atol=1e-9)


def test_hand_model_comes_back():
    hand = generic_hand().to(dtype=torch.float64)
    again = hand_from_json(json.loads(json.dumps(hand_to_json(hand))))
    for name, value in vars(hand).items():
        assert_close(getattr(again, name), value, atol=1e-15, rtol=0)


def test_a_bare_hand_and_the_hand_of_a_recording_are_read_alike(tiny, tmp_path):
    bare = tmp_path / "hand.json"
    bare.write_text(json.dumps(tiny.labels["hand_model"]))
    inside = tiny.write(tmp_path).with_suffix(".json")
    assert_close(read_hand(bare).landmark_rest_positions, read_hand(inside).landmark_rest_positions)


def test_tree_of_joints():
    """Each finger's four joints hang on one another; bone frames follow joints 1, 2 and 3 of a finger."""
    stored = hand_to_json(generic_hand())
    assert stored["joint_parent"][4:8] == [255, 4, 5, 6]
    assert stored["joint_first_child"][4:8] == [5, 6, 7, 255]
    assert stored["joint_frame_index"][4:8] == [255, 5, 6, 7]
    assert stored["joint_next_sibling"][4:8] == [8, 255, 255, 255]


def test_hand_scale_is_applied(tiny):
    stored = tiny.labels["hand_model"]
    grown = hand_from_json({**stored, "hand_scale": 1.25})
    for name in ("joint_rest_positions", "landmark_rest_positions", "mesh_vertices"):
        assert_close(getattr(grown, name), 1.25 * getattr(hand_from_json(stored), name))


def test_a_hand_without_mesh_and_limits(tiny):
    stored = {
        k: v for k, v in tiny.labels["hand_model"].items() if k not in ("mesh_vertices", "joint_limits", "hand_scale")
    }
    hand = hand_from_json(stored)
    assert hand.mesh_vertices is None
    assert torch.equal(hand.joint_limits, GENERIC_JOINT_LIMITS)


def test_whole_numbers_may_be_written_with_a_point(tiny, tmp_path):
    for camera in tiny.labels["cameras"]:
        camera["ImageSizeX"] = float(camera["ImageSizeX"])
    model = tiny.labels["hand_model"]
    for name in ("landmark_rest_bone_indices", "mesh_triangles"):
        model[name] = np.array(model[name], float).tolist()
    recording = read_recording(tiny.write(tmp_path))
    assert recording.hand_model.mesh_triangles.dtype == torch.int64
    assert recording.camera.width == 64
    assert next(recording.images()).shape == (4, 48, 64)


@pytest.mark.parametrize("pixel_format", ["yuvj420p", "yuv420p"])
def test_grey_levels_come_back(tiny, tmp_path, pixel_format):
    """Full-range video as written, limited-range video expanded from 16..235."""
    full_range = pixel_format == "yuvj420p"
    video = tmp_path / "gray.mp4"
    luma = tiny.images if full_range else np.round(16 + tiny.images * (219 / 255)).astype(np.uint8)
    write_gray_video(video, luma, pixel_format)
    decoded = np.stack(list(decode_gray(video)))
    expected = np.concatenate(list(tiny.images.swapaxes(0, 1)), axis=-1)
    assert np.abs(decoded.astype(int) - expected).max() <= (0 if full_range else 1)


@pytest.mark.parametrize("pixel_format", ["bgr0", "gray16le", "yuv420p10le"])
def test_other_pixels_than_bytes_of_luma_are_refused(tmp_path, pixel_format):
    video = tmp_path / "deep.mkv"
    with av.open(str(video), "w") as container:
        stream = container.add_stream("ffv1", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixel_format
        frame = av.VideoFrame.from_ndarray(np.zeros((48, 64), np.uint8), format="gray").reformat(format=pixel_format)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(InputError, match=f"pixels of the format {pixel_format}, expected gray, yuv420p or another"):
        next(decode_gray(video))


def test_views_come_one_after_the_other(tiny, tmp_path):
    images = np.stack(list(read_recording(tiny.write(tmp_path)).images()))
    np.testing.assert_array_equal(images, tiny.images)


def test_grey_levels_equal_those_of_the_published_decoding(real):
    """It converts to RGB and takes one channel."""
    video = real / "recording" / "recording_00.mp4"
    with av.open(str(video)) as container:
        red = next(container.decode(video=0)).to_ndarray(format="rgb24")[..., 0]
    assert np.abs(next(decode_gray(video)).astype(int) - red).max() <= 1


def test_k5_and_k6_are_zero_where_the_file_carries_p3_and_p4(tiny, tmp_path):
    for camera in tiny.labels["cameras"]:
        camera["p3"], camera["p4"] = camera.pop("k5") + 1, camera.pop("k6") + 1
    distortion = read_recording(tiny.write(tmp_path)).camera.distortion
    assert not distortion[:, 4:6].any()
    assert distortion[:, [0, 1, 2, 6, 7]].all()


@pytest.mark.parametrize("missing", [("k5",), ("k6",), ("k5", "k6")])
def test_k5_and_k6_are_missing_without_p3_and_p4(tiny, tmp_path, missing):
    for name in missing:
        del tiny.labels["cameras"][2][name]
    with pytest.raises(InputError, match=f"cameras: the field '{missing[0]}' is missing"):
        read_recording(tiny.write(tmp_path))


@pytest.mark.parametrize(("written", "read"), [(24, 24.0), (30, 30.0), (5000, 30.0)])
def test_the_rate_of_the_video(tiny, tmp_path, written, read):
    """One that cannot be is taken to be 30 Hz."""
    video = tiny.write(tmp_path)
    write_gray_video(video, tiny.images, rate=written)
    assert read_recording(video).frames_per_second == pytest.approx(read)


@pytest.mark.parametrize("frames", [FRAMES, FRAMES - 1])
def test_frames_are_counted_where_the_container_does_not(tiny, tmp_path, frames):
    video = tiny.write(tmp_path).with_suffix(".mkv")
    write_gray_video(video, tiny.images[:frames])
    with av.open(str(video)) as container:
        assert container.streams.video[0].frames == 0
    if frames == FRAMES:
        assert len(list(read_recording(video).images())) == FRAMES
    else:
        with pytest.raises(InputError, match=f"holds {frames} frames, but its json labels {FRAMES}"):
            read_recording(video)


def test_metadata_that_is_no_text(tiny, tmp_path):
    video = tiny.write(tmp_path)
    with av.open(str(video)) as source, av.open(str(tmp_path / "titled.mp4"), "w") as target:
        target.metadata["title"] = "QQQQQQQQ"
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    content = (tmp_path / "titled.mp4").read_bytes()
    assert b"QQQQQQQQ" in content
    video.write_bytes(content.replace(b"QQQQQQQQ", b"\xff\xfeQQQ\xc3QQ"))
    assert drain(video) == FRAMES


@pytest.mark.parametrize("suffix", [".json", ".mp4"])
def test_a_git_lfs_pointer_is_named(tiny, tmp_path, suffix):
    path = tiny.write(tmp_path).with_suffix(suffix)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(InputError, match=rf"recording_00\{suffix} is a Git LFS pointer.*git lfs pull"):
        read_recording(path.with_suffix(".mp4"))


NAN = float("nan")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("joint_angles", np.full(22, NAN)),
        ("wrist_transforms", np.full((4, 4), NAN)),
        ("wrist_transforms", np.zeros((4, 4))),
        ("hand_confidences", 0.0),
        ("hand_confidences", NAN),
    ],
)
def test_a_hand_without_a_valid_label_is_unlabelled(tiny, tmp_path, field, value):
    stored = np.array(tiny.labels[field])
    stored[1, 0] = value
    tiny.labels[field] = stored.tolist()
    recording = read_recording(tiny.write(tmp_path))
    expected = torch.ones(FRAMES, 2, dtype=torch.bool)
    expected[1, 0] = False
    assert torch.equal(recording.labelled, expected)
    assert recording.joint_angles.isfinite().all()
    assert_close(torch.linalg.det(recording.world_from_wrist), torch.ones(FRAMES, 2, dtype=torch.float64))


@pytest.mark.parametrize("broken", [np.zeros((4, 4)), np.full((4, 4), NAN)], ids=["zero", "nan"])
@pytest.mark.parametrize("cameras", [slice(None), 2], ids=["all cameras", "one camera"])
def test_a_frame_without_camera_poses_is_unlabelled(tiny, tmp_path, broken, cameras):
    stored = np.array(tiny.labels["camera_to_world_transforms"])
    stored[2, cameras] = broken
    tiny.labels["camera_to_world_transforms"] = stored.tolist()
    recording = read_recording(tiny.write(tmp_path))
    assert recording.labelled.all(dim=1).tolist() == [True, True, False, True]
    assert not recording.labelled[2].any()
    assert recording.world_from_camera.isfinite().all()


def of_cameras(tiny: TinyRecording, chosen: list[int]) -> TinyRecording:
    """All that goes by camera, of those chosen."""
    labels = {name: [tiny.labels[name][index] for index in chosen] for name in ("cameras", "camera_angles")}
    poses = [[frame[index] for index in chosen] for frame in tiny.labels["camera_to_world_transforms"]]
    labels = tiny.labels | labels | {"camera_to_world_transforms": poses}
    return TinyRecording(labels, tiny.images[:, chosen])


@pytest.mark.parametrize("chosen", [[1], [1, 2], [0, 1, 2], [2, 1, 0, 3, 1, 2, 0, 3]], ids=len)
def test_any_rig_is_tracked(tiny, tmp_path, tiny_tracker, chosen):
    """One to eight cameras; both front ones see both hands."""
    recording = read_recording(of_cameras(tiny, chosen).write(tmp_path))
    assert next(recording.images()).shape == (len(chosen), 48, 64)
    assert tiny_tracker.track_known(recording, recording.hand_model).valid_tracking.all()
    if len(chosen) > 1:
        assert tiny_tracker.track_unknown(recording, recording.hand_model).scale > 0
    else:
        with pytest.raises(InputError, match="no frame shows a labelled hand to two cameras"):
            tiny_tracker.track_unknown(recording, recording.hand_model)


SIZES = ((64, 48), (50, 48), (64, 40), (40, 30))
"""Of the cameras of a mixed rig, columns and rows."""


def of_sizes(tiny: TinyRecording) -> TinyRecording:
    """The same cameras, whose pictures end earlier on the right and below, and are black there."""
    images = tiny.images.copy()
    for index, (columns, rows) in enumerate(SIZES):
        tiny.labels["cameras"][index] |= {"ImageSizeX": columns, "ImageSizeY": rows}
        images[:, index, rows:], images[:, index, :, columns:] = 0, 0
    return TinyRecording(tiny.labels, images)


def write_one_video_per_camera(tiny: TinyRecording, folder: Path) -> Path:
    names = [f"camera_{index}.mp4" for index in range(len(SIZES))]
    for index, (name, (columns, rows)) in enumerate(zip(names, SIZES, strict=True)):
        write_gray_video(folder / name, tiny.images[:, [index], :rows, :columns])
    labels = folder / "recording_00.json"
    labels.write_text(json.dumps(tiny.labels | {"videos": names}))
    return labels


def write_side_by_side(tiny: TinyRecording, folder: Path) -> Path:
    views = [tiny.images[:, index, :, :columns] for index, (columns, _) in enumerate(SIZES)]
    joined = np.concatenate(views, axis=-1)[:, None]
    video = tiny.write(folder)
    write_gray_video(video, joined)
    return video


@pytest.mark.parametrize("write", [write_one_video_per_camera, write_side_by_side])
def test_cameras_of_several_sizes(tiny, tmp_path, tiny_tracker, write):
    mixed = of_sizes(tiny)
    recording = read_recording(write(mixed, tmp_path))
    images = np.stack(list(recording.images()))
    assert np.abs(images.astype(int) - mixed.images).max() <= 1
    assert np.array_equal(next(recording.images(start=2)), images[2])
    assert recording.camera.view(images[0], 3).shape == (30, 40)
    assert recording.camera.size_px.tolist() == [list(size) for size in SIZES]
    inside = recording.camera.contains(torch.tensor([45.0, 35.0], dtype=torch.float64))
    assert inside.tolist() == [True, True, True, False]
    assert labels_to_json(recording)["cameras"] == mixed.labels["cameras"]
    assert tiny_tracker.track_known(recording, recording.hand_model).valid_tracking.any()


def test_only_what_lies_in_its_own_picture_is_seen(tiny, tmp_path):
    """The same hands, seen by a camera whose picture ends before them."""
    tiny.labels["cameras"][1]["ImageSizeX"] = 24
    recording = read_recording(write_side_by_side_of(tiny, (64, 24, 64, 64), tmp_path))
    views, _ = choose_views(recording.cameras(0), recording.mounting_angles, recording.hands(0))
    assert views[:, 2].all()
    assert not views[:, 1].any()


def write_side_by_side_of(tiny: TinyRecording, widths: tuple[int, ...], folder: Path) -> Path:
    video = tiny.write(folder)
    views = [tiny.images[:, index, :, :width] for index, width in enumerate(widths)]
    write_gray_video(video, np.concatenate(views, axis=-1)[:, None])
    return video


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["camera_0.mp4"] * 4, "expected the names of 4 files, one per camera"),
        (["a.mp4", "b.mp4", "c.mp4"], "expected the names of 4 files, one per camera"),
        ("camera_0.mp4", "expected the names of 4 files, one per camera"),
        (["camera_0.mp4", "camera_1.mp4", "camera_2.mp4", "../camera_3.mp4"], "expected a file in the folder"),
        (["camera_0.mp4", "camera_1.mp4", "camera_2.mp4", 3], "expected a file in the folder"),
        (["camera_0.mp4", "camera_1.mp4", "camera_2.mp4", "other.mp4"], r"no file .*other\.mp4, which videos names"),
    ],
)
def test_videos_that_are_not_one_per_camera(tiny, tmp_path, names, message):
    labels = write_one_video_per_camera(of_sizes(tiny), tmp_path)
    labels.write_text(json.dumps(json.loads(labels.read_text()) | {"videos": names}))
    with pytest.raises(InputError, match=message):
        read_recording(labels)


def test_videos_of_several_lengths(tiny, tmp_path):
    labels = write_one_video_per_camera(of_sizes(tiny), tmp_path)
    write_gray_video(tmp_path / "camera_2.mp4", tiny.images[:3, [2], :40])
    with pytest.raises(InputError, match=r"camera_2\.mp4 holds 3 frames, camera_0\.mp4 4: expected .* equal length"):
        read_recording(labels)


def test_a_video_of_another_camera(tiny, tmp_path):
    labels = write_one_video_per_camera(of_sizes(tiny), tmp_path)
    write_gray_video(tmp_path / "camera_2.mp4", tiny.images[:, [2]])
    with pytest.raises(InputError, match=r"camera_2\.mp4 shows 64x48 pixels, .* one video per camera \(64x40\)"):
        list(read_recording(labels).images())


@pytest.mark.parametrize("labelled", [True, False])
def test_cameras_given_once_stand_still(tiny, tmp_path, labelled):
    poses = tiny.labels["camera_to_world_transforms"]
    tiny.labels["camera_to_world_transforms"] = poses[0]
    if not labelled:
        for name in ("joint_angles", "wrist_transforms", "hand_confidences"):
            del tiny.labels[name]
    recording = read_recording(tiny.write(tmp_path))
    assert len(recording) == FRAMES == len(list(recording.images()))
    assert torch.equal(recording.world_from_camera, recording.world_from_camera[:1].expand(FRAMES, 4, 4, 4))
    assert bool(recording.labelled.all()) == labelled


@pytest.mark.parametrize("name", CAMERA_MODELS)
def test_every_camera_model_comes_back(tiny, tmp_path, name):
    model, parameters = CAMERA_MODELS[name]
    for index, camera in enumerate(tiny.labels["cameras"]):
        for parameter in [key for key in camera if key[0] in "kps"]:
            del camera[parameter]
        camera |= {"DistortionModel": name} | dict.fromkeys(parameters, 0.001 * (index + 1))
        camera |= {"k1": -0.02} if "k1" in parameters else {}
    recording = read_recording(tiny.write(tmp_path))
    assert type(recording.camera) is model
    again = labels_to_json(recording)
    assert again["cameras"] == tiny.labels["cameras"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("joint_angles"), "the field 'joint_angles' is missing"),
        (drop("cameras", 3), r"camera_angles has shape \(4,\), expected \(3,\)"),
        (put("cameras", []), "expected 1 to 8 cameras, got 0"),
        (put("pinch", [[0, 1]]), r"pinch has shape \(1, 2\), expected \(4, 2\)"),
        (
            put("cameras", 1, "DistortionModel", "Brown"),
            "camera models Brown, FishEye62: expected one for all cameras, of FishEye62",
        ),
        (drop("cameras", 1, "k1"), "the field 'k1' is missing"),
        (drop("camera_to_world_transforms", 0), r"camera_to_world_transforms has shape \(3, 4, 4, 4\)"),
        (drop("hand_confidences", 0), r"hand_confidences has shape \(3, 2\), expected \(4, 2\)"),
        (drop("wrist_transforms", 0, 0), "wrist_transforms is not an array of numbers with equal rows"),
        (put("joint_angles", 0, 0, 0, None), "joint_angles is not an array of numbers"),
        (drop("hand_model", "joint_rotation_axes"), "the field 'joint_rotation_axes' is missing"),
        (put("hand_model", "landmark_rest_bone_indices", 0, 0, 17), r"landmark_rest_bone_indices must lie in 0\.\.16"),
        (put("hand_model", 3), "not in the expected form"),
    ],
)
def test_malformed_labels(tiny, tmp_path, change, message):
    change(tiny.labels)
    with pytest.raises(InputError, match=message) as caught:
        read_recording(tiny.write(tmp_path))
    assert "recording_00.json" in str(caught.value)


@pytest.mark.parametrize("suffix", [".json", ".mp4"])
def test_a_missing_file(tiny, tmp_path, suffix):
    video = tiny.write(tmp_path)
    video.with_suffix(suffix).unlink()
    with pytest.raises(InputError, match=rf"no file .*recording_00\{suffix}"):
        read_recording(video)


def test_labels_that_are_no_json(tiny, tmp_path):
    video = tiny.write(tmp_path)
    video.with_suffix(".json").write_text('{"cameras": [')
    with pytest.raises(InputError, match="is not valid JSON"):
        read_recording(video)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff\xfe{}", b"[" + b"9" * 5000 + b"]"])
def test_labels_that_no_parser_takes(tiny, tmp_path, content):
    video = tiny.write(tmp_path)
    video.with_suffix(".json").write_bytes(content)
    with pytest.raises(InputError, match=r"recording_00\.json is not valid JSON"):
        read_recording(video)


def test_labels_larger_than_memory(tiny, tmp_path):
    video = tiny.write(tmp_path)
    with video.with_suffix(".json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError, match=f"holds {1 << 40} bytes, expected at most"):
        read_recording(video)


def drain(video: Path) -> int:
    return sum(1 for _ in read_recording(video).images())


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.95])
def test_a_truncated_video(tiny, tmp_path, share):
    video = tiny.write(tmp_path)
    video.write_bytes(video.read_bytes()[: int(share * video.stat().st_size)])
    with pytest.raises(InputError, match=r"recording_00\.mp4"):
        drain(video)


@pytest.mark.parametrize(
    ("frames", "decoded"),
    [(3, "holds 3 frames, but its json labels 4"), (6, "holds more than 4 frames, but its json labels 4")],
)
def test_a_video_of_another_length(tiny, tmp_path, frames, decoded):
    """Found when the recording is read, and again, should it be replaced since, when the video is decoded."""
    video = tiny.write(tmp_path)
    recording = read_recording(video)
    write_gray_video(video, tiny.images[np.arange(frames) % FRAMES])
    with pytest.raises(InputError, match=rf"mp4 holds {frames} frames, but its json labels 4"):
        read_recording(video)
    with pytest.raises(InputError, match=decoded):
        list(recording.images())


@pytest.mark.parametrize("start", [0.3, 0.5, 0.7])
def test_a_video_with_a_damaged_picture(tiny, tmp_path, start):
    """Decoders paint over what they cannot read, unless they are told not to."""
    video = tiny.write(tmp_path)
    content = bytearray(video.read_bytes())
    start = int(start * len(content))
    content[start : start + 400] = np.random.default_rng(0).bytes(400)
    video.write_bytes(content)
    assert len(read_recording(video)) == FRAMES
    with pytest.raises(InputError, match=r"recording_00\.mp4 is not a video that can be decoded to its end"):
        drain(video)


@pytest.mark.parametrize("shape", [(3, 48, 64), (4, 46, 64), (4, 48, 62)], ids=str)
def test_views_of_another_size(tiny, tmp_path, shape):
    video = tiny.write(tmp_path)
    views, height, width = shape
    write_gray_video(video, np.zeros((FRAMES, *shape), np.uint8))
    with pytest.raises(InputError, match=rf"shows {views * width}x{height} pixels, .* 64x48 side by side \(256x48\)"):
        drain(video)


def test_a_failed_write_leaves_nothing(tmp_path):
    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_atomically(tmp_path / "new" / "file.txt", write)
    assert not list(tmp_path.rglob("*.txt"))


def test_a_write_keeps_its_suffix_and_replaces_the_old_file(tmp_path):
    path = tmp_path / "file.json"
    path.write_text("old")
    suffixes = []
    write_atomically(path, lambda temporary: (suffixes.append(temporary.suffix), temporary.write_text("new")))
    assert (path.read_text(), suffixes, len(list(tmp_path.iterdir()))) == ("new", [".json"], 1)
