"""Copy the README's pictures out of the executed notebooks: `python book/images.py`.

`--check` writes nothing and exits 1 if a picture is not the one its notebook holds now.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURES = {"drip.png": ("00_meet_the_model.ipynb", "poster")}  # file: notebook, cell id


def figure(notebook: Path, cell_id: str) -> bytes:
    """The PNG in the outputs of one cell. Raises LookupError if there is none."""
    for cell in json.loads(notebook.read_text("utf-8"))["cells"]:
        if cell["id"] == cell_id:
            for output in cell["outputs"]:
                if png := output.get("data", {}).get("image/png"):
                    return base64.b64decode("".join(png))
    raise LookupError(f"{notebook.name} has no figure in its cell {cell_id!r}: execute it first")


def main(arguments: list[str]) -> int:
    """Refresh (or, with --check, compare) every picture."""
    stale = 0
    for name, (notebook, cell_id) in PICTURES.items():
        target, png = (
            ROOT / "book/images" / name,
            figure(ROOT / "notebooks" / notebook, cell_id),
        )
        if target.is_file() and target.read_bytes() == png:
            continue
        stale += 1
        if "--check" not in arguments:
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(png)
        print(f"{target.relative_to(ROOT)}: {'stale' if '--check' in arguments else 'written'}")
    return int(bool(stale) and "--check" in arguments)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
