"""Where the study's results go, and how they are written."""

from __future__ import annotations

import csv
import math
import re
from io import BytesIO, StringIO
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from jaxtyping import UInt8
from matplotlib.figure import Figure

from lib.files import write_atomically

ROOT = Path(__file__).resolve().parents[2]


def results_folder(profile: str) -> Path:
    """The folder that a run with this profile writes to; only that of `reference` is committed."""
    return ROOT / "results" / profile


def save_figure(figure: Figure, profile: str, name: str) -> None:
    """Write figures/<name>.png and .svg, or leave them as they are if they show the same picture.

    On another processor numbers differ by rounding, and with them the bytes of a picture. Names of shapes in the .svg,
    which matplotlib makes of these numbers, are counted instead.
    """
    path = results_folder(profile) / "figures" / f"{name}.png"
    png, svg = BytesIO(), StringIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    if _same_picture(path, png.getvalue()) and path.with_suffix(".svg").is_file():
        return
    figure.savefig(svg, format="svg", metadata={"Date": None})
    _write(path.with_suffix(".svg"), _with_counted_shapes(svg.getvalue()).encode())
    _write(path, png.getvalue())  # last: where it is there, both are


def save_picture(picture: UInt8[np.ndarray, "height width"], profile: str, name: str) -> Path:
    """Write figures/<name>.png with the pixels as they are, unless it shows the same picture; return its path."""
    path, png = results_folder(profile) / "figures" / f"{name}.png", cv2.imencode(".png", picture)[1].tobytes()
    if not _same_picture(path, png):
        _write(path, png)
    return path


def save_table(table: pd.DataFrame, profile: str, name: str, *, once: bool = False) -> None:
    """Write tables/<name>.csv, numbers to `DIGITS` digits, or leave it as it is if all its numbers are the same.

    They are the same if they differ by no more than the last digit: what lies between two digits may be rounded either
    way on another processor. Whole numbers are exact. A table of times is written `once`: it is of the machine that it
    names.
    """
    path = results_folder(profile) / "tables" / f"{name}.csv"
    text = table.to_csv(index=False, float_format=_digits)
    if not (path.is_file() and (once or _same_cells(path.read_text(), text))):
        _write(path, text.encode())


DIGITS = 5
"""Of a number in a table: processors agree on that, but for the last, and readers need fewer."""
SAME_GREY = 24
"""Two pictures are the same if no pixel differs by more grey levels: a tenth of what moves by a whole pixel."""


def _digits(number: float) -> str:
    """A float with `DIGITS` digits; a whole one keeps a point, and so comes back as a float."""
    text = f"{number:.{DIGITS}g}" if abs(number) < 10**DIGITS else f"{number:.0f}"
    return f"{text}.0" if text.lstrip("-").isdecimal() else text


def _same_cells(text: str, other: str) -> bool:
    rows, others = ([*csv.reader(StringIO(content))] for content in (text, other))
    return [len(row) for row in rows] == [len(row) for row in others] and all(
        _same_value(*cells) for pair in zip(rows, others, strict=True) for cells in zip(*pair, strict=True)
    )


_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[-+]\d+)?")
"""As tables have them; hashes are none."""


def _same_value(cell: str, other: str) -> bool:
    if cell == other:
        return True
    numbers = all(_NUMBER.fullmatch(value) for value in (cell, other))
    whole = all(value.lstrip("-").isdecimal() for value in (cell, other))
    tolerance = 1.01 * 10 ** (1 - DIGITS)
    return numbers and not whole and math.isclose(float(cell), float(other), rel_tol=tolerance, abs_tol=1e-6)


def _same_picture(path: Path, png: bytes) -> bool:
    """Whether the file shows what `png` does."""
    if not path.is_file():
        return False
    there, here = (cv2.imdecode(np.frombuffer(b, np.uint8), cv2.IMREAD_UNCHANGED) for b in (path.read_bytes(), png))
    return there is not None and there.shape == here.shape and int(cv2.absdiff(there, here).max()) <= SAME_GREY


def _with_counted_shapes(svg: str) -> str:
    """The drawing with shapes named in the order in which they are defined."""
    for index, name in enumerate(dict.fromkeys(re.findall(r'id="([^"]*[0-9a-f]{10})"', svg))):
        svg = svg.replace(f'"{name}"', f'"shape_{index}"').replace(f"#{name}", f"#shape_{index}")
    return svg


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, lambda temporary: temporary.write_bytes(content))
