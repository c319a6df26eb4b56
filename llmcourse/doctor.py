"""`llmcourse doctor`: what this machine has, what is missing, what to do.

Every question is asked by itself and may fail by itself: the report has to be written on exactly
the machines where something is broken. It names no user, so it can be pasted into an issue.
"""

from __future__ import annotations

import getpass
import importlib.metadata
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmcourse import __version__, paths

PACKAGES = ("torch", "transformers", "gguf", "numpy", "jupyterlab", "ipywidgets", "triton")
FEATURES = {  # as a reader knows them: as Linux and macOS spell them
    "AVX2": ("avx2",),
    "AVX-512": ("avx512f",),
    "AVX-512 VNNI": ("avx512_vnni",),
    "AVX-VNNI": ("avx_vnni",),
    "AVX-512 BF16": ("avx512_bf16",),
    "AMX int8": ("amx_int8",),
    "AMX BF16": ("amx_bf16",),
    "F16C": ("f16c",),
    "NEON": ("asimd", "neon", "feat_advsimd"),
    "dot product": ("asimddp", "feat_dotprod"),
    "i8mm": ("i8mm", "feat_i8mm"),
    "SVE": ("sve",),
}
# Matplotlib's own font has no Chinese glyphs; one of these families is enough.
CHINESE: tuple[str, ...] = (
    *("Noto Sans CJK", "Noto Serif CJK", "Source Han", "WenQuanYi"),
    *("PingFang", "Heiti", "STHeiti", "Hiragino Sans GB", "Arial Unicode"),
    *("Microsoft YaHei", "SimHei", "SimSun"),
)
GB = 1e9


def report(*, seconds: float = 0.5) -> dict[str, Any]:
    """All findings: {"here": facts, "missing": [{"what", "why", "do"}]}.

    `seconds` is how long the bandwidth is measured. Never raises; a question that failed has its
    error as the answer.
    """
    here = {
        "course": _ask(lambda: f"llmcourse {__version__}"),
        "system": _ask(_system),
        "cpu": _ask(_cpu),
        "memory": _ask(_memory),
        "bandwidth": _ask(lambda: _bandwidth(seconds)),
        "gpu": _ask(_gpu),
        "compiler": _ask(_compiler),
        "versions": _ask(_versions),
        "torch_works": _ask(_torch_works),
        "model": _ask(_model),
        "chinese_font": _ask(_chinese_font),
        "disk": _ask(_disk),
        "workspace": _ask(_workspace),
    }
    return _anonymous({"here": here, "missing": _missing(here)})


def text(found: dict[str, Any]) -> str:
    """The report as three short lists."""
    lines = ["HERE"]
    for name, value in found["here"].items():
        lines.append(f"  {name.replace('_', ' '):14} {_line(value)}")
    lines += ["", "MISSING"]
    lines += [f"  {m['what']:14} {m['why']}" for m in found["missing"]] or ["  nothing"]
    if found["missing"]:
        lines += ["", "TO DO"]
        lines += [f"  {m['what']:14} {m['do']}" for m in found["missing"]]
    return "\n".join(lines)


# ---- The questions ----


def _system() -> dict[str, Any]:
    name = platform.platform(terse=True)
    if sys.platform.startswith("linux"):
        release = platform.freedesktop_os_release()
        name = f"{release.get('PRETTY_NAME', 'Linux')}, kernel {platform.release()}"
    return {"os": name, "machine": platform.machine(), "python": platform.python_version()}


def _cpu() -> dict[str, Any]:
    import psutil

    from llmcourse.measure.processor import processor, usable_cores

    model, flags = processor()
    if sys.platform == "win32":  # names no flags; torch knows the widest it uses
        import torch

        known = {"AVX512": {"avx2", "avx512f"}, "AVX2": {"avx2"}}
        flags = flags | known.get(torch.backends.cpu.get_cpu_capability(), set())
    features = [name for name, spelled in FEATURES.items() if flags & set(spelled)]
    physical = psutil.cpu_count(logical=False)
    return {
        "model": model, "features": features, "cores": physical, "usable_threads": usable_cores(),
    }  # fmt: skip


def _memory() -> dict[str, Any]:
    import psutil

    memory = psutil.virtual_memory()
    return {"total_gb": round(memory.total / GB, 1), "free_gb": round(memory.available / GB, 1)}


def _bandwidth(seconds: float) -> dict[str, Any]:
    from llmcourse.measure.roofline import bandwidth

    found = bandwidth(seconds=seconds)
    return {
        "read_gb_per_s": round(found.read_gb_per_s, 1),
        "copy_gb_per_s": round(found.copy_gb_per_s, 1),
    }


def _gpu() -> list[str]:
    """GPUs by name: NVIDIA's from their own tool, Apple's from torch."""
    if shutil.which("nvidia-smi"):
        asked = "--query-gpu=name,memory.total,driver_version"
        names = _run("nvidia-smi", asked, "--format=csv,noheader")
        return [line.strip() for line in names.splitlines() if line.strip()]
    if sys.platform == "darwin" and platform.machine() == "arm64":
        import torch

        return ["Apple GPU (MPS)"] if torch.backends.mps.is_available() else []
    return []


def _compiler() -> str | None:
    """The C++ compiler that chapter 21 uses."""
    from llmcourse.kernels.build import NoCompiler, find_compiler

    try:
        path = find_compiler()
    except NoCompiler:
        return None
    return (_run(path, "--version").splitlines() or [path])[0].strip()


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _torch_works() -> dict[str, Any]:
    import torch

    ones = torch.ones(2, 2)
    if (ones @ ones).sum().item() != 8:
        raise RuntimeError("torch multiplies wrongly")
    return {"threads": torch.get_num_threads(), "cuda": torch.cuda.is_available()}


def _model() -> dict[str, Any]:
    from llmcourse.data.checkpoints import describe

    found = describe()
    return {"name": found["name"], "fetched": bool(found["ready"]), "folder": found["folder"]}


def _chinese_font() -> str | None:
    from matplotlib import font_manager

    names = {font.name for font in font_manager.fontManager.ttflist}
    return next((n for n in sorted(names) if n.startswith(CHINESE)), None)


def _disk() -> dict[str, Any]:
    folder = paths.cache()
    while not folder.exists():
        folder = folder.parent
    return {"cache": str(paths.cache()), "free_gb": round(shutil.disk_usage(folder).free / GB, 1)}


def _workspace() -> dict[str, Any]:
    folder = paths.workspace()
    return {"folder": str(folder), "exists": folder.is_dir()}


# ---- What follows from the answers ----


def _missing(here: dict[str, Any]) -> list[dict[str, str]]:
    """What is not there, why it matters, and what to do about it."""
    found: list[dict[str, str]] = []

    def add(what: str, why: str, do: str) -> None:
        found.append({"what": what, "why": why, "do": do})

    torch = here["torch_works"]
    if "error" in torch:
        why = f"not usable: {torch['error']}"
        add("torch", why, "make lab, or: pip install -c constraints.txt -e .")
    elif (
        here["gpu"]
        and isinstance(here["gpu"], list)
        and "cuda" in torch
        and not torch["cuda"]
        and sys.platform != "darwin"
    ):
        add(
            "CUDA in torch",
            "there is an NVIDIA GPU, but this build of torch cannot use it",
            "the course runs without; with it: https://pytorch.org/get-started/locally/",
        )
    model = here["model"]
    if not model.get("fetched"):
        why = model.get("error", "the real model is not in the cache yet")
        add("model", why, "llmcourse model   (98 MB, once)")
    if not isinstance(here["compiler"], str):
        how = {"linux": "sudo apt install g++", "darwin": "xcode-select --install"}
        do = how.get(sys.platform, "install the Build Tools for Visual Studio")
        add("C++ compiler", "chapter 21 builds a kernel; it falls back to PyTorch", do)
    if not isinstance(here["chinese_font"], str):
        how = {"linux": "sudo apt install fonts-noto-cjk, then: rm -r ~/.cache/matplotlib"}
        do = how.get(sys.platform, "install a font with Chinese glyphs, such as Noto Sans CJK SC")
        add("Chinese font", "figures of your own with Chinese text would show boxes", do)
    if here["disk"].get("free_gb", 99) < 5:
        add("disk", "under 5 GB free where the cache is", "set LLMCOURSE_CACHE to a larger disk")
    if here["memory"].get("free_gb", 99) < 3:
        add("memory", "under 3 GB free; the model in float32 takes 0.6 GB", "close other programs")
    return found


# ---- Helpers ----


def _ask(question: Callable[[], Any]) -> Any:
    """The answer, or {"error": …}: a broken part of a machine must not hide the rest."""
    try:
        return question()
    except Exception as error:
        first = (str(error).strip() or "no message").splitlines()[0]
        return {"error": f"{type(error).__name__}: {first}"}


def _run(*command: str) -> str:
    """Standard output of a command; raises OSError or TimeoutExpired."""
    return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()


def _anonymous(value: Any) -> Any:
    """The same value with the home folder as ~ and the user's name left out."""
    if isinstance(value, dict):
        return {key: _anonymous(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_anonymous(item) for item in value]
    if not isinstance(value, str):
        return value
    home = str(Path.home())
    if len(home) > 1:
        value = value.replace(home, "~")
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # no such user: a container with a bare number
        return value
    return re.sub(rf"(?<=[/\\]){re.escape(user)}(?=[/\\]|$)", "USER", value)


def _line(value: Any) -> str:
    """One value of the report on one line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value == []:
        return "none"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    if isinstance(value, dict):
        return " · ".join(_pair(key, item) for key, item in value.items())
    return str(value)


def _pair(key: str, value: Any) -> str:
    """`read_gb_per_s`, 29.8 as "read 29.8 GB/s"."""
    for ending, unit in (("_gb_per_s", " GB/s"), ("_gb", " GB")):
        if key.endswith(ending):
            return f"{key.removesuffix(ending)} {_line(value)}{unit}"
    return f"{key.replace('_', ' ')} {_line(value)}"
