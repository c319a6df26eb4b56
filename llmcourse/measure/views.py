"""How the scoreboard's rows are shown: as a line of a table, as bars, as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmcourse.measure.quality import Estimate
from llmcourse.measure.tables import bytes_text, number_text

if TYPE_CHECKING:
    from llmcourse.measure.scoreboard import Row

COLUMNS = ("technique", "chapter", "tok/s", "× baseline", "weights", "GB/s used", "of limit",
           "perplexity", "accuracy", "note")  # fmt: skip
_GREY = "#797979"  # the same contrast with white and with near-black
_BLUE = "#1f78b4"


def cells(row: Row, base: Row | None) -> tuple[str, ...]:
    """One line of the table; a dash where there is nothing to say."""
    rate, limit = row.tokens_per_s, row.limit_tokens_per_s
    times = rate / base.tokens_per_s if rate and base and base.tokens_per_s else None
    return (
        row.technique,
        row.chapter,
        number_text(rate) if rate else "–",
        f"{number_text(times)}×" if times else "–",
        bytes_text(row.bytes) if row.bytes else "–",
        number_text(row.gb_per_s) if row.gb_per_s else "–",
        f"{rate / limit:.0%}" if rate and limit else "–",
        _quality(row.perplexity),
        _quality(row.accuracy),
        row.note,
    )


def _quality(found: float | Estimate | None) -> str:
    if found is None:
        return "–"
    return found.short() if isinstance(found, Estimate) else f"{found:.3g}"


def draw(axes: Any, rows: Sequence[Row], base: Row | None, colours: Mapping[str, str]) -> None:
    """Bars of tokens/s on matplotlib axes, first technique on top, each with its own limit."""
    from matplotlib.ticker import ScalarFormatter

    rates = [row.tokens_per_s or 0.0 for row in rows]
    limits = [row.limit_tokens_per_s for row in rows]
    reach = [*rates, *(limit for limit in limits if limit)]
    logarithmic = max(reach) > 20 * min(reach)
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xlim(min(reach) / 2, max(reach) * 4)
        axes.xaxis.set_major_formatter(ScalarFormatter())  # 100, not 10²
    else:
        axes.set_xlim(0, max(reach) * 1.25)
    for i, (row, rate, limit) in enumerate(zip(rows, rates, limits, strict=True)):
        first = base is not None and row.technique == base.technique
        axes.barh(i, rate, height=0.6, color=colours.get(row.technique, _GREY if first else _BLUE))
        if limit:
            axes.plot([limit] * 2, [i - 0.45, i + 0.45], linestyle="--", color=_GREY)
        times = f" · {rate / base.tokens_per_s:.1f}×" if base and base.tokens_per_s else ""
        # A limit just beyond the bar's end would cross the text: write behind it.
        near = 3 * rate if logarithmic else rate + max(reach) / 4
        place = limit if limit and rate < limit < near else rate
        _label(axes, f"{number_text(rate)}{times}", place, i, ha="left")
    top = next(((limit, i) for i, limit in enumerate(limits) if limit), None)
    if top:
        _label(axes, "limit", top[0], top[1] - 0.45, ha="center")
    axes.set_yticks(range(len(rows)), [row.technique for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.9)
    axes.set_xlabel("tok/s", color=_GREY)
    _quiet(axes)


def _label(axes: Any, text: str, x: float, y: float, *, ha: str) -> None:
    """Text four points beside the place it belongs to, or above it."""
    away, va = ((4, 0), "center") if ha == "left" else ((0, 2), "bottom")
    axes.annotate(text, (x, y), xytext=away, textcoords="offset points", ha=ha, va=va, color=_GREY)


def _quiet(axes: Any) -> None:
    """No face, mid-grey lines: right on a light and on a dark page."""
    axes.patch.set_alpha(0)
    axes.grid(False)
    axes.tick_params(which="both", colors=_GREY)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_GREY)


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """CSV with every field that any row has; an estimate takes name, name_low and name_high."""
    flat = [dict(_flatten(row)) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def _flatten(row: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, dict) and {"value", "low", "high"} <= value.keys():
            yield name, value["value"]
            yield f"{name}_low", value["low"]
            yield f"{name}_high", value["high"]
        elif isinstance(value, (dict, list)):
            yield name, json.dumps(value, ensure_ascii=False)
        else:
            yield name, value
