"""The generated parts of README.md: the map of the course and the tree of the house.

The tests compare them with the files; `python tests/readme.py` (or `make readme`) writes them anew.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
TOP = {
    "notebooks/": "the course: outputs committed, each runnable alone from top to bottom",
    "data/": "cards, splits, samples of our own; recipes/ trained what checkpoints/ holds; measurements/",
    "book/": "the website: configuration, front and back matter, translations",
    "tests/": "one file a room; notebooks/ drives nbval, browser/ a real Chromium",
    "llmcourse/": "the package, floors from the ground up:",
}
# Rooms and files of the package in the order of the floors, which is the order data flows in.
FLOORS = ("errors.py", "paths.py", "bootstrap.py", "data/", "measure/", "models/", "kernels/")
FLOORS += ("compress/", "decode/", "parallel/", "engine/", "jupyter/", "sweep.py", "doctor.py")
FLOORS += ("cli.py",)


def course_map() -> str:
    """Parts and chapters from book/toc.yml; a chapter whose notebook exists is a link."""
    parts = yaml.safe_load((ROOT / "book" / "toc.yml").read_text("utf-8"))["parts"]
    rows = ["| part | chapters (linked: ready) |", "|---|---|"]
    for part in parts:
        rows.append(f"| {part['title']} | {' · '.join(_chapter(c) for c in part['chapters'])} |")
    return "\n".join(rows)


def _chapter(chapter: dict[str, str]) -> str:
    path = f"notebooks/{chapter['file']}.ipynb"
    name = f"{chapter['file'][:2]} {chapter['title']}"
    return f"**[{name}]({path})**" if (ROOT / path).exists() else name


def tree() -> str:
    """The house: folders with a phrase each, the package's files with their first sentence."""
    lines = [_line(name, phrase) for name, phrase in TOP.items()]
    package = ROOT / "llmcourse"
    for name in FLOORS:
        path = package / name
        if name.endswith(".py") and path.exists():
            lines.append(_line(f"  {name}", _phrase(path)))
        elif name.endswith("/") and any(path.glob("*.py")):
            lines.append(_line(f"  {name}", _phrase(path / "__init__.py")))
            files = sorted(p for p in path.glob("*.py") if p.name != "__init__.py")
            lines += [_line(f"    {p.name}", _phrase(p)) for p in files]
            rooms = sorted(p for p in path.glob("*/") if (p / "__init__.py").exists())
            lines += [_line(f"    {p.name}/", _phrase(p / "__init__.py")) for p in rooms]
    return "```text\n" + "\n".join(lines) + "\n```"


def _line(name: str, phrase: str) -> str:
    return f"{name:22} {phrase}".rstrip()


def _phrase(path: Path) -> str:
    """The first sentence of a file's docstring."""
    first = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0]
    return re.split(r"(?<=[a-z`])\. ", first)[0].rstrip(".")


def render(readme: str) -> str:
    """README.md with both parts written anew between their markers."""
    for name, content in (("map", course_map()), ("tree", tree())):
        pattern = re.compile(rf"(<!-- {name}: [^\n]*\n).*?(<!-- /{name} -->)", re.DOTALL)
        readme, count = pattern.subn(lambda m, c=content: f"{m[1]}{c}\n{m[2]}", readme)
        assert count == 1, f"README.md has {count} places for the {name}"
    return readme


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(render(path.read_text("utf-8")), "utf-8")
