"""What the tests share: reference files, a hand, a headset, tiny recordings and a tiny network."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from lib.cameras import Fisheye62, PosedCamera
from lib.checkpoints import save_network
from lib.crops import Crops, aim, roll
from lib.files import MM
from lib.formats.hand_files import hand_to_json
from lib.hands import HandModel
from lib.network import NetworkConfig, UmeTrack
from lib.recordings import Recording, read_recording
from lib.rendered.shape import generic_hand
from lib.tracking import Tracker
from lib.transforms import homogeneous, quaternion_rotation

pytest_plugins = ("browser",)
ROOT = Path(__file__).parents[1]
TINY = NetworkConfig(stem="unshuffle", widths=(8, 8, 8), blocks=(1, 1, 1))
WIDTH, HEIGHT = 64, 48


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Sums of floating-point numbers depend on how threads share them."""
    os.environ["OMP_NUM_THREADS"] = "1"  # for commands, which ask for free cores otherwise
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def directory_of(variable: str, default: Path) -> Path:
    folder = Path(os.environ.get(variable, default))
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: set {variable} to where the reference files lie")
    return folder


@pytest.fixture(scope="session")
def parity() -> Path:
    """The folder of the parity vectors."""
    return directory_of("UMETRACK_PARITY", ROOT.parent / "shared" / "parity")


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of the real samples."""
    return directory_of("UMETRACK_REAL", ROOT.parent / "shared" / "real")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def normal(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.normal(size=shape))


def random_poses(rng: np.random.Generator, *batch: int) -> torch.Tensor:
    """Rigid transforms with rotations of any size and translations of about 0.3 m."""
    return homogeneous(quaternion_rotation(normal(rng, *batch, 4)), 0.3 * normal(rng, *batch, 3))


def random_angles(rng: np.random.Generator, hand: HandModel, *batch: int) -> torch.Tensor:
    """Joint angles within the limits of a hand; those of the wrist are zero."""
    low, high = hand.joint_limits.unbind(-1)
    angles = low + torch.from_numpy(rng.random((*batch, 22))) * (high - low)
    angles[..., 20:] = 0
    return angles


@pytest.fixture(scope="session")
def hand() -> HandModel:
    """The study's generic hand in float64, with its mesh; unit axes and weights that sum to one to full precision."""
    single = generic_hand().to(dtype=torch.float64)
    return replace(
        single,
        joint_rotation_axes=torch.nn.functional.normalize(single.joint_rotation_axes, dim=-1),
        landmark_bone_weights=torch.nn.functional.normalize(single.landmark_bone_weights, p=1, dim=-1),
        mesh_bone_weights=torch.nn.functional.normalize(single.mesh_bone_weights, p=1, dim=-1),
    )


HEADSET_POSITIONS = ((-0.072, -0.034, -0.007), (-0.048, 0.034, 0.007), (0.048, 0.034, 0.007), (0.072, -0.034, -0.007))
HEADSET_AXES = ((-0.77, -0.55, 0.34), (-0.18, 0.55, 0.82), (0.18, 0.55, 0.82), (0.77, -0.55, 0.34))
MOUNTING_ANGLES_DEG = (0.0, 90.0, 90.0, 180.0)


def headset(width: int = WIDTH) -> PosedCamera:
    """Four fisheye cameras on a nominal headset, the world being the headset's frame: x right, y down, z forward."""
    scale = width / 636
    focal = scale * torch.tensor([[238.0, 238.5]], dtype=torch.float64).expand(4, 2)
    center = scale * (torch.tensor([[317.5, 239.5]], dtype=torch.float64).expand(4, 2) + 0.5) - 0.5
    lens = torch.tensor([[-0.02, 0.09, -0.06, 0.0, 0.001, -0.001, 0.002, -0.002]], dtype=torch.float64).expand(4, 8)
    angles = torch.deg2rad(torch.tensor(MOUNTING_ANGLES_DEG, dtype=torch.float64))
    rotations = aim(torch.tensor(HEADSET_AXES, dtype=torch.float64)) @ roll(-angles)
    poses = homogeneous(rotations, torch.tensor(HEADSET_POSITIONS, dtype=torch.float64))
    return PosedCamera(Fisheye62(width, round(480 * scale), focal, center, lens), poses)


@dataclass(frozen=True)
class TinyRecording:
    """The content of a recording of `WIDTH` x `HEIGHT` views, before it is written: its JSON and its pictures."""

    labels: dict
    images: np.ndarray

    def write(self, folder: Path, pixel_format: str = "yuvj420p") -> Path:
        video = folder / "recording_00.mp4"
        video.with_suffix(".json").write_text(json.dumps(self.labels))
        write_gray_video(video, self.images, pixel_format)
        return video


def write_gray_video(path: Path, images: np.ndarray, pixel_format: str = "yuvj420p", rate: int = 30) -> None:
    """Losslessly encode (frames, views, height, width) as one grey picture of all views a frame."""
    frames = np.concatenate(list(images.swapaxes(0, 1)), axis=-1)
    chroma = np.full((frames.shape[1] // 2, frames.shape[2]), 128, np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"qp": "0", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:], pixel_format
        for luma in frames:
            frame = av.VideoFrame.from_ndarray(np.concatenate((luma, chroma)), format=pixel_format)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def tiny_recording(frames: int = 4) -> TinyRecording:
    """Both hands before a headset; both front cameras see both hands. Pictures are noise."""
    rng = np.random.default_rng(1)
    cameras, model = headset(), generic_hand().to(dtype=torch.float64)
    parameters = torch.cat((cameras.camera.focal_px, cameras.camera.center_px, cameras.camera.distortion), dim=1)
    names = ("fx", "fy", "cx", "cy", "k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")
    wrists = torch.stack([hand_in_front(-0.08), hand_in_front(0.08)]).repeat(frames, 1, 1, 1)
    wrists[..., 0, 3] += 0.005 * torch.arange(frames)[:, None]
    labels = {
        "cameras": [
            {
                "ImageSizeX": WIDTH,
                "ImageSizeY": HEIGHT,
                "DistortionModel": "FishEye62",
                **dict(zip(names, row, strict=True)),
            }
            for row in parameters.tolist()
        ],
        "camera_angles": list(MOUNTING_ANGLES_DEG),
        "hand_model": hand_to_json(model),
        "joint_angles": (0.3 * random_angles(rng, model, frames, 2)).tolist(),
        "wrist_transforms": in_mm(wrists).tolist(),
        "hand_confidences": np.ones((frames, 2)).tolist(),
        "camera_to_world_transforms": in_mm(cameras.world_from_camera.repeat(frames, 1, 1, 1)).tolist(),
    }
    return TinyRecording(labels, rng.integers(0, 256, (frames, 4, HEIGHT, WIDTH), dtype=np.uint8))


def hand_in_front(x: float) -> torch.Tensor:
    """The stored wrist transform of a hand 0.3 m before the headset, fingers up and forward, back to the wearer."""
    fingers, back = torch.tensor([0.0, -0.6, 0.8]), torch.tensor([0.0, -0.8, -0.6])
    rotation = torch.stack((fingers, back, torch.linalg.cross(fingers, back)), dim=1).double()
    return homogeneous(rotation, torch.tensor([x, 0.2, 0.25], dtype=torch.float64))


def in_mm(transforms: torch.Tensor) -> torch.Tensor:
    transforms = transforms.clone()
    transforms[..., :3, 3] *= MM
    return transforms


def tiny_network(seed: int = 0, **changes) -> UmeTrack:
    """A small network in evaluation mode: batch normalisations are no identities, its views and its memory matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = UmeTrack(NetworkConfig(**{**TINY.__dict__, **changes}))
        network.backbone.head.reset_parameters()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return network.eval()


@pytest.fixture(scope="session")
def tiny_tracker() -> Tracker:
    return Tracker(tiny_network())


def still_recording(folder: Path, frames: int) -> Recording:
    """A tiny recording of hands that stand still; pictures are as bright as their camera's number."""
    tiny = tiny_recording(frames)
    tiny.images[:] = np.arange(4, dtype=np.uint8)[:, None, None]
    for name in ("joint_angles", "wrist_transforms"):
        tiny.labels[name] = tiny.labels[name][:1] * frames
    return read_recording(tiny.write(folder))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A weights file of a tiny network."""
    path = tmp_path / "tiny.safetensors"
    save_network(tiny_network(), path)
    return path


def random_crops(rng: np.random.Generator, two_views: tuple[bool, ...]) -> Crops:
    """Crops of noise, left and right hands in turn."""
    hands = len(two_views)
    return Crops(
        images=torch.from_numpy(rng.random((hands, 2, 96, 96), dtype=np.float32)),
        focal_px=torch.from_numpy(rng.uniform(100, 300, (hands, 2))).float(),
        camera_from_world=random_poses(rng, hands, 2).float(),
        hand=torch.arange(hands) % 2,
        two_views=torch.tensor(two_views),
    )


def run_here(jobs: dict, *_) -> dict:
    """In place of `in_processes`: the jobs one after the other, in this process."""
    return {name: job() for name, job in jobs.items()}
