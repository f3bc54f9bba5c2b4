"""Tables and figures made on another processor are the same files."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from lib.study import results
from lib.study.figures.style import use_style
from lib.study.results import results_folder, save_figure, save_picture, save_table

TABLE = pd.DataFrame(
    {
        "method": ["full", "multistage"],
        "mpjpe_mm": [10.4567891234, np.nan],
        "change": [1e-9, -0.123456789],
        "crops": [3238720, 2731860],
        "sha256": ["12345678e78", "9e99999"],
    }
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "ROOT", tmp_path)


def table_after(*tables: pd.DataFrame) -> str:
    for table in tables:
        save_table(table, "tiny", "table")
    return (results_folder("tiny") / "tables" / "table.csv").read_text()


def changed(column: str, value: object) -> pd.DataFrame:
    """The table with another value in its second row."""
    table = TABLE.copy()
    table[column] = [table[column][0], value]
    return table


def test_numbers_have_five_digits():
    first, second = table_after(TABLE).splitlines()[1:]
    assert first == "full,10.457,1e-09,3238720,12345678e78"
    assert second == "multistage,,-0.12346,2731860,9e99999"
    assert "\nfull,1234568.0," in table_after(TABLE.assign(mpjpe_mm=1234567.8))
    assert "\nfull,-2.0," in table_after(TABLE.assign(mpjpe_mm=-2.0))


@pytest.mark.parametrize(
    ("column", "value", "same"),
    [
        ("change", -0.123456789 + 1e-12, True),
        ("change", -0.12345, True),  # rounded to another last digit
        ("change", -0.1235, False),
        ("change", np.nan, False),
        ("mpjpe_mm", 1.0, False),
        ("crops", 2731861, False),
        ("method", "hybrid", False),
        ("sha256", "9e99998", False),  # infinite as numbers
    ],
)
def test_a_table_is_written_anew_only_if_a_number_changed(column, value, same):
    assert (table_after(TABLE, changed(column, value)) == table_after(TABLE)) == same


def test_another_row_or_column_is_another_table():
    assert len(table_after(TABLE, TABLE[:1]).splitlines()) == 2
    assert table_after(TABLE[:1], TABLE[:1].assign(more=1)).splitlines()[0].endswith(",more")


def test_a_table_of_times_is_written_once():
    first = table_after(TABLE)
    save_table(TABLE[:1], "tiny", "table", once=True)
    assert table_after() == first


def curve(shift: float = 0.0) -> Figure:
    """A line with markers in clipped axes; 4 mm of `shift` are the height of the axes."""
    use_style()
    figure, axes = plt.subplots(figsize=(2, 2))
    axes.plot(np.linspace(0, 1, 9), np.linspace(0, 4, 9) ** 0.5 + shift, "o-")
    axes.set(ylim=(0, 4))
    return figure


def figure_after(*figures: Figure) -> dict[str, bytes]:
    for figure in figures:
        save_figure(figure, "tiny", "curve")
    plt.close("all")
    return {path.suffix: path.read_bytes() for path in (results_folder("tiny") / "figures").iterdir()}


def test_a_figure_is_drawn_anew_only_if_it_looks_otherwise():
    first = figure_after(curve())
    assert figure_after(curve(shift=1e-6)) == first
    second = figure_after(curve(shift=0.1))
    assert all(second[suffix] != first[suffix] for suffix in (".png", ".svg"))


def test_the_bytes_of_a_drawing_do_not_depend_on_rounding(tmp_path, monkeypatch):
    first = figure_after(curve())
    monkeypatch.setattr(results, "ROOT", tmp_path / "another machine")
    assert figure_after(curve(shift=1e-9)) == first
    assert b"shape_0" in first[".svg"]


def test_half_a_figure_is_made_whole():
    whole = figure_after(curve())
    (results_folder("tiny") / "figures" / "curve.svg").unlink()
    assert figure_after(curve()) == whole


def test_a_picture_is_kept_if_it_looks_the_same():
    picture = np.full((8, 8), 100, np.uint8)
    path = save_picture(picture, "tiny", "frame")
    before = path.read_bytes()
    assert save_picture(picture + 1, "tiny", "frame").read_bytes() == before
    assert save_picture(picture + 50, "tiny", "frame").read_bytes() != before
    assert save_picture(picture[:4], "tiny", "frame").read_bytes() != before
