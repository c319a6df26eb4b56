"""The one exception a reader may see."""

from __future__ import annotations


class CourseError(Exception):
    """Something the reader can mend: one sentence that says what happened and what to do."""
