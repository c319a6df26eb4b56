"""The course's figures: one look, one colour a technique, readable on white and on black.

The face is transparent and the text mid-grey, so the same picture serves both themes; every figure
carries an alternative text, and its bytes depend on nothing but what is drawn.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

from llmcourse.errors import CourseError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The grey whose contrast is the same, 4.35, with white and with #111111.
TEXT = "#797979"

# Colour, line style, marker: a technique looks the same in all chapters, and can be told without
# colour. Each has a contrast of at least 3 with white and with #111111; hues are Okabe and Ito's
# (2008) where those are dark enough.
LOOK: dict[str, tuple[str, str, str]] = {
    "no cache": ("#b58900", ":", "o"),
    "cache": ("#1f78b4", "-", "s"),
    "quantization": ("#d55e00", "-", "^"),
    "better 4 bits": ("#b8691c", "--", "v"),
    "pruning": ("#0f8b66", "-", "D"),
    "distillation": ("#b5589a", "-", "P"),
    "speculative": ("#8a6fd1", "-", "X"),
    "batching": ("#2a8fa8", "--", "p"),
    "adaptive": ("#8f8a1f", "-.", "h"),
    "parallel": ("#c2577a", "-.", "<"),
    "kernel": ("#d1493f", "-", "*"),
    "library": ("#7d7466", "--", "d"),
    "limit": ("#6f7d8c", "--", "_"),
}


def colour(technique: str) -> str:
    """The colour of a technique, as "#rrggbb"; raises CourseError for one that has none."""
    return look(technique)["color"]


def look(technique: str) -> dict[str, str]:
    """The technique's colour, line style and marker, as keywords for `Axes.plot`."""
    if technique not in LOOK:
        raise CourseError(f'There is no colour for "{technique}"; known are {", ".join(LOOK)}.')
    return dict(zip(("color", "linestyle", "marker"), LOOK[technique], strict=True))


def use_style() -> None:
    """Set matplotlib's defaults to the course's look, for this process."""
    import matplotlib as mpl
    from cycler import cycler

    lines = [look(name) for name in LOOK if name not in ("limit", "library")]
    mpl.rcParams.update(
        {
            "figure.figsize": (7.2, 3.8),
            "figure.dpi": 100,
            "figure.facecolor": "none",
            "figure.constrained_layout.use": True,
            "savefig.facecolor": "none",
            "savefig.edgecolor": "none",
            "axes.facecolor": "none",
            "axes.edgecolor": TEXT,
            "axes.labelcolor": TEXT,
            "axes.titlecolor": TEXT,
            "axes.titlelocation": "left",
            "axes.titleweight": "bold",
            "axes.titlesize": 12,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "axes.grid": True,
            "grid.color": TEXT,
            "grid.alpha": 0.25,
            "grid.linewidth": 0.6,
            "axes.prop_cycle": cycler(color=[line["color"] for line in lines]),
            "font.family": ["DejaVu Sans"],
            "font.size": 11,
            "text.color": TEXT,
            "xtick.color": TEXT,
            "ytick.color": TEXT,
            "legend.frameon": False,
            "legend.labelcolor": TEXT,
            "lines.linewidth": 2,
            "lines.markersize": 6,
            "image.cmap": "cividis",
            "image.interpolation": "nearest",
            "svg.hashsalt": "llmcourse",
        }
    )


def show(fig: Figure, alt: str) -> None:
    """Display a figure once, as a sharp PNG with an alternative text, and close it.

    `alt` says what the picture shows to someone who cannot see it. The PNG has twice the pixels it
    is shown at, and neither date nor version inside.
    """
    assert alt.strip(), "a figure needs an alternative text"
    from IPython.display import display

    png, width, height = _png(fig)
    bundle: dict[str, Any] = {"image/png": png, "text/plain": f"Figure: {alt}"}
    display(
        bundle, raw=True, metadata={"image/png": {"alt": alt, "width": width, "height": height}}
    )

    import matplotlib.pyplot as plt

    plt.close(fig)  # or the inline backend would show it a second time


def _png(fig: Figure) -> tuple[str, int, int]:
    """The figure in base64, and the size it is to be shown at, in CSS pixels."""
    from base64 import b64encode

    shown_dpi = fig.dpi
    out = BytesIO()
    options = {"optimize": True}
    fig.savefig(
        out, format="png", dpi=2 * shown_dpi, metadata={"Software": None}, pil_kwargs=options
    )
    width, height = (round(inches * shown_dpi) for inches in fig.get_size_inches())
    return b64encode(out.getvalue()).decode("ascii"), width, height
