"""One table, two looks: HTML for notebooks and the book, aligned text everywhere else."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape

# JupyterLab's variables where there are any, else the page's colours: right in dark and light.
_LINE = "1px solid var(--jp-border-color2, rgba(128, 128, 128, 0.5))"
_MARK = "var(--jp-layout-color2, rgba(128, 128, 128, 0.18))"
_NUMBER = re.compile(r"[0-9+\-−]")


@dataclass(frozen=True, slots=True)
class Table:
    """Cells are finished strings; the first of each row names the row. `marked` are row indices."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    marked: frozenset[int] = frozenset()

    def _repr_html_(self) -> str:
        figures = [i > 0 and self._has_figures(i) for i in range(len(self.columns))]
        head = "".join(
            f'<th scope="col" style="{_cell(of_figures)}border-bottom:{_LINE}">{escape(name)}</th>'
            for name, of_figures in zip(self.columns, figures, strict=True)
        )
        body = "".join(self._html_row(i, row, figures) for i, row in enumerate(self.rows))
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        return (
            '<div class="llmcourse-table" style="overflow-x:auto">'
            '<table style="border-collapse:collapse;color:inherit">'
            '<caption style="caption-side:top;text-align:left;font-weight:600;color:inherit">'
            f"{escape(self.caption)}</caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            + (f'<ul style="margin-top:0.3em">{notes}</ul>' if notes else "")
            + "</div>"
        )

    def _has_figures(self, column: int) -> bool:
        """Does a cell of this column begin as a number does? Else it holds words."""
        return any(_NUMBER.match(row[column]) for row in self.rows)

    def _html_row(self, index: int, row: tuple[str, ...], figures: list[bool]) -> str:
        first, *rest = row
        background = f' style="background:{_MARK}"' if index in self.marked else ""
        cells = "".join(
            f'<td style="{_cell(of_figures)}">{escape(c)}</td>'
            for c, of_figures in zip(rest, figures[1:], strict=True)
        )
        name = f'<th scope="row" style="{_cell(False)}">{escape(first)}</th>'
        return f"<tr{background}>{name}{cells}</tr>"

    def __str__(self) -> str:
        lines = [self.columns, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        text = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
            for line in lines
        ]
        rule = "-" * len(text[0])
        notes = [f"* {note}" for note in self.notes]
        return "\n".join([self.caption, text[0], rule, *(t.rstrip() for t in text[1:]), *notes])

    __repr__ = __str__


def _cell(of_figures: bool) -> str:
    """The inline style of a cell: words to the left, figures to the right and in one line."""
    align = "text-align:right;white-space:nowrap;" if of_figures else "text-align:left;"
    return f"{align}padding:0.2em 0.7em;"


def seconds_text(seconds: float) -> str:
    """A time in the unit one would say it in: 1.53 s, 20.4 ms, 310 µs."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(seconds) >= size:
            return f"{number_text(seconds / size)} {unit}"
    return f"{number_text(seconds / 1e-9)} ns"


def bytes_text(count: float, unit: str = "B") -> str:
    """A size in powers of 1000, as bandwidth is: 538 MB, 98.1 MB, 23.0 kB."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(count) >= size:
            return f"{number_text(count / size)} {prefix}{unit}"
    return f"{count:.0f} {unit}".rstrip()


def number_text(value: float) -> str:
    """Three significant digits, never in exponent form; whole from 100 on: 5.41, 15.2, 1,204."""
    if value != value:
        return "–"
    size = abs(value)
    digits = 0 if size >= 99.95 else 1 if size >= 9.995 else 2 if size >= 0.0995 else 4
    return f"{value:,.{digits}f}"
