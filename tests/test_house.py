"""The house rules: each room imports only from the floors below, and no pickle comes in."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "llmcourse"
FLOOR = {
    "__init__": 0,
    "paths": 0,
    "errors": 0,
    "bootstrap": 0,
    "data": 1,
    "measure": 1,
    "models": 2,
    "kernels": 2,
}
FLOOR |= {"compress": 3, "decode": 3, "parallel": 3, "engine": 4}
FLOOR |= {"jupyter": 5, "sweep": 5, "doctor": 5, "cli": 6, "__main__": 7}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_rooms(path: Path) -> set[str]:
    """Rooms of this package that a file imports at any depth, inside functions too."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = (
                [node.module]
                if node.module != "llmcourse"
                else [f"llmcourse.{a.name}" for a in node.names]
            )
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("llmcourse.")}
    return rooms - {"__version__"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    """Does this file import only its own room and those below it?"""
    here = room(path)
    if here == "__init__":  # the package's door opens to the top floor, late and by name
        return
    above = {r for r in imported_rooms(path) if r != here and FLOOR[r] >= FLOOR[here]}
    assert not above, f"{path.name} is on floor {FLOOR[here]} and imports {above}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_pickle(path):
    """Is there no way for a pickle from outside to be loaded?"""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            assert not names & {"pickle", "joblib", "dill", "shelve", "marshal"}, ast.unparse(node)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"torch.load", "np.load", "numpy.load"}, ast.unparse(node)
