"""The README says what the tables say, and is otherwise left alone."""

import json
from pathlib import Path

import pandas as pd
import pytest
from made_up_predictions import study

from lib.cli import main
from lib.errors import InputError
from lib.study.claims import claims_table
from lib.study.report import BEGIN, END, results_section, write_report
from lib.study.results import save_table
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
def readme(tmp_path) -> Path:
    path = tmp_path / "README.md"
    path.write_text(f"# Title\n\n{BEGIN}\nold results\n{END}\n\nThe end.\n")
    return path


def row(text: str, start: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_number_beside_that_of_the_paper(results):
    text = results_section("tiny")
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
    text = results_section("tiny")
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
    line = row(results_section("tiny"), "`full` | known | separate-hand")
    assert line[3] == f"{reached.mpjpe_mm:.1f} [{reached.low:.1f}, {reached.high:.1f}]"
    assert reached.low <= reached.mpjpe_mm <= reached.high
    assert (reached.crops, reached.minutes, reached.machine) == (8000, 2, "abacus, float32, threads: 1 then 2")


def test_before_all_networks_are_trained(results):
    for name in ("table2_ablation", "table3_multistage", "table4_pinch", "claims"):
        (results / "tables" / f"{name}.csv").unlink()
    text = results_section("tiny")
    assert "| `full` | known |" in text
    assert "Table 2" not in text


def test_claims_that_do_not_hold_are_told(results):
    text = results_section("tiny")
    claims = pd.read_csv(results / "tables" / "claims.csv")
    assert f"{claims.holds.sum()} of {len(claims)} claims hold" in text
    assert text.count("| **contradicted** |") + text.count("| **inconclusive** |") == (~claims.holds).sum() > 0
    assert text.count("| holds |") == claims.holds.sum() > 0


def test_only_what_stands_between_the_marks_changes(results, readme):
    write_report("tiny", readme)
    once = readme.read_text()
    assert once.startswith(f"# Title\n\n{BEGIN}\n\n**What the released network")
    assert once.endswith(f"|\n\n{END}\n\nThe end.\n")
    assert "old results" not in once
    write_report("tiny", readme)
    assert readme.read_text() == once


@pytest.mark.parametrize("text", ["", f"{BEGIN}\n", f"{END}\n", f"{END}\n{BEGIN}\n", f"{BEGIN}\n{BEGIN}\n{END}\n"])
def test_marks_that_are_missing(results, readme, text):
    readme.write_text(text)
    with pytest.raises(InputError, match="must hold the lines"):
        write_report("tiny", readme)
    assert readme.read_text() == text


@pytest.mark.parametrize("missing", ["tables/claims.csv", "tables/table3_multistage.csv"])
def test_missing_results_leave_the_readme_alone(results, readme, missing, monkeypatch, capsys):
    (results / missing).unlink()
    monkeypatch.setattr("lib.cli.study.ROOT", readme.parent)
    before = readme.read_text()
    assert main(["report", "--profile", "tiny"]) == 2
    assert "run make study PROFILE=tiny" in capsys.readouterr().err
    assert readme.read_text() == before
    assert not list(readme.parent.glob(".*"))
