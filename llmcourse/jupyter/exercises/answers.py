"""Take an answer apart: the fields of a dictionary, a number, a tensor, what a function returns.

Each returns what was asked for, or raises Wrong with a sentence that says what came instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from llmcourse.jupyter.exercises.compare import Wrong, a, shape_sentence

if TYPE_CHECKING:
    from torch import Tensor


def field(answer: Any, name: str, names: Sequence[str]) -> Any:
    """The field `name` of a dictionary that has the keys `names`."""
    keys = _listed([repr(one) for one in names])
    if not isinstance(answer, Mapping):
        raise Wrong(f"The answer is a dictionary with the keys {keys}.", got=answer)
    value = answer.get(name, ...)
    if value is ... or value is None or (isinstance(value, str) and not value.strip()):
        raise Wrong(f"{name!r} is still missing.", expected=f"the keys {keys}", got=answer)
    return value


def number_field(answer: Any, name: str, names: Sequence[str]) -> float:
    """The field `name` of a dictionary that has the keys `names`, as a finite number."""
    value = field(answer, name, names)
    found = number(value, name=name)
    if not math.isfinite(found):
        raise Wrong(f"{name!r} should be a finite number.", got=value)
    return found


def number(value: Any, *, name: str = "", given: Any = None) -> float:
    """The value as a float, ∞ and NaN included: of the field `name`, or what a function returned."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        what = f"{name!r} should be" if name else "The function must return"
        raise Wrong(f"{what} one number.", given=given, got=value) from None


def parts(got: Any, names: Sequence[str], given: str, kind: str = "things") -> list[Any]:
    """The several things that a function returns, called `names`, as a list."""
    if not isinstance(got, (tuple, list)) or len(got) != len(names):
        count = {2: "Two", 3: "Three", 4: "Four"}.get(len(names), len(names))
        order = ", as a tuple, in this order" if isinstance(got, Mapping) else ""
        why = f"{count} {kind} are wanted: {_listed(names)}{order}."
        raise Wrong(why, given=given, got=got)
    return list(got)


def tensor(got: Any, shape: Sequence[int], given: str, name: str = "") -> Tensor:
    """`got` as a float64 tensor of that shape; lists and arrays of numbers pass for one.

    `name` says which of several tensors it is.
    """
    import torch

    found = got
    with suppress(TypeError, ValueError, RuntimeError):
        if isinstance(got, (list, tuple)) and all(isinstance(row, torch.Tensor) for row in got):
            found = torch.stack(list(got))
        elif not isinstance(got, torch.Tensor):
            found = torch.as_tensor(got, dtype=torch.float64)
    about = f"{name}: " if name else ""
    if not isinstance(found, torch.Tensor):
        wanted = f"A tensor of shape {tuple(shape)}" if shape else "One number"
        raise Wrong(f"{about}{wanted} is wanted, and this is {a(got)}.", given=given, got=got)
    if tuple(found.shape) != tuple(shape):
        why = about + shape_sentence(found.shape, shape)
        expected, came = f"shape {tuple(shape)}", f"shape {tuple(found.shape)}"
        raise Wrong(why, given=given, expected=expected, got=came)
    return found.detach().double()


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"
