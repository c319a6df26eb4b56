"""A picture that follows its controls, and stays worth reading where no kernel runs."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from html import escape
from io import BytesIO
from typing import Any


def live(draw: Callable[..., tuple[Any, ...]], **controls: Any) -> None:
    """Show ipywidgets `controls` above the picture that `draw` makes of their values.

    `draw(**values)` returns a matplotlib figure, one sentence and, if it likes, a table as HTML. The
    sentence is the picture's alternative text and stands below it, announced to screen readers at
    each change; the table, for what may not stand in a picture, comes last. A page that cannot run
    widgets (a code host, print) shows the first picture instead.
    """
    import ipywidgets
    from IPython.display import display

    page = ipywidgets.HTML()
    picture, sentence, table = _draw(draw, controls)

    def show(picture: str, sentence: str, table: str) -> None:
        said = escape(sentence)
        page.value = (
            f'<img src="data:image/png;base64,{picture}" alt="{said}" style="max-width: 100%">'
            f'<p role="status">{said}</p>{table}'
        )

    for control in controls.values():
        control.observe(lambda _: show(*_draw(draw, controls)), "value")
    show(picture, sentence, table)
    view = "application/vnd.jupyter.widget-view+json"
    widget = ipywidgets.VBox([*controls.values(), page])._repr_mimebundle_()[view]
    bundle = {view: widget, "image/png": picture, "text/plain": sentence}
    display(bundle, raw=True, metadata={"image/png": {"alt": sentence}})


def _draw(draw: Callable[..., tuple[Any, ...]], controls: dict[str, Any]) -> tuple[str, str, str]:
    """The picture in base64, its sentence, and its table or "", at the controls' present values."""
    import matplotlib.pyplot as plt

    figure, sentence, *table = draw(**{name: control.value for name, control in controls.items()})
    png = BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    plt.close(figure)  # or the inline backend would show it a second time
    return b64encode(png.getvalue()).decode("ascii"), sentence, "".join(table)
