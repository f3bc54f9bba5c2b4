"""The report: executed notebooks, results and the pages of the project as a website that is read from disk.

Sphinx makes it. With this module as an extension it writes formulas as MathML, shows modules of Python, and describes
figures to those who do not see them. Nothing is loaded from elsewhere.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from docutils import nodes
from math_core import LatexToMathML
from sphinx.application import Sphinx
from sphinx.parsers import Parser
from sphinx.util.docutils import docutils_namespace

from lib.errors import InputError
from lib.files import write_atomically
from lib.study.results import results_folder
from lib.study.results_pages import RESULTS_PAGES, with_results

PARTS = {
    "The study": ("notebooks/[0-9][0-9]_*.ipynb", "results/README.md"),
    "Reference": ("notebooks/glossary.md", "lib/README.md", "data/README.md", "CONTRIBUTING.md", "CHANGELOG.md"),
}
"""The pages of the book besides the front page, in its order. What they link to comes along."""
FRONT_PAGE = Path("README.md")
VIEWER = "hands.html"
"""The hands in 3D, in the folder report of a profile's results: kept, and linked from the front page."""
SETTINGS = {
    "project": "The UmeTrack study",
    "html_title": "The UmeTrack study",
    "extensions": ["myst_nb", "lib.study.book"],
    "suppress_warnings": ["toc.not_included"],
    "html_theme": "sphinx_book_theme",
    "html_theme_options": {
        "home_page_in_toc": True,
        "navbar_persistent": [],
        "use_download_button": False,
        "use_fullscreen_button": False,
    },
    "html_context": {"default_mode": "auto"},
    "html_static_path": ["static"],
    "html_css_files": ["book.css"],
    "html_math_renderer": "mathml",
    "html_copy_source": False,
    "html_show_copyright": False,
    "html_show_search_summary": False,  # a page from disk cannot read the others
    "myst_enable_extensions": ["dollarmath", "html_image"],
    "myst_heading_anchors": 3,
    "nb_execution_mode": "off",
}
STYLE = """
html { --pst-header-height: 0px; }
#pst-header { display: none; }
code.literal, code.literal .pre { overflow-wrap: break-word; white-space: normal; }
"""
"""No bar above the page, which would be empty; names of files fit on a phone."""
_LINK = re.compile(r'(?<=\]\()(?![a-z]+:)[^)#\s]+|(?<=src=")(?![a-z]+:)[^"]+')


def make_book(root: Path, profile: str) -> Path:
    """Write the book of a profile in place of what was there: results/report, of other profiles than `reference` in
    their own results; return its front page.

    Its pages are those of the folder `root`, its notebooks those that were executed for the profile; those of
    `reference` are committed, too. Raises InputError if one of them, or a table, is missing.
    """
    viewer = results_folder(profile) / "report" / VIEWER
    output = (root / "results" if profile == "reference" else results_folder(profile)) / "report"
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output.parent, prefix=".report-") as scratch:
        source, made = Path(scratch, "source"), Path(scratch, "made")
        _Pages(root, profile).gather(source)
        write_atomically(source / "static" / "book.css", lambda path: path.write_text(STYLE))
        with docutils_namespace():
            doctrees = Path(scratch, "doctrees")
            Sphinx(source, None, made, doctrees, "html", SETTINGS, status=None, warning=sys.stderr).build()
        if viewer.is_file():
            shutil.copy(viewer, made)
        shutil.rmtree(output, ignore_errors=True)
        made.rename(output)
    return output / "index.html"


@dataclass(frozen=True)
class _Pages:
    """The pages of a book, named by their paths in the folder `root`; a folder of modules is a page, too."""

    root: Path
    profile: str

    def gather(self, source: Path) -> None:
        """Copy the pages to the folder `source`, and all that they link to."""
        waiting = {FRONT_PAGE, *(path for paths in self._parts().values() for path in paths)}
        gathered: set[Path] = set()
        while waiting:
            gathered.add(path := waiting.pop())
            copy = source / self._in_book(path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix in (".md", ".ipynb") or (self.root / path).is_dir():
                text, links = self._linked(path, self._text(path))
                copy.write_text(text, encoding="utf-8")
                waiting |= links - gathered
            else:
                shutil.copy(self.root / path, copy)

    def _parts(self) -> dict[str, list[Path]]:
        return {
            title: [path.relative_to(self.root) for pattern in patterns for path in sorted(self.root.glob(pattern))]
            for title, patterns in PARTS.items()
        }

    def _in_book(self, path: Path) -> Path:
        if path == FRONT_PAGE:
            return Path("index.md")
        return path / "README.md" if (self.root / path).is_dir() else path

    def _linked(self, path: Path, text: str) -> tuple[str, set[Path]]:
        """A page with its links as they are in the book, and what it links to."""
        links, folder = set(), self._in_book(path).parent

        def in_book(link: re.Match) -> str:
            target = Path(os.path.normpath(folder / link[0]))
            target = target / "README.md" if (self.root / target / "README.md").is_file() else target
            if not (self.root / target).exists():
                return link[0]
            links.add(target)
            return Path(os.path.relpath(self._in_book(target), folder)).as_posix()

        return _LINK.sub(in_book, text), links

    def _text(self, path: Path) -> str:
        if (self.root / path).is_dir():
            return _folder(self.root / path)
        executed = results_folder(self.profile) / path
        if path.suffix == ".ipynb" and (executed.is_file() or self.profile != "reference"):
            return _read(executed, self.profile)
        text = (self.root / path).read_text(encoding="utf-8")
        if path.as_posix() in RESULTS_PAGES:
            text = with_results(text, path.as_posix(), self.profile)
        return text + self._contents() if path == FRONT_PAGE else text

    def _contents(self) -> str:
        """What the front page has in the book besides its own text."""
        viewer = results_folder(self.profile) / "report" / VIEWER
        parts = [f'\n<a href="{VIEWER}">The hands in 3D</a>\n'] if viewer.is_file() else []
        if self.profile != "reference":
            parts.append(f"\nTables and notebooks are those of `{self.profile}`; all text is about `reference`.\n")
        for title, paths in self._parts().items():
            pages = "\n".join(path.with_suffix("").as_posix() for path in paths)
            parts.append(f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{pages}\n```\n")
        return "".join(parts)


def _read(notebook: Path, profile: str) -> str:
    if not notebook.is_file():
        raise InputError(f"no {notebook}: run make study PROFILE={profile}")
    return notebook.read_text(encoding="utf-8")


def _folder(folder: Path) -> str:
    """What a package is, and what is in it."""
    about = {path: _summary(path) for path in sorted((*folder.glob("*.py"), *folder.glob("*/__init__.py")))}
    lines = [f"# `{folder.name}/`", about.pop(folder / "__init__.py", "")]
    for path, text in about.items():
        name = path.name if path.parent == folder else path.parent.name
        lines.append(f"- [`{name}`]({name}) {text}")
    return "\n\n".join(lines) + "\n"


def _summary(module: Path) -> str:
    text = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split())


class _Module(Parser):
    """Shows a module of Python as it is."""

    supported = ("python",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        name = f"{document.settings.env.docname}.py"
        code = nodes.literal_block(inputstring, inputstring, language="python")
        document += nodes.section("", nodes.title("", "", nodes.literal(name, name)), code, ids=["module"])


def _write_formula(writer, node: nodes.math | nodes.math_block) -> None:
    as_block = isinstance(node, nodes.math_block)
    writer.body.append(LatexToMathML().convert_with_local_state(node.astext(), displaystyle=as_block))
    raise nodes.SkipNode


def _describe_figures(_, document: nodes.document) -> None:
    """Give a figure of a notebook its heading and the sentence before it as alternative text."""
    heading = said = ""
    for node in document.findall(lambda node: isinstance(node, nodes.title | nodes.paragraph | nodes.image)):
        if isinstance(node, nodes.title):
            heading = node.astext()
        elif isinstance(node, nodes.paragraph):
            said = re.split(r"(?<=[.?!])\s", node.astext().strip())[-1].rstrip(":") or said
        elif not node.get("alt"):
            node["alt"] = f"{heading}: {said}"


def setup(app: Sphinx) -> None:
    """Make this module an extension of Sphinx."""
    app.add_source_suffix(".py", "python")
    app.add_source_parser(_Module)
    app.add_html_math_renderer("mathml", (_write_formula, None), (_write_formula, None))
    app.connect("doctree-read", _describe_figures)
