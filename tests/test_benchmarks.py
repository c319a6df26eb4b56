"""The benchmark's own arithmetic, and the recorded rows: no speed is tested here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks import decode, peers

RECORDED = Path(__file__).parents[1] / "data" / "measurements"


def a_row(engine, kind, threads, rounds, perplexity=20.0):
    speed = sorted(rounds)[len(rounds) // 2]
    return {
        "engine": engine, "format": kind, "threads": threads, "tokens_per_s": speed,
        "spread": [min(rounds), max(rounds)], "rounds": rounds, "gb_per_s": speed / 10,
        "prefill_tokens_per_s": 500.0, "rss_bytes": 2e8, "perplexity": perplexity,
    }  # fmt: skip


def test_ratios_are_of_one_round_and_as_many_threads():
    """Is a ratio taken inside a round, against the course's engine on as many threads?"""
    rows = [
        a_row("llmcourse", "Q4_1", 1, [200.0, 100.0, 300.0]),
        a_row("llmcourse", "Q4_1", 2, [400.0, 400.0, 400.0]),
        a_row("llama.cpp", "Q4_1", 1, [50.0, 50.0, 60.0]),
        a_row("llama.cpp", "Q4_1", 2, [100.0, 80.0, 100.0]),
    ]
    one, two = decode.ratios(rows)
    assert one["ratio"] == 4.0 and one["rounds"] == [4.0, 2.0, 5.0]
    assert two["ratio"] == 4.0 and two["rounds"] == [4.0, 5.0, 4.0]


def test_table():
    """Are rows sorted by threads and speed, with their share of the limit, and a dash for what is unknown?"""
    rows = [
        a_row("llama.cpp", "Q4_0", 1, [50.0], perplexity=None),
        a_row("llmcourse", "Q4_1", 1, [200.0]),
    ]
    head, first, second = decode.table(rows, {1: 40.0}).splitlines()
    assert first.startswith("llmcourse") and "50%" in first and "1.00x" in first
    assert second.startswith("llama.cpp") and "4.00x" in second and second.endswith("-")
    assert len(head) == len(first) == len(second)


def test_seconds_is_a_median_without_the_first(monkeypatch):
    """Is the run that warms up left out, and the middle one of the others taken?"""
    now = [0.0]
    took = iter([100.0, 3.0, 1.0, 2.0, 9.0, 2.0])
    monkeypatch.setattr(peers.time, "perf_counter", lambda: now[0])

    def work():
        now[0] += next(took)

    assert peers.seconds(work, budget=1000.0) == 2.0
    took = iter([100.0, 3.0])
    assert peers.seconds(work, budget=1.0) == 3.0  # a slow engine runs once


def test_an_engine_that_fails_says_why():
    """Does a failing process give its last line, not a silent gap?"""
    with pytest.raises(RuntimeError, match="KeyError"):
        decode.measure("nobody", "Q4_1", 1)


def test_command_is_kept_without_its_output():
    """Does a record say what was run, quoted, but not the folder of whoever ran it?"""
    given = ["--rounds", "2", "--output", "/a/b.json", "--engines", "OpenVINO GenAI"]
    assert decode.command(given) == (
        "python -m tests.benchmarks.decode --rounds 2 --engines 'OpenVINO GenAI'"
    )


@pytest.mark.parametrize(
    "name", ["decode_cpu.json", "decode_cpu_second_run.json", "decode_cpu_avx2.json"]
)
def test_recorded_rows(name):
    """Do the recorded rows have the fields that chapter 21 reads, ours for each number of threads?"""
    found = json.loads((RECORDED / name).read_text("utf-8"))
    assert "/" not in found["command"]  # no path of the machine it was made on
    assert {"cpu", "versions", "date", "rows", "read_gb_per_s", "busy"} <= set(found)
    fields = set(a_row("", "", 1, [1.0]))
    assert all(fields <= set(row) for row in found["rows"])
    threads = {row["threads"] for row in found["rows"]}
    assert {row["threads"] for row in found["rows"] if row["engine"] == "llmcourse"} == threads
    for row in found["rows"]:
        assert row["spread"] == [min(row["rounds"]), max(row["rounds"])]
