"""The report: a small one is made, and read as a browser would. And: pages link to what there is; the workflow runs."""

import base64
import json
import re
import warnings
from contextlib import redirect_stderr
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from urllib.parse import unquote, urlsplit

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import yaml
from conftest import ROOT

from lib.errors import InputError
from lib.study.book import VIEWER, make_book
from lib.study.results_pages import BEGIN, END

README = """# The study

[First](notebooks/01_first.ipynb), [modules](lib), [hands](lib/hands.py), [licence](LICENSE),
[crop](notebooks/glossary.md#crop), [elsewhere](https://example.org).

![A white square](square.png)
"""
PAGES = {
    "README.md": README,
    "LICENSE": "MIT\n",
    "lib/__init__.py": '"""What it is."""\n',
    "lib/hands.py": '"""Hands in\ntwo lines.\n\nMore."""\n\nTHUMB = "<a href=nowhere>"\n',
    "notebooks/glossary.md": "# Glossary\n\n## Crop\n\nThe image of a hand. [Home](../README.md)\n",
}
LOADED = {"link": "href", "object": "data"} | dict.fromkeys(("script", "img", "iframe", "source", "video"), "src")
NOTEBOOKS = "notebooks/[0-9][0-9]_*.ipynb"
FORMULA = "$\\theta \\le 80°$ and\n\n$$L = \\sum_t \\lVert a_t \\rVert$$"


class Page(HTMLParser):
    """What a page loads, where it links to, and what it says of its pictures."""

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.text = path, path.read_text()
        self.names, self.links, self.loaded, self.descriptions = set(), [], [], []
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        about = dict(attrs)
        self.names.add(about.get("id"))
        if tag == "a" and "href" in about:
            self.links.append(about["href"])
        if LOADED.get(tag) in about:
            self.loaded.append(about[LOADED[tag]])
        if tag == "img":
            self.descriptions.append(about.get("alt"))


def notebook(title: str, printed: str, picture: Path) -> str:
    """An executed notebook that prints and draws."""
    encoded = base64.b64encode(picture.read_bytes()).decode()
    outputs = [
        nbformat.v4.new_output("stream", text=f"{printed}\n"),
        nbformat.v4.new_output("display_data", {"image/png": encoded, "text/plain": "<Figure>"}),
    ]
    text = f"# {title}\n\nA formula: {FORMULA}\n\n## Seen\n\nNot this. A white square ([crop](glossary.md#crop)):"
    code = nbformat.v4.new_code_cell("draw()", execution_count=1, outputs=outputs)
    about = {"language_info": {"name": "python", "pygments_lexer": "ipython3"}}
    return nbformat.writes(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text), code], metadata=about))


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """Two notebooks, the first of which was executed anew, the pages that they belong to, and hands in 3D."""
    root = tmp_path_factory.mktemp("project")
    executed = root / "results" / "reference" / "notebooks"
    for folder in (root / "lib", root / "notebooks", executed):
        folder.mkdir(parents=True)
    plt.imsave(root / "square.png", np.ones((4, 4)))
    for name, text in PAGES.items():
        (root / name).write_text(text)
    (root / "notebooks" / "01_first.ipynb").write_text(notebook("First", "committed", root / "square.png"))
    (root / "notebooks" / "02_second.ipynb").write_text(notebook("Second", "committed", root / "square.png"))
    (executed / "01_first.ipynb").write_text(notebook("First", "executed anew", root / "square.png"))
    (root / "results" / "reference" / "report").mkdir(parents=True)
    (root / "results" / "reference" / "report" / VIEWER).write_text("<title>Hands</title>")
    return root


@pytest.fixture(scope="module", autouse=True)
def results_of(project):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lib.study.results.ROOT", project)
        patch.setattr("lib.study.book.RESULTS_PAGES", {})
        yield


@pytest.fixture(scope="module")
def pages(project) -> dict[str, Page]:
    """The pages of the book, by their paths in it."""
    theirs = warnings.catch_warnings(action="ignore", category=PendingDeprecationWarning)  # the theme's, of Sphinx 11
    with theirs, redirect_stderr(StringIO()) as said:
        front = make_book(project, "reference")
    assert said.getvalue() == ""
    assert front == project / "results" / "report" / "index.html"
    found = [
        path for path in front.parent.rglob("*.html") if "_static" not in path.parts
    ]  # the theme has templates there
    return {path.relative_to(front.parent).as_posix(): Page(path) for path in found}


def test_links_lead_somewhere(pages):
    by_path = {page.path: page for page in pages.values()}
    broken = []
    for page in pages.values():
        for link in (*page.links, *page.loaded):
            parts = urlsplit(link)
            target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
            known = not parts.fragment or target not in by_path or unquote(parts.fragment) in by_path[target].names
            if not parts.scheme and not (target.is_file() and known):
                broken.append((page.path.name, link))
    assert not broken
    assert "https://example.org" in pages["index.html"].links
    assert VIEWER in pages["index.html"].links


def test_nothing_is_loaded_from_elsewhere(pages):
    sheets = [path.read_text() for path in pages["index.html"].path.parent.rglob("*.css")]
    assert sheets
    loaded = [link for page in pages.values() for link in page.loaded]
    loaded += [link for sheet in sheets for link in re.findall(r"""(?:url\(|@import)\s*["']?([^"')\s]+)""", sheet)]
    assert len(loaded) > 20
    assert not [link for link in loaded if link.startswith("//") or urlsplit(link).scheme not in ("", "data")]


def test_notebooks_as_executed(pages):
    first, second = (pages[f"notebooks/{name}.html"].text for name in ("01_first", "02_second"))
    assert "executed anew" in first
    assert "committed" in second
    assert "committed" not in first


def test_formulas_are_drawn(pages):
    text = pages["notebooks/01_first.html"].text
    assert len(re.findall(r"<math[ >]", text)) == 2
    assert re.search(r'<math display="block"', text)
    assert "theta" not in text


def test_pictures_are_described(pages):
    assert pages["index.html"].descriptions == ["A white square"]
    assert pages["notebooks/01_first.html"].descriptions == ["Seen: A white square (crop)"]


def test_modules_are_shown(pages):
    assert "Hands in two lines." in pages["lib/README.html"].text
    assert "More." not in pages["lib/README.html"].text
    assert "nowhere" not in pages["lib/hands.html"].links
    assert "THUMB" in pages["lib/hands.html"].text


def test_search_knows_notebooks(pages):
    index = (pages["search.html"].path.parent / "searchindex.js").read_text()
    known = json.loads(index.removeprefix("Search.setIndex(").removesuffix(")"))
    assert "notebooks/01_first" in known["docnames"]
    assert {"squar", "crop"} <= known["terms"].keys()
    assert any("searchindex.js" in link for link in pages["search.html"].loaded)


def test_notebooks_of_another_profile_are_not_taken_for_its_own(project):
    with pytest.raises(InputError, match="run make study PROFILE=smoke"):
        make_book(project, "smoke")
    assert not (project / "results" / "smoke" / "report").exists()


def test_pages_of_the_project_link_to_what_there_is():
    broken = []
    patterns = ("*.md", "*/README.md", "notebooks/*.md", NOTEBOOKS)
    for path in (path for pattern in patterns for path in ROOT.glob(pattern)):
        text = path.read_text()
        if path.suffix == ".ipynb":
            cells = json.loads(text)["cells"]
            text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            target, _, name = link.partition("#")
            target = path.parent / target if target else path
            if "://" not in link and not (target.exists() and (not name or name in headings(target))):
                broken.append((path.name, link))
    assert not broken


def headings(page: Path) -> set[str]:
    """The names of its headings, as they are linked to."""
    lines = [line.lstrip("#").strip() for line in page.read_text().splitlines() if line.startswith("#")]
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in lines}


def test_the_readme_is_short_and_links_to_all_notebooks_and_modules():
    before, results = (ROOT / "README.md").read_text().split(BEGIN)
    text = before + results.split(END)[1]
    assert len(text.splitlines()) <= 150
    modules = [path for path in ROOT.glob("lib/*.py") if path.stem != "__main__"]
    rooms = [path.parent for path in ROOT.glob("lib/*/__init__.py")]
    expected = {path.relative_to(ROOT).as_posix() for path in (*modules, *rooms, *ROOT.glob(NOTEBOOKS))}
    assert len(expected) > 30
    assert not expected - set(re.findall(r"\]\(([^)\s]+)\)", text))


def test_the_workflow_runs_what_there_is():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert workflow[True].keys() == {"push", "pull_request"}  # YAML reads "on" as true
    (job,) = workflow["jobs"].values()
    assert job["runs-on"]
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == [".ci/run"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    uses = [step["uses"] for step in job["steps"] if "uses" in step]
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", name) for name in uses)
    targets = re.findall(r"^make ([\w-]+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert targets == ["smoke", "test", "report"]
    made = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(targets) <= set(made)
    assert job["steps"][-1]["with"]["path"] == "results/smoke/report"
