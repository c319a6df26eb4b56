"""Fenced `mermaid` blocks as diagrams that the page draws itself, from a local copy of Mermaid.

sphinxcontrib-mermaid imports Mermaid as a module, which a browser refuses for a page opened from disk;
a classic script draws there too, and these lines are all that is needed for it.
"""

from __future__ import annotations

import html
import re
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective


class Mermaid(SphinxDirective):
    """The source stays in the page: it is what is shown where no script runs.

    `accDescr: …` in the source is the diagram's text alternative; without it, the labels are read out.
    """

    has_content = True

    def run(self) -> list[nodes.Node]:
        source = "\n".join(self.content)
        said = re.search(r"^\s*acc(?:Descr|Title)\s*:\s*(.+)$", source, flags=re.M)
        label = f' role="img" aria-label="{html.escape(said[1].strip())}"' if said else ""
        text = f'<pre class="mermaid"{label}>{html.escape(source)}</pre>'
        self.env.metadata[self.env.docname]["mermaid"] = "yes"
        return [nodes.raw("", text, format="html")]


def _add_script(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    if "mermaid" in app.env.metadata.get(page, {}):
        app.add_js_file("vendor/mermaid/mermaid.min.js", loading_method="defer")
        app.add_js_file("diagrams.js", loading_method="defer")


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("mermaid", Mermaid)
    app.connect("html-page-context", _add_script)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
