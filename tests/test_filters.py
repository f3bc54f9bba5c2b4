"""The One-Euro filter is the published one, forgets lost hands, and is tuned as it says."""

import numpy as np
import pytest

from lib.errors import InputError
from lib.filters import BETAS, FRAMES_PER_SECOND, OneEuroFilter, search_one_euro
from lib.metrics import mpjpa, mpjpe

FRAMES = 60
ALL = np.ones((1, FRAMES), bool)


def moving_along_x(positions: np.ndarray) -> np.ndarray:
    """One hand whose landmarks all move along x, mm."""
    keypoints = np.zeros((1, len(positions), 21, 3))
    keypoints[0, :, :, 0] = positions[:, None]
    return keypoints


def noisy_wave(rng) -> tuple[np.ndarray, np.ndarray]:
    """A waving hand, and how it is tracked: with noise of 2 mm in every coordinate."""
    true = moving_along_x(100 * np.sin(np.arange(FRAMES) / 8))
    return true + 2 * rng.normal(size=true.shape), true


def published_filter(values: list[float], min_cutoff: float, beta: float) -> list[float]:
    """Algorithm 1 of Casiez et al. 2012 for one number, written out."""

    def alpha(cutoff: float) -> float:
        tau = 1 / (2 * np.pi * cutoff)
        return 1 / (1 + tau * FRAMES_PER_SECOND)

    filtered, speed = [values[0]], 0.0
    for value in values[1:]:
        speed = alpha(1.0) * (value - filtered[-1]) * FRAMES_PER_SECOND + (1 - alpha(1.0)) * speed
        weight = alpha(min_cutoff + beta * abs(speed))
        filtered.append(weight * value + (1 - weight) * filtered[-1])
    return filtered


@pytest.mark.parametrize("beta", [0.0, 0.003, 0.1])
def test_along_one_axis_it_is_the_published_filter(rng, beta):
    positions = np.cumsum(rng.normal(size=FRAMES)) * 10
    filtered = OneEuroFilter(1.5, beta)(moving_along_x(positions), ALL)
    expected = moving_along_x(np.array(published_filter(positions.tolist(), 1.5, beta)))
    np.testing.assert_allclose(filtered, expected, atol=1e-9)


def test_the_axes_do_not_matter(rng):
    tracked, _ = noisy_wave(rng)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    smoothing = OneEuroFilter(1.0, 0.01)
    np.testing.assert_allclose(smoothing(tracked @ rotation, ALL), smoothing(tracked, ALL) @ rotation, atol=1e-9)


def test_a_lost_hand_starts_afresh(rng):
    tracked, _ = noisy_wave(rng)
    valid = ALL.copy()
    valid[0, 20:25] = False
    smoothing = OneEuroFilter(1.0, 0.0)
    filtered = smoothing(tracked, valid)
    np.testing.assert_array_equal(filtered[:, :20], smoothing(tracked[:, :20], ALL[:, :20]))
    np.testing.assert_array_equal(filtered[:, 20:25], tracked[:, 20:25])
    np.testing.assert_array_equal(filtered[:, 25:], smoothing(tracked[:, 25:], ALL[:, 25:]))


def run(smoothing: OneEuroFilter, keypoints: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Filtered frame by frame, as a live tracker does."""
    state, filtered = None, []
    for frame, time in enumerate(times):
        state = smoothing.smooth(keypoints[:, frame], ALL[:, frame], float(time), state)
        filtered.append(state.keypoints_mm)
    return np.stack(filtered, axis=1)


def test_frame_by_frame_it_is_the_same_filter(rng):
    tracked, _ = noisy_wave(rng)
    smoothing = OneEuroFilter(1.0, 0.01)
    times = np.arange(FRAMES) / FRAMES_PER_SECOND
    np.testing.assert_allclose(run(smoothing, tracked, times), smoothing(tracked, ALL), atol=1e-9)
    some = slice(None, None, 3)
    slower = OneEuroFilter(1.0, 0.01, FRAMES_PER_SECOND / 3)
    np.testing.assert_allclose(run(slower, tracked[:, some], times[some]), slower(tracked[:, some], ALL[:, some]))


@pytest.mark.parametrize("wrong", [(0.0, 0.1), (1.0, -0.1), (float("nan"), 0.1)])
def test_what_is_no_filter_is_refused(wrong):
    with pytest.raises(InputError, match="expected a cutoff above 0 and a beta that is not below"):
        OneEuroFilter(*wrong)


def test_smooth_at_rest_and_quick_in_motion(rng):
    """Beta leaves the noise of a resting hand filtered, and takes most of the lag from a moving one."""
    resting = 2 * rng.normal(size=(1, FRAMES, 21, 3))
    moving = moving_along_x(30.0 * np.arange(FRAMES))
    stiff, adaptive = OneEuroFilter(0.5, 0.0), OneEuroFilter(0.5, 0.01)
    assert mpjpa(adaptive(resting, ALL), ALL) < 0.5 * mpjpa(resting, ALL)
    assert mpjpe(adaptive(moving, ALL), moving, ALL) < 0.3 * mpjpe(stiff(moving, ALL), moving, ALL)


def test_the_search_finds_the_least_error_at_the_jitter_asked_for(rng):
    tracked, true = noisy_wave(rng)
    target = 0.6 * mpjpa(tracked, ALL)
    smoothing, tried = search_one_euro(tracked, true, ALL, target)
    filtered = smoothing(tracked, ALL)
    assert mpjpa(filtered, ALL) == pytest.approx(target, rel=0.01)
    reached = tried[tried.mpjpa_mm_per_frame2 <= 1.01 * target]
    assert mpjpe(filtered, true, ALL) == pytest.approx(reached.mpjpe_mm.min())
    assert tried.beta.tolist() == list(BETAS)
    assert tried.beta[tried.chosen].tolist() == [smoothing.beta]


def test_nothing_is_filtered_where_the_jitter_is_low_enough(rng):
    tracked, true = noisy_wave(rng)
    smoothing, _ = search_one_euro(tracked, true, ALL, 2 * mpjpa(tracked, ALL))
    np.testing.assert_allclose(smoothing(tracked, ALL), tracked, atol=1.0)


def test_an_unreachable_jitter_gives_the_smoothest(rng):
    tracked, true = noisy_wave(rng)
    smoothing, tried = search_one_euro(tracked, true, ALL, 1e-6)
    assert mpjpa(smoothing(tracked, ALL), ALL) == pytest.approx(tried.mpjpa_mm_per_frame2.min())
