"""A progress bar for whatever takes over two seconds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

Item = TypeVar("Item")


def with_bar(items: Iterable[Item], label: str, shown: bool = True) -> Iterator[Item]:
    """The items, with a bar that appears after two seconds and goes when all is done.

    `shown=False`, or the environment's TQDM_DISABLE=1 (notebooks whose outputs are compared), or
    no tqdm: the items alone.
    """
    if not shown:
        return iter(items)
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return iter(items)
    bar: dict[str, Any] = {"desc": label, "delay": 2, "leave": False}
    return iter(tqdm(items, total=len(items) if isinstance(items, Sized) else None, **bar))
