"""The native code under sanitizers, on a busy machine, and its AVX-512 path where no CPU has it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llmcourse.kernels.build import NoCompiler, find_compiler
from llmcourse.kernels.cpu import NATIVE

DRIVER = Path(__file__).parent / "native" / "exercise_engine.py"

try:
    COMPILER = find_compiler()
except NoCompiler as error:
    pytest.skip(str(error), allow_module_level=True)


def runtime(name: str) -> str | None:
    """The file of a sanitizer's runtime, which must be loaded before Python itself."""
    found = subprocess.run(
        [COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True
    )
    path = found.stdout.strip()
    return path if os.path.isabs(path) else None


@pytest.mark.skipif(platform.system() != "Linux", reason="sanitizers are preloaded, as Linux does")
@pytest.mark.parametrize(
    ("library", "flags"),
    [
        ("libasan.so", ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]),
        ("libtsan.so", ["-fsanitize=thread"]),
    ],
    ids=["address and undefined", "thread"],
)
def test_sanitizers(library, flags):
    """Driven through every length and format, does a sanitizer find nothing?"""
    preload = runtime(library)
    if preload is None:
        pytest.skip(f"this compiler came without {library}")
    env = os.environ | {
        "LD_PRELOAD": preload,
        "ASAN_OPTIONS": "detect_leaks=0",  # Python itself leaves memory at its end
        "TSAN_OPTIONS": "exitcode=66",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [sys.executable, str(DRIVER), *flags, "-g", "-fno-omit-frame-pointer"]
    if shutil.which("setarch"):  # this thread sanitizer knows no random addresses
        command = ["setarch", "--addr-no-randomize", *command]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "done" in done.stdout, done.stdout + done.stderr[-4000:]
    assert "ERROR: " not in done.stderr and "WARNING: ThreadSanitizer" not in done.stderr


def test_source_is_short():
    """Is the native code still short enough to be read in one sitting: under 800 lines?"""
    lines = sum(len(path.read_text("utf-8").splitlines()) for path in NATIVE.iterdir())
    assert lines < 800
