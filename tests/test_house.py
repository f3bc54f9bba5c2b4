"""How the modules of lib depend on one another."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT


def imports_of(path: Path, modules: dict[str, Path]) -> set[str]:
    """The modules of lib that a module imports anywhere in its text."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "lib":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in modules else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "lib"}
    return found


@pytest.fixture(scope="module")
def arrows() -> dict[str, set[str]]:
    """What each module imports."""
    paths = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "lib").rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for path, name in paths.items()}
    return {name: imports_of(path, modules) - {name} for name, path in modules.items()}


def test_only_the_command_line_imports_the_study(arrows):
    outside = {name: found for name, found in arrows.items() if not name.startswith(("lib.study", "lib.cli"))}
    assert len(outside) > 40
    assert not [(name, other) for name, found in outside.items() for other in found if other.startswith("lib.study")]


def test_no_imports_in_circles(arrows):
    rest = dict(arrows)
    while free := [name for name, found in rest.items() if not found & rest.keys()]:
        for name in free:
            del rest[name]
    assert not rest


def test_rooms_keep_to_themselves(arrows):
    assert not [
        name for name, found in arrows.items() if name.startswith("lib.rendered") and "multistage" in str(found)
    ]
    assert "lib.network" not in arrows["lib.crops"]
    for name in ("crop_cache", "clips", "training", "clip_training"):
        assert "lib.tracking" not in arrows[f"lib.{name}"]


def test_the_entrance_is_small(arrows):
    """Directly in lib lie the modules of the method, and what they need."""
    assert (
        sum(name.count(".") == 1 for name in arrows)
        - len(("__main__", "cli", "formats", "live", "multistage", "rendered", "study"))
        <= 22
    )


def _is_read(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)


def test_names_are_defined():
    """ruff takes names of axes in annotations of shapes for names of Python; here only those count that are no text."""
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", "--output-format", "json"]
    found = subprocess.run([*ruff, "lib", "tests", "notebooks"], cwd=ROOT, capture_output=True, text=True, check=False)
    undefined = []
    for problem in json.loads(found.stdout):
        name, row = problem["message"].split("`")[1], problem["location"]["row"]
        code = ast.parse(Path(problem["filename"]).read_text()) if problem["cell"] is None else None
        if code is None or (name, row) in {(n.id, n.lineno) for n in ast.walk(code) if _is_read(n)}:
            undefined.append(f"{problem['filename']}:{row} {name}")
    assert not undefined


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_use_what_there_is(path):
    """Their imports of lib, and what they take from the modules that they import."""
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    code = ast.parse("\n".join("".join(cell["source"]) for cell in cells))
    known, missing = {}, []
    for node in ast.walk(code):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "lib":
            module = importlib.import_module(node.module)
            for alias in node.names:
                known[alias.asname or alias.name] = getattr(module, alias.name, None) or _submodule(module, alias.name)
    missing += [name for name, value in known.items() if value is None]
    for node in ast.walk(code):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            value = known.get(node.value.id)
            if isinstance(value, ModuleType) and not hasattr(value, node.attr):
                missing.append(f"{node.value.id}.{node.attr}")
    assert known
    assert not missing


def _submodule(module: ModuleType, name: str) -> ModuleType | None:
    try:
        return importlib.import_module(f"{module.__name__}.{name}")
    except ModuleNotFoundError:
        return None
