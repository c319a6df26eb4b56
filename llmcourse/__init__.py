"""Fast LLM inference, taught on one real model: the package behind the notebooks.

Data flows one way: prompt, tokenizer, model, engine, measurement, scoreboard, notebook, book.
Each subpackage is one of those rooms and imports only from rooms below it.
"""

from __future__ import annotations

__version__ = "0.1.0"


def load_ipython_extension(ipython: object) -> None:
    """Make `%load_ext llmcourse` work; imported late, so that `import llmcourse` stays quick."""
    from llmcourse.jupyter.magics import load

    load(ipython)
