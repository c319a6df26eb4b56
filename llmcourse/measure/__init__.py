"""Clocks, counters and scores. Names load when first used: the package costs nothing."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "Comparison": "timing",
    "Ratio": "timing",
    "TokenTimer": "timing",
    "TokenTimes": "timing",
    "compare": "timing",
    "Peak": "memory",
    "peak": "memory",
    "peak_bytes": "memory",
    "tensor_bytes": "memory",
    "Work": "counters",
    "count": "counters",
    "Bandwidth": "roofline",
    "Roofline": "roofline",
    "achieved_gb_per_s": "roofline",
    "bandwidth": "roofline",
    "compute_peak": "roofline",
    "limit_tokens_per_s": "roofline",
    "Accuracy": "quality",
    "Estimate": "quality",
    "agreement_accuracy": "quality",
    "paired_difference": "quality",
    "paired_ratio": "quality",
    "perplexity": "quality",
    "wilson": "quality",
    "Row": "scoreboard",
    "Scoreboard": "scoreboard",
    "read_results": "results",
    "record": "results",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import the file that holds `name` on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
