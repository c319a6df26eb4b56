"""Do live pictures follow their controls, and say in words what they show?"""

from __future__ import annotations

import pytest

pytest.importorskip("ipywidgets")
plt = pytest.importorskip("matplotlib.pyplot")

import ipywidgets  # noqa: E402

from llmcourse.jupyter.drawing import arrow, heatmap  # noqa: E402
from llmcourse.jupyter.widgets import live  # noqa: E402


@pytest.fixture
def shown(monkeypatch):
    """What was displayed: a list of (bundle, metadata)."""
    bundles = []
    monkeypatch.setattr(
        "IPython.display.display",
        lambda bundle, raw, metadata: bundles.append((bundle, metadata)),
    )
    return bundles


def test_live_picture_follows_its_control(shown):
    """Moved, does the control change picture and sentence; unmoved, is there one to read?"""
    slider = ipywidgets.IntSlider(1, 0, 9, description="Size")

    def draw(size):
        fig, ax = plt.subplots(figsize=(1, 1))
        ax.plot([0, size])
        return fig, f"A line to {size} < 10."

    before = plt.get_fignums()
    live(draw, size=slider)
    [(bundle, metadata)] = shown
    assert bundle["text/plain"] == metadata["image/png"]["alt"] == "A line to 1 < 10."
    view = bundle["application/vnd.jupyter.widget-view+json"]["model_id"]
    page = ipywidgets.widgets.widget._instances[view].children[-1]
    first = page.value
    slider.value = 5
    assert first != page.value
    assert 'alt="A line to 5 &lt; 10."' in page.value and 'role="status"' in page.value
    assert plt.get_fignums() == before, "a figure was left open"


def test_heatmap_writes_its_numbers():
    """Does each cell show its value, a hidden one (nan) nothing, and minus zero no sign?"""
    fig, ax = plt.subplots()
    heatmap(ax, [[0.25, float("nan")], [-0.01, 1.0]], ["a", "b"], 0, 1)
    assert [text.get_text() for text in ax.texts] == ["0.2", "0.0", "1.0"]
    plt.close(fig)


def test_arrow_names_its_tip():
    """Does the name stand beyond the tip, on the arrow's own line?"""
    fig, ax = plt.subplots()
    arrow(ax, (0, 0), (-2, 0), name="k")
    name = ax.texts[-1]
    assert name.get_text() == "k" and name.xy == (-2.0, 0.0)
    assert name.get_position()[0] < 0 and name.get_position()[1] == 0
    plt.close(fig)


def test_live_picture_may_bring_a_table(shown):
    """Does what may not stand in a picture stand below it, and follow the control?"""
    slider = ipywidgets.IntSlider(1, 0, 9, description="Row")

    def draw(row):
        return (
            plt.figure(figsize=(1, 1)),
            f"Row {row}.",
            f"<table><tr><td>词{row}</td></tr></table>",
        )

    live(draw, row=slider)
    [(bundle, _)] = shown
    assert bundle["text/plain"] == "Row 1."
    view = bundle["application/vnd.jupyter.widget-view+json"]["model_id"]
    page = ipywidgets.widgets.widget._instances[view].children[-1]
    slider.value = 4
    assert page.value.endswith("<table><tr><td>词4</td></tr></table>")
