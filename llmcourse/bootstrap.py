"""From a fresh clone to a course that runs: `python3 llmcourse/bootstrap.py`.

Needs nothing but Python itself, and works the same on Linux, macOS and Windows. It makes a virtual
environment, chooses the build of torch, installs what `constraints.txt` pins, fetches the model and
asks it one question. Run again it does only what is missing; when nothing is, it ends at once.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import importlib.util
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST, NEWEST = (3, 11), (3, 13)
TORCH = "2.13.0"  # tests hold this equal to pyproject.toml
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# What the finished chapters read, besides the model: after the set-up they need no network.
CHAPTER_DATA = ("prose", "chinese_reviews", "english_chinese", "chinese_words")
STAMP = "llmcourse-setup.json"
QUESTION = "What is the capital of France?"


class SetupError(Exception):
    """Something the reader can mend: what happened, and what to do."""


def main(arguments: list[str] | None = None) -> int:
    """Set up, or see that nothing is to be done. The exit status is 1 after a clear sentence."""
    parser = argparse.ArgumentParser(description="Set up the course in a virtual environment.")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="default: .venv")
    parser.add_argument("--extra", nargs="*", default=[], metavar="NAME", help="test, book, dev, …")
    parser.add_argument("--no-answer", action="store_true", help="do not fetch and ask the model")
    options = parser.parse_args(arguments)
    try:
        check_python(sys.version_info[:2])
        set_up(options.venv.absolute(), set(options.extra), answer=not options.no_answer)
    except SetupError as error:
        print(f"\nset-up: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up: stopped; the same command goes on from here.", file=sys.stderr)
        return 130
    return 0


def check_python(version: tuple[int, int]) -> None:
    """Raise SetupError unless this Python is one the pinned torch has wheels for."""
    if OLDEST <= version <= NEWEST:
        return
    raise SetupError(
        f"this is Python {version[0]}.{version[1]}; the course needs 3.11, 3.12 or 3.13. "
        "Install one of them and name it: make lab PYTHON=python3.12 "
        "(or: python3.12 llmcourse/bootstrap.py)."
    )


def set_up(venv: Path, extras: set[str], *, answer: bool) -> None:
    """Bring `venv` to what pyproject.toml, constraints.txt and `extras` ask for."""
    start = time.monotonic()
    done = read_stamp(venv)
    fresh = not venv.exists()  # after an interruption the time would flatter
    fingerprint = wanted()
    packages_ready = done.get("wanted") == fingerprint and extras <= set(done.get("extras", []))
    # A course that was updated in place may read more than what was fetched for the old one.
    answered = done.get("answered") and done.get("data") == list(CHAPTER_DATA)
    if packages_ready and (answered or not answer):
        return

    steps = Steps(venv, start)
    if not packages_ready:
        extras |= set(done.get("extras", []))
        if not healthy(venv):
            steps.say(f"making the virtual environment {shorten(venv)}")
            make_venv(venv)
        install_torch(venv, steps)
        names = f"[{','.join(sorted(extras))}]" if extras else ""
        steps.say(f"installing the course{' with ' + ', '.join(sorted(extras)) if extras else ''}")
        steps.pip("install", "-c", str(ROOT / "constraints.txt"), "-e", f"{ROOT}{names}")
        done = {**done, "wanted": fingerprint, "extras": sorted(extras)}
        write_stamp(venv, done)
    if answer and not answered:
        done["answered"] = first_answer(venv, steps)
        done["data"] = list(CHAPTER_DATA)
        write_stamp(venv, done)
        if done["answered"] and fresh:
            print(f"\nFresh clone to first answer: {time.monotonic() - start:.0f} s\n")
    steps.say("ready")


def wanted() -> str:
    """A fingerprint of all that decides what gets installed; tool settings do not count."""
    import tomllib  # here, so that an older Python still reaches check_python's sentence

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    parts = [
        json.dumps([project["project"], project["build-system"]], sort_keys=True),
        (ROOT / "constraints.txt").read_text("utf-8"),
        str(ROOT),  # a moved checkout breaks the links in the environment
        sys.version.split()[0],
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def read_stamp(venv: Path) -> dict:
    """What earlier runs finished in this environment; empty if it is new, broken or half-made."""
    try:
        done = json.loads((venv / STAMP).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return done if python_of(venv).exists() else {}


def write_stamp(venv: Path, done: dict) -> None:
    """Replace the stamp in one step, so that a crash leaves the old one or the new one."""
    part = venv / (STAMP + ".part")
    part.write_text(json.dumps(done, indent=1), "utf-8")
    part.replace(venv / STAMP)


# ---- The virtual environment ----


def python_of(venv: Path) -> Path:
    """The interpreter inside `venv`."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def healthy(venv: Path) -> bool:
    """Does this environment have the running Python's version, and a pip that starts?"""
    probe = "import pip, sys; print(*sys.version_info[:2])"
    try:
        found = subprocess.run([python_of(venv), "-c", probe], capture_output=True, text=True)
    except OSError:
        return False
    return found.returncode == 0 and found.stdout.split() == [str(n) for n in sys.version_info[:2]]


def make_venv(venv: Path) -> None:
    """Make `venv`, replacing a half-made one. Raises SetupError if this Python cannot."""
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        name = "python{}.{}-venv".format(*sys.version_info[:2])
        raise SetupError(
            "this Python cannot make virtual environments; Debian and Ubuntu keep that part in a "
            f"package of its own. Run: sudo apt install {name} (or python3-venv), then this again."
        )
    if venv.exists() and any(venv.iterdir()) and not (venv / "pyvenv.cfg").exists():
        raise SetupError(
            f"{venv} exists and is not a virtual environment. Move it away, or choose another "
            "place: make lab VENV=FOLDER (or: python3 llmcourse/bootstrap.py --venv FOLDER)."
        )
    made = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(venv)], capture_output=True, text=True
    )
    if made.returncode:
        raise SetupError(f"could not make {venv}: {(made.stderr or made.stdout).strip()}")


# ---- Which torch ----


def install_torch(venv: Path, steps: Steps) -> None:
    """Install the pinned torch, in the build that fits this machine, unless it is there."""
    probe = "from importlib.metadata import version as v; print(v('torch'))"
    found = subprocess.run([python_of(venv), "-c", probe], capture_output=True, text=True)
    if found.stdout.strip().split("+")[0] == TORCH:
        return
    choice = choose_torch(
        linux=sys.platform.startswith("linux"),
        gpu=has_nvidia_gpu,
        pip_offers_cpu=lambda: pip_offers_cpu(venv),
        reachable=cpu_index_reachable,
    )
    steps.say(f"installing torch {TORCH}: {choice.reason}")
    for line in choice.advice:
        steps.note(line)
    # Without dependencies: those come in the next step, from the reader's own index, at their pins.
    torch = ("install", "--no-deps", f"torch=={TORCH}")
    if choice.index:
        try:
            return steps.pip(*torch, "--index-url", choice.index)
        except SetupError:
            steps.note(f"{choice.index} did not deliver; taking torch from pip's own index")
            for line in SAVE_TWO_GB:
                steps.note(line)
    steps.pip(*torch)


class TorchChoice:
    """Where torch comes from: `index` (None is pip's own), why, and what to tell the reader."""

    def __init__(self, reason: str, index: str | None = None, advice: tuple[str, ...] = ()) -> None:
        self.reason, self.index, self.advice = reason, index, advice


SAVE_TWO_GB = (
    "pip takes the CUDA build here: about 2 GB that a machine without an NVIDIA GPU never uses.",
    f"To save it press Ctrl-C, let pip see torch {TORCH}+cpu (PIP_FIND_LINKS=FOLDER-OR-PAGE), "
    "and run this again.",
)


def choose_torch(*, linux: bool, gpu, pip_offers_cpu, reachable) -> TorchChoice:
    """Choose the build; the last three arguments are questions, asked only as far as needed."""
    if not linux:  # the wheels of macOS and Windows on PyPI hold no CUDA
        return TorchChoice("the build for this system")
    if gpu():
        return TorchChoice("this machine has an NVIDIA GPU, so pip's own choice")
    if pip_offers_cpu():
        return TorchChoice("no NVIDIA GPU, and pip is offered the CPU build")
    if reachable():
        return TorchChoice("no NVIDIA GPU, so the CPU build", index=CPU_INDEX)
    return TorchChoice("pip's own choice", advice=SAVE_TWO_GB)


def has_nvidia_gpu() -> bool:
    """Is a driver loaded, or a tool or a device of one there (WSL has the tool only)?"""
    if Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidia0").exists():
        return True
    tool = shutil.which("nvidia-smi")
    if not tool:
        return False
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and "GPU" in listed.stdout


def pip_offers_cpu(venv: Path) -> bool:
    """Does pip, as the reader configured it, list the CPU build? It then prefers that by itself.

    `pip install --dry-run` would say so too, but loads half a gigabyte to find out where an index
    serves no separate metadata.
    """
    listed = subprocess.run(
        [python_of(venv), "-m", "pip", "index", "versions", "torch"], capture_output=True, text=True
    )
    return f"{TORCH}+cpu" in listed.stdout


def cpu_index_reachable(url: str = f"{CPU_INDEX}/torch/", seconds: float = 2.0) -> bool:
    """Does the index of CPU builds answer in time? In a thread: name look-up has no time limit."""
    answer: queue.Queue[bool] = queue.Queue()

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=seconds) as reply:
                answer.put(reply.status == 200)
        except (OSError, ValueError, http.client.HTTPException):
            answer.put(False)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answer.get(timeout=seconds)
    except queue.Empty:
        return False


# ---- The first answer ----


def first_answer(venv: Path, steps: Steps) -> bool:
    """Fetch the model and the chapters' data, ask one question; False where that cannot be had."""
    course = [str(python_of(venv)), "-m", "llmcourse"]
    steps.say("fetching the model (98 MB, once) and converting it")
    if subprocess.run([*course, "model"], stdout=subprocess.DEVNULL).returncode:
        steps.note("the course works without it until a cell loads the model; then it tries again")
        return False
    steps.say("fetching the texts that the chapters read (58 MB, once)")
    if subprocess.run([*course, "data", *CHAPTER_DATA], stdout=subprocess.DEVNULL).returncode:
        steps.note("without them the course uses small samples of its own, and says where")
    steps.say("fetching the sentence encoder of chapter 05 (84 MB, once)")
    encoder = [*course, "model", "--model", "sentence_encoder"]
    if subprocess.run(encoder, stdout=subprocess.DEVNULL).returncode:
        steps.note("without it two cells of chapter 05 say so and go on")
    steps.say(f"asking it: {QUESTION}")
    return subprocess.run([*course, "ask", QUESTION, "--max-tokens", "48"]).returncode == 0


# ---- Showing what happens ----


class Steps:
    """Prints steps with the time since the start, and runs pip with a line that moves."""

    def __init__(self, venv: Path, start: float) -> None:
        self.venv, self.start = venv, start
        self.log = venv / "llmcourse-setup.log"
        self.moving = sys.stdout.isatty()

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.start:4.0f} s] {text}", flush=True)

    def note(self, text: str) -> None:
        print(f"         {text}", flush=True)

    def pip(self, *arguments: str) -> None:
        """Run pip in the environment; its full output goes to the log. Raises SetupError."""
        command = [str(python_of(self.venv)), "-m", "pip", *arguments]
        command += ["--disable-pip-version-check", "--no-input"]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
        lines: queue.Queue[str | None] = queue.Queue()

        def read() -> None:
            for line in process.stdout or ():
                lines.put(line.rstrip())
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        tail: list[str] = []
        try:
            with open(self.log, "a", encoding="utf-8") as log:
                while True:
                    try:
                        line = lines.get(timeout=0.5)
                    except queue.Empty:
                        line = ""
                    if line is None:
                        break
                    if line:
                        log.write(line + "\n")
                        tail = [*tail[-14:], line]
                        self._name_download(line)
                    self._move(tail[-1] if tail else "")
        except BaseException:
            process.terminate()
            raise
        finally:
            process.wait()
            self._move("", end=True)
        if process.returncode:
            raise SetupError(
                "pip failed; its last lines were:\n    "
                + "\n    ".join(tail)
                + f"\nThe whole output is in {shorten(self.log)}. "
                "Mend what it names and run the same command again."
            )

    def _move(self, line: str, *, end: bool = False) -> None:
        """Redraw the bottom line of a terminal: the seconds move even while pip says nothing."""
        if not self.moving:
            return
        width = shutil.get_terminal_size().columns - 1
        text = f"[{time.monotonic() - self.start:4.0f} s]   {' '.join(line.split()[:4])}"
        print("\r" + ("" if end else text)[:width].ljust(width), end="\r", flush=True)

    def _name_download(self, line: str) -> None:
        """Without a terminal, name the downloads one waits for: 50 MB and more."""
        size = re.search(r"^\s*Downloading (\S+) \(([\d.]+) (MB|GB)\)", line)
        if not self.moving and size and (size[3] == "GB" or float(size[2]) >= 50):
            self.note(f"downloading {size[1].rsplit('/', 1)[-1]} ({size[2]} {size[3]})")


def shorten(path: Path) -> str:
    """The path as a reader would type it: relative to here where that is shorter."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


if __name__ == "__main__":
    raise SystemExit(main())
