from dataclasses import replace

import pandas as pd
import pytest
from conftest import TINY
from tiny_runs import CONFIG, made_up_data

from lib.checkpoints import save_network
from lib.errors import InputError
from lib.files import read_json, write_atomically
from lib.losses import LossWeights
from lib.multistage.keypoints import KeyNet, pretrain
from lib.network import UmeTrack
from lib.rendered.shape import generic_hand
from lib.study import recipe
from lib.study.experiments import EXPERIMENTS


@pytest.fixture
def trained(tmp_path, monkeypatch) -> list[str]:
    """What is trained, in place of which a row is made up; there is one file of data."""
    asked = []

    def train(name, profile, folder, data_folder, generic, device, crops, precision):
        asked.append(name)
        return {"variant": name, "crops_asked": crops, "known_mpjpe_mm": float(len(asked))}

    monkeypatch.setattr("lib.study.recipe._train", train)
    monkeypatch.setattr("lib.study.results.ROOT", tmp_path)
    index = tmp_path / "data" / "training.json"
    index.parent.mkdir()
    write_atomically(index, lambda path: path.write_text('{"sha256": {"crops/a.npy": "1"}}'))
    begins_with(tmp_path, "one")
    return asked


def begins_with(tmp_path, content: str) -> None:
    weights = tmp_path / "results/tiny/checkpoints/keynet_image_only.safetensors"
    write_atomically(weights, lambda path: path.write_text(content))


def search(tmp_path, *names: str) -> pd.DataFrame:
    return recipe.search("tiny", tmp_path / "data", generic_hand(), "cpu", 100, names)


def test_a_variant_is_trained_once(trained, tmp_path):
    search(tmp_path, "base", "U weighs 0")
    assert search(tmp_path, "U weighs 0", "base", "batch x2").variant.tolist() == ["base", "U weighs 0", "batch x2"]
    assert trained == ["base", "U weighs 0", "batch x2"]


def test_another_configuration_other_data_or_another_beginning_replace_the_row(trained, tmp_path, monkeypatch):
    search(tmp_path, "base", "U weighs 0")
    monkeypatch.setitem(recipe.VARIANTS, "base", recipe.BASE.in_both(hands=8))
    table = search(tmp_path, "base", "U weighs 0").set_index("variant")
    assert table.known_mpjpe_mm.to_dict() == {"U weighs 0": 2.0, "base": 3.0}
    (tmp_path / "data" / "training.json").write_text('{"sha256": {"crops/a.npy": "2"}}')
    assert search(tmp_path, "base").known_mpjpe_mm.tolist() == [2.0, 4.0]
    begins_with(tmp_path, "another")
    assert search(tmp_path, "base").known_mpjpe_mm.tolist() == [2.0, 5.0]


def test_an_unknown_variant_lists_what_there_is(trained, tmp_path):
    with pytest.raises(InputError, match="no variant larger; there are base"):
        search(tmp_path, "larger")


def test_every_variant_has_the_layers_of_the_encoder_that_it_begins_with(tmp_path):
    first = [variant.phases[0] for variant in recipe.VARIANTS.values()]
    networks = {(config.pretrained, config.network) for config in first if config.pretrained}
    for name, network in networks:
        save_network(KeyNet(EXPERIMENTS[name].network), tmp_path / "weights.safetensors", {})
        pretrain(UmeTrack(network).backbone, tmp_path / "weights.safetensors")
    assert networks


def test_rows_of_earlier_versions_are_trained_anew(trained, tmp_path):
    """They do not say what they are of."""
    search(tmp_path, "base")
    path = tmp_path / "results/tiny/tables/recipe.csv"
    pd.read_csv(path).drop(columns="identity").to_csv(path, index=False)
    assert search(tmp_path, "base").known_mpjpe_mm.tolist() == [2.0]


def test_a_variant_goes_through_both_phases_briefly(tmp_path, monkeypatch):
    data = made_up_data(tmp_path)
    pose = LossWeights(temporal=0.0, pinch=0.0)
    first = replace(CONFIG, clip_frames=1, weights=pose, network=replace(TINY, temporal_module=False), steps=30)
    base = recipe.Recipe(first, replace(CONFIG, steps=10))
    monkeypatch.setattr("lib.study.recipe.BASE", base)
    monkeypatch.setattr("lib.study.recipe._loaded_once", lambda folder, device: data)
    monkeypatch.setitem(recipe.VARIANTS, "base", base)
    monkeypatch.setitem(recipe.VARIANTS, "in one", base.in_one())
    for name, steps in (("base", [3, 1]), ("in one", [4])):
        folder = tmp_path / name
        row = recipe._train(name, "tiny", folder, tmp_path, generic_hand(), "cpu", 64, "float32")
        trained = [read_json(path)["training"]["steps"] for path in sorted(folder.glob("*/config.json"))]
        assert (trained, row["steps"]) == (steps, sum(steps))
        assert row["crops"] == 16 * sum(steps)
        assert row["known_mpjpe_mm"] > 0
