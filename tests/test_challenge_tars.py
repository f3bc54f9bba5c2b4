"""Recordings written as challenge tars and read back."""

import io
import json
import tarfile
import tracemalloc
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import HEIGHT, WIDTH, TinyRecording, tiny_recording
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float
from made_up_data import put
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.testing import assert_close

from lib.cameras import Camera, KannalaBrandt, Pinhole, PosedCamera, RadialTangential
from lib.crops import CROP_SIZE, choose_views
from lib.errors import InputError
from lib.formats.challenge_tars import WRITTEN_MODELS, write_challenge_tar
from lib.formats.hot3d import CALIBRATED_MODELS, read_hot3d
from lib.hands import HAND_NAMES, HandModel
from lib.recordings import Recording, read_recording
from lib.transforms import homogeneous, mirror_x, nearest_rotation, quaternion_rotation

FRAMES = 4
STREAMS = ("1201-1", "1201-2", "1201-3", "1201-4")
TOOLKIT_MODELS = {"PinholePlane", "OculusVisionFishEye", "OculusVisionFishEye62", "CameraModelType.FISHEYE624"}
"""Of those that the toolkit reads, written as it spells them: it tells capitals apart."""
CLOSE = {"atol": 1e-9, "rtol": 0}


@pytest.fixture(scope="module")
def tiny() -> TinyRecording:
    """The right hand is unlabelled in frame 1, the headset has no pose in frame 2; pictures are smooth."""
    made = tiny_recording(FRAMES)
    put("hand_confidences", 1, 1, 0.0)(made.labels)
    put("camera_to_world_transforms", 2, np.zeros((4, 4, 4)).tolist())(made.labels)
    ramp = np.add.outer(np.arange(HEIGHT), 2 * np.arange(WIDTH))
    shift = np.add.outer(10 * np.arange(FRAMES), 15 * np.arange(4))[..., None, None]
    return replace(made, images=(ramp + shift).astype(np.uint8))


@pytest.fixture(scope="module")
def recording(tiny, tmp_path_factory) -> Recording:
    """Its rotations are orthonormal in float64, which quaternions are."""
    read = read_recording(tiny.write(tmp_path_factory.mktemp("recording")))
    return replace(
        read, **{name: orthonormal(getattr(read, name)) for name in ("world_from_camera", "world_from_wrist")}
    )


def without_mesh(hand: HandModel) -> HandModel:
    return replace(hand, mesh_vertices=None, mesh_triangles=None, mesh_bone_weights=None)


def orthonormal(poses: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 4 4"]:
    return homogeneous(nearest_rotation(poses[..., :3, :3]), poses[..., :3, 3])


@pytest.fixture(scope="module")
def tar(recording, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tar") / "sequence.tar"
    write_challenge_tar(recording, path)
    return path


def members_of(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def parsed(path: Path, name: str) -> dict:
    return json.loads(members_of(path)[name])


def read_hand_crops(path: Path) -> dict[tuple[int, int, str], PosedCamera]:
    """The crop cameras of a tar by frame, hand and stream, those of right hands mirrored; as the toolkit reads them."""
    crops = {}
    for name in members_of(path):
        stored = parsed(path, name) if name.endswith("hand_crops.json") else {}
        for hand, stream, entry in ((h, s, e) for h in HAND_NAMES for s, e in (stored.get(h) or {}).items()):
            camera = Pinhole.create(CROP_SIZE, torch.tensor(CROP_SIZE / 2 / np.tan(entry["crop_camera_fov"] / 2)))
            stored_pose = entry["T_world_from_crop_camera"]
            wxyz, xyz = (
                torch.tensor(stored_pose[n], dtype=torch.float64) for n in ("quaternion_wxyz", "translation_xyz")
            )
            pose = homogeneous(quaternion_rotation(wxyz), xyz)
            pose = mirror_x(pose) if hand == "right" else pose
            crops[int(name[:6]), HAND_NAMES.index(hand), stream] = PosedCamera(camera.to(dtype=torch.float64), pose)
    return crops


def crop_of(quaternion) -> bytes:
    pose = {"quaternion_wxyz": quaternion, "translation_xyz": [0, 0, 0]}
    return json.dumps({"left": {"1201-1": {"crop_camera_fov": 1.0, "T_world_from_crop_camera": pose}}}).encode()


def check_round_trip(recording: Recording, path: Path) -> None:
    """All but the pictures comes back."""
    clip, crops = read_hot3d(path), read_hand_crops(path)
    posed = torch.ones(len(recording), dtype=torch.bool) if recording.posed is None else recording.posed
    assert tuple(clip.camera) == STREAMS[: len(recording.mounting_angles)]
    assert clip.headset_tracked.tolist() == posed.tolist()
    assert clip.labelled.tolist() == recording.labelled.tolist()
    assert_close(clip.joint_angles[clip.labelled], recording.joint_angles[recording.labelled], **CLOSE)
    assert_close(clip.world_from_wrist[clip.labelled], recording.world_from_wrist[recording.labelled], **CLOSE)
    for index, (stream, camera) in enumerate(clip.camera.items()):
        expected = recording.cameras(0).camera[index]
        assert type(camera) is type(expected)
        assert [camera.width, camera.height] == expected.size_px.int().tolist()
        for name in ("focal_px", "center_px", "distortion"):
            assert_close(getattr(camera, name), getattr(expected, name), **CLOSE)
        assert_close(clip.world_from_camera[stream][posed], recording.world_from_camera[posed, index], **CLOSE)
    expected = expected_crops(recording)
    assert list(crops) == list(expected)
    for key, crop in crops.items():
        frame, hand, _ = key
        assert_close(crop.world_from_camera, expected[key].world_from_camera, **CLOSE)
        landmarks = recording.hands(frame).landmarks()[hand]
        assert_close(crop.project(landmarks), expected[key].project(landmarks), **CLOSE)


def expected_crops(recording: Recording) -> dict[tuple[int, int, str], PosedCamera]:
    """The crop cameras of `lib.crops` in all views that it chooses."""
    crops = {}
    for frame in range(len(recording)):
        views, crop = choose_views(recording.cameras(frame), recording.mounting_angles, recording.hands(frame))
        crops |= {(frame, hand, STREAMS[i]): crop[hand, i] for hand, i in views.nonzero().tolist()}
    return crops


def test_a_recording_comes_back(recording, tar):
    check_round_trip(recording, tar)
    stored = read_hot3d(tar).hand_model
    for part in fields(stored):
        assert_close(getattr(stored, part.name), getattr(recording.hand_model, part.name), **CLOSE)
    assert recording.labelled.tolist() == [[True, True], [True, False], [False, False], [True, True]]


def test_pictures_come_back(tiny, tar):
    clip = read_hot3d(tar)
    for frame in range(FRAMES):
        for index, stream in enumerate(STREAMS):
            error = clip.image(stream, frame).astype(int) - tiny.images[frame, index]
            assert np.abs(error).max() <= 3
            assert np.abs(error).mean() < 0.7


def test_both_hands_are_cropped(recording):
    """Else the tests of crop cameras would see none."""
    counts = {(frame, hand): 0 for frame in range(FRAMES) for hand in range(2)}
    for frame, hand, _ in expected_crops(recording):
        counts[frame, hand] += 1
    assert list(counts.values()) == [2, 2, 2, 0, 0, 0, 2, 2]


def test_the_members_and_their_order(tar):
    of_frame = [*(f"image_{stream}.jpg" for stream in STREAMS), "cameras.json", "hands.json", "hand_crops.json"]
    expected = [f"{frame:06d}.{name}" for frame in range(FRAMES) for name in of_frame]
    assert list(members_of(tar)) == [*expected, "__hand_shapes.json__"]


def test_what_is_not_there_is_null(tar):
    assert [parsed(tar, f"00000{frame}.hands.json")["right"] is None for frame in range(FRAMES)] == [0, 1, 1, 0]
    crops = [parsed(tar, f"00000{frame}.hand_crops.json") for frame in range(FRAMES)]
    assert [[frame[hand] is None for hand in HAND_NAMES] for frame in crops] == [[0, 0], [0, 1], [1, 1], [0, 0]]
    cameras = [parsed(tar, f"00000{frame}.cameras.json") for frame in range(FRAMES)]
    for stream in STREAMS:
        assert [frame[stream]["T_world_from_camera"] is None for frame in cameras] == [0, 0, 1, 0]


def test_what_the_toolkit_asks_for(tar):
    """It takes every calibration's label and serial number, ten numbers of MANO, and fails at a `mano_pose` of null."""
    assert WRITTEN_MODELS.keys() == set(CALIBRATED_MODELS.values())
    assert set(WRITTEN_MODELS.values()) == TOOLKIT_MODELS
    for index, entry in enumerate(parsed(tar, "000000.cameras.json").values(), start=1):
        assert entry["calibration"]["label"] == f"camera-{index}"
        assert isinstance(entry["calibration"]["serial_number"], str)
    assert parsed(tar, "__hand_shapes.json__")["mano"] == [0.0] * 10
    assert parsed(tar, "000000.hands.json")["left"].keys() == {"umetrack_pose"}


def test_lens_parameters_are_stored_in_the_order_of_the_toolkit(recording, tar):
    k1, k2, k3, k4, k5, k6, p1, p2 = recording.camera[0].distortion.tolist()
    stored = parsed(tar, "000000.cameras.json")["1201-1"]["calibration"]["projection_params"]
    focal_center = [*recording.camera[0].focal_px.tolist(), *recording.camera[0].center_px.tolist()]
    assert stored == [*focal_center, k1, k2, k3, k4, p1, p2, k5, k6]


@pytest.mark.parametrize("size", [96, 128])
def test_crop_cameras_are_those_of_the_toolkit(recording, tar, size):
    """Written out as the toolkit projects, for crops of any size; there, right hands are not mirrored."""
    for (frame, hand, stream), crop in expected_crops(recording).items():
        stored = parsed(tar, f"{frame:06d}.hand_crops.json")[HAND_NAMES[hand]][stream]
        pose, fov = stored["T_world_from_crop_camera"], stored["crop_camera_fov"]
        rotation = Rotation.from_quat(pose["quaternion_wxyz"], scalar_first=True).as_matrix()
        landmarks = recording.hands(frame).landmarks()[hand]
        x, y, z = rotation.T @ (landmarks.numpy() - pose["translation_xyz"]).T
        focal, center = size / 2 / np.tan(fov / 2), (size - 1) / 2
        # From the centre, in shares of the picture, which do not depend on its size.
        shown = np.stack((focal * x / z + center, focal * y / z + center), axis=1) - center
        ours = (crop.project(landmarks).numpy() - 47.5) * [-1 if hand else 1, 1]
        np.testing.assert_allclose(shown / size, ours / 96, atol=1e-9)


def test_without_labels_hands_alone_are_left_out(recording, tar, tmp_path):
    path = tmp_path / "test.tar"
    write_challenge_tar(recording, path, labels=False)
    kept = {name: content for name, content in members_of(tar).items() if not name.endswith(".hands.json")}
    assert members_of(path) == kept
    assert len(kept) == len(members_of(tar)) - FRAMES
    assert not read_hot3d(path).labelled.any()
    assert len(read_hand_crops(path)) == 10


def test_equal_recordings_give_equal_bytes(recording, tar, tmp_path):
    again = tmp_path / "other_name.tar"
    write_challenge_tar(replace(recording), again)
    assert again.read_bytes() == tar.read_bytes()
    with tarfile.open(again) as members:
        for member in members:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
    for name, content in members_of(again).items():
        if not name.endswith(".jpg"):
            assert content == json.dumps(json.loads(content), sort_keys=True).encode()


def test_a_video_that_breaks_leaves_the_old_file(tmp_path):
    """Of four frames, two are left after the labels were read."""
    recording = read_recording(tiny_recording(4).write(tmp_path))
    (tmp_path / "short").mkdir()
    tiny_recording(2).write(tmp_path / "short").replace(tmp_path / "recording_00.mp4")
    path = tmp_path / "out" / "sequence.tar"
    path.parent.mkdir()
    for before in (None, b"old"):
        if before:
            path.write_bytes(before)
        with pytest.raises(InputError, match=r"recording_00\.mp4 holds 2 frames, but its json labels 4"):
            write_challenge_tar(recording, path)
        assert [(file.name, file.read_bytes()) for file in path.parent.iterdir()] == (
            [(path.name, b"old")] * bool(before)
        )


def test_an_old_file_is_replaced_after_the_last_frame(recording, tar, tmp_path):
    path, during = tmp_path / "sequence.tar", []
    path.write_bytes(b"old")

    def pictures(start):
        for images in recording.images(start):
            yield images
            during.append(path.read_bytes())

    write_challenge_tar(replace(recording, pictures=pictures), path)
    assert during == [b"old"] * FRAMES
    assert path.read_bytes() == tar.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


def test_frames_are_written_one_at_a_time(recording, tmp_path):
    """Pictures of all frames would take 20 MB."""
    frames, size = 16, (480, 640)
    indices = torch.zeros(frames, dtype=torch.long)
    tensors = ("world_from_camera", "joint_angles", "world_from_wrist", "labelled")
    cameras = replace(recording.camera, width=size[1], height=size[0])
    long = replace(
        recording,
        **{name: getattr(recording, name)[indices] for name in tensors},
        camera=cameras,
        hand_model=without_mesh(recording.hand_model),
        posed=None,
        pictures=lambda _: (np.zeros((4, *size), np.uint8) for _ in range(frames)),
    )
    tracemalloc.start()
    write_challenge_tar(long, tmp_path / "long.tar")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize("model", [KannalaBrandt, RadialTangential])
def test_a_model_that_cannot_be_written(recording, tmp_path, model):
    camera = recording.camera
    other = model(WIDTH, HEIGHT, camera.focal_px, camera.center_px, torch.zeros(4, model.num_distortion).double())
    known = "Fisheye624, Fisheye62, Fisheye44, Pinhole"
    with pytest.raises(InputError, match=f"camera model {model.__name__} cannot be written, only {known} can"):
        write_challenge_tar(replace(recording, camera=other), tmp_path / "out.tar")
    assert not list(tmp_path.iterdir())


def test_a_recording_without_a_hand_cannot_be_written(recording, tmp_path):
    with pytest.raises(InputError, match="has no hand model"):
        write_challenge_tar(replace(recording, hand_model=None), tmp_path / "out.tar")
    assert not list(tmp_path.iterdir())


def test_cameras_of_several_sizes(recording, tmp_path):
    """Each picture is as large as its camera's own, without the black that fills the others up."""
    extents = torch.tensor([[WIDTH, HEIGHT], [WIDTH, HEIGHT], [56, 40], [48, 48]], dtype=torch.float64)
    several = replace(recording, camera=replace(recording.camera, extent_px=extents))
    write_challenge_tar(several, tmp_path / "several.tar")
    check_round_trip(several, tmp_path / "several.tar")
    assert read_hot3d(tmp_path / "several.tar").image("1201-3", 0).shape == (40, 56)


def test_cameras_of_each_frame(recording, tmp_path):
    """Where each frame has lenses of its own, so have the calibrations."""
    shared, growth = recording.camera, torch.linspace(1, 1.3, FRAMES).double()[:, None, None]
    center, lens = (part.expand(FRAMES, *part.shape) for part in (shared.center_px, shared.distortion))
    own = replace(shared, focal_px=shared.focal_px * growth, center_px=center, distortion=lens)
    write_challenge_tar(replace(recording, camera=own), tmp_path / "own.tar")
    for frame in range(FRAMES):
        stored = parsed(tmp_path / "own.tar", f"{frame:06d}.cameras.json")["1201-2"]["calibration"]
        assert stored["projection_params"][:2] == own.focal_px[frame, 1].tolist()


def lens(model: type[Camera], cameras: int, seed: int) -> Camera:
    rng = np.random.default_rng(seed)
    focal, center, bends = (torch.from_numpy(rng.normal(size=(cameras, n))) for n in (2, 2, model.num_distortion))
    return model(WIDTH, HEIGHT, 24 + focal, torch.tensor([31.5, 23.5]) + center, 0.01 * bends)


@pytest.fixture(scope="module")
def part(recording, tiny) -> Callable[..., Recording]:
    """The labels of two frames with other cameras; a function, since Hypothesis would print a whole recording."""

    def make(camera: Camera, labelled: list[bool], posed: list[bool]) -> Recording:
        cameras, frames = len(camera.focal_px), torch.tensor([0, 3])
        return replace(
            recording,
            hand_model=without_mesh(recording.hand_model),
            camera=camera,
            mounting_angles=recording.mounting_angles[:cameras],
            world_from_camera=recording.world_from_camera[frames, :cameras],
            joint_angles=recording.joint_angles[frames],
            world_from_wrist=recording.world_from_wrist[frames],
            labelled=torch.tensor(labelled).reshape(2, 2) & torch.tensor(posed)[:, None],
            posed=torch.tensor(posed),
            pictures=lambda start: iter(tiny.images[start:2, :cameras]),
        )

    return make


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    cameras=st.integers(1, 4),
    model=st.sampled_from(list(WRITTEN_MODELS)),
    labelled=st.lists(st.booleans(), min_size=4, max_size=4),
    posed=st.lists(st.booleans(), min_size=2, max_size=2),
    seed=st.integers(0, 1000),
)
def test_any_recording_comes_back(part, tmp_path_factory, cameras, model, labelled, posed, seed):
    recording, path = part(lens(model, cameras, seed), labelled, posed), tmp_path_factory.mktemp("any") / "any.tar"
    write_challenge_tar(recording, path)
    check_round_trip(recording, path)


CROPS = "000001.hand_crops.json"
LEFT = ("left", "1201-2")
POSE = (*LEFT, "T_world_from_crop_camera")


def with_crops(tar: Path, path: Path, content: bytes) -> Path:
    """The same tar, with other crop cameras in frame 1."""
    with tarfile.open(path, "w") as changed:
        for name, stored in (members_of(tar) | {CROPS: content}).items():
            header = tarfile.TarInfo(name)
            header.size = len(stored)
            changed.addfile(header, io.BytesIO(stored))
    return path


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "not in the expected form"),
        (b"\xff\xfe\x00", "not in the expected form"),
        (b"[" * 100_000, "not in the expected form"),
        (b"[]", "expected an object, got a list"),
        (b'{"left": 3}', "not in the expected form"),
        (b'{"left": {"1201-1": null}}', "not in the expected form"),
        (b'{"left": {"1201-1": {}}}', "the field 'T_world_from_crop_camera' is missing"),
        (crop_of([0.5, 0.5, 0.5, 0.6]), "quaternion_wxyz has length 1.054"),
        (crop_of([0, 0, 0, 0]), "quaternion_wxyz has length 0"),
        (crop_of([1, 0, 0]), r"quaternion_wxyz has shape \(3,\), expected \(4,\)"),
        (crop_of("none"), "quaternion_wxyz is not an array of numbers"),
    ],
)
def test_malformed_crop_cameras(tar, tmp_path, content, expected):
    path = with_crops(tar, tmp_path / "hostile.tar", content)
    with pytest.raises(InputError, match=rf"hostile\.tar: {CROPS}: .*{expected}"):
        read_hot3d(path)
    assert list(tmp_path.iterdir()) == [path]
