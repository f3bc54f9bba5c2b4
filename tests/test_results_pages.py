"""The pages of results say what the tables say, and are otherwise left alone."""

import json
from pathlib import Path

import pandas as pd
import pytest
from made_up_predictions import study

from lib.cli import main
from lib.errors import InputError
from lib.study.claims import claims_table
from lib.study.results import save_table
from lib.study.results_pages import BEGIN, END, RESULTS_PAGES, all_results, main_result, write_results
from lib.study.tables import ablation_table, measure, multistage_table, pinch_table, training_table


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    """The tables of a made-up study, and two runs."""
    monkeypatch.setattr("lib.study.results.ROOT", tmp_path)
    predictions = study()
    cells = measure(predictions)
    save_table(ablation_table(cells), "tiny", "table2_ablation")
    save_table(multistage_table(cells), "tiny", "table3_multistage")
    save_table(pinch_table(cells), "tiny", "table4_pinch")
    save_table(claims_table(predictions, cells), "tiny", "claims")
    folder = tmp_path / "results" / "tiny"
    for name, network in (("full", {"stem": "unshuffle", "widths": [24, 48]}), ("keynet", {"keypoint_input": True})):
        run = folder / "runs" / name
        run.mkdir(parents=True)
        machines = [{"device": "abacus", "threads": n} for n in (1, 2, 2)]
        sessions = [{"commit": "abc", "machine": one, "precision": "float32"} for one in machines]
        training = {"steps": 500, "seed": 0, "network": network, "pretrained": "keynet"}
        about = {"training": training, "sessions": sessions}
        (run / "config.json").write_text(json.dumps(about))
        pd.DataFrame({"step": [249, 499], "crops": [4000, 8000], "seconds": [60.0, 119.0]}).to_csv(
            run / "curve.csv", index=False
        )
    save_table(training_table("tiny", "full", {"known": predictions["full", "known"]}), "tiny", "training")
    return folder


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder with both pages of results."""
    for name in RESULTS_PAGES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"# Title\n\n{BEGIN}\nold results\n{END}\n\nThe end.\n")
    return tmp_path


def row(text: str, start: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_number_beside_that_of_the_paper(results):
    text = all_results("tiny")
    first = pd.read_csv(results / "tables" / "table2_ablation.csv").iloc[0]
    expected = [f"{first.mpjpe_mm:.1f} (49.8)", f"{first.mpjpa_mm_per_frame2:.2f} (6.29)"]
    assert row(text, "`no_ftl` | L_pose") == ["`no_ftl`", "L_pose", *expected]
    table = pd.read_csv(results / "tables" / "table3_multistage.csv")
    ours = table[(table.method == "multistage") & (table.skeleton == "unknown") & (table.protocol == "hand_hand")]
    expected = f"{ours.mpjpe_mm.item():.1f} / {ours.mpjpa_mm_per_frame2.item():.2f} (13.6 / 3.33)"
    (line,) = [line for line in text.splitlines() if "(9.9 / 3.48)" in line]
    assert line.startswith("| `multistage` |")
    assert line.endswith(f"| {expected} |")
    assert row(text, "method | known")[1:] == [
        "known, separate-hand", "known, hand-hand", "unknown, separate-hand", "unknown, hand-hand"
    ]  # fmt: skip
    assert "| `full_temporal_loss` | 100.0 (92.2) | 100.0 (90.8) |" in text


def test_what_was_trained(results):
    text = all_results("tiny")
    assert row(text, "`full` | unshuffle")[1:] == [
        "unshuffle stem, 24-48 channels, begins as `keynet`",
        "500",
        "8,000",
        "2",
        "abacus, float32, threads: 1 then 2",
    ]
    assert row(text, "`keynet`")[1] == "of the baseline"


def test_what_was_reached(results):
    reached = pd.read_csv(results / "tables" / "training.csv").iloc[0]
    line = row(all_results("tiny"), "`full` | known | separate-hand")
    assert line[3] == f"{reached.mpjpe_mm:.1f} [{reached.low:.1f}, {reached.high:.1f}]"
    assert reached.low <= reached.mpjpe_mm <= reached.high
    assert (reached.crops, reached.minutes, reached.machine) == (8000, 2, "abacus, float32, threads: 1 then 2")


def test_before_all_networks_are_trained(results):
    for name in ("table2_ablation", "table3_multistage", "table4_pinch", "claims"):
        (results / "tables" / f"{name}.csv").unlink()
    text = all_results("tiny")
    assert "| `full` | known |" in text
    assert "Table 2" not in text
    assert "|" not in main_result("tiny")


def test_claims_that_do_not_hold_are_told(results):
    text = all_results("tiny")
    claims = pd.read_csv(results / "tables" / "claims.csv")
    assert f"{claims.holds.sum()} of {len(claims)} claims hold" in text
    assert text.count("| **contradicted** |") + text.count("| **inconclusive** |") == (~claims.holds).sum() > 0
    assert text.count("| holds |") == claims.holds.sum() > 0


def test_the_main_result_beside_the_paper_and_its_correction(results):
    text = main_result("tiny")
    table = pd.read_csv(results / "tables" / "table3_multistage.csv")
    ours = table[table.method == "full_temporal_pinch_loss"].iloc[0]
    assert row(text, "UmeTrack, ours")[1] == f"{ours.mpjpe_mm:.1f} / {ours.mpjpa_mm_per_frame2:.2f}"
    assert row(text, "UmeTrack, paper |")[1:] == ["9.4 / 2.65", "10.6 / 2.68", "11.4 / 2.60", "12.2 / 2.65"]
    assert row(text, "UmeTrack, paper, corrected")[1:] == ["9.4 / 3.92", "10.6 / 3.47", "10.0 / 3.86", "10.9 / 3.44"]
    assert row(text, "multi-stage, paper, corrected")[1:] == ["9.9 / 4.63", "10.8 / 4.09", "12.9 / 4.67", "13.6 / 4.17"]


def test_only_what_stands_between_the_marks_changes(results, root):
    write_results("tiny", root)
    once = [(root / name).read_text() for name in RESULTS_PAGES]
    for text, beginning in zip(once, ("MPJPE (mm) / MPJPA", "**What the released network"), strict=True):
        assert text.startswith(f"# Title\n\n{BEGIN}\n\n{beginning}")
        assert text.endswith(f"|\n\n{END}\n\nThe end.\n")
        assert "old results" not in text
    write_results("tiny", root)
    assert [(root / name).read_text() for name in RESULTS_PAGES] == once


@pytest.mark.parametrize("text", ["", f"{BEGIN}\n", f"{END}\n", f"{END}\n{BEGIN}\n", f"{BEGIN}\n{BEGIN}\n{END}\n"])
def test_marks_that_are_missing(results, root, text):
    page = root / "results" / "README.md"
    page.write_text(text)
    before = (root / "README.md").read_text()
    with pytest.raises(InputError, match=r"results/README\.md must hold the lines"):
        write_results("tiny", root)
    assert page.read_text() == text
    assert (root / "README.md").read_text() == before


@pytest.mark.parametrize("missing", ["tables/claims.csv", "tables/table3_multistage.csv"])
def test_missing_results_leave_the_pages_alone(results, root, missing, monkeypatch, capsys):
    (results / missing).unlink()
    monkeypatch.setattr("lib.cli.study.ROOT", root)
    before = [(root / name).read_text() for name in RESULTS_PAGES]
    assert main(["results", "--profile", "tiny"]) == 2
    assert "run make study PROFILE=tiny" in capsys.readouterr().err
    assert [(root / name).read_text() for name in RESULTS_PAGES] == before
    assert not [*root.glob(".*"), *(root / "results").glob(".*")]
