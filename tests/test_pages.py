"""The pages that show tracked hands, as a browser shows them, and the moving pictures."""

import re
from base64 import b64decode
from dataclasses import replace
from io import BytesIO
from itertools import pairwise

import numpy as np
import pytest
import torch
from browser import DESKTOP, PHONE
from conftest import HEIGHT, WIDTH, tiny_recording
from numpy.testing import assert_allclose
from PIL import Image
from playwright.sync_api import expect

from lib.cli import main
from lib.errors import InputError
from lib.hands import HandPoses
from lib.overlay import HAND_COLORS
from lib.recordings import Recording, read_recording
from lib.study.pages.loop import EmbeddedVideo, draw_meshes, pictures_of
from lib.study.pages.stage import stage_from_world
from lib.study.pages.viewer import TrackedRecording, packed, write_page
from lib.tracking import Tracks, true_keypoints
from lib.transforms import apply

FRAMES = 4


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Recording:
    return read_recording(tiny_recording(FRAMES).write(tmp_path_factory.mktemp("recording")))


def tracked(recording: Recording, shift_m: float) -> Tracks:
    """The labelled hands, moved along x of the world."""
    wrists = recording.world_from_wrist.transpose(0, 1).clone()
    wrists[..., 0, 3] += shift_m
    angles = recording.joint_angles.transpose(0, 1).contiguous()
    return Tracks.of_poses(
        HandPoses(recording.hand_model, angles, wrists, torch.ones(2, FRAMES).double()), true_keypoints(recording)
    )


@pytest.fixture(scope="module")
def page_file(recording, tmp_path_factory):
    """Two methods; a second recording whose true hands are not known, and whose hand has no mesh."""
    hidden = replace(recording, labelled=torch.zeros_like(recording.labelled))
    bare = replace(recording.hand_model, mesh_vertices=None, mesh_triangles=None, mesh_bone_weights=None)
    found = tracked(hidden, 0.01)
    path = tmp_path_factory.mktemp("pages") / "hands.html"
    methods = {"near": tracked(recording, 0.005), "far": tracked(recording, 0.05)}
    unlabelled = {"bare": replace(found, poses=replace(found.poses, model=bare))}
    write_page(path, [TrackedRecording("labelled", recording, methods), TrackedRecording("hidden", hidden, unlabelled)])
    return path


@pytest.fixture
def page(open_page, page_file):
    return open_page(page_file)


def picture(page, selector: str = "#scene") -> np.ndarray:
    """What is drawn when all that was asked for is drawn, RGB."""
    page.evaluate("() => new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
    png = page.locator(selector).screenshot()
    return np.array(Image.open(BytesIO(png)).convert("RGB")).astype(int)


def count(image: np.ndarray, hue: str) -> int:
    """Pixels that are rather vermilion or blue."""
    redder = image[..., 0] - image[..., 2]
    return int(((redder if hue == "vermilion" else -redder) > 60).sum())


def frame(page) -> int:
    return int(page.get_by_label("Frame", exact=True).input_value())


def test_hands_are_drawn_tracked_and_true(page):
    page.get_by_label("Method").select_option("far")
    with_truth = picture(page)
    assert count(with_truth, "vermilion") > 1000
    assert count(with_truth, "blue") > 1000
    page.get_by_label("True hands").uncheck()
    gained = with_truth - picture(page)
    changed = np.abs(gained).max(axis=-1) > 40
    assert changed.sum() > 500
    assert (gained[changed] @ (-1, 2, -1)).mean() > 20  # greener


def test_the_page_poses_meshes_as_the_library_does(page, recording):
    poses = tracked(recording, 0.05).poses
    stage = stage_from_world(recording, tracked(recording, 0.0).poses)
    for hand in range(2):
        vertices, _ = poses.mesh(hand, 2)
        ours = page.evaluate(f"[...pose(recordings[0].methods[1], {hand}, 2).vertices]")
        assert_allclose(np.reshape(ours, (-1, 3)), apply(stage, vertices).numpy(), rtol=0, atol=2e-4)


def test_errors_are_those_of_the_tracks(page):
    expect(page.locator("#reading")).to_contain_text("error left 5.0 mm, right 5.0 mm")
    expect(page.get_by_role("img", name="left hand 5.0 mm, right hand 5.0 mm")).to_be_visible()
    page.get_by_label("Method").select_option("far")
    expect(page.locator("#reading")).to_contain_text("left 50.0 mm")


def test_play_and_step(page):
    assert frame(page) == 0
    page.get_by_role("button", name="Next frame").click()
    assert frame(page) == 1
    page.get_by_role("button", name="Previous frame").click(click_count=2)
    assert frame(page) == FRAMES - 1
    page.get_by_label("Speed").select_option("0.1")
    page.get_by_role("button", name="Play").click()
    expect(page.get_by_label("Frame", exact=True)).not_to_have_value(str(FRAMES - 1))
    page.get_by_role("button", name="Pause").click()
    paused = frame(page)
    page.wait_for_timeout(700)  # two frames at this speed
    assert frame(page) == paused


def test_it_plays_by_itself_unless_motion_is_unwelcome(open_page, page_file):
    page = open_page(page_file, reduced_motion="no-preference")
    expect(page.get_by_role("button", name="Pause")).to_be_visible()


def test_recording_method_and_frame_change_what_is_drawn(page):
    pictures = [picture(page)]
    page.get_by_label("Method").select_option("far")
    pictures.append(picture(page))
    page.get_by_label("Frame", exact=True).fill("3")
    pictures.append(picture(page))
    page.get_by_label("Recording").select_option("hidden")
    pictures.append(picture(page))
    for before, after in pairwise(pictures):
        assert (np.abs(before - after) > 40).any(axis=-1).sum() > 100


def test_a_recording_without_labels_and_mesh(page):
    page.get_by_label("Recording").select_option("hidden")
    lines = picture(page)
    assert page.get_by_label("True hands").is_disabled()
    assert 20 < count(lines, "vermilion") < 1000
    assert count(picture(page, "figure:nth-child(1) canvas"), "vermilion") > 20
    expect(page.locator("#reading")).to_contain_text("left —, right —")


def test_crops_are_those_of_the_recording(page, recording):
    """Noise comes through lossy compression as what it is on average."""
    assert page.evaluate("recordings[0].crops.views[0]") == [2, 2]
    mean = [picture(page, f"figure:nth-child({index}) canvas").mean() for index in (1, 2, 3, 4)]
    assert min(mean) > 80


def test_every_control_has_a_name(page):
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    controls = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if any(p["name"] == "focusable" and p["value"]["value"] for p in node.get("properties", ()))
        and node["role"]["value"] not in ("RootWebArea", "MenuListPopup", "option")
    ]
    assert len(controls) >= 10
    assert all(name for _, name in controls), controls


def test_everything_can_be_done_by_keyboard(page):
    controls = page.locator("button, select, input, canvas[tabindex]")
    ids = {controls.nth(index).get_attribute("id") for index in range(controls.count())}
    reached = set()
    for _ in ids:
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert reached == ids
    page.locator("#scene").focus()
    home = picture(page)
    for key in ("ArrowLeft", "ArrowUp", "+"):
        before = picture(page)
        page.keyboard.press(key)
        assert (before != picture(page)).any(), key
    page.keyboard.press("Home")
    assert (picture(page) == home).all()
    page.keyboard.press(".")
    assert frame(page) == 1
    page.keyboard.press(",")
    assert frame(page) == 0
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="Pause")).to_be_visible()


def test_mouse_and_wheel_turn_and_zoom(page):
    before = picture(page)
    page.mouse.move(400, 300)
    page.mouse.down()
    page.mouse.move(500, 320)
    page.mouse.up()
    turned = picture(page)
    assert (before != turned).any()
    page.locator("#scene").dispatch_event("wheel", {"deltaY": -300})
    assert count(picture(page), "blue") > count(turned, "blue")


def test_a_phone_shows_all_of_it(open_page, page_file):
    page = open_page(page_file, viewport=PHONE, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    assert count(picture(page), "vermilion") > 500
    page.get_by_role("button", name="Next frame").tap()
    assert frame(page) == 1
    bottom = page.locator("#controls").evaluate("(controls) => controls.getBoundingClientRect().bottom")
    assert bottom <= PHONE["height"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(open_page, page_file, scheme):
    """WCAG AA: 4.5 for text, 3 for what else carries meaning."""
    page = open_page(page_file, viewport=DESKTOP, color_scheme=scheme)

    def luminance(name: str) -> float:
        rgb = np.array(page.evaluate(f"rgb('{name}')"))
        return float(np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722))

    for names, least in {("text", "quiet"): 4.5, ("left", "right", "true", "faint", "line", "accent"): 3.0}.items():
        for name in names:
            for ground in ("page", "panel"):
                low, high = sorted((luminance(name), luminance(ground)))
                assert (high + 0.05) / (low + 0.05) >= least, (name, ground)
    assert page.evaluate("rgb('page')[0] > 0.5") == (scheme == "light")


def test_without_webgl_the_page_says_so(open_page, page_file):
    none = (
        "HTMLCanvasElement.prototype.getContext = ((of) => function (kind, ...more) {"
        "return kind === 'webgl2' ? null : of.call(this, kind, ...more); })(HTMLCanvasElement.prototype.getContext)"
    )
    page = open_page(page_file, before=none)
    expect(page.get_by_role("alert")).to_contain_text("WebGL")
    page.get_by_role("button", name="Next frame").click()
    assert frame(page) == 1


def test_tracks_must_have_the_poses_of_the_recording(recording, tmp_path):
    without = replace(tracked(recording, 0.0), poses=None)
    with pytest.raises(InputError, match="expected the poses of 4 frames"):
        write_page(tmp_path / "hands.html", [TrackedRecording("a", recording, {"method": without})])
    assert not list(tmp_path.iterdir())


def test_the_command_shows_tracks_of_ones_own(recording, tmp_path, capsys):
    tracked(recording, 0.005).save(tmp_path / "mine.npz", 30.0)
    arguments = ["viewer", "--output", str(tmp_path / "hands.html"), "--recording", str(recording.path)]
    assert main(arguments) == 2
    assert "needs both --recording and --tracks" in capsys.readouterr().err
    assert main([*arguments, "--tracks", str(tmp_path / "mine.npz")]) == 0
    text = (tmp_path / "hands.html").read_text()
    assert '"name":"mine"' in text
    assert not re.search(r"(src|href)=\"(?!data:)", text)


def test_packed_numbers_are_near_their_values(rng):
    values = rng.normal(size=(3, 4))
    stored = packed(values)
    integers = np.frombuffer(b64decode(stored["int16"]), "<i2").reshape(stored["shape"])
    assert_allclose(integers * stored["scale"], values, rtol=0, atol=np.abs(values).max() / 32767)


def test_the_loop_shows_hands_in_both_views_and_in_space(recording):
    frames = list(pictures_of(recording, tracked(recording, 0.0)))
    assert len(frames) == FRAMES
    for panel in np.split(frames[0].astype(int), [266, 532], axis=1):
        assert count(panel, "vermilion") > 100
        assert count(panel, "blue") > 100


def test_near_surfaces_hide_far_ones(recording):
    """A second hand in the same line of sight, half as far again, is hidden whichever comes first."""
    camera = recording.cameras(0)[1]
    vertices, triangles = tracked(recording, 0.0).poses.mesh(0, 0)
    center = camera.world_from_camera[:3, 3]
    near = (vertices, triangles, HAND_COLORS[0])
    far = (center + 1.5 * (vertices - center), triangles, HAND_COLORS[1])
    drawn = []
    for meshes in ([near], [near, far], [far, near]):
        drawn.append(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
        draw_meshes(drawn[-1], camera, meshes)
    assert count(drawn[0].astype(int), "vermilion") > 50
    for picture_of_both in drawn[1:]:
        assert count(picture_of_both.astype(int), "blue") < 5


def test_a_video_in_a_notebook_has_words_beside_it():
    video = EmbeddedVideo(b"\0\1", "Video: two hands")
    assert 'aria-label="Video: two hands"' in video._repr_html_()
    assert "data:video/mp4;base64,AAE=" in video._repr_html_()
    assert repr(video) == "Video: two hands"
