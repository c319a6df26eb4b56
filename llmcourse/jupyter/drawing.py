"""Drawings that several chapters share: arrows, heatmaps with their numbers, one colour a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llmcourse.jupyter.figures import LOOK, TEXT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# One colour for each token of a small example, neighbours as different as can be.
TOKEN_COLOURS = [
    LOOK[name][0]
    for name in ("quantization", "cache", "pruning", "distillation", "batching", "adaptive")
]


def arrow(ax: Axes, start: Any, end: Any, colour: str = TEXT, name: str = "", **style: Any) -> None:
    """An arrow between two points (x, y), with its name at the tip; `style` goes to matplotlib."""
    style = {"arrowstyle": "-|>", "color": colour, "lw": 2.2, "shrinkA": 0, "shrinkB": 0} | style
    start, end = (tuple(map(float, point)) for point in (start, end))
    ax.annotate("", end, start, arrowprops=style)
    dx, dy = end[0] - start[0], end[1] - start[1]
    ahead = 12 / max(1e-9, (dx * dx + dy * dy) ** 0.5)  # points beyond the tip
    ax.annotate(
        name,
        end,
        xytext=(dx * ahead, dy * ahead),
        textcoords="offset points",
        ha="center",
        va="center",
        color=colour,
        size=13,
    )


def heatmap(
    ax: Axes, values: Any, words: Sequence[str], low: float, high: float, *, rows: bool = True
) -> None:
    """A (T, T) picture from `low` to `high` with its numbers; nan stays empty. `words` label both axes."""
    ax.imshow(values, vmin=low, vmax=high, cmap="cividis")
    ax.set(xticks=range(len(words)), yticks=range(len(words)))
    ax.set_xticklabels(words, rotation=60, ha="right", rotation_mode="anchor")
    ax.set_yticklabels(words if rows else [""] * len(words))
    ax.grid(False)
    for label, colour in zip(ax.get_xticklabels(), TOKEN_COLOURS, strict=False):
        label.set_color(colour)
    for i, row in enumerate(values):
        for j, value in enumerate(map(float, row)):
            if value == value:
                # Cividis is dark below, so the number is white there.
                dark = value - low < 0.55 * (high - low)
                ink = "white" if dark else "black"
                ax.text(
                    j, i, f"{round(value, 1) + 0:.1f}", ha="center", va="center", size=7, color=ink
                )
