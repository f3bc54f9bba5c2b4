"""Portraits of the hand: who is where in the picture, at which size, and that the figures show everything."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from lib.hands import INDEX_TIP, THUMB_TIP
from lib.rendered.shape import generic_hand, user_hand, user_scale
from lib.study.figures.portraits import hand_figure, limits_figure, pinch_angles, portrait, users_figure
from lib.study.inspection import JOINT_NAMES

REST = torch.zeros(22)
WHITE = 255


@pytest.fixture(autouse=True)
def no_open_figures():
    yield
    plt.close("all")


def silhouette(*arguments, **options) -> np.ndarray:
    return portrait(generic_hand(), *arguments, size=120, **options) < WHITE


def test_a_left_hand_from_its_back_has_the_thumb_on_the_right():
    back, palm = silhouette(REST, "back"), silhouette(REST, "palm")
    columns = np.flatnonzero(back.any(axis=0))
    arm = np.flatnonzero(back[-1]).mean()
    assert columns[-1] - arm > 1.2 * (arm - columns[0])
    assert (back[:, ::-1] != palm).mean() < 0.02
    assert back[-1].any(), "the arm leaves the picture below"
    assert not back[0].any()
    assert not back[:, [0, -1]].any()


def test_the_hand_is_narrower_from_its_sides():
    widths = {view: silhouette(REST, view).any(axis=0).sum() for view in ("back", "thumb side", "little finger side")}
    assert widths["thumb side"] < 0.7 * widths["back"]
    assert abs(widths["thumb side"] - widths["little finger side"]) <= 2


def test_fingers_point_up_and_bend_towards_the_camera_at_the_palm():
    angles = REST.clone()
    angles[9] = 1.4  # the middle finger's MCP joint
    straight, bent = silhouette(REST, "palm"), silhouette(angles, "palm")
    assert np.argmax(bent.any(axis=1)) > np.argmax(straight.any(axis=1)) + 3
    from_thumb = silhouette(angles, "thumb side")
    assert from_thumb.any(axis=0).nonzero()[0].max() > silhouette(REST, "thumb side").any(axis=0).nonzero()[0].max() + 3


def test_all_portraits_of_one_field_have_one_scale():
    def width(user: int, field: float) -> float:
        return np.ptp(np.flatnonzero((portrait(user_hand(user), REST, "back", 300, field) < WHITE).any(axis=0)))

    assert width(48, 0.5) == pytest.approx(width(48, 0.25) / 2, abs=2)
    assert width(48, 0.3) / width(44, 0.3) == pytest.approx(user_scale(48) / user_scale(44), rel=0.12)


def test_shading_is_soft_and_repeats_bit_by_bit():
    picture = portrait(generic_hand(), REST, "oblique", size=200)
    np.testing.assert_array_equal(picture, portrait(generic_hand(), REST, "oblique", size=200))
    skin = picture[picture < WHITE]
    assert 110 < np.median(skin) < 220
    assert np.quantile(skin, 0.9) - np.quantile(skin, 0.1) > 25
    assert np.quantile(skin, 0.01) > 30


@pytest.mark.parametrize("user", [None, 0, 44, 52])
def test_a_pinch_touches(user: int | None):
    hand = generic_hand() if user is None else user_hand(user)
    landmarks = hand.landmarks(pinch_angles(hand).float(), torch.eye(4))
    assert (landmarks[THUMB_TIP] - landmarks[INDEX_TIP]).norm() < 0.010


def test_figures_show_everything(monkeypatch):
    monkeypatch.setattr("lib.study.figures.portraits.portrait", lambda *_, **__: np.zeros((8, 8), np.uint8))
    assert len(hand_figure().axes) == 8
    limits = limits_figure()
    titles = [axes.get_title(loc="left") for axes in limits.axes if axes.get_title(loc="left")]
    assert titles == list(JOINT_NAMES)
    labels = [axes.texts[0].get_text() for axes in limits.axes]
    degrees = generic_hand().joint_limits[:20].rad2deg().round().int().flatten().tolist()
    assert labels == [f"{angle}°" for angle in degrees]
    users = [axes.get_title() for axes in users_figure((44, 48, 52)).axes]
    assert users == [f"user {user}: {user_scale(user):.2f}" for user in (44, 52, 48)]
