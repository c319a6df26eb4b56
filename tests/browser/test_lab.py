"""Chapter 00 as a reader meets it: JupyterLab, the student edition, a widget under the keyboard, a check."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

CHAPTER = "00_meet_the_model.ipynb"
NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
# As few tokens as the chapter's own assertions can do with: this is about the front end, not the speed.
SHORT = {"max_tokens": 16, "quality_tokens": 1536}


@pytest.fixture(scope="module")
def chapter(lab, checkpoint):
    """The address of chapter 00 in a workspace, where exercise 0.1 is solved and the others are not."""
    folder, address = lab
    path = folder / CHAPTER
    notebook = json.loads(path.read_text("utf-8"))
    source = json.loads((NOTEBOOKS / CHAPTER).read_text("utf-8"))
    solved = next(
        cell["source"]
        for cell in source["cells"]
        if cell["metadata"].get("nbgrader", {}).get("grade_id") == "ex-0-1"
    )
    for cell in notebook["cells"]:
        if cell["metadata"].get("nbgrader", {}).get("grade_id") == "ex-0-1":
            cell["source"] = solved
        if "parameters" in cell["metadata"].get("tags", []):
            text = "".join(cell["source"])
            for name, value in SHORT.items():
                text = re.sub(rf"^{name} = \d+", f"{name} = {value}", text, flags=re.M)
            cell["source"] = text
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return address.format(CHAPTER)


def test_chapter_00_in_jupyterlab(chapter, desktop, watch, picture):
    """Does it run from top to bottom, does the widget answer the keyboard, do checks tell right from untried?"""
    desktop.goto(chapter)
    desktop.wait_for_selector(".jp-Notebook .jp-Cell h1", timeout=120_000)
    desktop.wait_for_selector("#jp-main-statusbar >> text=Idle", timeout=120_000)
    picture(desktop, "lab-00-opened")
    desktop.get_by_role("menuitem", name="Run", exact=True).click()
    desktop.get_by_role("menuitem", name=re.compile("^Run All Cells")).click()
    desktop.wait_for_selector("#jp-main-statusbar >> text=Busy")
    idle_s = 0  # between two cells the kernel is idle for a moment
    while idle_s < 4:
        desktop.wait_for_timeout(1000)
        idle_s = idle_s + 1 if desktop.locator("#jp-main-statusbar >> text=Idle").count() else 0
    picture(desktop, "lab-00-ran")

    # JupyterLab keeps only the cells near the viewport in the page: `find` scrolls.
    scroller = desktop.locator(".jp-WindowedPanel-outer").first
    find(
        desktop, scroller, ".llmcourse-panel:has-text('0.5 Not tried yet')"
    ).scroll_into_view_if_needed()
    picture(desktop, "lab-00-checks")
    right = find(desktop, scroller, ".llmcourse-panel:has-text('0.1 Right')").text_content()
    assert re.search(r"(\d+) of \1 point", right), right

    slider = find(desktop, scroller, ".widget-slider .noUi-handle")
    slider.scroll_into_view_if_needed()
    said = desktop.locator("[role=status]:has-text('At most')").first
    before = said.text_content()
    slider.focus()
    for _ in range(3):
        desktop.keyboard.press("ArrowRight")
    desktop.wait_for_function(
        "before => [...document.querySelectorAll('[role=status]')]"
        ".some(e => e.textContent.includes('At most') && e.textContent !== before)",
        arg=before,
    )
    picture(desktop, "lab-00-widget")
    assert watch.outside == []


def find(page, scroller, selector: str):
    """The first match, scrolled to from the top, since cells out of sight are not in the page."""
    height = scroller.evaluate("panel => panel.scrollHeight")
    for top in range(0, int(height) + 500, 500):
        scroller.evaluate("(panel, top) => panel.scrollTo(0, top)", top)
        page.wait_for_timeout(150)
        if page.locator(f"{selector} >> visible=true").count():
            return page.locator(f"{selector} >> visible=true").first
    pytest.fail(f"nothing in the notebook matches {selector}")
