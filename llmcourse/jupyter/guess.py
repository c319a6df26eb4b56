"""Commit to a guess before the result: it is what makes a measurement memorable.

The guess is kept with the reader's progress, so running the notebook again does not ask twice, and
a notebook that runs without a reader goes on with an invitation instead.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from llmcourse.jupyter import progress
from llmcourse.jupyter.exercises.compare import short
from llmcourse.jupyter.exercises.panels import Panel, marked, panel


class Guess:
    """A reader's guess: a number, one of the options, or None so long as there is none."""

    def __init__(self, key: str, question: str, unit: str, options: tuple[str, ...] | None) -> None:
        self.key, self.question, self.unit, self.options = key, question, unit, options
        self._value = self._stored()

    @property
    def value(self) -> float | str | None:
        """The guess."""
        return self._value

    def set(self, value: float | str) -> str:
        """Keep a guess; returns a sentence if it could not be saved."""
        self._value = value
        return progress.change(
            lambda state: state["guesses"].update({self.key: {"value": value, "unit": self.unit}})
        )

    def against(self, value: Any, kind: str = "ratio") -> Panel:
        """The guess beside what was measured: off by a factor ("ratio") or by a "difference"."""
        assert kind in ("ratio", "difference"), kind
        truth = value if isinstance(value, str) else float(value)
        if self._value is None:
            text = f"No guess yet. Measured: {self._said(truth)}. The next time, guess first."
            return Panel(panel("quiet", f"<small>{marked(text)}</small>"), text)
        verdict = _verdict(self._value, truth, kind, self.unit)
        text = f"You said {self._said(self._value)} · measured {self._said(truth)} · {verdict}"
        html = (
            f"<div>You said <strong>{marked(self._said(self._value))}</strong> · "
            f"measured <strong>{marked(self._said(truth))}</strong> · {marked(verdict)}</div>"
        )
        return Panel(panel("news", html), text)

    def __repr__(self) -> str:
        return (
            f"Guess({self.key!r}: {'none yet' if self._value is None else self._said(self._value)})"
        )

    def _said(self, value: float | str) -> str:
        if isinstance(value, str):
            return value
        number = f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
        tight = self.unit in ("×", "%", "°")
        return number + ("" if tight or not self.unit else " ") + self.unit

    def _stored(self) -> float | str | None:
        value = progress.read()["guesses"].get(self.key, {}).get("value")
        if self.options:
            return value if value in self.options else None
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return float(value) if number and math.isfinite(value) else None


def predict(key: str, question: str, unit: str = "", options: Sequence[str] | None = None) -> Guess:
    """Ask for a guess, show the form, and return the Guess (its value is None until one is made).

    `options` asks for one of several answers instead of a number. `key` names the guess in the
    reader's progress and is the same for ever: "00-tokens-per-s".
    """
    guess = Guess(key, question, unit, tuple(options) if options else None)
    _show(guess)
    return guess


_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_PLAIN = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_TERM = rf"{_PLAIN}(?:\s*\^\s*[({{]?[+-]?(?:\d*\.)?\d+[)}}]?)?"
_BETWEEN = r"\s*([·⋅×*x/])\s*"


def number(text: str) -> float | None:
    """The number in what a reader typed; None if there is none.

    It reads "1,200", "3e8", "20 tokens/s" and "×4"; powers and products as in "2·10^-5", "10**-5"
    and "10⁻⁵"; and fractions as in "1/5".
    """
    plain = text.strip().replace("−", "-").replace("_", "").replace("**", "^")
    plain = re.sub(r"(?<=\d)[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda m: "^" + m[0].translate(_RAISED), plain)
    plain = re.sub(r"(?<=\d)[,  ](?=\d{3}(?!\d))", "", plain)
    if re.fullmatch(r"[+-]?\d+,\d+([^\d,][^,]*)?", plain):  # a decimal comma
        plain = plain.replace(",", ".")
    found = re.search(rf"([+-]?)({_TERM}(?:{_BETWEEN}{_TERM})*)", plain)
    if not found:
        return None
    value = -1.0 if found[1] == "-" else 1.0
    pieces = ["*", *re.split(_BETWEEN, found[2])]
    try:
        for operator, term in zip(pieces[::2], pieces[1::2], strict=True):
            base, _, power = term.partition("^")
            factor = float(base) ** float(power.strip(" (){}") or 1)
            value = value / factor if operator == "/" else value * factor
    except (OverflowError, ZeroDivisionError):
        return None
    return value if math.isfinite(value) else None


def _verdict(guess: float | str, truth: float | str, kind: str, unit: str) -> str:
    if isinstance(guess, str) or isinstance(truth, str):
        return "you saw it coming" if guess == truth else "not what you expected"
    if math.isnan(truth):
        return "nothing to compare with"
    if kind == "difference":
        return (
            "exactly" if guess == truth else f"off by {short(abs(guess - truth))} {unit}".rstrip()
        )
    if guess <= 0 or truth <= 0:
        return "exactly" if guess == truth else "not the same side of zero"
    factor = max(guess / truth, truth / guess)
    if factor < 1.1:
        return "within a tenth"
    return f"{'too high' if guess > truth else 'too low'} by a factor of {factor:,.3g}"


def _show(guess: Guess) -> None:
    from IPython.display import display

    from llmcourse.jupyter.exercises.panels import in_notebook

    said = guess._said(guess.value) if guess.value is not None else ""
    status = (
        f"Your guess: {said}." if said else "No guess yet: run this cell, make one, then go on."
    )
    asked = f"{guess.question}" + (f" ({guess.unit})" if guess.unit else "")
    listed = f" Choose: {' · '.join(guess.options)}." if guess.options else ""
    text = f"Guess: {asked}{listed} {status}"
    html = panel(
        "news",
        f"<div><strong>{marked(asked)}</strong>{marked(listed)}</div><div>{marked(status)}</div>",
    )
    bundle = {"text/html": html, "text/plain": text}
    if in_notebook():
        form = _form(guess, guess.question, status if said else "")
        if form is not None:  # the HTML beside it is what a page without a kernel shows
            view = "application/vnd.jupyter.widget-view+json"
            bundle[view] = form._repr_mimebundle_()[view]
    display(bundle, raw=True)


def _form(guess: Guess, asked: str, status: str) -> Any:
    """The ipywidgets form, or None where ipywidgets is not installed."""
    try:
        import ipywidgets as w
    except ImportError:
        return None

    wide = {"description_width": "initial"}
    label = w.HTML(f"<strong>{marked(asked)}</strong>")
    answer = w.HTML(f'<span role="status">{marked(status)}</span>')
    if guess.options:
        field = w.RadioButtons(
            options=guess.options, value=guess.value, description="Your guess", style=wide
        )
    else:
        field = w.Text(
            value="" if guess.value is None else f"{guess.value:g}",
            placeholder="a number",
            description="Your guess",
            tooltip=asked,
            continuous_update=False,  # Enter is enough; the button is for the mouse
            style=wide,
            layout=w.Layout(width="16em"),
        )
    button = w.Button(
        description="Keep my guess", tooltip=f"Keep my guess: {asked}", button_style="primary"
    )

    def keep(_: Any = None) -> None:
        value = field.value if guess.options else number(field.value)
        if value is None:
            answer.value = '<span role="status">Type a number, for example 12 or 3e9.</span>'
            return
        note = guess.set(value)
        answer.value = (
            f'<span role="status">Kept: {marked(guess._said(value))}. {marked(note)}</span>'
        )

    button.on_click(keep)
    field.observe(lambda change: keep() if change["new"] not in ("", None) else None, names="value")
    row = [field, w.Label(guess.unit), button] if guess.unit else [field, button]
    box = w.VBox if guess.options else w.HBox
    return w.VBox([label, box(row), answer])
