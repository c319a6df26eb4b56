"""`%load_ext llmcourse`: the course's few names in the notebook, its look, and one-sentence errors."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from llmcourse.errors import CourseError


def load(ipython: Any) -> None:
    """Prepare an IPython session: names, figure style, CourseError without traceback, %llmcourse."""
    from llmcourse.jupyter.exercises.base import check, hint
    from llmcourse.jupyter.guess import predict
    from llmcourse.measure.results import record
    from llmcourse.measure.scoreboard import Scoreboard

    ipython.push(
        {
            "check": check,
            "hint": hint,
            "predict": predict,
            "record": record,
            "scoreboard": Scoreboard(),
        }
    )
    ipython.set_custom_exc((CourseError,), _one_sentence)
    ipython.register_magic_function(llmcourse, "line", "llmcourse")
    try:
        from llmcourse.jupyter.figures import use_style
    except ImportError:  # matplotlib is not needed to solve an exercise in a terminal
        return
    use_style()


def llmcourse(line: str) -> Any:
    """`%llmcourse progress`: the points of each chapter. `%llmcourse version`: what is installed."""
    from llmcourse import __version__
    from llmcourse.jupyter import chapters

    match line.split():
        case [] | ["progress"]:
            return chapters.progress_panel()
        case ["version"]:
            return __version__
    raise CourseError(
        f'There is no "%llmcourse {line}"; there are %llmcourse progress and version.'
    )


def _one_sentence(
    shell: Any,
    kind: type[BaseException],
    error: BaseException,
    tb: TracebackType,
    tb_offset: int | None = None,
) -> list[str]:
    """Show the sentence alone. The cell has still failed, for Run All, nbclient, papermill and nbval."""
    shown = [f"{error}"]
    shell._showtraceback(kind, error, shown)
    return shown
