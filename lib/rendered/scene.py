"""A scene: the camera rig and everything that `lib.rendered.raster` needs to draw the frames of one sequence.

World: metres, y up, the floor at y = 0 (as `lib.rendered.motion`). Headset: x right through the two front cameras, y
down, z forward. The typical rig is in these axes: hands of the real clip project into its views
only with y down, and hang upright when the views are turned by the mounting angles.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int8
from scipy.spatial.transform import Rotation
from torch import Tensor

from lib.cameras import Fisheye62, PosedCamera
from lib.hands import LEFT, RIGHT, HandModel, for_hand
from lib.rendered.backgrounds import Environment, sample_environment
from lib.rendered.bodies import FOREARM, UPPER_ARM, Mesh, assemble, sample_look, textures
from lib.rendered.lighting import Lighting, light_drift, sample_lighting
from lib.rendered.motion import Motion
from lib.rendered.sensor import Sensor, ray_grid, sample_sensor
from lib.transforms import homogeneous, invert

WIDTH, HEIGHT = 636, 480
CAMERA_ANGLES_DEG = (0.0, 90.0, 90.0, 180.0)
"""Mounting angles of side-left, front-left, front-right, side-right: a view rolled by its angle is upright."""
_FOCAL_PX, _CENTER_PX = 238.0, (317.5, 239.5)
_DISTORTION = (0.004, 0.0528, -0.0647, 0.0255, -0.0043, 0.00027, 0.0, 0.0)
"""k1..k6 p1 p2, like the typical lens but increasing up to 2.2 rad (the typical numbers, cut off, turn back at 1.5)."""
_TANGENTIAL = 0.001
_POSITIONS_MM = ((-72, -34, -7), (-48, 34, 7), (48, 34, 7), (72, -34, -7))
_OPTICAL_AXES = ((-0.77, -0.55, 0.34), (-0.18, 0.55, 0.82), (0.18, 0.55, 0.82), (0.77, -0.55, 0.34))
_IMAGE_RIGHT = ((0.63, -0.74, 0.22), (0.22, -0.79, 0.57), (-0.22, -0.79, 0.57), (-0.63, -0.74, 0.22))

_SHOULDER = np.array([0.17, -0.27, -0.10])  # from the resting headset: outwards, up, forward
_ELBOW_SWIVEL = 0.45  # how far the elbow points outwards (rad)
_MAX_WRIST_BEND = np.radians(55)


@dataclass(frozen=True)
class Rig:
    """Four fisheye cameras on a headset, in the order side-left, front-left, front-right, side-right; float64."""

    camera: Fisheye62
    headset_from_camera: Float[Tensor, "4 4 4"]
    camera_angles_deg: tuple[float, ...] = CAMERA_ANGLES_DEG

    def posed(self, world_from_headset: Float[Tensor, "*batch 4 4"]) -> PosedCamera:
        """The cameras (*batch, 4) in the world."""
        world_from_camera = world_from_headset[..., None, :, :].to(torch.float64) @ self.headset_from_camera
        return PosedCamera(self.camera, world_from_camera)


def nominal_rig() -> Rig:
    """The typical rig; the roll of its cameras measured (and rounded) on the captured clip."""
    forward = np.array(_OPTICAL_AXES)
    right = np.array(_IMAGE_RIGHT)
    rotation = torch.tensor(np.stack((right, np.cross(forward, right), forward), axis=-1))
    center, distortion = torch.tensor([_CENTER_PX] * 4), torch.tensor([_DISTORTION] * 4)
    return _rig(torch.full((4, 2), _FOCAL_PX), center, distortion, rotation, torch.tensor(_POSITIONS_MM) / 1000)


def sample_rig(generator: np.random.Generator) -> Rig:
    """A device: the typical rig with focal lengths, centres, distortion and poses off by what devices differ in."""
    rig = nominal_rig()
    camera, pose = rig.camera, rig.headset_from_camera

    def normal(deviation: float, *shape: int) -> Tensor:
        return torch.tensor(np.clip(generator.normal(size=shape), -2, 2) * deviation)

    distortion = camera.distortion * (1 + normal(0.02, 4, 1))
    distortion[:, 6:] += normal(_TANGENTIAL, 4, 2)
    turn = torch.tensor(Rotation.from_rotvec(normal(np.radians(0.4), 4, 3).numpy()).as_matrix())
    return _rig(camera.focal_px * (1 + normal(0.008, 4, 1) + normal(0.001, 4, 2)), camera.center_px + normal(2.5, 4, 2),
                distortion, turn @ pose[:, :3, :3], pose[:, :3, 3] + normal(0.001, 4, 3))  # fmt: skip


def _rig(focal_px: Tensor, center_px: Tensor, distortion: Tensor, rotation: Tensor, position: Tensor) -> Rig:
    left, _, right_t = torch.linalg.svd(rotation)
    camera = Fisheye62(WIDTH, HEIGHT, focal_px.double(), center_px.double(), distortion.double())
    return Rig(camera, homogeneous(left @ right_t, position.double()))


@dataclass(frozen=True)
class Scene:
    """One sequence, ready to draw: arrays by frame, float64."""

    rig: Rig
    mesh: Mesh
    environment: Environment
    lighting: Lighting
    sensor: Sensor
    textures: Int8[np.ndarray, "kinds 64 64 64"]
    bones: Float[np.ndarray, "frames 39 3 4"]
    drawn: Bool[np.ndarray, "frames parts"]
    camera_from_world: Float[np.ndarray, "frames 4 3 4"]
    exposure: Float[np.ndarray, "frames"]
    seed: int
    """Key of the sensor's noise."""

    @cached_property
    def bone_velocity(self) -> Float[np.ndarray, "frames 39 3 4"]:
        """Change of the bones per frame."""
        return _velocity(self.bones)

    @cached_property
    def camera_velocity(self) -> Float[np.ndarray, "frames 4 3 4"]:
        """Change of the cameras' transforms per frame."""
        return _velocity(self.camera_from_world)

    @cached_property
    def lens(self) -> Float[np.ndarray, "4 12"]:
        """fx fy cx cy k1..k6 p1 p2 of each camera."""
        camera = self.rig.camera
        return torch.cat((camera.focal_px, camera.center_px, camera.distortion), dim=-1).numpy()

    @cached_property
    def ray_grid(self) -> Float[np.ndarray, "4 rows columns 4"]:
        return ray_grid(self.rig.camera, self.sensor.vignetting)


def sample_scene(
    motion: Motion,
    hand: HandModel,
    vertex_albedo: Float[np.ndarray, "vertices"],
    rig: Rig,
    generator: np.random.Generator,
) -> Scene:
    """Dress, light and surround a motion: everything about the picture that the motion leaves open."""
    look, sensor = sample_look(generator), sample_sensor(generator)
    occluder = motion.occluder
    mesh = assemble(hand, vertex_albedo, look, None if occluder is None else tuple(occluder.size))
    headset = motion.world_from_headset
    environment = sample_environment(generator, headset[:, :3, 2].mean(axis=0))
    lighting = sample_lighting(environment, _towards_headset(motion), generator)
    hands, arms, sleeves = 3 * (motion.present,)
    drawn = np.concatenate((hands, arms, sleeves, *(() if occluder is None else (occluder.active[:, None],))), axis=1)
    return Scene(
        rig, mesh, environment, lighting, sensor, textures(), _bones(motion, hand), drawn,
        invert(rig.posed(torch.from_numpy(headset)).world_from_camera)[..., :3, :].contiguous().numpy(),
        _sample_exposure(lighting, look.skin_albedo, generator), int(generator.integers(1 << 31)),
    )  # fmt: skip


def _sample_exposure(lighting: Lighting, albedo: float, generator: np.random.Generator) -> np.ndarray:
    """Exposure (frames): the hands come out at a middle grey, give or take; it drifts a little."""
    key, sky = lighting.irradiance[:, 0].mean(), lighting.irradiance[:, 2:].sum(axis=1).mean() / 4
    mean_radiance = albedo * (0.4 * key + sky) / np.pi
    grey = generator.uniform(0.54, 0.76)
    return grey**2 / mean_radiance * np.exp(0.06 * light_drift(len(lighting.irradiance), 1, generator)[:, 0])


def _towards_headset(motion: Motion) -> Float[np.ndarray, "frames 3"]:
    """Unit directions from the hands that are there to the headset."""
    weights = motion.present[..., None] + 1e-9
    hands = (motion.world_from_wrist[..., :3, 3] * weights).sum(axis=1) / weights.sum(axis=1)
    return _unit(motion.world_from_headset[:, :3, 3] - hands)


def _bones(motion: Motion, hand: HandModel) -> Float[np.ndarray, "frames 39 3 4"]:
    """World transforms of the bones of `lib.rendered.bodies`: two hands, forearms and upper arms, the occluder."""
    hand = hand.to(dtype=torch.float64)
    wrists = for_hand(torch.from_numpy(motion.world_from_wrist), torch.tensor([LEFT, RIGHT]))
    hands = hand.bones(torch.from_numpy(motion.joint_angles), wrists).flatten(1, 2).numpy()
    arms = np.stack([_arm(motion, wrists[:, side].numpy(), side) for side in (LEFT, RIGHT)], axis=2)
    occluder = (
        np.broadcast_to(np.eye(4), (len(hands), 1, 4, 4))
        if motion.occluder is None
        else motion.occluder.world_from_occluder[:, None]
    )
    return np.ascontiguousarray(np.concatenate((hands, arms.reshape(-1, 4, 4, 4), occluder), axis=1)[..., :3, :])


def _arm(motion: Motion, world_from_wrist: np.ndarray, side: int) -> Float[np.ndarray, "frames 2 4 4"]:
    """World transforms of forearm and upper arm: the -x axes lead from wrist to elbow to shoulder."""
    headset = motion.world_from_headset.mean(axis=0)
    up = np.array([0.0, 1.0, 0.0])
    forward = _unit(headset[:3, 2] - headset[1, 2] * up)
    outward = np.cross(up, forward) * (1 if side == LEFT else -1)
    shoulder = headset[:3, 3] + _SHOULDER @ np.stack((outward, up, forward))
    elbow = _elbow(world_from_wrist[:, :3, 3], shoulder, up, outward)
    forearm = _bent(world_from_wrist, np.zeros(3), elbow, _MAX_WRIST_BEND)
    return np.stack((forearm, _bent(forearm, np.array([-FOREARM, 0, 0]), shoulder, np.pi)), axis=1)


def _bent(
    world_from_bone: np.ndarray, joint: np.ndarray, target: np.ndarray, limit: float
) -> Float[np.ndarray, "frames 4 4"]:
    """Bones turned about `joint`, a point on their x axis, so that their -x axes point to `target`, up to a limit."""
    rotation = world_from_bone[:, :3, :3]
    pivot = np.einsum("fij,j->fi", rotation, joint) + world_from_bone[:, :3, 3]
    direction = _unit(np.einsum("fji,fj->fi", rotation, target - pivot))
    axis = np.cross(np.array([-1.0, 0, 0]), direction)
    angle = np.arctan2(np.sqrt((axis**2).sum(axis=1)), -direction[:, 0])
    turn = Rotation.from_rotvec(_unit(axis) * np.minimum(angle, limit)[:, None]).as_matrix()
    bend = np.tile(np.eye(4), (len(turn), 1, 1))
    bend[:, :3, :3] = turn
    bend[:, :3, 3] = joint - turn @ joint
    return world_from_bone @ bend


def _elbow(
    wrist: np.ndarray, shoulder: np.ndarray, up: np.ndarray, outward: np.ndarray
) -> Float[np.ndarray, "frames 3"]:
    """Elbows of a two-bone arm that hang down and a little outwards."""
    reach = np.sqrt(((wrist - shoulder) ** 2).sum(axis=1, keepdims=True))
    axis = (wrist - shoulder) / reach
    reach = np.clip(reach, 0.1, 0.999 * (UPPER_ARM + FOREARM))
    along = (reach**2 + UPPER_ARM**2 - FOREARM**2) / (2 * reach)
    hanging = np.cos(_ELBOW_SWIVEL) * -up + np.sin(_ELBOW_SWIVEL) * outward
    hanging = _unit(hanging - (axis * hanging).sum(axis=1, keepdims=True) * axis)
    return shoulder + along * axis + np.sqrt(np.maximum(UPPER_ARM**2 - along**2, 0)) * hanging


def _velocity(poses: np.ndarray) -> np.ndarray:
    """Central differences over the frames, per frame; one-sided at the ends, zero for a single frame."""
    return np.gradient(poses, axis=0) if len(poses) > 1 else np.zeros_like(poses)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """The vectors of the last axis at length 1, but zero where there is none."""
    return vectors / (np.sqrt((vectors**2).sum(axis=-1, keepdims=True)) + 1e-12)
