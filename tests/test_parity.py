"""Ours against inputs and outputs of the published code, number by number (tolerances of the vectors' README).

The vectors may hold any number of cameras, hand profiles, crops and frames.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lib.cameras import Fisheye62, PosedCamera
from lib.checkpoints import load_network
from lib.crops import Crops, crop_cameras, crop_points, sees_hand, select_views, warp
from lib.files import MM
from lib.hands import HandModel, for_hand
from lib.metrics import PCK_THRESHOLDS_MM, auc, mpjpa, mpjpe, pck
from lib.network import HandPrediction, TemporalState, UmeTrack
from lib.recordings import read_recording
from lib.tracking import Tracker, Tracks
from lib.transforms import align_points, apply, invert

HANDS = 2


def read_vectors(folder: Path, name: str) -> Mapping[str, np.ndarray]:
    if not (folder / name).is_file():
        pytest.skip(f"no {name} in {folder}")
    with np.load(folder / name, allow_pickle=False) as stored:
        return dict(stored)


def float64(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array, dtype=np.float64))


def in_metres(transforms_mm: np.ndarray) -> torch.Tensor:
    transforms = float64(transforms_mm).clone()
    transforms[..., :3, 3] /= MM
    return transforms


def posed_cameras(parity: Path) -> PosedCamera:
    """The cameras of `cameras.npz`; their image size is that of the pictures in `crops.npz`."""
    stored = read_vectors(parity, "cameras.npz")
    height, width = read_vectors(parity, "crops.npz")["source_images"].shape[1:]
    distortion = float64(stored["distortion_k1k2k3k4p1p2k5k6"])[:, [0, 1, 2, 3, 6, 7, 4, 5]]
    camera = Fisheye62(width, height, float64(stored["focal_px"]), float64(stored["center_px"]), distortion)
    return PosedCamera(camera, in_metres(stored["camera_to_world_mm"]))


def test_projection(parity):
    stored = read_vectors(parity, "cameras.npz")
    pixels = posed_cameras(parity).camera[:, None].project(float64(stored["points_camera_mm"]))
    assert_close(pixels, float64(stored["pixels"]), atol=1e-6, rtol=0)


def test_world_to_camera(parity):
    stored = read_vectors(parity, "cameras.npz")
    points = apply(invert(float64(stored["camera_to_world_mm"])), float64(stored["points_world_mm"])[None])
    assert_close(points, float64(stored["points_world_in_camera_mm"]), atol=1e-6, rtol=0)


def hand_of_profile(stored: Mapping[str, np.ndarray], profile: int) -> HandModel:
    def field(name: str) -> torch.Tensor:
        return torch.from_numpy(stored[f"profile{profile}_{name}"])

    weights = torch.zeros(21, 17, dtype=torch.float64)
    weights.scatter_add_(1, field("landmark_rest_bone_indices"), field("landmark_rest_bone_weights").double())
    return HandModel(
        joint_rotation_axes=field("joint_rotation_axes").double(),
        joint_rest_positions=field("joint_rest_positions").double() / MM,
        joint_limits=float64(stored["joint_limits_rad"]),
        landmark_rest_positions=field("landmark_rest_positions").double() / MM,
        landmark_bone_weights=weights,
    )


def labelled_poses(parity: Path):
    """Per profile: (rows of the file, hand model, joint angles, wrists that pose the left model, hands)."""
    stored = read_vectors(parity, "hand_landmarks.npz")
    for profile in np.unique(stored["profile"]).tolist():
        rows = np.flatnonzero(stored["profile"] == profile)
        hands = torch.from_numpy(stored["hand_idx"][rows])
        wrists = for_hand(in_metres(stored["wrist_to_world_mm"][rows]), hands)
        yield rows, hand_of_profile(stored, profile), float64(stored["joint_angles_rad"][rows]), wrists, hands


def test_landmarks(parity):
    expected_mm = read_vectors(parity, "hand_landmarks.npz")["landmarks_world_mm"]
    for rows, model, angles, wrists, _ in labelled_poses(parity):
        assert_close(model.landmarks(angles, wrists) * MM, float64(expected_mm[rows]), atol=1e-3, rtol=0)


def test_selected_views_and_their_crop_cameras(parity):
    stored, cameras = read_vectors(parity, "crop_selection.npz"), posed_cameras(parity)
    mounting_angles = torch.deg2rad(float64(stored["camera_angles_deg"]))
    for rows, model, angles, wrists, hands in labelled_poses(parity):
        seen = sees_hand(cameras, model.landmarks(angles, wrists))
        crops, exists = crop_cameras(cameras, crop_points(model, angles, wrists), hands, mounting_angles)
        views = select_views(seen & exists)
        np.testing.assert_array_equal(seen, stored["eligible_19_landmarks"][rows])
        np.testing.assert_array_equal(views, stored["selected_views"][rows])
        poses, focal_px = stored["crop_camera_to_world_mm"][rows], stored["crop_focal_px"][rows]
        # The published landmarks, and with them these crops, are float32.
        assert_close(crops.world_from_camera[views], in_metres(poses)[views], atol=1e-6, rtol=0)
        assert_close(crops.camera.focal_px[..., 0][views], float64(focal_px)[views], atol=0, rtol=1e-6)


def test_crops(parity):
    stored, cameras = read_vectors(parity, "crops.npz"), posed_cameras(parity)
    for index, source in enumerate(stored["camera"].tolist()):
        camera = cameras[[source]]
        crop, exists = crop_cameras(
            camera,
            float64(stored["points_world_mm"][index])[None] / MM,
            torch.tensor([int(stored["mirror"][index])]),
            torch.deg2rad(float64(stored["camera_angle_deg"][index])[None]),
            fill=float(stored["focal_multiplier"][index]),
            size=stored["warped"].shape[-1],
        )
        assert bool(exists)
        pose = in_metres(stored["crop_camera_to_world_mm"][index])
        assert_close(crop.world_from_camera[0, 0], pose, atol=1e-9, rtol=0)
        assert_close(crop.camera.focal_px[0, 0], float64(stored["crop_focal_px"][index]), atol=1e-6, rtol=0)
        assert_close(crop.camera.center_px[0, 0], float64(stored["crop_center_px"][index]), atol=1e-6, rtol=0)
        picture = warp(stored["source_images"][[source]], camera, crop[0])[0]
        difference = picture.astype(int) - stored["warped"][index]
        assert np.abs(difference).max() <= 1


def test_rigid_alignment(parity):
    stored = read_vectors(parity, "rigid_alignment.npz")
    aligned = align_points(float64(stored["source"]), float64(stored["target"]))
    assert_close(aligned, float64(stored["rigid"]), atol=1e-5, rtol=0)


def published_weights(parity: Path, seed: int) -> dict[str, torch.Tensor]:
    """Weights under the names of the published checkpoint, drawn as the vectors' README says."""
    path = parity / "official_state_dict.json"
    if not path.is_file():
        pytest.skip(f"no {path.name} in {parity}")
    shapes = json.loads(path.read_text())
    return {name: published_weight(name, shape, seed) for name, shape in shapes.items()}


def published_weight(name: str, shape: list[int], seed: int) -> torch.Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if name.endswith("running_mean"):
        values = 0.1 * rng.normal(size=shape)
    elif name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
        values = rng.uniform(0.5, 1.5, size=shape)
    elif len(shape) == 1:
        values = 0.1 * rng.normal(size=shape)
    else:
        values = rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32))


@pytest.fixture(scope="module")
def published_network(parity, tmp_path_factory):
    """A function from the seed of a file to the network that reads those weights from a published checkpoint."""
    folder = tmp_path_factory.mktemp("published")

    def load(seed: int) -> UmeTrack:
        path = folder / f"weights_{seed}.torch"
        if not path.is_file():
            torch.save(published_weights(parity, seed), path)
        return load_network(path)

    return load


def test_every_parameter_of_the_published_checkpoint_has_its_place(parity, published_network):
    weights, network = published_weights(parity, 0), published_network(0)
    assert len(network.state_dict()) == len(weights)
    assert sum(parameter.numel() for parameter in network.parameters()) == sum(
        value.numel() for name, value in weights.items() if not name.rsplit(".", 1)[-1].startswith(("running", "num"))
    )


def frames_of(stored: Mapping[str, np.ndarray], suffix: str) -> list[int]:
    return sorted(int(name[1:].split("_")[0]) for name in stored if name.endswith(suffix))


def crops_of_frame(stored: Mapping[str, np.ndarray], frame: int) -> Crops:
    """One or two consecutive samples per hand; a missing second view repeats the first."""
    begin, end = stored[f"t{frame}_sample_range"].T
    pair = np.stack((begin, end - 1), axis=1)
    return Crops(
        images=torch.from_numpy(stored[f"t{frame}_images"])[pair],
        focal_px=torch.from_numpy(stored[f"t{frame}_intrinsics"])[pair][..., 0, 0].float(),
        camera_from_world=torch.from_numpy(stored[f"t{frame}_world_to_camera_m"])[pair].float(),
        hand=torch.from_numpy(stored[f"t{frame}_hand_idx"]),
        two_views=torch.from_numpy(end - begin == 2),
    )


def assert_predicts(prediction: HandPrediction, stored: Mapping[str, np.ndarray], frame: int, regressor: str) -> None:
    outputs = {
        "joint_angles": prediction.joint_angles,
        "wrist_to_world_m": prediction.world_from_wrist,
        "sigma": prediction.landmark_sigma,
        "scale": prediction.scale,
    }
    for name, ours in outputs.items():
        if ours is not None:
            theirs = torch.from_numpy(stored[f"t{frame}_{regressor}_{name}"])
            assert_close(ours, theirs, atol=1e-4 * float(theirs.abs().max()), rtol=0)


def skeletons_of_frame(stored: Mapping[str, np.ndarray], frame: int) -> HandModel:
    axes = torch.from_numpy(stored[f"t{frame}_joint_rotation_axes"])
    return HandModel(
        joint_rotation_axes=axes,
        joint_rest_positions=torch.from_numpy(stored[f"t{frame}_joint_rest_positions_m"]),
        joint_limits=torch.zeros(22, 2),
        landmark_rest_positions=torch.zeros(len(axes), 21, 3),
        landmark_bone_weights=torch.zeros(21, 17),
    )


@torch.inference_mode()
def test_regressor_known(parity, published_network):
    stored = read_vectors(parity, "network.npz")
    network, state = published_network(int(stored["seed"])), TemporalState.untracked(HANDS)
    for frame in frames_of(stored, "_K_joint_angles"):
        crops, remembers = crops_of_frame(stored, frame), torch.from_numpy(stored[f"t{frame}_use_memory"])
        features, after = network.features(crops, state[crops.hand].lose(~remembers))
        state = state.update(crops.hand, after)
        assert_predicts(network.known(features, crops, skeletons_of_frame(stored, frame)), stored, frame, "K")


@torch.inference_mode()
def test_regressor_unknown(parity, published_network):
    """The published scale calibration never loses a hand: each of its frames continues from the one before."""
    stored = read_vectors(parity, "network.npz")
    network, state = published_network(int(stored["seed"])), TemporalState.untracked(HANDS)
    for frame in frames_of(stored, "_U_joint_angles"):
        crops = crops_of_frame(stored, frame)
        features, after = network.features(crops, state[crops.hand])
        state = state.update(crops.hand, after)
        assert_predicts(network.unknown(features, crops), stored, frame, "U")


def test_metrics(parity):
    stored = read_vectors(parity, "metrics.npz")
    tracked, true, valid = stored["tracked_keypoints_mm"], stored["gt_keypoints_mm"], stored["valid"]
    curve = pck(tracked, true, valid)
    np.testing.assert_array_equal(stored["pck_thresholds_mm"], PCK_THRESHOLDS_MM)
    np.testing.assert_allclose(curve, stored["pck_percent"], rtol=1e-9)
    ours = [mpjpe(tracked, true, valid), mpjpa(tracked, valid), mpjpa(true, valid), auc(curve), 100 * valid.mean()]
    theirs = [stored[name] for name in ("mpjpe_mm", "mpjpa", "gt_mpjpa", "auc_percent", "success_percent")]
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


@pytest.mark.parametrize("skeleton", ["known", "unknown"])
def test_tracker(real, published_network, skeleton):
    stored = read_vectors(real / "recording", "official_tracker.npz")
    recording, tracker = (
        read_recording(real / "recording" / "recording_00.mp4"),
        Tracker(published_network(int(stored["seed"]))),
    )
    if skeleton == "known":
        tracks = tracker.track_known(recording, recording.hand_model)
    else:
        generic = recording.hand_model.scaled(float(stored["generic_hand_is_recording_hand_times"]))
        tracks = tracker.track_unknown(recording, generic)
        assert tracks.scale == pytest.approx(float(stored["unknown_mean_scale"]), abs=1e-4)
    assert_tracks(tracks, stored, skeleton)


def assert_tracks(tracks: Tracks, stored: Mapping[str, np.ndarray], skeleton: str) -> None:
    np.testing.assert_array_equal(tracks.valid_tracking, stored[f"{skeleton}_valid_tracking"])
    np.testing.assert_allclose(tracks.gt_keypoints, stored[f"{skeleton}_gt_keypoints"], atol=1e-3, rtol=0)
    np.testing.assert_allclose(tracks.tracked_keypoints, stored[f"{skeleton}_tracked_keypoints"], atol=0.1, rtol=0)
