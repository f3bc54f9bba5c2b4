"""How sure a prediction is: the fit, its file, and the crops that it is fitted to."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY, tiny_recording

from lib.checkpoints import save_network
from lib.crops import Crops
from lib.errors import InputError
from lib.files import sha256_of
from lib.live.confidence import CLOSE_M, SIGNS, Confidence, confidence_path, read_confidence, signs
from lib.network import UmeTrack
from lib.recordings import read_recording
from lib.study import live_confidence
from lib.study.live_confidence import fit_confidence, judged_predictions, validation_keys, wandering_hands

HANDS_APART = 0.15


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "network.safetensors"
    save_network(UmeTrack(TINY), path)
    return path


@pytest.fixture
def recording(tmp_path):
    return read_recording(tiny_recording(6).write(tmp_path))


def test_the_fit_is_calibrated(rng):
    """Of hands whose odds are known, the fitted odds come near; signs of any size and offset."""
    seen = torch.from_numpy(rng.normal(size=(20_000, SIGNS)) * rng.uniform(0.1, 10, SIGNS) + rng.uniform(-5, 5, SIGNS))
    true = (seen[:, 0] - seen[:, 0].mean()) / seen[:, 0].std() * 2 - 0.5
    right = torch.from_numpy(rng.uniform(size=len(seen))) < true.sigmoid()
    fitted = Confidence.fit(seen, right).logit(seen).sigmoid()
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        part = (fitted >= low) & (fitted < low + 0.2)
        assert fitted[part].mean().item() == pytest.approx(right[part].double().mean().item(), abs=0.03)


def test_what_is_judged(rng):
    features = torch.from_numpy(rng.normal(size=(2, 72, 6, 6))).float()
    images, poses = torch.zeros(2, 2, 96, 96), torch.eye(4).expand(2, 2, 4, 4)
    crops = Crops(images, torch.full((2, 2), 100.0), poses, torch.arange(2), torch.tensor([True, False]))
    moved = torch.zeros(2, 21, 3).double()
    moved[1, :, 0] = 0.099
    judged = signs(features, crops, moved)
    assert judged.shape == (2, SIGNS)
    torch.testing.assert_close(judged[:, :72], features.mean(dim=(2, 3)))
    torch.testing.assert_close(
        judged[:, 144:].exp(), torch.tensor([[np.e, 100, 1e-3, 1e-3], [1, 100, 0.1, 0.1]]).float()
    )


def test_it_lies_beside_the_weights(weights):
    fitted = Confidence(torch.linspace(-1, 1, SIGNS).double(), 0.25)
    with pytest.raises(InputError, match=r"no file .*network\.confidence\.json.*fit-confidence --weights"):
        read_confidence(weights)
    fitted.save(confidence_path(weights), {"network_sha256": sha256_of(weights)})
    again = read_confidence(weights)
    assert torch.equal(again.weights, fitted.weights)
    assert again.bias == fitted.bias


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": [1.0]}, f"holds no {SIGNS} finite weights"),
        ({"weights": "many"}, "is no confidence of a network"),
        ({"bias": float("nan")}, "finite weights and a bias"),
        ({"network_sha256": "other"}, "was fitted to another network"),
    ],
)
def test_bad_files_are_refused(weights, change, message):
    path = confidence_path(weights)
    Confidence(torch.zeros(SIGNS).double(), 0.0).save(path, {"network_sha256": sha256_of(weights)})
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        read_confidence(weights)


def test_hands_wander(recording):
    """As far as is asked, the same with the same seed, and at times to the other hand."""
    still = replace(
        recording,
        posed=None,
        labelled=recording.labelled[:1].expand(400, -1),
        joint_angles=recording.joint_angles[:1].expand(400, -1, -1),
        world_from_wrist=recording.world_from_wrist[:1].expand(400, -1, -1, -1),
        world_from_camera=recording.world_from_camera[:1].expand(400, -1, -1, -1),
    )
    true = still.hands(0).landmarks()
    off = {}
    for far in (0.1, 0.006):
        hands = wandering_hands(still, far, False, np.random.default_rng(1))
        again = wandering_hands(still, far, False, np.random.default_rng(1))
        assert all(
            torch.equal(one.world_from_wrist, two.world_from_wrist) for one, two in zip(hands, again, strict=True)
        )
        off[far] = torch.stack([(h.landmarks() - true).mean(dim=1).norm(dim=-1) for h in hands])
    assert 0.005 < off[0.006].median() < 0.03
    assert 0.08 < off[0.1].median() < 0.4
    wrists = still.hands(0).wrists[:, :3, 3]
    at_other = torch.stack([(h.wrists[:, :3, 3] - wrists.flip(0)).norm(dim=-1) for h in hands]) < 0.5 * HANDS_APART
    assert (wrists[0] - wrists[1]).norm() > HANDS_APART
    assert 0 < at_other.double().mean() < 0.3


def test_a_network_is_judged_and_fitted(weights, recording, tmp_path, monkeypatch):
    seen, error = judged_predictions(weights, recording.path)
    assert seen.shape == (len(error), SIGNS)
    assert len(error) > 4 * 6
    assert error.isfinite().all()
    keys = validation_keys("smoke")
    assert len({(key.user, key.index) for key in keys}) == len(keys)
    monkeypatch.setattr(live_confidence, "write_sequences", lambda *_: None)
    monkeypatch.setattr(live_confidence, "in_processes", lambda jobs, *_: dict.fromkeys(jobs, (seen, error)))
    path = fit_confidence(weights, "smoke", tmp_path, 1)
    about = json.loads(path.read_text())
    assert about["hands"] == len(keys) * len(error)
    assert about["right"] == len(keys) * int((error < CLOSE_M).sum())
    assert read_confidence(weights).weights.isfinite().all()
