"""The built website as a reader's browser shows it: everything drawn, and nothing asked of another host."""

from __future__ import annotations

import pytest

CHAPTERS = ["notebooks/00_meet_the_model", "notebooks/01_attention_math"]
PAGES = ["index", *CHAPTERS, "measurements", "glossary", "errata", "references", "teachers"]


def settle(page, address: str) -> None:
    """Open a page and wait until math, diagrams and widgets have been drawn."""
    page.goto(address, wait_until="load")
    page.evaluate("window.MathJax?.startup?.promise")
    if page.locator("pre.mermaid").count():
        page.wait_for_selector("pre.mermaid[data-drawn] svg")
    if page.locator("script[type='application/vnd.jupyter.widget-view+json']").count():
        page.wait_for_selector(".jupyter-widgets")


@pytest.mark.parametrize("name", PAGES)
def test_page_is_whole(desktop, watch, site, picture, name):
    """Is all math set, each diagram drawn, each picture described, and nothing missing or fetched outside?"""
    settle(desktop, f"{site}/{name}.html")
    assert desktop.locator("article h1").count() == 1
    sources = desktop.locator(".math").count()
    drawn = desktop.locator("mjx-container").evaluate_all(
        "all => all.map(m => m.getBoundingClientRect()).filter(r => r.width > 1 && r.height > 1).length"
    )
    hidden = desktop.locator(
        "details:not([open]) mjx-container, .toggle-hidden mjx-container"
    ).count()
    assert drawn + hidden >= sources, f"{sources} formulas, {drawn} drawn"
    assert desktop.locator("mjx-merror").count() == 0
    undescribed = desktop.locator("img").evaluate_all(
        "all => all.filter(i => !i.alt.trim()).map(i => i.src)"
    )
    assert not undescribed
    empty = desktop.locator("img").evaluate_all(
        "all => all.filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
    )
    assert not empty
    picture(desktop, name.replace("/", "-") + "-light", full=True)
    assert watch.outside == []
    assert watch.errors == []


@pytest.mark.parametrize("name", PAGES)
def test_phone_does_not_scroll_sideways(phone, watch, site, picture, name):
    """Does every page fit a phone, in the dark?"""
    settle(phone, f"{site}/{name}.html")
    wide = phone.evaluate("document.scrollingElement.scrollWidth")
    assert wide <= 390, f"{wide} pixels wide on a phone of 390"
    assert phone.evaluate("document.documentElement.dataset.theme") == "dark"
    picture(phone, name.replace("/", "-") + "-phone-dark", full=True)
    assert watch.outside == [] and watch.errors == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_chapter(desktop, site, name):
    """Are solutions folded, stubs shown, and both editions offered for download?"""
    settle(desktop, f"{site}/{name}.html")
    folded = desktop.locator("div.cell.tag_hide-input details.hide")
    assert folded.count() >= 1
    assert desktop.locator("div.cell.tag_hide-input details.hide[open]").count() == 0
    assert "your code here" in desktop.locator("article").inner_text()
    for edition in ("exercises", "solutions"):
        href = desktop.locator(f"a.btn-download-{edition}").first.get_attribute("href")
        assert href is not None
        answer = desktop.request.get(desktop.evaluate("h => new URL(h, location).href", href))
        assert answer.ok
        assert ("### BEGIN SOLUTION" in answer.text()) == (edition == "solutions")


def test_widgets_are_drawn(desktop, site):
    """Does the stored state of chapter 00's widget become a slider with a name?"""
    settle(desktop, f"{site}/{CHAPTERS[0]}.html")
    slider = desktop.locator(".jupyter-widgets .noUi-handle").first
    slider.scroll_into_view_if_needed()
    assert slider.bounding_box()["width"] > 2


def test_dark_mode(desktop, watch, site, picture):
    """Does the switch change the colours, and are diagrams drawn again in the new ones?"""
    settle(desktop, f"{site}/index.html")
    colour = "getComputedStyle(document.body).backgroundColor"
    light = desktop.evaluate(colour)
    desktop.locator(".theme-switch-button:visible").click()
    desktop.locator(
        ".dropdown-menu.show [data-mode=dark], .dropdown-menu.show [data-theme=dark]"
    ).first.click()
    assert desktop.evaluate("document.documentElement.dataset.theme") == "dark"
    assert desktop.evaluate(colour) != light
    desktop.wait_for_selector("pre.mermaid[data-drawn] svg")
    for name in ("index", *CHAPTERS):  # the choice is remembered
        settle(desktop, f"{site}/{name}.html")
        assert desktop.evaluate("document.documentElement.dataset.theme") == "dark"
        bright = desktop.locator("article .cell_output *").evaluate_all(
            """all => all.filter(e => {
                const [r, g, b, alpha = 1] = getComputedStyle(e).backgroundColor.match(/[\\d.]+/g).map(Number);
                return alpha > 0.5 && Math.min(r, g, b) > 190 && e.offsetWidth > 100 && e.offsetHeight > 24;
            }).map(e => e.className)"""
        )
        assert not bright, "a bright box on a dark page"
        picture(desktop, name.replace("/", "-") + "-dark", full=True)
    assert watch.outside == [] and watch.errors == []


@pytest.mark.parametrize(("folder", "words"), [("", "softmax"), ("zh_CN/", "注意力")])
def test_search(desktop, watch, site, folder, words):
    """Does the search find a word, in English and in Chinese, without a server?"""
    desktop.goto(f"{site}/{folder}search.html?q={words}")
    desktop.wait_for_selector("#search-results li a")
    assert desktop.locator("#search-results li").count() >= 1
    assert watch.outside == [] and watch.errors == []


def test_languages(desktop, watch, site, picture):
    """Does the switch in the header lead to the same page in Chinese, and back?"""
    settle(desktop, f"{site}/index.html")
    desktop.locator(".llmcourse-languages a").first.click()
    desktop.wait_for_url("**/zh_CN/index.html")
    assert desktop.locator("html").get_attribute("lang") == "zh-CN"
    picture(desktop, "index-zh")
    desktop.locator(".llmcourse-languages a").first.click()
    desktop.wait_for_url(f"{site}/index.html")
    assert watch.outside == [] and watch.errors == []
