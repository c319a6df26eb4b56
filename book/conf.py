"""Sphinx configuration of the website. `build.py` assembles the sources and calls Sphinx with it."""

from __future__ import annotations

import hashlib
import sys
import tomllib
from pathlib import Path
from typing import Any

BOOK = Path(__file__).resolve().parent
PROJECT = tomllib.loads((BOOK.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
sys.path.insert(0, str(BOOK))

project = "llmcourse"
author = PROJECT["authors"][0]["name"] if PROJECT.get("authors") else "The llmcourse authors"
copyright = f"{author}, Apache-2.0"
release = version = PROJECT["version"]

extensions = [
    "myst_nb",
    "sphinx_copybutton",
    "sphinx_togglebutton",
    "sphinx_design",
    "sphinx.ext.mathjax",
    "diagrams",
]
exclude_patterns = ["_build", "node_modules"]

# Notebooks: what is stored is what is shown.
nb_execution_mode = "off"
nb_merge_streams = True
# Where an output has both (a form to type a guess into), the page shows the HTML: a form needs a kernel.
nb_mime_priority_overrides = [("html", "text/html", 5)]
nb_ipywidgets_js = {"vendor/widgets/embed.js": {"defer": "defer"}}
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist", "attrs_inline"]
myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 3
mathjax_path = "vendor/mathjax/tex-chtml-full.js"
mathjax3_config = {"chtml": {"displayAlign": "center"}, "options": {"enableMenu": True}}

# Translation: one catalogue a page, one message a paragraph.
language = "en"
locale_dirs = [str(BOOK / "_build" / "locale")]
gettext_compact = False
gettext_uuid = False
gettext_additional_targets = ["image"]

html_theme = "sphinx_book_theme"
html_title = "llmcourse"
html_static_path = ["_static"] + (["_build/static"] if (BOOK / "_build/static").is_dir() else [])
templates_path = ["_templates"]
html_css_files = ["llmcourse.css"]
html_js_files = ["languages.js", "llmcourse.js"]
html_favicon = "_static/favicon.svg"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_last_updated_fmt = None
html_context = {"default_mode": "auto"}
html_theme_options = {
    # The one place of the repository's address. Until the project is published it is a placeholder;
    # `[project.urls] Repository` in pyproject.toml replaces it, and all buttons follow.
    "repository_url": PROJECT.get("urls", {}).get(
        "Repository", "https://github.com/llmcourse/llmcourse"
    ),
    "repository_branch": "main",
    "path_to_docs": "",
    "use_repository_button": True,
    "use_issues_button": True,
    "use_download_button": False,  # ours offers both editions, see _downloads
    "use_fullscreen_button": False,
    "launch_buttons": {
        "binderhub_url": "https://mybinder.org",
        "colab_url": "https://colab.research.google.com",
        "notebook_interface": "jupyterlab",
    },
    # No bar across the top: the sidebar has the name and the search.
    "navbar_start": [],
    "navbar_center": [],
    "navbar_end": [],
    "navbar_persistent": [],
    "article_header_end": ["languages.html", "article-header-buttons.html"],
    "pygments_light_style": "github-light",
    "pygments_dark_style": "github-dark",
    "home_page_in_toc": True,
    "show_toc_level": 2,
    "show_navbar_depth": 1,
    "navigation_with_keys": False,
    "logo": {"text": "llmcourse"},
}

# Two editions of a chapter and the printer, in words that a catalogue can translate.
DOWNLOADS = {
    "en": (
        "Download this chapter",
        "Notebook to work in (exercises)",
        "Notebook with solutions",
        "Print",
    ),
    "zh_CN": ("下载本章", "练习版笔记本", "带答案的笔记本", "打印"),
}


def _downloads(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """The download button of a chapter: the student edition first, then the one with solutions."""
    if not page.startswith("notebooks/") or "header_buttons" not in context:
        return
    tooltip, student, source, paper = DOWNLOADS.get(app.config.language, DOWNLOADS["en"])
    name = page.removeprefix("notebooks/") + ".ipynb"

    def link(edition: str, text: str, icon: str) -> dict[str, str]:
        return {
            "type": "link",
            "url": context["pathto"](f"download/{edition}/{name}", 1),
            "text": text,
            "tooltip": text,
            "icon": icon,
            "label": f"download-{edition}",
        }

    print_page = {
        "type": "javascript",
        "javascript": "window.print()",
        "text": paper,
        "tooltip": paper,
        "icon": "fas fa-print",
        "label": "download-print",
    }
    context["header_buttons"].append(
        {
            "type": "group",
            "tooltip": tooltip,
            "icon": "fas fa-download",
            "label": "download-buttons",
            "buttons": [
                link("exercises", student, "fas fa-pencil-alt"),
                link("solutions", source, "fas fa-check"),
                print_page,
            ],
        }
    )


def setup(app: Any) -> None:
    """Called by Sphinx."""
    from sphinx.search.zh import SearchChinese

    # Sphinx 9.0.4 ships the English stemmer with Chinese pages and then asks for `ChineseStemmer`, which
    # nobody defines: without this, searching a Chinese page finds nothing.
    SearchChinese.language_name = "English"
    # Pages depend on these files too: Sphinx writes all of them anew when one changes.
    looks = [*BOOK.glob("*.py"), *BOOK.glob("_templates/*"), *BOOK.glob("_static/*")]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(looks))).hexdigest()
    app.add_config_value("llmcourse_looks", digest, "html")
    # After the theme's own buttons (priority 501 and less), so that ours come last in the row.
    app.connect("html-page-context", _downloads, priority=502)
