"""Compile C++ into a shared library on first use, and keep it in the cache.

A library's name holds a hash of its source, its flags, the compiler and the processor, so nothing
stale is ever loaded; two processes that build at once each make their own file and the last
rename wins, with the same content.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from llmcourse.data.fetch import writing
from llmcourse.errors import CourseError
from llmcourse.measure.processor import processor
from llmcourse.paths import cache

FLAGS = (
    *("-std=gnu++17", "-O3", "-fPIC", "-pthread", "-Wall", "-Wextra", "-Wno-maybe-uninitialized"),
    *("-fno-math-errno", "-fno-trapping-math"),  # square roots and choices as vectors
    "-fno-tree-pre",  # else gcc keeps more values than there are registers: prompts a sixth slower
)


_ROOM = 1_000_000  # bytes that a build needs, told when the disk is full


class NoCompiler(CourseError):
    """There is no C++ compiler here, or it could not compile: what needs it has another way."""


@functools.cache
def find_compiler() -> str:
    """The path of a C++ compiler: the environment's CXX, else g++ or clang++.

    Raises NoCompiler if there is none.
    """
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    for name in names:
        if path := shutil.which(name):
            return path
    raise NoCompiler(
        "No C++ compiler was found (g++ or clang++); on Debian or Ubuntu `apt install g++` brings one, "
        "on a Mac `xcode-select --install`."
    )


def build(
    name: str,
    units: Sequence[tuple[Path, Sequence[str]]],
    *,
    headers: Sequence[Path] = (),
    flags: Sequence[str] = (),
) -> Path:
    """The shared library made from some (source, flags of its own), compiled if it is not there yet.

    `headers` are files the sources include, whose change asks for a new build. Raises NoCompiler,
    with the compiler's first error, if it cannot be built.
    """
    compiler = find_compiler()
    name_and_sets = (processor()[0], sorted(processor()[1]))
    key = hashlib.sha256(repr((_version(compiler), name_and_sets, FLAGS, flags)).encode())
    for source, own in units:
        key.update(source.read_bytes() + repr(own).encode())
    for header in headers:
        key.update(header.read_bytes())
    folder = cache() / "native"
    target = folder / f"{name}-{key.hexdigest()[:16]}.so"
    if target.is_file():
        return target
    with writing(target, _ROOM), tempfile.TemporaryDirectory(dir=folder, prefix=f"{name}-") as work:
        running = []
        for n, (source, own) in enumerate(units):
            command = [compiler, *FLAGS, *flags, *own, "-c", str(source), "-o", f"{work}/{n}.o"]
            running.append((command, _start(command)))
        for command, process in running:
            _finish(command, process)
        command = [compiler, "-shared", "-pthread", *flags, "-o", f"{work}/out.so"]
        command += [f"{work}/{n}.o" for n in range(len(units))]
        _finish(command, _start(command))
        os.replace(f"{work}/out.so", target)
    return target


def compile_source(source: str, *, name: str = "notebook", flags: Sequence[str] = ()) -> Path:
    """A shared library from C++ text, for experiments: `-march=native`, so it stays on this machine.

    Raises NoCompiler as `build` does.
    """
    folder = cache() / "native"
    path = folder / f"{name}-{hashlib.sha256(source.encode()).hexdigest()[:16]}.cpp"
    if not path.is_file():
        with writing(path, _ROOM):
            with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as file:
                file.write(source)
            os.replace(file.name, path)
    native = () if platform.machine() == "arm64" else ("-march=native",)
    return build(name, [(path, ())], flags=(*native, *flags))


@functools.cache
def _version(compiler: str) -> str:
    found = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return found.stdout.split("\n")[0] + platform.machine()


def _start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
    )


def _finish(command: list[str], process: subprocess.Popen[str]) -> None:
    _, said = process.communicate()
    if process.returncode:
        lines = [line for line in said.splitlines() if "error" in line.lower()]
        first = (lines or said.splitlines() or [f"exit status {process.returncode}"])[0]
        raise NoCompiler(f"{Path(command[0]).name} could not compile the C++: {first.strip()}")
