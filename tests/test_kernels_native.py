"""The native code under sanitizers, on a busy machine, and its AVX-512 path where no CPU has it."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llmcourse.kernels.build import NoCompiler, build, find_compiler
from llmcourse.kernels.cpu import NATIVE
from llmcourse.kernels.operators import Operators, _Table
from llmcourse.kernels.pack import pack, pack8, round_to_groups

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
def test_sanitizers(library, flags, tmp_path):
    """Driven through every length and format, does a sanitizer find nothing?"""
    preload = runtime(library)
    if preload is None:
        pytest.skip(f"this compiler came without {library}")
    env = os.environ | {
        "LD_PRELOAD": preload,
        "ASAN_OPTIONS": "detect_leaks=0",  # Python itself leaves memory at its end
        "TSAN_OPTIONS": "exitcode=66",
        "OPENBLAS_NUM_THREADS": "1",
        "LLMCOURSE_CACHE": str(tmp_path),
    }
    command = [sys.executable, str(DRIVER), *flags, "-O1", "-g", "-fno-omit-frame-pointer"]
    if shutil.which("setarch"):  # this thread sanitizer knows no random addresses
        command = ["setarch", "--addr-no-randomize", *command]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "done" in done.stdout, done.stdout + done.stderr[-4000:]
    assert "ERROR: " not in done.stderr and "WARNING: ThreadSanitizer" not in done.stderr


@pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="a path of x86 processors"
)
def test_avx512_emulated(tmp_path, monkeypatch):
    """Does the AVX-512 path, its instructions spelled out lane by lane, agree with the plain one?

    On a processor that has them, tests/test_kernels.py runs the real ones.
    """
    monkeypatch.setenv("LLMCOURSE_CACHE", str(tmp_path))
    headers = DRIVER.parent / "emulated"
    flags = ("-O1", "-D__AVX2__", "-D__AVX512VNNI__", "-I", str(headers), "-Wno-psabi")
    path = build("emulated", [(NATIVE / "operators.cpp", flags)])
    library = ctypes.CDLL(str(path))
    ops = Operators("plain")
    expected = _results(ops)
    ops._table = _Table.from_address(
        ctypes.addressof(ctypes.c_char.in_dll(library, "operators_avx512"))
    )
    assert ops._table.name == b"avx512"
    for name, got in _results(ops).items():
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(got, expected[name], rtol=1e-5, atol=1e-5 * scale, err_msg=name)


def _results(ops):
    """What each operator makes of the same random inputs."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(11, 200)).astype(np.float32)
    found = {}
    for bits, group in ((4, 32), (4, 64), (8, 32)):
        codes = round_to_groups(
            rng.normal(size=(90, 200)).astype(np.float32), bits=bits, group=group
        )
        if bits == 4:
            planes = {"w": pack(codes["codes"], codes["scales"], codes["mins"], group=group)}
        else:
            high, low = pack8(codes["wide"], codes["scales"], group=group)
            planes = {"w": high, "w.low": low}
            found["coarse"], found["spread"] = ops.spread(planes, x[0])
        found[f"matmul {bits} {group}"] = ops.matmul(planes, x)
    acts = ops.quantize(x)
    found |= {"q": acts.q, "scale": acts.scale, "sum": acts.sum}
    found["rms_norm"] = ops.rms_norm(x[0], x[1], 1e-5)
    found["swiglu"] = ops.swiglu(x[0, :192] * 20, x[1, :192])
    k, v = rng.normal(size=(2, 100, 80)).astype(np.float32)
    found["attend"] = ops.attend(x[:4, :80], k, v)
    return found


def test_source_is_short():
    """Is the native code short enough for one sitting: under 800 lines, comments not counted?"""
    lines = [
        line.strip() for path in NATIVE.iterdir() for line in path.read_text("utf-8").splitlines()
    ]
    assert len([line for line in lines if line and not line.startswith("//")]) < 800
