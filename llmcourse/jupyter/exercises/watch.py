"""Notice when an answer calls the library function that the reader was to write."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from llmcourse.jupyter.exercises.compare import LIBRARIES, Wrong


@contextmanager
def not_calling(
    *names: str, say: str, when: Callable[[Mapping[str, Any]], bool] | None = None
) -> Iterator[None]:
    """Raise Wrong with the sentence `say` if a library's function of these names runs inside.

    The names are those Python gives ("rms_norm", "RMSNorm.forward"), so it does not matter how the
    reader came by the function; what the reader wrote may have any name. "{name}" in the sentence
    becomes the name of the function. Where only some calls are forbidden, `when(arguments)` says
    which; those of functions not written in Python are then let pass. Whatever else is Wrong about
    an answer that calls one goes unsaid.
    """
    used: list[str] = []

    def note(frame: Any, event: str, arg: Any) -> None:
        code = frame.f_code
        if event == "call":
            library = code.co_qualname in names and code.co_filename.startswith(LIBRARIES)
            if library and (when is None or when(frame.f_locals)):
                used.append(code.co_name)
        elif event == "c_call" and when is None and getattr(arg, "__name__", "") in names:
            used.append(arg.__name__)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield
    except Wrong:
        if not used:
            raise
    finally:
        sys.setprofile(before)
    if used:
        raise Wrong(say.replace("{name}", used[0]))
