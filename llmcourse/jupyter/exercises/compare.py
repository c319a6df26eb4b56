"""Call a reader's function safely and compare what it returns: the words a check is written in."""

from __future__ import annotations

import copy
import inspect
import linecache
import math
import re
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

_PACKAGE = str(Path(__file__).resolve().parents[2])
LIBRARIES = tuple({sysconfig.get_path(n) for n in ("stdlib", "purelib", "platlib")} | {_PACKAGE})

# Sentences that fit any exercise. A check owes its typical mistakes better ones.
GENERIC = (
    "our function stopped with",
    "Your code stopped with",
    "Your function returned nothing",
    "This answer cannot be read",
    "That is not the value.",
    "That is not it.",
    "The values differ",
    "is wanted, and this is",
)


# What a check knows a typical mistake by: the value it gives, and the sentence that helps.
Slips: TypeAlias = Iterable[tuple[Any, str]]


class Wrong(Exception):
    """An answer that is wrong, with a sentence that helps; `given`, `expected` and `got` are shown."""

    def __init__(
        self, sentence: str, *, given: Any = None, expected: Any = None, got: Any = None
    ) -> None:
        super().__init__(sentence)
        self.given, self.expected, self.got = given, expected, got


class NotTried(Exception):
    """The stub was left as it was."""


def call(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What the reader's function returns for copies of these inputs.

    Raises NotTried for an untouched stub; Wrong, naming the input and the reader's own line, for
    anything else that keeps it from returning a value.
    """
    given = inputs(*args, **kwargs)
    if not callable(fn):
        raise Wrong(
            f"A function is wanted here, and this is {a(fn)}. Pass the function itself, "
            "without parentheses after its name.",
            got=fn,
        )
    try:
        result = fn(*map(_copy, args), **{key: _copy(value) for key, value in kwargs.items()})
    except NotImplementedError:
        raise NotTried from None
    except (NotTried, Wrong):
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, NameError) and _is_stub(fn):  # a name the reader's lines will define
            raise NotTried from None
        what = f"{type(error).__name__}: {_first_line(error)}".removesuffix(": ")
        line = reader_line(error, fn)
        with_input = f"Given {given}, y" if given else "Y"
        raise Wrong(f"{with_input}our function stopped with {what}{line}.") from error
    if result is ... or result is NotImplemented or _all_dots(result):
        raise NotTried
    if result is None:
        if _is_stub(fn):
            raise NotTried
        raise Wrong("Your function returned nothing: is the `return` missing?", given=given or None)
    return result


def call_as(given: str, fn: Callable[..., Any], *args: Any) -> Any:
    """`call`, with words of its own for inputs that would fill the sentence: a model, a dictionary."""
    try:
        return call(fn, *args)
    except Wrong as wrong:
        text = str(wrong)
        stopped = text.find("our function stopped with")
        raise Wrong("Y" + text[stopped:] if stopped > 0 else text, given=given) from None


def expect_close(
    got: Any,
    expected: Any,
    *,
    given: Any = None,
    why: str = "",
    tol: float = 1e-6,
    slips: Slips = (),
    name: str = "",
) -> None:
    """Raise Wrong unless `got` is a number or array of numbers near `expected`.

    Near means |got − expected| ≤ tol · max(1, |expected|), element by element. Where the two differ
    and `got` is near the value of one of the `slips` (value, sentence), that sentence is said;
    else `why`; else the largest difference and where it is. A slip that makes no difference here
    is no explanation, and one that gives NaN is found by its NaN. `name` says which of several
    values it is about.
    """
    try:
        _compare(got, expected, why, tol, slips)
    except Wrong as wrong:
        said = f"{name}: {wrong}" if name else str(wrong)
        raise Wrong(said, given=given, expected=expected, got=got) from None


def expect_equal(
    got: Any,
    expected: Any,
    *,
    given: Any = None,
    why: str = "",
    slips: Slips = (),
) -> None:
    """Raise Wrong unless `got` equals `expected` exactly: for words, orders and whole numbers."""
    if isinstance(got, tuple) and isinstance(expected, list):
        got = list(got)
    told = {"given": given, "expected": expected, "got": got}
    try:
        if bool(got == expected) and isinstance(got, bool) == isinstance(expected, bool):
            return
        for value, sentence in slips:
            if bool(got == value):
                raise Wrong(sentence, **told)
    except (ValueError, TypeError, RuntimeError):  # arrays do not answer == with yes or no
        raise Wrong(f"{_capital(a(expected))} is wanted, and this is {a(got)}.", **told) from None
    if why:
        raise Wrong(why, **told)
    if type(got) is not type(expected) and not isinstance(got, (int, float)):
        raise Wrong(f"{_capital(a(expected))} is wanted, and this is {a(got)}.", **told)
    raise Wrong("That is not it.", **told)


def shape_sentence(got: Sequence[int], expected: Sequence[int]) -> str:
    """What to say where a shape is not the one asked for."""
    got, expected = tuple(got), tuple(expected)
    if not got:
        return f"One number came where an array of shape {expected} is wanted."
    if not expected:
        return f"One number is wanted, and an array of shape {got} came."
    turned = len(got) == len(expected) and sorted(got) == sorted(expected)
    extra = " Are two axes exchanged?" if turned else ""
    return f"The shape is {got}, and {expected} is wanted.{extra}"


def inputs(*args: Any, **kwargs: Any) -> str:
    """The inputs of a call, as a reader would write them: `2, tensor of shape (3, 4), causal=True`."""
    told = [short(value, 60) for value in args]
    return ", ".join(told + [f"{key}={short(value, 60)}" for key, value in kwargs.items()])


def short(value: Any, width: int = 160) -> str:
    """A value in at most `width` characters, numbers with six digits, big arrays by their shape."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        whole = math.isfinite(value) and value == int(value) and 1e6 <= abs(value) < 1e15
        return f"{int(value):,}" if whole else f"{value:.6g}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    shape = getattr(value, "shape", None)
    if shape is not None and hasattr(value, "tolist"):
        kind = type(value).__name__.lower().replace("ndarray", "array")
        listed = short(value.tolist(), width=10**6) if math.prod(shape) <= 12 else ""
        if not shape and listed:
            return listed
        return listed if 0 < len(listed) <= width else f"{kind} of shape {tuple(shape)}"
    if isinstance(value, (list, tuple)):
        left, right = (
            ("[", "]") if isinstance(value, list) else ("(", ",)" if len(value) == 1 else ")")
        )
        text = (
            left
            + ", ".join(short(v, width) for v in value[:64])
            + ("" if len(value) <= 64 else ", …")
            + right
        )
    elif isinstance(value, dict):
        text = (
            "{" + ", ".join(f"{k!r}: {short(v, width)}" for k, v in list(value.items())[:64]) + "}"
        )
    else:
        try:
            text = repr(value)
        except Exception:
            text = f"<{type(value).__name__}>"
    return text if len(text) <= width else text[: width - 1] + "…"


def a(value: Any) -> str:
    """What kind of thing a value is: "a list", "a tensor", "an integer"."""
    known = {
        "int": "an integer",
        "float": "a number",
        "str": "a string",
        "bool": "a boolean",
        "ndarray": "an array",
        "function": "a function",
        "method": "a function",
        "type": "a class",
        "dict": "a dictionary",
        "NoneType": "None",
        "ellipsis": "`...`",
    }
    name = type(value).__name__
    return known.get(name, f"{'an' if name[0].lower() in 'aeio' else 'a'} {name.lower()}")


def reader_line(error: BaseException, fn: Any = None) -> str:
    """ ", in line 3 of your cell: `…`" for the deepest line of the reader's own code, or ""."""
    own = getattr(getattr(fn, "__code__", None), "co_filename", None)
    for frame in reversed(traceback.extract_tb(_tb(error))):
        if frame.filename != own and frame.filename.startswith(LIBRARIES):
            continue
        if frame.filename.startswith("<frozen"):
            continue
        code = (frame.line or linecache.getline(frame.filename, frame.lineno or 0)).strip()
        return f", in line {frame.lineno}" + (f": `{code}`" if code else " of your code")
    return ""


def _tb(error: BaseException) -> TracebackType | None:
    return error.__traceback__


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0].rstrip(".")


def _is_stub(fn: Any) -> bool:
    """Whether the line that says where the reader's code goes still stands alone."""
    try:
        source = inspect.getsource(fn)
    except (OSError, TypeError):
        return False
    return re.search(r"^\s*(\.\.\.\s*)?# your code here", source, re.MULTILINE) is not None


def _copy(value: Any) -> Any:
    """The reader's function may write into its inputs; the next call must not see it."""
    if hasattr(value, "state_dict"):  # a model: too big, and no exercise writes into one
        return value
    if hasattr(value, "detach") and hasattr(value, "clone"):
        return value.detach().clone().requires_grad_(value.requires_grad)
    try:
        return copy.deepcopy(value)
    except Exception:  # a model with hooks, an open file: shared, as it cannot be copied
        return value


def _all_dots(result: Any) -> bool:
    return isinstance(result, (tuple, list)) and len(result) > 0 and all(v is ... for v in result)


def _compare(got: Any, expected: Any, why: str, tol: float, slips: Slips) -> None:
    """What `expect_close` does, the sentence alone."""
    import numpy as np

    mine, due = _numbers(got, expected), _numbers(expected, expected)
    if _near(mine, due, tol):
        return
    if due.ndim and mine.shape != due.shape and _near(mine.squeeze(), due.squeeze(), tol):
        more = " Is an axis of length 1 too many, by keepdim=True?" if mine.ndim > due.ndim else ""
        raise Wrong(f"The numbers are right. {shape_sentence(mine.shape, due.shape)}{more}")
    for value, sentence in slips:
        if _near(mine, value, tol) and not _near(due, value, tol):
            raise Wrong(sentence)
    if mine.shape != due.shape:
        raise Wrong(shape_sentence(mine.shape, due.shape))
    odd = np.isnan(mine) & ~np.isnan(due)
    if odd.any():
        raise Wrong(
            f"There is a NaN (not a number){_where(odd)}: something divided 0 by 0, or ∞ by ∞."
        )
    if why:
        raise Wrong(why)
    if mine.ndim == 0:
        raise Wrong("That is not the value.")
    with np.errstate(invalid="ignore"):
        gap = np.nan_to_num(np.abs(mine - due), nan=np.inf)
    worst = np.unravel_index(int(gap.argmax()), gap.shape)
    raise Wrong(
        f"The values differ, most at {_index(worst)}: {short(mine[worst].item())} came, "
        f"{short(due[worst].item())} was due."
    )


def _numbers(value: Any, expected: Any) -> Any:
    """The value as a float64 array; raises Wrong if it is not made of numbers."""
    import numpy as np

    if isinstance(value, (bool, str, bytes, dict, set)) or value is None or callable(value):
        wanted = "A number" if np.ndim(expected) == 0 else "An array of numbers"
        extra = " Take the quotation marks away." if isinstance(value, str) else ""
        raise Wrong(f"{wanted} is wanted, and this is {a(value)}.{extra}")
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.double().numpy() if not value.is_complex() else value.numpy()
    elif isinstance(value, (list, tuple)) and any(hasattr(v, "detach") for v in value):
        value = [v.detach().cpu().double().numpy() if hasattr(v, "detach") else v for v in value]
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise TypeError
        return array.astype(np.float64)
    except (TypeError, ValueError):
        extra = " of something else" if hasattr(value, "__len__") else ""
        raise Wrong(f"Numbers are wanted, and this is {a(value)}{extra}.") from None


def _near(got: Any, expected: Any, tol: float) -> bool:
    import numpy as np

    try:
        expected = _numbers(expected, expected)
    except Wrong:
        return False
    if got.shape != expected.shape:
        return False
    scale = np.maximum(1.0, np.where(np.isfinite(expected), np.abs(expected), 1.0))
    with np.errstate(invalid="ignore"):
        gap = np.abs(got - expected)
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    return bool(np.all(same | (gap <= tol * scale)))


def _where(mask: Any) -> str:
    import numpy as np

    return f" at {_index(np.argwhere(mask)[0])}" if mask.ndim else ""


def _index(index: Any) -> str:
    return f"[{', '.join(str(int(i)) for i in index)}]"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
