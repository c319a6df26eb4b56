"""Which processor this is: its name, its instruction sets, and how many cores this program may use."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from functools import cache
from pathlib import Path


@cache
def processor() -> tuple[str, frozenset[str]]:
    """The name, and the instruction sets in small letters as the system spells them.

    Windows names no instruction sets.
    """
    if sys.platform == "darwin":
        on = re.findall(r"hw\.optional\.(?:arm\.)?(\w+): 1", _sysctl("hw.optional"))
        name = _sysctl("-n", "machdep.cpu.brand_string")
        return name or platform.machine(), frozenset(word.lower() for word in on)
    info = Path("/proc/cpuinfo")
    if info.exists():
        text = info.read_text("utf-8", "replace")
        named = re.search(r"^(?:model name|Hardware|Model)\s*:\s*(.*)$", text, re.MULTILINE)
        flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
        words = frozenset(flags[1].lower().split()) if flags else frozenset()
        return named[1].strip() if named else platform.machine(), words
    return platform.processor() or platform.machine(), frozenset()


def usable_cores() -> int:
    """Processors that this program may run on, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _sysctl(*names: str) -> str:
    try:
        done = subprocess.run(["sysctl", *names], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()
