"""The look of checks, hints and guesses: HTML that reads in light and dark, and the same as text.

Status is told by a word and a sign, never by colour alone. Colours are JupyterLab's own variables,
with fallbacks for pages that do not define them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from llmcourse.jupyter.exercises.compare import short

if TYPE_CHECKING:
    from llmcourse.jupyter.exercises.base import CheckResult

SIGN = {"right": "✔", "wrong": "✘", "not tried": "○"}
WORD = {"right": "Right", "wrong": "Not yet", "not tried": "Not tried yet"}
COLOUR = {
    "right": "var(--jp-success-color1, #2e8540)",
    "wrong": "var(--jp-error-color1, #d0383a)",
    "not tried": "var(--jp-border-color1, #8a8a8a)",
    "quiet": "var(--jp-border-color1, #8a8a8a)",
    "news": "var(--jp-brand-color1, #2f7fd0)",
}


@dataclass(frozen=True, slots=True)
class Panel:
    """Something shown once in a notebook: HTML for a front end, text for everything else."""

    html: str
    text: str

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {"text/html": self.html, "text/plain": self.text}


def panel(kind: str, inner: str) -> str:
    """A frame of one of the kinds of COLOUR around HTML that is already escaped."""
    return (
        f'<div class="llmcourse-panel" role="status" style="border-left: 4px solid {COLOUR[kind]}; '
        "padding: 0.4em 0.9em; margin: 0.3em 0; line-height: 1.5; "
        'color: var(--jp-content-font-color1, inherit); background: transparent;">'
        f"{inner}</div>"
    )


def marked(text: str) -> str:
    """Escaped text in which `code` is set as code."""
    return re.sub(r"`([^`\n]+)`", r"<code>\1</code>", escape(text, quote=False))


def in_notebook() -> bool:
    """Whether a kernel runs this, so that somebody else shows what it returns."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return getattr(get_ipython(), "kernel", None) is not None


def check_html(result: CheckResult) -> str:
    """The panel of a check."""
    colour = COLOUR[result.status]
    head = (
        f'<div><span aria-hidden="true" style="color: {colour}; font-weight: bold;">'
        f"{SIGN[result.status]}</span> <strong>{escape(result.exercise)} {WORD[result.status]}</strong>"
        f" · {marked(result.title)} · {result.score:g} of {result.max_score:g} {_points(result)}</div>"
    )
    body = f"<div>{marked(result.sentence)}</div>" if result.status != "not tried" else ""
    rows = "".join(
        f'<tr><th scope="row" style="text-align: left; padding: 0 1em 0 0; font-weight: normal;">'
        f'{label}</th><td style="text-align: left;"><code>{escape(value, quote=False)}</code></td></tr>'
        for label, value in _facts(result)
    )
    table = f'<table style="margin: 0.3em 0; border: 0;">{rows}</table>' if rows else ""
    return panel(
        result.status,
        head + body + table + _hints_html(result.hints, result.hints_in_all) + _note(result.note),
    )


def check_text(result: CheckResult) -> str:
    """The panel of a check in a terminal."""
    lines = [
        f"{SIGN[result.status]} {result.exercise} {WORD[result.status]} · {result.title} · "
        f"{result.score:g} of {result.max_score:g} {_points(result)}"
    ]
    if result.status != "not tried":
        lines.append(f"  {result.sentence}")
    lines += [f"  {label:8} {value}" for label, value in _facts(result)]
    if result.hints:
        lines.append(f"  Hint {len(result.hints)} of {result.hints_in_all}: {result.hints[-1]}")
    return "\n".join(lines + ([f"  {result.note}"] if result.note else []))


def hint_panel(id: str, hints: tuple[str, ...], in_all: int, note: str = "") -> Panel:
    """The hints unlocked so far, the newest open."""
    if not hints:
        text = f"{id} has no hints."
        return Panel(panel("quiet", marked(text)), text)
    last = " That was the last one." if len(hints) == in_all else ""
    head = f"<div><strong>{escape(id)}</strong> · hint {len(hints)} of {in_all}.{last}</div>"
    html = panel("news", head + _hints_html(hints, in_all, open_last=True) + _note(note))
    text = f"{id} · hint {len(hints)} of {in_all}: {hints[-1]}{last}" + (
        f"\n{note}" if note else ""
    )
    return Panel(html, text)


def _facts(result: CheckResult) -> list[tuple[str, str]]:
    told = [("given", result.given), ("expected", result.expected), ("came", result.got)]
    return [
        (label, value if isinstance(value, str) else short(value))
        for label, value in told
        if value is not None
    ]


def _hints_html(hints: tuple[str, ...], in_all: int, open_last: bool = False) -> str:
    return "".join(
        f"<details{' open' if open_last and number == len(hints) else ''}>"
        f"<summary>Hint {number} of {in_all}</summary>{marked(text)}</details>"
        for number, text in enumerate(hints, 1)
    )


def _note(note: str) -> str:
    return f"<div><em>{marked(note)}</em></div>" if note else ""


def _points(result: CheckResult) -> str:
    return "point" if result.max_score == 1 else "points"
