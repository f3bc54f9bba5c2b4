"""What README.md and results/README.md say of the results, written from the tables of a profile and the configurations
of its runs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lib.errors import InputError
from lib.files import write_atomically
from lib.study.claims import SMALL_COST, summary
from lib.study.experiments import RELEASED_RUNS
from lib.study.pinch_detection import THRESHOLD_MM
from lib.study.results import results_folder
from lib.study.runs import phases, training_config, training_curves, training_effort
from lib.study.tables import ABLATION, BASELINE, MPJPA, MPJPE, MULTISTAGE, PINCH, WITH_PINCH, by_case

STUDY = (ABLATION, MULTISTAGE, PINCH, "claims")
"""Tables that are made of the predictions of all methods."""
BEGIN, END = "<!-- results: written by python -m lib results -->", "<!-- end of results -->"


def write_results(profile: str, root: Path) -> None:
    """Write the results of a profile into the pages of the folder `root`, all or none.

    Raises InputError as `with_results` does.
    """
    pages = {root / name: with_results((root / name).read_text(), name, profile) for name in RESULTS_PAGES}
    for path, text in pages.items():
        write_atomically(path, lambda temporary, text=text: temporary.write_text(text))


def with_results(text: str, name: str, profile: str) -> str:
    """The text of one of `RESULTS_PAGES`, in which the results of a profile stand between the lines `BEGIN` and `END`.

    Raises InputError if the text has not both lines once, in this order, or if a table is missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in rest or END in before + after:
        raise InputError(f"{name} must hold the lines {BEGIN} and {END} once, in this order")
    return f"{before}{BEGIN}\n\n{RESULTS_PAGES[name](profile)}\n{END}{after}"


def main_result(profile: str) -> str:
    """Both methods with all that the paper gives them, beside its numbers and those that its authors corrected.

    Markdown; nothing but a line if the tables of the study are not made yet. Raises InputError if one is missing.
    """
    if not _has_study(profile):
        return "Not all networks are trained yet.\n"
    table = _read(profile, MULTISTAGE)
    sources = {"ours": "", "paper": "_paper", "paper, corrected by its authors": "_official"}
    methods = {BASELINE: "multi-stage", WITH_PINCH: "UmeTrack"}
    rows = [
        {"": f"{title}, {source}", **by_case(table, suffix).loc[method]}
        for method, title in methods.items()
        if method in set(table.method)
        for source, suffix in sources.items()
    ]
    return f"MPJPE (mm) / MPJPA (mm/frame²):\n\n{markdown(pd.DataFrame(rows))}\n"


def all_results(profile: str) -> str:
    """The results of a profile as Markdown: of its networks, and, if the tables are made, of the study.

    Raises InputError if a table is missing.
    """
    reaches = (
        "**What the released network reaches on the test users**, with 95 % intervals (bootstrap over recordings)."
    )
    parts = {reaches: reached(profile)}
    if _has_study(profile):
        parts |= _study(profile)
    parts["**What was trained**, all on the same training users."] = runs(profile)
    return "\n".join(f"{text}\n\n{markdown(table)}\n" for text, table in parts.items())


RESULTS_PAGES = {"README.md": main_result, "results/README.md": all_results}
"""The pages that show results, by their paths, and what writes them."""


def _has_study(profile: str) -> bool:
    return any((results_folder(profile) / "tables" / f"{name}.csv").exists() for name in STUDY)


def _study(profile: str) -> dict[str, pd.DataFrame]:
    """The paper's tables and claims."""
    tested = _read(profile, "claims")
    return {
        "**Table 2, ablations**: separate hands, known skeletons. Here and below: ours (paper).": ablations(profile),
        "**Table 3, known and unknown skeletons**: MPJPE (mm) / MPJPA (mm/frame²).": skeletons(profile),
        f"**Table 4, pinch detection**: fingertips nearer than {THRESHOLD_MM:g} mm, by frame.": pinches(profile),
        f"**The paper's claims**: {summary(tested)}. A claim holds if the 95 % interval of the "
        f"difference (bootstrap over recordings) lies on its side; a small cost may be {100 * SMALL_COST:g} %.": claims(
            tested
        ),
    }


def runs(profile: str) -> pd.DataFrame:
    """What each network is, how much it was trained, and where."""
    rows = []
    for name in training_curves(profile, RELEASED_RUNS):
        effort = training_effort(profile, name)
        training = training_config(profile, phases(profile, name)[0])
        row = {"experiment": f"`{name}`", "backbone": _backbone(training), "steps": f"{effort['steps']}"}
        row |= {"examples": f"{effort['crops']:,}", "minutes": f"{effort['minutes']}", "machine": effort["machine"]}
        rows.append(row)
    return pd.DataFrame(rows)


def reached(profile: str) -> pd.DataFrame:
    """Errors of the trained networks, with their intervals."""
    table = _read(profile, "training")
    errors = zip(table[MPJPE], table.low, table.high, strict=True)
    return pd.DataFrame(
        {
            "experiment": [f"`{name}`" for name in table.experiment],
            "skeleton": table.skeleton,
            "protocol": table.protocol.str.replace("_", "-"),
            "MPJPE (mm)": [f"{error:.1f} [{low:.1f}, {high:.1f}]" for error, low, high in errors],
            "MPJPA (mm/frame²)": table[MPJPA].map("{:.2f}".format),
        }
    )


def _backbone(training: dict) -> str:
    network = training.get("network", {})
    if "widths" not in network:
        return "of the baseline"
    beginning = f", begins as `{training['pretrained']}`" if training.get("pretrained") else ""
    return f"{network['stem']} stem, {'-'.join(map(str, network['widths']))} channels{beginning}"


def ablations(profile: str) -> pd.DataFrame:
    """Table 2, with the paper's numbers in brackets."""
    table = _read(profile, ABLATION)
    return pd.DataFrame(
        {
            "model": [f"`{name}`" for name in table.model],
            "losses": table.losses,
            "MPJPE (mm)": _beside(table, MPJPE, 1),
            "MPJPA (mm/frame²)": _beside(table, MPJPA, 2),
        }
    )


def skeletons(profile: str) -> pd.DataFrame:
    """Table 3, a row per method and a column per skeleton and protocol, with the paper's numbers in brackets."""
    table = _read(profile, MULTISTAGE)
    wide = by_case(table) + " (" + by_case(table, "_paper") + ")"
    return wide.rename(index="`{}`".format).reset_index()


def pinches(profile: str) -> pd.DataFrame:
    """Table 4, with the paper's numbers in brackets."""
    table = _read(profile, PINCH)
    return pd.DataFrame(
        {
            "method": [f"`{name}`" for name in table.method],
            "precision (%)": _beside(table, "precision_percent", 1),
            "recall (%)": _beside(table, "recall_percent", 1),
        }
    )


def claims(tested: pd.DataFrame) -> pd.DataFrame:
    """Every claim that was tested, and the verdict."""
    verdict = [word if word == "holds" else f"**{word}**" for word in tested.verdict]
    return tested.drop(columns="holds").assign(verdict=verdict)


def _beside(table: pd.DataFrame, metric: str, digits: int) -> list[str]:
    """Our number, and the paper's in brackets."""
    pairs = zip(table[metric], table[f"{metric}_paper"], strict=True)
    return [f"{ours:.{digits}f} ({paper:.{digits}f})" for ours, paper in pairs]


def _read(profile: str, name: str) -> pd.DataFrame:
    path = results_folder(profile) / "tables" / f"{name}.csv"
    if not path.is_file():
        raise InputError(f"no {path}: run make study PROFILE={profile}")
    return pd.read_csv(path)


def markdown(table: pd.DataFrame) -> str:
    """A table of text as Markdown."""
    rows = [table.columns.tolist(), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |" for row in rows)
