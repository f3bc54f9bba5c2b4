"""What is drawn before the background, as one skinned mesh: both hands, their arms and sleeves, the occluder.

Parts follow 39 bones: the 17 of each hand, two forearms, two upper arms and the occluder. Hands and arms are
built as left ones in the rest frame of the hand (x towards the fingers, the wrist at the origin); the bones of a right
hand mirror them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float, Int, Int8
from scipy.ndimage import gaussian_filter

from lib.hands import LEFT, NUM_BONES, RIGHT, HandModel

FOREARM_BONES = (2 * NUM_BONES, 2 * NUM_BONES + 1)
UPPER_ARM_BONES = (2 * NUM_BONES + 2, 2 * NUM_BONES + 3)
SHEET_BONE = 2 * NUM_BONES + 4
FOREARM, UPPER_ARM = 0.27, 0.29
"""Lengths (m); the straight arm at rest runs along -x, the elbow at x = -FOREARM."""
WRIST_BEND, ELBOW_BEND = (-0.04, 0.015), (-FOREARM - 0.04, -FOREARM + 0.04)
"""Skin follows the bone towards the body below the first of these x (m) and the next one above the second."""
SEAM = -0.03
"""Here (x, m) the drawn arm takes over from the stub of the hand's mesh."""
SIDES = 24
"""Vertices around an arm."""
SKIN, CLOTH = 0, 1
SKIN_TEXEL, CLOTH_TEXEL = 0.0008, 0.0012


@dataclass(frozen=True)
class Part:
    """One closed surface: vertices at rest with bones, triangles and looks."""

    rest_positions: Float[np.ndarray, "vertices 3"]
    bone_indices: Int[np.ndarray, "vertices 5"]
    bone_weights: Float[np.ndarray, "vertices 5"]
    triangles: Int[np.ndarray, "triangles 3"]
    albedo: Float[np.ndarray, "vertices"]
    gloss: Float[np.ndarray, "vertices"]
    texture_coordinates: Float[np.ndarray, "vertices 3"]
    """Position in the solid texture, in texels."""
    texture_index: Int[np.ndarray, "vertices"]
    texture_strength: Float[np.ndarray, "vertices"]


@dataclass(frozen=True)
class Mesh(Part):
    """All parts one after the other: left and right hand, arm and sleeve, then the occluder."""

    vertex_offsets: Int[np.ndarray, "boundaries"]
    triangle_offsets: Int[np.ndarray, "boundaries"]


@dataclass(frozen=True)
class Look:
    """How skin and clothes of a sequence look."""

    skin_albedo: float
    gloss: float
    blotches: float
    """Relative size of the skin's slow changes of shade."""
    creases: float
    """Relative size of its fine structure."""
    cuff: float
    """Where the sleeve ends, x (m) in the rest frame of the hand."""
    cloth_albedo: float
    cloth_stripes: float
    seed: int


def sample_look(generator: np.random.Generator) -> Look:
    """Skin from dark to light, dry to moist; sleeves that end near the wrist, on the forearm or above the elbow."""
    return Look(
        skin_albedo=generator.uniform(0.38, 0.8),
        gloss=np.exp(generator.uniform(np.log(0.03), np.log(0.3))),
        blotches=generator.uniform(0.02, 0.08),
        creases=generator.uniform(0.02, 0.09),
        cuff=generator.uniform(-0.18, -0.035) if generator.random() < 0.6 else generator.uniform(-0.45, -0.33),
        cloth_albedo=np.exp(generator.uniform(np.log(0.05), np.log(0.8))),
        cloth_stripes=generator.choice((0.0, 0.0, 0.5)) * generator.random(),
        seed=int(generator.integers(1 << 31)),
    )


def assemble(
    hand: HandModel, vertex_albedo: Float[np.ndarray, "vertices"], look: Look, occluder_size: tuple[float, float] | None
) -> Mesh:
    """The mesh of a user: `vertex_albedo` multiplies the skin's shade; the occluder, if any, is width by height (m)."""
    parts = [_hand(hand, vertex_albedo, look, side) for side in (LEFT, RIGHT)]
    parts += [_arm(hand, vertex_albedo, look, side) for side in (LEFT, RIGHT)]
    parts += [_sleeve(hand, look, side) for side in (LEFT, RIGHT)]
    parts += [] if occluder_size is None else [_occluder(occluder_size, look)]
    counts = np.cumsum([0, *(len(part.rest_positions) for part in parts)])
    fields = {name: np.concatenate([getattr(part, name) for part in parts]) for name in Part.__dataclass_fields__}
    fields["triangles"] = np.concatenate([part.triangles + first for part, first in zip(parts, counts, strict=False)])
    return Mesh(
        **fields, vertex_offsets=counts, triangle_offsets=np.cumsum([0, *(len(part.triangles) for part in parts)])
    )


def _hand(hand: HandModel, vertex_albedo: np.ndarray, look: Look, side: int) -> Part:
    """One hand; its stub of a forearm follows the forearm's bone and vanishes inside the drawn arm."""
    weights = hand.mesh_bone_weights.double().numpy()
    indices = np.argsort(-weights, axis=1, kind="stable")[:, :4]
    weights = np.take_along_axis(weights, indices, axis=1)
    rest = hand.mesh_vertices.double().numpy()
    follows_hand = _smoothstep(*WRIST_BEND, rest[:, :1])
    weights = np.concatenate((follows_hand * weights / weights.sum(axis=1, keepdims=True), 1 - follows_hand), axis=1)
    indices = np.concatenate((indices + side * NUM_BONES, np.full_like(indices[:, :1], FOREARM_BONES[side])), axis=1)
    center, _ = _wrist_section(hand)
    sunk = rest.copy()
    sunk[:, 1:] = center + (rest[:, 1:] - center) * (1 - 0.3 * _smoothstep(0.008 - SEAM, 0.03 - SEAM, -rest[:, :1]))
    return Part(sunk, indices, weights, hand.triangles(side).numpy(), **_skin(rest, vertex_albedo, look, side))


def _skin(rest: np.ndarray, vertex_albedo: np.ndarray | float, look: Look, side: int) -> dict[str, np.ndarray]:
    """How skin looks at points of the resting left hand and arm."""
    generator = np.random.default_rng((look.seed, side))
    shade = 1 + look.blotches * _waves(rest, (0.015, 0.07), generator)
    return {
        "albedo": np.clip(look.skin_albedo * vertex_albedo * shade, 0.02, 0.95),
        "gloss": look.gloss * (0.7 + 0.3 * np.clip(_waves(rest, (0.02, 0.06), generator), -1, 1)),
        "texture_coordinates": rest / SKIN_TEXEL + generator.uniform(0, 64, 3),
        "texture_index": np.full(len(rest), SKIN),
        "texture_strength": np.full(len(rest), look.creases),
    }


def _wrist_section(hand: HandModel) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "sides 2"]]:
    """Centre (y, z) of the hand's stub at the seam and its outline around that centre, at `SIDES` equal angles."""
    rest = hand.mesh_vertices.double().numpy()
    slab = rest[np.abs(rest[:, 0] - SEAM) < 0.008, 1:]
    center = (slab.max(axis=0) + slab.min(axis=0)) / 2
    angles = np.arctan2(slab[:, 1] - center[1], slab[:, 0] - center[0])
    radii = np.sqrt(((slab - center) ** 2).sum(axis=1))
    turn = _around()
    radius = np.interp(turn, angles[np.argsort(angles)], radii[np.argsort(angles)], period=2 * np.pi)
    return center, np.stack((np.cos(turn), np.sin(turn)), axis=-1) * radius[:, None]


def _around() -> Float[np.ndarray, "sides"]:
    return np.linspace(0, 2 * np.pi, SIDES, endpoint=False)


def _tube(hand: HandModel, x: np.ndarray, slack: np.ndarray) -> Float[np.ndarray, "vertices 3"]:
    """Rings around the arm at positions x, `slack` outside the skin; a last ring of no radius closes the tube."""
    center, outline = _wrist_section(hand)
    thickness = np.interp(-x, (-SEAM, 0.06, 0.12, 0.2, FOREARM, 0.36, 0.56), (1, 1.05, 1.22, 1.4, 1.32, 1.4, 1.55))
    round_share = _smoothstep(-SEAM, 0.25, -x)[:, None, None]
    circle = np.stack((np.cos(_around()), np.sin(_around())), axis=-1)
    mean_radius = np.sqrt((outline**2).sum(axis=1)).mean()
    rings = outline + round_share * 0.7 * (circle * mean_radius - outline)
    rings = rings * thickness[:, None, None] + circle * slack[:, None, None] + center
    rings[-1] = center
    return np.concatenate((np.repeat(x, SIDES)[:, None], rings.reshape(-1, 2)), axis=1)


def _arm_bones(x: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Bone indices and weights of vertices at x along the resting arm: hand, forearm, upper arm."""
    hand, below_elbow = _smoothstep(*WRIST_BEND, x), _smoothstep(*ELBOW_BEND, x)
    indices = np.tile([side * NUM_BONES, FOREARM_BONES[side], UPPER_ARM_BONES[side], 0, 0], (len(x), 1))
    return indices, np.stack((hand, below_elbow - hand, 1 - below_elbow, 0 * x, 0 * x), axis=1)


def _arm(hand: HandModel, vertex_albedo: np.ndarray, look: Look, side: int) -> Part:
    """The bare arm from the wrist until inside the sleeve."""
    x = np.linspace(SEAM, look.cuff - 0.03, max(4, int((SEAM - look.cuff) / 0.018) + 4))
    rest = _tube(hand, x, np.zeros(len(x)))
    wrist_albedo = vertex_albedo[np.abs(hand.mesh_vertices[:, 0].numpy() - SEAM) < 0.01].mean()
    return Part(
        rest, *_arm_bones(rest[:, 0], side), _tube_triangles(len(x), side), **_skin(rest, wrist_albedo, look, side)
    )


def _sleeve(hand: HandModel, look: Look, side: int) -> Part:
    """A loose tube with folds around the arm, its hem turned in, up to the shoulder."""
    generator = np.random.default_rng((look.seed, 2 + side))
    loose = np.random.default_rng((look.seed, 4)).uniform(0.004, 0.012)
    x = np.concatenate(([look.cuff - 0.025, look.cuff], np.arange(look.cuff, -FOREARM - UPPER_ARM, -0.016)))
    slack = np.full(len(x), loose)
    slack[:2] = 0.001, 0.6 * loose
    rest = _tube(hand, x, slack)
    folds = loose * 0.3 * _waves(rest * (2.0, 1.0, 1.0), (0.015, 0.06), generator)
    folds[: 2 * SIDES] = 0
    rest[:, 1:] += folds[:, None] * np.tile(np.stack((np.cos(_around()), np.sin(_around())), axis=-1), (len(x), 1))
    stripes = np.sign(np.sin(rest[:, 0] / 0.006) if look.seed % 2 else np.sin(8 * np.tile(_around(), len(x))))
    count = len(rest)
    return Part(
        rest, *_arm_bones(rest[:, 0], side), _tube_triangles(len(x), side),
        albedo=np.clip(look.cloth_albedo * (1 + look.cloth_stripes * stripes), 0.02, 0.9), gloss=np.zeros(count),
        texture_coordinates=rest / CLOTH_TEXEL + generator.uniform(0, 64, 3),
        texture_index=np.full(count, CLOTH), texture_strength=np.full(count, 0.2),
    )  # fmt: skip


def _tube_triangles(rings: int, side: int) -> Int[np.ndarray, "triangles 3"]:
    """Triangles of a tube, outward for a left arm or its mirror image."""
    ring, around = np.mgrid[0 : rings - 1, 0:SIDES]
    a, b = ring * SIDES + around, ring * SIDES + (around + 1) % SIDES
    c, d = a + SIDES, b + SIDES
    triangles = np.concatenate((np.stack((a, c, b), axis=-1), np.stack((b, c, d), axis=-1))).reshape(-1, 3)
    return triangles if side == LEFT else triangles[:, ::-1]


def _occluder(size: tuple[float, float], look: Look) -> Part:
    """A rectangle of printed paper or cloth in the plane z = 0, two faces."""
    generator = np.random.default_rng((look.seed, 5))
    columns, rows = (max(2, int(np.ceil(side / 0.006)) + 1) for side in size)
    x, y = np.meshgrid(np.linspace(-0.5, 0.5, columns) * size[0], np.linspace(-0.5, 0.5, rows) * size[1])
    rest = np.stack((x, y, np.zeros_like(x)), axis=-1).reshape(-1, 3)
    row, column = np.mgrid[0 : rows - 1, 0 : columns - 1]
    a = row * columns + column
    front = np.concatenate((np.stack((a, a + 1, a + columns), -1), np.stack((a + 1, a + columns + 1, a + columns), -1)))
    front = front.reshape(-1, 3)
    count = len(rest)
    albedo = generator.uniform(0.1, 0.85) * (1 + 0.3 * np.clip(_waves(rest, (0.02, 0.3), generator), -1, 1))
    blocks = generator.random((2, 12, 12))[:, (y.ravel() / 0.02).astype(int) % 12, (x.ravel() / 0.03).astype(int) % 12]
    albedo = np.concatenate((albedo, np.where(blocks[0] < 0.3, blocks[1], albedo)))
    return Part(
        np.tile(rest, (2, 1)),
        np.full((2 * count, 5), SHEET_BONE), np.tile(np.array([1.0, 0, 0, 0, 0]), (2 * count, 1)),
        np.concatenate((front, front[:, ::-1] + count)),
        albedo=np.clip(albedo, 0.03, 0.95), gloss=np.full(2 * count, 0.05),
        texture_coordinates=np.tile(rest, (2, 1)) / CLOTH_TEXEL,
        texture_index=np.full(2 * count, CLOTH), texture_strength=np.full(2 * count, 0.12),
    )  # fmt: skip


@cache
def textures() -> Int8[np.ndarray, "2 64 64 64"]:
    """The solid textures of skin (a net of creases over soft blotches) and cloth (a weave of uneven threads)."""
    noise = np.random.default_rng(0).normal(size=(3, 64, 64, 64))

    def smooth(index: int, texels: float) -> np.ndarray:
        blurred = gaussian_filter(noise[index], texels, mode="wrap")
        return blurred / blurred.std()

    skin = np.minimum(np.abs(smooth(0, 2.5)), 1.2 * np.abs(smooth(1, 1.6))) - 0.5 + 0.25 * smooth(2, 5.0)
    x, y, z = np.mgrid[0:64, 0:64, 0:64] * (2 * np.pi / 64)
    cloth = 0.4 * (np.sin(16 * x) + np.sin(16 * y) + np.sin(16 * z)) + 0.3 * smooth(2, 1.2)
    return np.stack([np.clip(127 * volume, -127, 127) for volume in (skin, cloth)]).astype(np.int8)


def _waves(points: np.ndarray, wavelengths: tuple[float, float], generator: np.random.Generator) -> np.ndarray:
    """A smooth random function of position with unit variance: plane waves of random directions and lengths (m)."""
    directions = generator.normal(size=(12, 3))
    directions /= np.sqrt((directions**2).sum(axis=1, keepdims=True))
    waves = 2 * np.pi / np.exp(generator.uniform(*np.log(wavelengths), 12))
    phases = generator.uniform(0, 2 * np.pi, 12)
    return np.sin((points[:, None] * (directions * waves[:, None])).sum(axis=-1) + phases).sum(axis=1) / np.sqrt(6)


def _smoothstep(low: float, high: float, x: np.ndarray) -> np.ndarray:
    share = np.clip((x - low) / (high - low), 0, 1)
    return share * share * (3 - 2 * share)
