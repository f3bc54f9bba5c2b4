"""Training shards: their index word by word, clips both ways, recordings cut into clips, broken and hostile files."""

import pickle
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import hypothesis.strategies as st
import msgpack
import numpy as np
import pytest
import torch
from conftest import in_mm, random_angles, random_poses, tiny_recording
from hypothesis import HealthCheck, given, settings
from hypothesis.extra import numpy as st_numpy
from made_up_data import cached, put

from lib.cameras import Pinhole, PosedCamera
from lib.crop_cache import CACHE_SIZE
from lib.errors import InputError
from lib.files import MM
from lib.formats import indexed_files
from lib.formats.cut_clips import clips_of
from lib.formats.hand_files import hand_from_json, hand_to_json
from lib.formats.indexed_files import ARRAYS, IndexedFile, write_indexed
from lib.formats.torch_data import Shard, ShardClip, SolvedPoses, write_shard
from lib.hands import RIGHT, HandModel
from lib.recordings import Recording, read_recording
from lib.transforms import invert, mirror_x

FRAMES, SIZE = 3, 8
MAGIC = 0x584449544E54
FOUR = ("labels.torch.bin", "labels.torch.idx", "mono.torch.bin", "mono.torch.idx")


def check(max_examples: int) -> settings:
    return settings(
        max_examples=max_examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


def write_files(stem: Path, words: list[int], content: bytes) -> Path:
    Path(f"{stem}.torch.idx").write_bytes(struct.pack(f"<{len(words)}q", *words))
    Path(f"{stem}.torch.bin").write_bytes(content)
    return stem


def words_of(stem: Path) -> list[int]:
    index = Path(f"{stem}.torch.idx").read_bytes()
    return list(struct.unpack(f"<{len(index) // 8}q", index))


INT16 = [MAGIC, 1, 3, 2, 3, 3, 0, 2, 2, 3, 0, 6, 7, 9, 2, 3, 2]
"""The index of an array of 2 x 3, a number, and an array of 2."""
NINE = struct.pack("<9h", *range(-4, 5))


def test_the_index_word_by_word(tmp_path):
    elements = [np.array([[-4, -3, -2], [-1, 0, 1]], np.int16), np.array(2, np.int16), np.array([3, 4], ">i2")]
    write_indexed(tmp_path / "written", elements)
    write_files(tmp_path / "made", INT16, NINE)
    for suffix in ("idx", "bin"):
        assert (tmp_path / f"written.torch.{suffix}").read_bytes() == (tmp_path / f"made.torch.{suffix}").read_bytes()
    read = IndexedFile(tmp_path / "made")
    assert len(read) == 3
    for index, element in enumerate(elements):
        np.testing.assert_array_equal(read[index], element, strict=index < 2)
        assert read.shape(index) == element.shape


def test_the_index_of_messages(tmp_path):
    messages = [{"a": [1, 2.5]}, {}]
    content = b"\x81\xa1a\x92\x01\xcb" + struct.pack(">d", 2.5) + b"\x80"
    write_files(tmp_path / "made", [MAGIC, 1, 8, 1, 2, 0, 0, 0, 0, 0, 14, 15], content)
    write_indexed(tmp_path / "written", messages)
    for suffix in ("idx", "bin"):
        assert (tmp_path / f"written.torch.{suffix}").read_bytes() == (tmp_path / f"made.torch.{suffix}").read_bytes()
    assert list(IndexedFile(tmp_path / "made")) == messages
    assert IndexedFile(tmp_path / "made").shape(1) == ()


@st.composite
def some_arrays(draw) -> list[np.ndarray]:
    dtype = draw(st.sampled_from(list(ARRAYS.values())))
    shapes = draw(st.lists(st.lists(st.integers(0, 4), max_size=4).map(tuple), min_size=1, max_size=5))
    return [draw(st_numpy.arrays(dtype, shape)) for shape in shapes]


@check(40)
@given(some_arrays())
def test_arrays_come_back(tmp_path, arrays):
    write_indexed(tmp_path / "some", iter(arrays))
    read = IndexedFile(tmp_path / "some")
    assert len(read) == len(arrays)
    for index, array in enumerate(arrays):
        np.testing.assert_array_equal(read[index], array, strict=True)
        assert read.shape(index) == array.shape
        assert not read[index].flags.writeable


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)
MAPS = st.lists(st.dictionaries(st.text(max_size=8), VALUES, max_size=4), min_size=1, max_size=4)


@check(40)
@given(MAPS)
def test_maps_come_back(tmp_path, maps):
    write_indexed(tmp_path / "some", iter(maps))
    assert list(IndexedFile(tmp_path / "some")) == maps


def content_of(stem: Path) -> list[bytes]:
    """What the elements hold, whatever their type and shape."""
    return [part.tobytes() if isinstance(part, np.ndarray) else msgpack.packb(part) for part in IndexedFile(stem)]


def content_or_refusal(stem: Path) -> list[bytes] | str:
    try:
        return content_of(stem)
    except InputError as error:
        return stem.name + ".torch" if f"{stem}.torch" in str(error) else str(error)


@check(60)
@given(
    some_arrays() | MAPS,
    st.data(),
    st.integers(-3, 12) | st.sampled_from([-(2**63), 2**63 - 1, 2**32, 2**62]) | st.integers(-(2**63), 2**63 - 1),
)
def test_no_word_of_an_index_is_believed(tmp_path, elements, data, value):
    """A wrong word is refused, or the elements hold the same bytes: types of one size, say, cannot be told apart."""
    stem = tmp_path / "some"
    write_indexed(stem, elements)
    before, words = content_of(stem), words_of(stem)
    words[data.draw(st.integers(0, len(words) - 1))] = value
    write_files(stem, words, Path(f"{stem}.torch.bin").read_bytes())
    assert content_or_refusal(stem) in (before, "some.torch")


@check(40)
@given(some_arrays() | MAPS, st.data(), st.sampled_from(["idx", "bin"]))
def test_no_truncated_file_is_read(tmp_path, elements, data, suffix):
    stem = tmp_path / "some"
    write_indexed(stem, elements)
    path = Path(f"{stem}.torch.{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, max(len(content) - 1, 0)))] if content else b"1")
    with pytest.raises(InputError, match=rf"some\.torch\.{suffix}.*(truncated|bytes)"):
        IndexedFile(stem)


def replaced(position: int, value: int) -> list[int]:
    return [value if index == position else word for index, word in enumerate(INT16)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (replaced(0, 0x1234), "begins with 0x1234, version 1, expected 0x584449544e54"),
        (replaced(1, 2), "version 2, expected .* version 1"),
        (replaced(2, 0), "type code 0, expected 1 to 8"),
        (replaced(2, 9), "type code 9"),
        (replaced(2, 4), "item size 2 does not belong to type code 4"),
        (replaced(2, 8), "item size 2 does not belong to type code 8"),
        (replaced(4, -1), "17 words, which is not what -1 elements with 3 sizes take"),
        (replaced(4, 2**62), "17 words"),
        (replaced(5, 4), "17 words"),
        (replaced(6, 1), "dimension offsets"),
        (replaced(7, 3), "dimension offsets"),
        (replaced(9, 2), "dimension offsets end at 2, expected 3"),
        (replaced(10, 1), "data offsets"),
        (replaced(11, -(2**63)), "data offsets"),
        (replaced(11, 5), r"element 0 has the shape \(2, 3\) and 5 items"),
        (replaced(13, 8), r"element 2 has the shape \(2,\) and 1 items"),
        (replaced(14, -2), "sizes below zero"),
        (replaced(14, 2**62), "element 0 has the shape"),
        (INT16[:5], "40 bytes, expected 48"),
        ([], "0 bytes"),
        ([MAGIC, 1, 3, 2, 1, 2, 0, 2, 0, 0, 2**32, 2**32], "element 0 has the shape"),  # 2^64 items are none
        ([MAGIC, 1, 3, 2, 1, 3, 0, 3, 0, 0, 2**40, 2**40, 0], "element 0 has the shape"),
        ([MAGIC, 1, 3, 2, 1, 40, 0, 40, 0, 1, *[1] * 40], "more than 32 dimensions"),
        ([MAGIC, 1, 8, 1, 4, 0, *[0] * 5, 0, 2**63 - 1, -(2**63), -1, 18], "data offsets"),  # their differences wrap
        ([MAGIC, 1, 8, 1, 1, 1, 0, 1, 0, 18, 18], "dimension offsets end at 1, expected 1 sizes .none for msgpack"),
        ([MAGIC, 1, 8, 1, 1, 1, 0, 0, 0, 18, 18], "1 sizes, expected none for msgpack"),
    ],
)
def test_wrong_indices_are_described(tmp_path, words, message):
    write_files(tmp_path / "some", words, NINE)
    with pytest.raises(InputError, match=rf"some\.torch\.idx: .*{message}"):
        IndexedFile(tmp_path / "some")


@pytest.mark.parametrize("change", [lambda content: content[:-1], lambda content: content + b"1"])
def test_the_content_is_exactly_as_long_as_its_index_says(tmp_path, change):
    write_files(tmp_path / "some", INT16, change(NINE))
    with pytest.raises(InputError, match=rf"some\.torch\.bin holds {len(change(NINE))} bytes, expected 18"):
        IndexedFile(tmp_path / "some")


@pytest.mark.parametrize("suffix", ["idx", "bin"])
def test_files_that_are_not_there(tmp_path, suffix):
    path = Path(f"{write_files(tmp_path / 'some', INT16, NINE)}.torch.{suffix}")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 100\n")
    with pytest.raises(InputError, match=rf"{suffix} is a Git LFS pointer"):
        IndexedFile(tmp_path / "some")
    path.unlink()
    with pytest.raises(InputError, match=rf"no file .*some\.torch\.{suffix}"):
        IndexedFile(tmp_path / "some")


def test_a_large_file_takes_no_memory(tmp_path):
    """50 GB, most of it a hole."""
    count, last = 5 * 10**10, 10
    write_files(tmp_path / "some", [MAGIC, 1, 1, 1, 2, 2, 0, 1, 2, 0, count, count + last, count, last], b"")
    with Path(tmp_path / "some.torch.bin").open("wb") as file:
        file.seek(count)
        file.write(bytes(range(last)))
    tracemalloc.start()
    try:
        read = IndexedFile(tmp_path / "some")
        assert read[0].shape == (count,)
        assert read[1].tolist() == list(range(last))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_another_process_gets_the_path_alone(tmp_path):
    write_indexed(tmp_path / "some", [np.arange(100_000, dtype=np.int32)])
    pickled = pickle.dumps(IndexedFile(tmp_path / "some"))
    assert len(pickled) < 1000
    np.testing.assert_array_equal(pickle.loads(pickled)[0], np.arange(100_000))


def test_elements_that_are_not_there(tmp_path):
    read = IndexedFile(write_files(tmp_path / "some", INT16, NINE))
    for index in (-1, 3):
        with pytest.raises(IndexError, match="no element"):
            read[index]
        with pytest.raises(IndexError, match="no element"):
            read.shape(index)
    assert len(IndexedFile(write_files(tmp_path / "none", [MAGIC, 1, 1, 1, 0, 0, 0, 0], b""))) == 0


def interrupted():
    yield np.zeros(3, np.uint8)
    raise RuntimeError("interrupted")


@pytest.mark.parametrize(
    ("elements", "error"),
    [
        (interrupted, RuntimeError),
        (list, InputError),
        (lambda: [np.zeros(1, bool)], ValueError),
        (lambda: [np.zeros(1, np.uint8), np.zeros(1, np.int8)], ValueError),
        (lambda: [{}, np.zeros(1, np.uint8)], ValueError),
        (lambda: [{"long": [0] * 20_000}], InputError),
        (lambda: [{"a": {1: 2}}], InputError),
    ],
)
def test_nothing_is_half_written(tmp_path, elements, error):
    write_indexed(tmp_path / "some", [np.arange(4, dtype=np.int8)])
    for name in ("some", "new"):
        with pytest.raises(error):
            write_indexed(tmp_path / name, elements())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["some.torch.bin", "some.torch.idx"]
    assert IndexedFile(tmp_path / "some")[0].tolist() == [0, 1, 2, 3]


def test_an_old_index_never_meets_new_content(tmp_path, monkeypatch):
    """Where only some of the files could be given their names, the shard is incomplete, not wrong."""
    write_indexed(tmp_path / "some", [np.arange(4, dtype=np.int8)])

    write_atomically = indexed_files.write_atomically

    def no_index(path, write):
        if path.suffix == ".idx":
            write(tmp_path / "temporary")
            raise OSError("no place")
        return write_atomically(path, write)

    monkeypatch.setattr(indexed_files, "write_atomically", no_index)
    with pytest.raises(OSError, match="no place"):
        write_indexed(tmp_path / "some", [np.arange(4, 8, dtype=np.int8)])
    with pytest.raises(InputError, match="no file"):
        IndexedFile(tmp_path / "some")


BOMBS = {
    "garbage": b"\xc1\xff\x00",
    "nothing": b"",
    "no map": b"\x93\x01\x02\x03",
    "more behind": b"\x80\x80",
    "cut off": b"\x82\xa1a\x01",
    "no text": b"\x81\xa1\xff\x01",
    "numbers as keys": b"\x81\x01\x01",
    "lists as keys": b"\x81\x90\x01",
    "long list": b"\x81\xa1x\xdd\xff\xff\xff\xff",
    "long map": b"\x81\xa1x\xdf\xff\xff\xff\xff",
    "long text": b"\x81\xa1x\xdb\xff\xff\xff\xff",
    "long bytes": b"\x81\xa1x\xc6\xff\xff\xff\xff",
    "long extension": b"\x81\xa1x\xc9\xff\xff\xff\xff\x01",
    "time": b"\x81\xa1x\xd6\xff\x00\x00\x00\x01",
    "deep": b"\x81\xa1x" + b"\x91" * 5000 + b"\x90",
    "deep and long": b"\x81\xa1x" + b"\xdd\x00\x00\x3f\xff" * 1000 + b"\xc0" * (1 << 16),
    "many": b"\x81\xa1x\xdc\x20\x00" + b"\x90" * 0x2000,
    "large": b"\x81\xa1x\xc6\x01\x00\x00\x00" + bytes(1 << 24),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_fill_no_memory(tmp_path, name, monkeypatch):
    monkeypatch.setattr(indexed_files, "MAX_PARTS", 0x2000)
    monkeypatch.setattr(indexed_files, "UNCOUNTED", 0x1000)
    message = BOMBS[name]
    write_files(tmp_path / "some", [MAGIC, 1, 8, 1, 2, 0, 0, 0, 0, 0, 1, 1 + len(message)], b"\x80" + message)
    tracemalloc.start()
    try:
        read = IndexedFile(tmp_path / "some")
        assert read[0] == {}
        with pytest.raises(InputError, match=r"some\.torch\.bin: clip 1: "):
            read[1]
        assert tracemalloc.get_traced_memory()[1] < 1 << 28
    finally:
        tracemalloc.stop()


@check(40)
@given(st.binary(max_size=30))
def test_garbage_is_read_as_a_map_or_refused(tmp_path, message):
    write_files(
        tmp_path / "some", [MAGIC, 1, 8, 1, 2, 0, 0, 0, 0, 0, len(message), len(message) + 1], message + b"\x80"
    )
    assert or_refusal(lambda: isinstance(IndexedFile(tmp_path / "some")[0], dict))


def or_refusal(read: Callable[[], bool]) -> bool:
    """Whether it is so, or clip 0 is refused."""
    try:
        return read()
    except InputError as error:
        return "clip 0: " in str(error)


def without_mesh(hand: HandModel) -> HandModel:
    return replace(hand, mesh_vertices=None, mesh_triangles=None, mesh_bone_weights=None)


@pytest.fixture
def clip(rng, hand) -> Callable[[int], ShardClip]:
    """Clips of a hand, without its mesh as the public ones are; poses, lenses and pictures are random."""

    def make(side: int, with_mesh: bool = False) -> ShardClip:
        model = hand if with_mesh else without_mesh(hand)
        focal = torch.from_numpy(rng.uniform(5, 20, (FRAMES, 2, 2)))
        lens = Pinhole(SIZE, SIZE + 1, focal, focal / 4, focal.new_zeros(FRAMES, 2, 0))
        return ShardClip(
            cameras=PosedCamera(lens, random_poses(rng, FRAMES, 2)),
            enclosing_points=torch.from_numpy(rng.normal(size=(FRAMES, 5, 3))),
            hand=side,
            hand_model=model,
            joint_angles=random_angles(rng, hand, FRAMES),
            world_from_wrist=random_poses(rng, FRAMES),
            pinch=torch.tensor([False, True, False]),
            solved=SolvedPoses(
                without_mesh(hand).scaled(1.1), 1.1, random_angles(rng, hand, FRAMES), random_poses(rng, FRAMES)
            ),
            images=rng.integers(0, 256, (FRAMES, 2, SIZE + 1, SIZE), dtype=np.uint8),
        )

    return make


def assert_same(found, expected) -> None:
    """Field by field; only what is stored in other units or inverted may differ, in the last digits."""
    assert type(found) is type(expected)
    if torch.is_tensor(found):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)
    elif isinstance(found, np.ndarray):
        np.testing.assert_array_equal(found, expected, strict=True)
    elif hasattr(found, "__dataclass_fields__"):
        for part in fields(found):
            assert_same(getattr(found, part.name), getattr(expected, part.name))
    else:
        assert found == expected


def test_clips_come_back(tmp_path, clip):
    clips = [clip(0), clip(1), replace(clip(1, with_mesh=True), solved=None)]
    write_shard(tmp_path / "shard", iter(clips))
    assert sorted(path.name for path in (tmp_path / "shard").iterdir()) == list(FOUR)
    shard = pickle.loads(pickle.dumps(Shard(tmp_path / "shard")))
    assert len(shard) == 3
    for index, expected in enumerate(clips):
        found = shard[index]
        assert_same(found, replace(expected, hand_model=without_mesh(expected.hand_model)))
        assert len(found) == FRAMES
        assert not found.images.flags.writeable
        assert torch.equal(found.joint_angles, expected.joint_angles)
        torch.testing.assert_close(found.landmarks(), expected.landmarks(), rtol=0, atol=1e-14)
    assert (shard[0].cameras.camera.width, shard[0].cameras.camera.height) == (SIZE, SIZE + 1)


def test_labels_without_a_look_at_the_pictures(tmp_path, clip, monkeypatch):
    expected = clip(0)
    write_shard(tmp_path, [expected])
    shard = Shard(tmp_path)
    monkeypatch.setattr(shard._mono, "_content", None)
    labels = shard.labels(0)
    for part in fields(labels):
        assert_same(getattr(labels, part.name), getattr(expected, part.name))


def right_hand(left: HandModel) -> dict:
    """The map of a right hand, entry by entry."""
    stored = hand_to_json(left)
    for axis in stored["joint_rotation_axes"]:
        axis[1], axis[2] = -axis[1], -axis[2]
    for name in ("joint_rest_positions", "landmark_rest_positions", "mesh_vertices"):
        for point in stored.get(name, ()):
            point[0] = -point[0]
    return stored


def map_of(clip: ShardClip) -> dict:
    """The map of a clip as the format describes it."""
    model = right_hand if clip.hand == RIGHT else hand_to_json
    extrinsics = in_mm(invert(clip.cameras.world_from_camera))
    intrinsics = torch.zeros(FRAMES, 2, 3, 3)
    focal, center = clip.cameras.camera.focal_px, clip.cameras.camera.center_px
    for (row, column), values in {
        (0, 0): focal[..., 0],
        (1, 1): focal[..., 1],
        (0, 2): center[..., 0],
        (1, 2): center[..., 1],
        (2, 2): 1.0,
    }.items():
        intrinsics[..., row, column] = values
    return {
        "extrinsics": extrinsics.tolist(),
        "intrinsics": intrinsics.tolist(),
        "enclosing_points": (MM * clip.enclosing_points).tolist(),
        "hand": [clip.hand] * FRAMES,
        "hand_model": model(clip.hand_model),
        "wrist": in_mm(clip.world_from_wrist).tolist(),
        "joint_angles": clip.joint_angles.tolist(),
        "solved_wrist_xfs": in_mm(clip.solved.world_from_wrist).tolist(),
        "solved_joint_angles": clip.solved.joint_angles.tolist(),
        "generic_hand_model": model(clip.solved.hand_model.scaled(1 / clip.solved.scale))
        | {"hand_scale": clip.solved.scale},
        "pinch": clip.pinch.double()[:, None].tolist(),
        "is_background": [[0.0]] * FRAMES,
    }


def test_a_stored_right_hand_is_its_own(tmp_path, clip):
    """Posed by the stored wrist it is where the mirrored left model is, and its axes turn the same way."""
    expected = clip(RIGHT, with_mesh=True)
    stored = map_of(expected)
    as_stored = hand_from_json(stored["hand_model"])
    wrist = expected.world_from_wrist
    landmarks = as_stored.landmarks(expected.joint_angles, wrist)
    torch.testing.assert_close(
        landmarks, expected.hand_model.landmarks(expected.joint_angles, mirror_x(wrist)), rtol=0, atol=1e-12
    )
    write_maps(tmp_path, [expected.images], [stored])
    torch.testing.assert_close(Shard(tmp_path)[0].landmarks(), landmarks, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        as_stored.mesh(expected.joint_angles, wrist),
        Shard(tmp_path)[0].hand_model.mesh(expected.joint_angles, mirror_x(wrist)),
        rtol=0,
        atol=1e-12,
    )


def write_maps(folder: Path, images: list[np.ndarray], maps: list[dict]) -> None:
    write_indexed(folder / "mono", images)
    write_indexed(folder / "labels", maps)


@pytest.mark.parametrize("side", [0, 1])
def test_maps_as_the_format_describes_them(tmp_path, clip, side):
    expected = clip(side)
    stored = map_of(expected)
    write_maps(tmp_path / "made", [expected.images], [stored])
    found = Shard(tmp_path / "made")[0]
    torch.testing.assert_close(found.cameras.camera.focal_px, expected.cameras.camera.focal_px, rtol=1e-6, atol=0)
    found = replace(found, cameras=expected.cameras)  # their K went through float32
    assert_same(found, expected)
    write_shard(tmp_path / "written", [expected])
    written = IndexedFile(tmp_path / "written" / "labels")[0]
    assert stored.keys() - written.keys() == {"is_background"}
    for name, value in written.items():
        if not isinstance(value, dict):
            np.testing.assert_allclose(value, stored[name], rtol=1e-6, atol=1e-9)
    for name in ("hand_model", "generic_hand_model"):
        for key, value in written[name].items():
            np.testing.assert_allclose(value, stored[name][key], rtol=1e-12, atol=1e-12)


def test_what_may_be_missing(tmp_path, clip):
    expected = clip(1)
    stored = map_of(expected)
    for name in ("solved_wrist_xfs", "solved_joint_angles", "generic_hand_model"):
        del stored[name]
    for name in ("joint_limits", "hand_scale"):
        del stored["hand_model"][name]
    write_maps(tmp_path, [expected.images], [stored])
    found = Shard(tmp_path)[0]
    assert found.solved is None
    torch.testing.assert_close(found.landmarks(), expected.landmarks(), rtol=0, atol=1e-12)


def without(name: str) -> Callable[[dict], None]:
    return lambda stored: stored.pop(name)


NAN = float("nan")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("extrinsics"), "the field 'extrinsics' is missing"),
        (without("pinch"), "the field 'pinch' is missing"),
        (without("hand_model"), "the field 'hand_model' is missing"),
        (without("solved_joint_angles"), "the field 'solved_joint_angles' is missing"),
        (without("generic_hand_model"), "the field 'generic_hand_model' is missing"),
        (put("joint_angles", 1, 2, NAN), r"joint_angles\[1\]\[2\] is nan, expected a finite number"),
        (put("joint_angles", 1, 2, 3.2), r"joint_angles\[1\]\[2\] is 3.2, expected -3.14159 to 3.14159"),
        (put("solved_joint_angles", 0, 0, -30), "solved_joint_angles"),
        (put("joint_angles", [[0.0] * 22] * 2), r"joint_angles has shape \(2, 22\), expected \(3, 22\): mono has 3"),
        (put("joint_angles", [[0.0] * 20] * 3), r"joint_angles has shape \(3, 20\)"),
        (put("joint_angles", 0, "a"), "joint_angles is not an array of numbers"),
        (put("joint_angles", 0, 0, None), "joint_angles is not an array of numbers"),
        (put("wrist", 2, 0, 3, float("inf")), r"wrist\[2\]\[0\]\[3\] is inf"),
        (put("wrist", 1, 0, 0, 7.0), "wrist of frame 1, left, is no rigid motion"),
        (put("wrist", 1, 0, 3, 1e8), "wrist of frame 1, left, is no rigid motion"),
        (put("solved_wrist_xfs", 2, 3, 3, 0.0), "solved_wrist_xfs of frame 2"),
        (put("extrinsics", 1, 1, 2, 2, 3.0), "extrinsics of frame 1, camera 1"),
        (put("extrinsics", np.eye(4).repeat(3, 0).tolist()), r"extrinsics has shape \(12, 4\)"),
        (put("intrinsics", 0, 1, 1, 1, -9.0), r"intrinsics: focal length\[0\]\[1\]\[1\] is -9 px"),
        (put("intrinsics", 0, 1, 1, 1, 0.0), "intrinsics: focal length"),
        (put("intrinsics", 0, 1, 0, 2, 1e4), "intrinsics: principal point"),
        (put("intrinsics", 0, 1, 0, 1, 0.5), r"intrinsics: \[0\]\[1\]\[0\]\[1\] is 0.5, expected focal lengths"),
        (put("intrinsics", 0, 1, 2, 2, 2.0), "intrinsics"),
        (put("enclosing_points", 0, 0, 0, 1e9), "enclosing_points"),
        (put("enclosing_points", [[0.0] * 3] * 3), r"enclosing_points has shape \(3, 3\)"),
        (put("hand", [0, 0, 1]), r"hand\[2\] is 1, expected that of the first frame"),
        (put("hand", [2, 2, 2]), r"hand\[0\] is 2, expected 0 or 1"),
        (put("hand", 0), r"hand has shape \(\), expected \(3,\)"),
        (put("pinch", [0, 0, 0]), "pinch has shape"),
        (put("hand_model", [1, 2]), "hand_model: not in the expected form"),
        (put("hand_model", "landmark_rest_positions", 0, 0, NAN), "hand_model: landmark_rest_positions"),
        (put("hand_model", "mesh_vertices", []), "hand_model: mesh_vertices"),
        (put("hand_model", "mesh_vertices", [[0.0] * 3]), "hand_model: the field 'mesh_triangles' is missing"),
        (put("generic_hand_model", "hand_scale", 0.0), "generic_hand_model: hand_scale"),
        (put("generic_hand_model", "hand_scale", "1"), "generic_hand_model: hand_scale"),
    ],
)
def test_wrong_values_are_described(tmp_path, clip, change, message):
    left = clip(0)
    stored = map_of(left)
    good = msgpack.packb(stored)
    change(stored)
    write_maps(tmp_path, [left.images] * 2, [msgpack.unpackb(good), stored])
    shard = Shard(tmp_path)
    assert_same(shard.labels(0).hand_model, left.hand_model)
    for read in (shard.labels, shard.__getitem__):
        with pytest.raises(InputError, match=rf"labels\.torch\.bin: clip 1: .*{message}"):
            read(1)


@check(25)
@given(st.data())
def test_no_value_breaks_the_reader(tmp_path, clip, data):
    """One field is replaced by anything: a clip is read or refused."""
    left = clip(0)
    stored = map_of(left)
    place = data.draw(st.sampled_from([stored, stored["hand_model"], stored["generic_hand_model"]]))
    key = data.draw(st.sampled_from(sorted(place)))
    while isinstance(place[key], list) and place[key] and data.draw(st.booleans()):
        place, key = place[key], data.draw(st.integers(0, len(place[key]) - 1))
    place[key] = data.draw(VALUES | st.binary(max_size=3))
    write_maps(tmp_path, [left.images], [stored])
    assert or_refusal(lambda: bool(Shard(tmp_path)[0].landmarks().isfinite().all()))


@pytest.mark.parametrize(
    "shape",
    [(FRAMES, 2, SIZE), (FRAMES, 1, SIZE, SIZE), (FRAMES, 3, SIZE, SIZE), (0, 2, SIZE, SIZE), (FRAMES, 2, 0, 8)],
)
def test_pictures_of_another_shape(tmp_path, clip, shape):
    write_maps(tmp_path, [np.zeros(shape, np.uint8)], [map_of(clip(0))])
    with pytest.raises(InputError, match=r"mono\.torch\.bin: clip 0 has shape .* expected \(frames, 2, height, width"):
        Shard(tmp_path)[0]


def test_files_that_do_not_belong_together(tmp_path, clip):
    right = clip(0)
    stored = map_of(right)
    write_maps(tmp_path, [right.images] * 2, [stored])
    with pytest.raises(InputError, match="2 clips in mono, 1 in labels"):
        Shard(tmp_path)
    write_maps(tmp_path, [right.images[:2]], [stored])
    with pytest.raises(InputError, match=r"clip 0: .* has shape \(3.*expected \(2.*: mono has 2 frames"):
        Shard(tmp_path)[0]
    write_maps(tmp_path, [right.images.astype(np.int16)], [stored])
    with pytest.raises(InputError, match=r"mono\.torch\.bin holds arrays of int16, expected arrays of uint8"):
        Shard(tmp_path)
    write_maps(tmp_path, [right.images], [right.images])
    with pytest.raises(InputError, match=r"labels\.torch\.bin holds arrays of uint8, expected msgpack maps"):
        Shard(tmp_path)
    with pytest.raises(IndexError, match="no element 5"):
        write_shard(tmp_path, [right]) or Shard(tmp_path)[5]


def test_no_half_shard(tmp_path, clip):
    def interrupted():
        yield clip(0)
        raise RuntimeError("interrupted")

    for clips, error in ((interrupted(), RuntimeError), (iter(()), InputError)):
        with pytest.raises(error):
            write_shard(tmp_path, clips)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def recording(tmp_path) -> Recording:
    """Seven frames; the left hand is not labelled in frame 3, the right one pinches in frame 1."""
    tiny = tiny_recording(7)
    tiny.labels["hand_confidences"][3][0] = 0.0
    tiny.labels["pinch"] = [[0, int(frame == 1)] for frame in range(7)]
    return read_recording(tiny.write(tmp_path))


def starts(clips: list[ShardClip], recording: Recording) -> list[tuple[int, int]]:
    """Hand and first frame of each clip."""
    return [
        (clip.hand, int((recording.joint_angles[:, clip.hand] - clip.joint_angles[0]).abs().sum(dim=1).argmin()))
        for clip in clips
    ]


def test_clips_end_where_a_hand_is_not_seen(recording):
    assert starts(list(clips_of(recording, 3)), recording) == [(0, 0), (1, 0), (1, 3), (0, 4)]
    assert starts(list(clips_of(recording, 2)), recording) == [(0, 0), (1, 0), (1, 2), (0, 4), (1, 4)]
    assert starts(list(clips_of(recording, 4)), recording) == [(1, 0)]
    assert not list(clips_of(recording, 8))
    for clip, (hand, first) in zip(clips_of(recording, 3), [(0, 0), (1, 0), (1, 3), (0, 4)], strict=True):
        part = slice(first, first + 3)
        assert torch.equal(clip.joint_angles, recording.joint_angles[part, hand])
        assert torch.equal(clip.world_from_wrist, recording.world_from_wrist[part, hand])
        assert torch.equal(clip.pinch, recording.pinch[part, hand])


def test_pictures_are_those_of_the_crop_cache(recording):
    """But those of right hands are not mirrored."""
    crops = cached(recording)
    for clip, (hand, first) in zip(clips_of(recording, 3), [(0, 0), (1, 0), (1, 3), (0, 4)], strict=True):
        expected = crops.images[first : first + 3, hand]
        expected = expected[..., ::-1] if hand == RIGHT else expected
        assert clip.images.shape == (3, 2, CACHE_SIZE, CACHE_SIZE)
        assert clip.images.std() > 30
        np.testing.assert_allclose(clip.images.astype(int), expected.astype(int), atol=1)
        assert (torch.linalg.det(clip.cameras.world_from_camera[..., :3, :3]) > 0).all()


def test_cameras_of_clips_see_what_the_recording_does(recording):
    """A landmark lies on the same ray: projected into a picture and looked up in the view, it is where it was."""
    for clip, (hand, first) in zip(clips_of(recording, 3), [(0, 0), (1, 0), (1, 3), (0, 4)], strict=True):
        landmarks = recording.hands(first).landmarks()[hand]
        torch.testing.assert_close(clip.landmarks()[0], landmarks, rtol=0, atol=1e-12)
        assert clip.enclosing_points.shape == (3, 63, 3)
        torch.testing.assert_close(clip.enclosing_points[0, :21], landmarks, rtol=0, atol=1e-12)
        assert clip.cameras.sees(clip.enclosing_points[:, None]).all()
        cameras = recording.cameras(first)
        for view in range(2):
            shown = clip.cameras[0, view]
            rays = shown.camera[None].unproject(shown.project(landmarks))
            seen_from = (rays * (landmarks - shown.world_from_camera[:3, 3]).norm(dim=-1, keepdim=True)) @ (
                shown.world_from_camera[:3, :3].mT
            ) + shown.world_from_camera[:3, 3]
            source = cameras[1 + view]  # the front cameras
            torch.testing.assert_close(shown.world_from_camera[:3, 3], source.world_from_camera[:3, 3])
            torch.testing.assert_close(source.project(seen_from), source.project(landmarks), rtol=0, atol=1e-6)


@pytest.mark.parametrize("hand", [0, 1])
@pytest.mark.parametrize("view", [0, 1])
def test_light_falls_where_the_camera_says(tmp_path, hand, view):
    """One lit pixel of a front camera, amid the hand, shines where the picture's camera sees its ray."""
    tiny = tiny_recording(1)
    dark = read_recording(tiny.write(tmp_path))
    camera = dark.cameras(0)[1 + view]
    pixel = camera.project(dark.hands(0).landmarks()[hand]).mean(dim=0).round()
    x, y = pixel.int().tolist()
    tiny.images[:] = 0
    tiny.images[0, 1 + view, y, x] = 255
    clip = list(clips_of(replace(dark, pictures=lambda start: iter(tiny.images)), 1))[hand]
    picture = clip.images[0, view].astype(float)
    rows, columns = np.indices(picture.shape)
    found = np.array([(columns * picture).sum(), (rows * picture).sum()]) / picture.sum()
    ray = camera.camera.unproject(pixel) @ camera.world_from_camera[:3, :3].mT
    expected = clip.cameras[0, view].project(camera.world_from_camera[:3, 3] + 0.3 * ray[None])[0]
    np.testing.assert_allclose(found, expected, atol=0.5)


def test_one_camera_fills_both_views(recording):
    alone = replace(
        recording,
        camera=recording.camera[[1]],
        mounting_angles=recording.mounting_angles[[1]],
        world_from_camera=recording.world_from_camera[:, [1]],
        pictures=lambda start: (images[[1]] for images in recording.pictures(start)),
        pinch=None,
    )
    clips, both = list(clips_of(alone, 3)), list(clips_of(recording, 3))
    assert len(clips) == len(both)
    for clip, expected in zip(clips, both, strict=True):
        np.testing.assert_array_equal(clip.images[:, 0], expected.images[:, 0])
        np.testing.assert_array_equal(clip.images[:, 1], clip.images[:, 0])
        assert torch.equal(clip.cameras.world_from_camera[:, 1], clip.cameras.world_from_camera[:, 0])
        assert not torch.equal(expected.cameras.world_from_camera[:, 1], expected.cameras.world_from_camera[:, 0])
        assert not clip.pinch.any()


def test_a_recording_becomes_a_shard(tmp_path, recording):
    recording = replace(recording, hand_model=without_mesh(recording.hand_model))
    write_shard(tmp_path / "shard", clips_of(recording, 2))
    shard = Shard(tmp_path / "shard")
    clips = list(clips_of(recording, 2))
    assert len(shard) == len(clips)
    for index, clip in enumerate(clips):
        found = shard[index]
        np.testing.assert_array_equal(found.images, clip.images)
        torch.testing.assert_close(found.landmarks(), clip.landmarks(), rtol=0, atol=1e-12)
        assert torch.equal(found.solved.joint_angles, clip.joint_angles)
        torch.testing.assert_close(
            found.solved.hand_model.landmark_rest_positions, clip.hand_model.landmark_rest_positions
        )
        assert found.solved.scale == 1.0


def test_pictures_are_decoded_once_and_in_turn(recording):
    """A clip is there before the frame behind it is asked for."""
    asked = []

    def pictures(start: int):
        for frame, images in enumerate(recording.pictures(start)):
            asked.append(frame)
            yield images

    clips = clips_of(replace(recording, pictures=pictures), 2)
    next(clips)
    assert asked == [0, 1]
    assert len(list(clips)) == 4
    assert asked == list(range(7))


def test_recordings_that_cannot_be_cut(recording):
    with pytest.raises(InputError, match="has no hand_model"):
        clips_of(replace(recording, hand_model=None), 2)
    with pytest.raises(InputError, match="clips of 0 frames"):
        clips_of(recording, 0)
    with pytest.raises(InputError, match="no pictures"):
        next(clips_of(replace(recording, pictures=None), 2))
