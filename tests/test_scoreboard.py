"""Is the scoreboard right, and does it survive crashes, crowds and the future?"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest
from filelock import FileLock

from llmcourse import paths
from llmcourse.errors import CourseError
from llmcourse.measure import scoreboard
from llmcourse.measure.quality import Estimate
from llmcourse.measure.scoreboard import Row, Scoreboard, machine_name

NOON = datetime(2026, 3, 1, 12, 0, 5, tzinfo=UTC)


@pytest.fixture
def board(tmp_path):
    return Scoreboard(tmp_path / "deep" / "board.jsonl", machine="this one", now=lambda: NOON)


def fill(board):
    """A baseline, a technique measured twice, and a slower one."""
    quality = Estimate(27.0, 25.9, 28.2, 4088, "t interval", "tokens")
    board.add("baseline", chapter="00", tokens_per_s=5, bytes=500_000_000, perplexity=quality)
    board.add("cache", chapter="08", tokens_per_s=9, bytes=500_000_000)
    board.add("toy", chapter="09", tokens_per_s=2.5, bytes=100, accuracy=0.917, note="slow")
    board.add(
        "cache",
        chapter="08",
        tokens_per_s=15,
        bytes=500_000_000,
        limit_tokens_per_s=60,
        device="cpu",
    )
    return board


def test_what_is_added_comes_back(board):
    """Is a row read back the row that `add` returned, with date, machine and versions?"""
    quality = Estimate(27.0, 25.9, 28.2, 4088, "t interval", "tokens")
    row = board.add("x", chapter=8, tokens_per_s=5, bytes=9, perplexity=quality, threads=2)
    assert board.rows() == [row]
    assert (row.chapter, row.perplexity, row.more) == ("8", quality, {"threads": 2})
    assert (row.date, row.machine) == ("2026-03-01T12:00:05+00:00", "this one")
    assert {"python", "torch", "llmcourse"} <= row.versions.keys()
    line = json.loads(board.path.read_text(encoding="utf-8"))
    assert line["perplexity"]["low"] == 25.9 and line["threads"] == 2 and "more" not in line


def test_default_place_is_the_workspace():
    """Does it live with the reader's own files?"""
    assert Scoreboard().path == paths.state() / "scoreboard.jsonl"


def test_achieved_bandwidth_by_hand(board):
    """15 tokens/s of 0.5 GB each: 7.5 GB/s?"""
    assert fill(board).latest()[1].gb_per_s == 7.5


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf")])
def test_add_refuses_what_is_no_rate(board, rate):
    """Is a rate that cannot be one refused, and nothing written?"""
    with pytest.raises(CourseError, match="above zero"):
        board.add("x", chapter="00", tokens_per_s=rate, bytes=1)
    with pytest.raises(CourseError, match="not data"):
        board.add("x", chapter="00", tokens_per_s=1, bytes=1, odd=object())
    assert not board.path.exists()


def test_running_a_chapter_twice_shows_it_once(board):
    """Does the table show the latest row of a technique, and the file keep all?"""
    fill(board)
    assert len(board.rows()) == len(board) == 4
    assert [(row.technique, row.tokens_per_s) for row in board.latest()] == [
        ("baseline", 5), ("cache", 15), ("toy", 2.5),
    ]  # fmt: skip
    assert board.best().tokens_per_s == 15


def test_table_measures_by_the_latest_baseline(board):
    """× is against this machine's newest baseline: 15/5, then 15/3 once it is run again?"""
    fill(board)
    lines = {row[0]: row for row in board.table().rows}
    assert lines["cache"][2:7] == ("15.0", "3.00×", "500 MB", "7.50", "25%")
    assert lines["baseline"][3] == "1.00×" and lines["baseline"][7] == "27.0 (25.9 to 28.2)"
    assert lines["toy"][3] == "0.50×" and lines["toy"][8:] == ("0.917", "slow")
    assert board.table().marked == {1}
    board.add("baseline", chapter="00", tokens_per_s=3, bytes=500_000_000)
    assert {row[0]: row[3] for row in board.table().rows}["cache"] == "5.00×"
    assert 'scope="row"' in board._repr_html_() and "cache" in repr(board)


def test_other_machines_are_kept_apart(board):
    """Is another machine's baseline neither shown nor measured by, and is that said?"""
    Scoreboard(board.path, machine="big one").add(
        "baseline", chapter="00", tokens_per_s=500, bytes=1
    )
    board.add("cache", chapter="08", tokens_per_s=15, bytes=1)
    assert board.baseline() is None and board.best().tokens_per_s == 15
    assert len(board.latest(everywhere=True)) == 2
    notes = " ".join(board.table().notes)
    assert "1 rows from other machines" in notes and "No row is called" in notes


def test_empty_board(board):
    """Is an empty board shown as one, and does looking at it write nothing?"""
    assert board.rows() == [] and board.best() is None and board.reset() is None
    assert "Empty so far" in repr(board)
    with pytest.raises(CourseError, match="empty"):
        board.figure()
    assert not board.path.exists()


def test_fields_of_the_future_are_kept(board):
    """Does a row with unknown fields, or without known ones, survive reading and export?"""
    board.path.parent.mkdir(parents=True)
    board.path.write_text('{"technique": "new", "joules": 3.5, "machine": "this one"}\n')
    row = board.rows()[0]
    assert row.more == {"joules": 3.5} and row.tokens_per_s is None
    assert "new" in repr(board)  # shown, though it has no rate
    exported = json.loads(board.export(board.path.with_name("all.json")).read_text())
    assert exported[0]["joules"] == 3.5


@pytest.mark.parametrize(
    "torn", [b'{"technique": "x", "tok', b"\x00\x00\x00", '{"note": "é'.encode()[:-1], b"[1, 2]\n"]
)
def test_a_torn_line_costs_only_itself(board, torn):
    """Half a line, zeros, half a character, a line that is no row: skipped, said, no more?"""
    fill(board)
    with board.path.open("ab") as file:
        file.write(torn)
    board.add("after", chapter="10", tokens_per_s=1, bytes=1)
    assert [row.technique for row in board.rows()][-2:] == ["cache", "after"]
    assert len(board) == 5
    assert any(note.startswith("1 unreadable line") for note in board.table().notes)


def test_a_whole_line_without_its_end_is_kept(board):
    """Was only the newline lost? Then the row counts, and the next one starts its own line."""
    fill(board)
    board.path.write_bytes(board.path.read_bytes().rstrip(b"\n"))
    board.add("after", chapter="10", tokens_per_s=1, bytes=1)
    assert len(board) == 5 and board._read()[1] == 0


def test_blank_lines_are_nothing(board):
    """Do empty lines and Windows line ends make neither rows nor complaints?"""
    fill(board)
    board.path.write_bytes(board.path.read_bytes().replace(b"\n", b"\r\n\r\n"))
    assert len(board) == 4 and board._read()[1] == 0


WRITER = """
import sys
from llmcourse.measure.scoreboard import Scoreboard
board, name, count = Scoreboard(sys.argv[1]), sys.argv[2], int(sys.argv[3])
for i in range(count):
    board.add(name, chapter="00", tokens_per_s=1 + i, bytes=i, note="x" * 2000)
    if i == 0:
        print("started", flush=True)
"""


def writer(board, name, count):
    command = [sys.executable, "-c", WRITER, str(board.path), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_four_processes_lose_nothing(board):
    """Four programs adding 25 rows each at once: 100 whole rows, each program's in its order?"""
    writers = [writer(board, f"p{i}", 25) for i in range(4)]
    assert [process.wait(timeout=120) for process in writers] == [0] * 4
    rows, torn = board._read()
    assert torn == 0 and len(rows) == 100
    for i in range(4):
        assert [r.bytes for r in rows if r.technique == f"p{i}"] == list(range(25))
    for process in writers:
        process.stdout.close()


def test_writers_wait_for_each_other(board, monkeypatch):
    """While another program holds the lock, is nothing written, and the reason said?"""
    fill(board)
    before = board.path.read_bytes()
    monkeypatch.setattr(scoreboard, "_LOCK_TIMEOUT_S", 0.05)
    with FileLock(f"{board.path}.lock"):
        for change in (lambda: board.add("x", chapter="1", tokens_per_s=1, bytes=1), board.reset):
            with pytest.raises(CourseError, match="is not to be had"):
                change()
        assert board.path.read_bytes() == before
    board.add("x", chapter="1", tokens_per_s=1, bytes=1)
    assert len(board) == 5


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9 is of POSIX")
def test_kill_minus_nine(board):
    """A writer killed mid-way: is nothing it finished lost, and the next one not locked out?"""
    for wait_s in (0.0, 0.013, 0.05):
        process = writer(board, f"after {wait_s}", 100_000)
        assert process.stdout.readline() == "started\n"
        time.sleep(wait_s)  # only to be killed at different points of its work
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=60)
        process.stdout.close()
        rows, torn = board._read()
        mine = [row.bytes for row in rows if row.technique == f"after {wait_s}"]
        assert mine == list(range(len(mine))) and mine
        assert torn <= 3
    board.add("survivor", chapter="00", tokens_per_s=1, bytes=1)
    assert board.rows()[-1].technique == "survivor"


def test_append_is_flushed_to_disk(board, monkeypatch):
    """Is fsync called for every row, after the whole line was written?"""
    sizes = []
    monkeypatch.setattr(os, "fsync", lambda fd: sizes.append(os.fstat(fd).st_size))
    fill(board)
    assert len(sizes) == 4 and sizes[-1] == board.path.stat().st_size


def test_reset_keeps_a_backup(board):
    """Is the old file renamed with its date, a second reset in the same second no overwrite?"""
    first = (fill(board).path.read_bytes(), board.reset())[1]
    assert first.name == "board-2026-03-01T120005.jsonl" and len(Scoreboard(first)) == 4
    assert board.rows() == [] and not board.path.exists()
    board.add("x", chapter="00", tokens_per_s=1, bytes=1)
    second = board.reset()
    assert second.name == "board-2026-03-01T120005-2.jsonl" and len(Scoreboard(first)) == 4


def test_export_csv(board, tmp_path):
    """Does CSV hold the whole history, every field of any row, and an estimate in three columns?"""
    with fill(board).export(tmp_path / "new" / "b.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["tokens_per_s"] for row in rows] == ["5.0", "9.0", "2.5", "15.0"]
    assert (rows[0]["perplexity"], rows[0]["perplexity_high"]) == ("27.0", "28.2")
    assert rows[3]["device"] == "cpu" and rows[0]["device"] == ""
    assert json.loads(rows[0]["versions"])["python"]


def test_export_json_round_trip(board, tmp_path):
    """Is what JSON holds the rows themselves, and another ending refused?"""
    rows = json.loads(fill(board).export(tmp_path / "b.json").read_text(encoding="utf-8"))
    assert [Row.from_dict(row) for row in rows] == board.rows()
    assert [path.name for path in tmp_path.glob("*.part")] == []
    with pytest.raises(CourseError, match=r"\.csv or \.json, not b\.xlsx"):
        board.export(tmp_path / "b.xlsx")


def test_figure_shows_bars_and_limits(board):
    """One bar a technique, as long as its rate, its dashed limit, no face, nothing left open?"""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = fill(board).figure({"cache": "#123456"})
    axes = figure.axes[0]
    assert [bar.get_width() for bar in axes.patches] == [5, 15, 2.5]
    assert matplotlib.colors.to_hex(axes.patches[1].get_facecolor()) == "#123456"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["baseline", "cache", "toy"]
    (limit,) = axes.lines
    assert limit.get_linestyle() == "--" and list(limit.get_xdata()) == [60, 60]
    assert {text.get_text() for text in axes.texts} == {
        "5.00 · 1.0×", "15.0 · 3.0×", "2.50 · 0.5×", "limit",
    }  # fmt: skip
    assert axes.get_xscale() == "log"  # from 2.5 to 60
    assert figure.patch.get_alpha() == axes.patch.get_alpha() == 0
    assert not plt.get_fignums()
    assert "cache 15.0" in board.alt_text() and "limit, dashed: 60.0" in board.alt_text()


def test_figure_is_linear_for_near_rates(board):
    """Are rates within a factor of 20 drawn from zero?"""
    board.add("baseline", chapter="00", tokens_per_s=5, bytes=1)
    board.add("cache", chapter="08", tokens_per_s=50, bytes=1)
    axes = board.figure().axes[0]
    assert axes.get_xscale() == "linear" and axes.get_xlim()[0] == 0


def test_machine_name_tells_no_host():
    """Does the name say processor and system, and nothing about whose machine it is?"""
    import platform

    assert platform.system() in machine_name()
    assert len(platform.node()) < 4 or platform.node() not in machine_name()
