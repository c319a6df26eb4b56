"""The set-up: one source for each fact, the right torch, and nothing of one machine."""

from __future__ import annotations

import importlib.metadata
import itertools
import re
import subprocess
import sys
import time
import tomllib
import urllib.error
import zipfile
from pathlib import Path

import pytest
import readme
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from llmcourse import bootstrap, doctor

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
ASKED = [Requirement(r) for r in itertools.chain(PROJECT["dependencies"], *EXTRAS.values())]


def pins() -> dict[str, str]:
    """constraints.txt as {name: version}."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def tracked() -> list[Path]:
    """Files that belong to the repository, committed or about to be."""
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this copy of the course is not a git checkout")
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


# ---- One source for each fact ----


@pytest.mark.parametrize("asked", ASKED, ids=lambda r: r.name)
def test_constraints_pin_what_pyproject_asks(asked):
    """Is every direct dependency pinned, at a version that pyproject.toml admits?"""
    assert Version(pins()[canonicalize_name(asked.name)]) in asked.specifier


def test_constraints_pin_what_is_installed():
    """Is everything that the installed dependencies lead to pinned as well?"""
    pinned, seen = pins(), set()
    waiting = [r for r in ASKED if not r.marker or r.marker.evaluate()]
    while waiting:
        asked = waiting.pop()
        name = canonicalize_name(asked.name)
        if (name, *asked.extras) in seen:
            continue
        seen.add((name, *asked.extras))
        if name.startswith(("nvidia-", "cuda-")):  # pinned by the CUDA build of torch itself
            continue
        assert name in pinned, f"{name} is needed and not in constraints.txt"
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra that this environment goes without
        for line in found.requires or []:
            needed = Requirement(line)
            chosen = [{"extra": extra} for extra in ("", *asked.extras)]
            if not needed.marker or any(needed.marker.evaluate(c) for c in chosen):
                waiting.append(needed)


def test_constraints_name_no_build_and_no_cuda():
    """Do the pins fit every machine: no local version, no CUDA package, no file, no address?"""
    for name, version in pins().items():
        assert re.fullmatch(r"[a-z0-9._-]+", name) and re.fullmatch(r"[\d.]+(post\d+)?", version)
        assert not name.startswith(("nvidia-", "cuda-"))


def test_torch_is_pinned_once():
    """Do pyproject.toml, constraints.txt and the set-up mean the same torch, and is it here?"""
    asked = next(r for r in ASKED if r.name == "torch")
    assert str(asked.specifier) == f"=={bootstrap.TORCH}" == f"=={pins()['torch']}"
    assert Version(importlib.metadata.version("torch")).public == bootstrap.TORCH


def test_conda_environment_equals_pyproject():
    """Does environment.yml offer the same Python, and the same packages from the same pins?"""
    conda = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    python = next(d for d in conda["dependencies"] if str(d).startswith("python"))
    assert Requirement(python).specifier == Requirement(f"x{PROJECT['requires-python']}").specifier
    by_pip = next(d["pip"] for d in conda["dependencies"] if isinstance(d, dict))
    assert by_pip == [
        f"--extra-index-url {bootstrap.CPU_INDEX}",
        "-c constraints.txt",
        "-e .[test,book]",
    ]


def test_python_versions_agree():
    """Do the set-up and the classifiers name the Pythons that pyproject.toml admits?"""
    admitted = Requirement(f"x{PROJECT['requires-python']}").specifier
    for minor in range(9, 17):
        named = f"Programming Language :: Python :: 3.{minor}" in PROJECT["classifiers"]
        taken = bootstrap.OLDEST <= (3, minor) <= bootstrap.NEWEST
        assert (Version(f"3.{minor}") in admitted) == named == taken


def test_readme_is_fresh():
    """Are the map of the course and the tree of the house those of the files?"""
    text = (ROOT / "README.md").read_text("utf-8")
    assert readme.render(text) == text, "run `make readme`"


def test_readme_links_exist():
    """Does every local link and picture of the front pages lead somewhere?"""
    for page in ("README.md", "CONTRIBUTING.md"):
        for link in re.findall(r"\]\(([^)#\s]+)", (ROOT / page).read_text("utf-8")):
            assert link.startswith("http") or (ROOT / link).exists(), f"{page}: {link}"


def test_readme_names_every_command():
    """Does the README list every command there is?"""
    from llmcourse import cli

    text = (ROOT / "README.md").read_text("utf-8")
    for name in cli._parser()._subparsers._group_actions[0].choices:
        assert f"`llmcourse {name}" in text


# ---- Which torch ----

NEVER = "this question must not be asked"


def ask_never():
    raise AssertionError(NEVER)


@pytest.mark.parametrize(
    "linux, gpu, offered, reachable, index, warned",
    [
        (False, None, None, None, None, False),  # macOS and Windows: one build
        (True, True, None, None, None, False),  # a GPU: pip's own choice
        (True, False, True, None, None, False),  # pip is offered the CPU build
        (True, False, False, True, bootstrap.CPU_INDEX, False),
        (True, False, False, False, None, True),  # CUDA would be taken: say how to save it
    ],
    ids=["no Linux", "GPU", "pip offers CPU", "index reachable", "nothing but CUDA"],
)
def test_choice_of_torch(linux, gpu, offered, reachable, index, warned):
    """Does each machine get the smallest build it can use, and no question more than needed?"""

    def answer(value):
        return ask_never if value is None else lambda: value

    choice = bootstrap.choose_torch(
        linux=linux,
        gpu=answer(gpu),
        pip_offers_cpu=answer(offered),
        reachable=answer(reachable),
    )
    assert choice.index == index
    assert len(choice.advice) == (2 if warned else 0)


def fake_pip(tmp_path, listing: str) -> Path:
    """A virtual environment whose Python prints `listing`, whatever it is asked."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    program = venv / "bin" / "python"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{listing}\nEND\n")
    program.chmod(0o755)
    return venv


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for pip is a shell script")
@pytest.mark.parametrize(
    "listing, offered",
    [
        ("torch (2.15.0)\nAvailable versions: 2.15.0, 2.13.0+cpu, 2.13.0", True),
        ("torch (2.15.0)\nAvailable versions: 2.15.0+cpu, 2.15.0, 2.13.0", False),
        ("", False),
    ],
)
def test_pip_offers_the_pinned_cpu_build(tmp_path, listing, offered):
    """Is only the pinned version's CPU build taken for one?"""
    assert bootstrap.pip_offers_cpu(fake_pip(tmp_path, listing)) is offered


def test_probe_ends_in_time(monkeypatch):
    """Does a name look-up that hangs cost the set-up no more than the seconds it was given?"""

    def hang(*_, **__):
        time.sleep(2)
        raise urllib.error.URLError("too late")

    monkeypatch.setattr(bootstrap.urllib.request, "urlopen", hang)
    start = time.monotonic()
    assert bootstrap.cpu_index_reachable(seconds=0.2) is False
    assert time.monotonic() - start < 1.5


def test_probe_survives_no_network(monkeypatch):
    """Is a network error an answer, not a traceback?"""

    def refuse(*_, **__):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(bootstrap.urllib.request, "urlopen", refuse)
    assert bootstrap.cpu_index_reachable() is False


# ---- The set-up itself ----


@pytest.mark.parametrize("version", [(3, 8), (3, 10), (3, 14)])
def test_wrong_python_is_told_in_one_sentence(version):
    """Does a Python without wheels hear which ones are wanted?"""
    with pytest.raises(bootstrap.SetupError, match=r"3\.11, 3\.12 or 3\.13"):
        bootstrap.check_python(version)


def test_set_up_needs_only_the_standard_library():
    """Can the set-up start before anything is installed?"""
    code = "import runpy; runpy.run_path('llmcourse/bootstrap.py', run_name='probe')"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=ROOT, check=True)


def test_missing_ensurepip_names_the_package(tmp_path, monkeypatch):
    """Is the Debian package named that a Python without ensurepip lacks?"""
    monkeypatch.setattr(bootstrap.importlib.util, "find_spec", lambda name: None)
    wanted = "python{}.{}-venv".format(*sys.version_info[:2])
    with pytest.raises(bootstrap.SetupError, match=f"sudo apt install {wanted}"):
        bootstrap.make_venv(tmp_path / "new")


def test_a_foreign_folder_is_left_alone(tmp_path):
    """Is a folder that is no virtual environment refused, with all that is in it?"""
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(bootstrap.SetupError, match="not a virtual environment"):
        bootstrap.make_venv(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


class Recorder(bootstrap.Steps):
    """Steps that run nothing and remember what pip was asked."""

    asked: list[tuple[str, ...]]

    def pip(self, *arguments: str) -> None:
        self.asked.append(arguments)


@pytest.fixture
def rehearsal(tmp_path, monkeypatch):
    """A set-up in which everything that costs time is a note in a list."""
    done: list = []
    Recorder.asked = done
    monkeypatch.setattr(bootstrap, "Steps", Recorder)

    def make(venv):
        done.append("venv")
        bootstrap.python_of(venv).parent.mkdir(parents=True)
        bootstrap.python_of(venv).touch()

    monkeypatch.setattr(bootstrap, "make_venv", make)
    monkeypatch.setattr(bootstrap, "healthy", lambda venv: bootstrap.python_of(venv).exists())
    monkeypatch.setattr(bootstrap, "install_torch", lambda venv, steps: done.append("torch"))
    monkeypatch.setattr(bootstrap, "first_answer", lambda venv, steps: done.append("ask") or True)
    return tmp_path / "venv", done


def test_second_run_does_nothing(rehearsal, capsys):
    """Does a finished set-up end at once and in silence?"""
    venv, done = rehearsal
    bootstrap.set_up(venv, {"test"}, answer=True)
    assert "Fresh clone to first answer: " in capsys.readouterr().out
    assert [d for d in done if isinstance(d, str)] == ["venv", "torch", "ask"]
    done.clear()
    bootstrap.set_up(venv, {"test"}, answer=True)
    bootstrap.set_up(venv, set(), answer=True)  # what is installed already is no reason to install
    assert done == [] and capsys.readouterr().out == ""


def test_an_updated_course_fetches_its_new_data(rehearsal, monkeypatch):
    """Updated in place, with a chapter that reads one set more: is it fetched, once?"""
    venv, done = rehearsal
    bootstrap.set_up(venv, set(), answer=True)
    done.clear()
    monkeypatch.setattr(bootstrap, "CHAPTER_DATA", (*bootstrap.CHAPTER_DATA, "movies"))
    bootstrap.set_up(venv, set(), answer=True)
    bootstrap.set_up(venv, set(), answer=True)
    assert done == ["ask"]


def test_extras_add_up(rehearsal):
    """Does asking for another extra keep those that are there?"""
    venv, done = rehearsal
    bootstrap.set_up(venv, {"test"}, answer=False)
    bootstrap.set_up(venv, {"book"}, answer=False)
    assert done[-1][-1].endswith("[book,test]") and done[-1][:2] == ("install", "-c")


def test_changed_pins_install_again(rehearsal, monkeypatch):
    """Does an updated course bring its environment up to date, and not ask the model again?"""
    venv, done = rehearsal
    bootstrap.set_up(venv, set(), answer=True)
    done.clear()
    monkeypatch.setattr(bootstrap, "wanted", lambda: "another fingerprint")
    bootstrap.set_up(venv, set(), answer=True)
    assert done[0] == "torch" and "ask" not in done and "venv" not in done


def test_interrupted_set_up_goes_on(rehearsal, monkeypatch, capsys):
    """Does a set-up stopped while packages install go on, and boast no time it did not take?"""
    venv, done = rehearsal

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Recorder, "pip", stop)
        bootstrap.set_up(venv, set(), answer=True)
    assert done == ["venv", "torch"]
    bootstrap.set_up(venv, set(), answer=True)
    assert done.count("venv") == 1 and done[-1] == "ask"
    assert "Fresh clone" not in capsys.readouterr().out


def test_no_answer_is_asked_again_next_time(rehearsal, monkeypatch):
    """Does a set-up without a network finish, and try the model again at the next run?"""
    venv, done = rehearsal
    with monkeypatch.context() as patch:
        patch.setattr(bootstrap, "first_answer", lambda venv, steps: False)
        bootstrap.set_up(venv, set(), answer=True)
    done.clear()
    bootstrap.set_up(venv, set(), answer=True)
    assert done == ["ask"]


# ---- The package ----


def test_import_is_light():
    """Does `import llmcourse` stay under 0.3 s, and bring in nothing heavy?"""
    heavy = ("torch", "transformers", "matplotlib", "IPython", "numpy", "ipywidgets")
    code = f"import sys, llmcourse; sys.exit(str([m for m in {heavy} if m in sys.modules] or ''))"
    times = []
    for _ in range(5):  # the best of five: a busy machine only ever adds time
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
        )
        times.append(time.perf_counter() - start)
        assert done.stderr.strip() == ""
    bare = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        bare.append(time.perf_counter() - start)
    assert min(times) - min(bare) < 0.3


@pytest.mark.slow
def test_wheel_holds_the_course(tmp_path):
    """Are notebooks and data in the wheel, where `paths.course` looks for them, and no litter?"""
    from hatchling.builders.wheel import WheelBuilder

    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    names = zipfile.ZipFile(wheel).namelist()
    for folder in ("notebooks", "data"):
        ours = [p for p in tracked() if p.is_relative_to(ROOT / folder)]
        for path in ours:
            assert f"llmcourse/_course/{path.relative_to(ROOT).as_posix()}" in names
    assert not [n for n in names if "checkpoint" in n.split("/")[-1] and n.endswith(".ipynb")]
    assert not [n for n in names if n.startswith(("tests/", "book/")) or "__pycache__" in n]


# ---- Nothing of one machine ----


def test_nothing_of_one_machine_is_tracked():
    """Is the repository free of paths, names and addresses of the machine it was written on?"""
    private = re.compile(
        r"(?<![\w.~])/(?:root|work|home/(?!USER|jovyan|user)\w+|Users/(?!you|USER)\w+|opt)/[\w.-]+"
        r"|\b(?:localhost|127\.0\.0\.1):\d{4,5}/\S*token=\w{8,}"
    )
    found = []
    for path in tracked():
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {hit[0]}" for hit in private.finditer(text)]
    assert not found, "\n".join(found)


# ---- The doctor ----


def test_doctor_reports_and_names_nobody(monkeypatch):
    """Does the report come as facts and as text, with the home folder as ~?"""
    found = doctor.report(seconds=0.05)
    assert set(found) == {"here", "missing"}
    assert found["here"]["memory"]["total_gb"] > 0.5
    assert found["here"]["versions"]["torch"].startswith(bootstrap.TORCH)
    text = doctor.text(found)
    assert text.startswith("HERE\n") and "\nMISSING\n" in text
    assert str(Path.home()) + "/" not in text + repr(found)


def test_doctor_works_without_torch(tmp_path):
    """Is a broken torch a line of the report, with what to do, and not the end of it?"""
    (tmp_path / "torch.py").write_text("raise OSError('libtorch_cpu.so: cannot open')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from llmcourse import doctor; "
        "r = doctor.report(seconds=0.05); print(doctor.text(r)); "
        "sys.exit([m['what'] for m in r['missing']][0] != 'torch')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "libtorch_cpu.so: cannot open" in done.stdout and "make lab" in done.stdout


@pytest.mark.parametrize(
    "key, value, what",
    [
        ("compiler", None, "C++ compiler"),
        ("chinese_font", None, "Chinese font"),
        ("model", {"name": "x", "fetched": False, "folder": "y"}, "model"),
        ("disk", {"cache": "z", "free_gb": 1.0}, "disk"),
        ("memory", {"total_gb": 2.0, "free_gb": 1.0}, "memory"),
        ("torch_works", {"error": "OSError: no"}, "torch"),
        ("gpu", ["NVIDIA H200, 143771 MiB"], "CUDA in torch"),
    ],
)
def test_doctor_says_what_to_do(monkeypatch, key, value, what):
    """Does each thing that can be missing come with a reason and a remedy, and only that one?"""
    monkeypatch.setattr(doctor.sys, "platform", "linux")
    well = {
        "torch_works": {"threads": 2, "cuda": False},
        "gpu": [],
        "model": {"name": "x", "fetched": True, "folder": "y"},
        "compiler": "g++ 12",
        "chinese_font": "Noto Sans CJK SC",
        "disk": {"cache": "z", "free_gb": 50.0},
        "memory": {"total_gb": 16.0, "free_gb": 12.0},
    }
    assert doctor._missing(well) == []
    (missing,) = doctor._missing({**well, key: value})
    assert missing["what"] == what and missing["why"] and missing["do"]
