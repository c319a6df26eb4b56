"""The course's engine against llama.cpp, OpenVINO GenAI and transformers: fresh processes, in turn.

`make bench` prints the table and writes build/bench.json. Peers that are not installed are left out;
`pip install "llmcourse[peers]"` brings them.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import importlib.metadata
import importlib.util
import json
import platform
import re
import shlex
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
OURS = ("llmcourse", "Q4_1")
PEERS = {  # engine: its module, its distribution, its formats
    "llama.cpp": ("llama_cpp", "llama-cpp-python", ["Q4_1", "Q8_0", "Q4_0"]),
    "OpenVINO GenAI": ("openvino_genai", "openvino-genai", ["Q4_1"]),
    "transformers": ("transformers", "transformers", ["bf16", "fp32"]),
}
# Reads memory as fast as a core can: several streams far apart, eight sums at once.
READER = """
#include <cstdint>
#include <cstddef>
typedef uint64_t Words __attribute__((vector_size(32)));
extern "C" uint64_t read_all(const char* p, size_t bytes, int streams) {
    Words sums[8] = {};
    const size_t part = bytes / streams / 256 * 256;
    for (size_t at = 0; at < part; at += 256)
        for (int s = 0; s < streams; s++)
            for (int k = 0; k < 8; k++) sums[k] ^= *(const Words*)(p + s * part + at + 32 * k);
    Words all = sums[0] ^ sums[1] ^ sums[2] ^ sums[3] ^ sums[4] ^ sums[5] ^ sums[6] ^ sums[7];
    return all[0] ^ all[1] ^ all[2] ^ all[3];
}
"""


def read_gb_per_s(threads: int, streams: int = 4, repeat: int = 15) -> float:
    """Bytes a second that some threads read from 256 MB each, by several streams: the median."""
    from llmcourse.kernels.build import compile_source

    read = ctypes.CDLL(str(compile_source(READER, name="reader"))).read_all
    read.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = 256 << 20
    memory = [np.ones(size, np.uint8) for _ in range(threads)]
    found = []
    for _ in range(repeat):
        workers = [
            threading.Thread(target=read, args=(part.ctypes.data, size, streams)) for part in memory
        ]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        found.append(threads * size / (time.perf_counter() - start) / 1e9)
    return statistics.median(found)


def measure(engine: str, kind: str, threads: int, task: str = "speed") -> dict[str, Any]:
    """One engine in a fresh process. Raises RuntimeError with its last line if it fails."""
    command = [sys.executable, "-m", "tests.benchmarks.peers", engine, kind, str(threads), task]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if found := re.search(r"^RESULT (.*)$", done.stdout, re.M):
        return json.loads(found[1])
    raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1])


def contestants() -> list[tuple[str, str]]:
    """Engines and formats that are installed, the course's own first."""
    found = [OURS]
    for engine, (module, _, kinds) in PEERS.items():
        if importlib.util.find_spec(module):
            found += [(engine, kind) for kind in kinds]
    return found


def rounds(count: int, threads: list[int], engines: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """`count` rounds in which each engine has its turn at each number of threads: rows, medians."""
    speeds: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for n in range(count):
        for used in threads:
            for engine, kind in engines:
                print(
                    f"\rround {n + 1}/{count}  {used} thread(s)  {engine} {kind}        ",
                    end="",
                    flush=True,
                )
                try:
                    speeds.setdefault((engine, kind, used), []).append(measure(engine, kind, used))
                except RuntimeError as error:
                    print(f"\n{engine} {kind} failed and is left out: {error}")
    print()
    quality = {}
    for engine, kind in engines:
        print(f"\rperplexity  {engine} {kind}        ", end="", flush=True)
        quality[engine, kind] = measure(engine, kind, max(threads), "perplexity")["perplexity"]
    print()
    rows = []
    for (engine, kind, used), found in speeds.items():
        middle = {
            key: statistics.median(one[key] for one in found)
            for key in ("tokens_per_s", "gb_per_s", "prefill_tokens_per_s", "rss_bytes")
        }
        each = [one["tokens_per_s"] for one in found]
        rows.append(
            {
                "engine": engine, "format": kind, "threads": used, **middle,
                "spread": [min(each), max(each)], "rounds": each, "perplexity": quality[engine, kind],
            }
        )  # fmt: skip
    return rows


def beside_a_busy_core(count: int, threads: int) -> dict[str, Any]:
    """Tokens/s of the course's engine while another program keeps one core busy: 1 and all threads."""
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    time.sleep(1)
    found: dict[int, list[float]] = {1: [], threads: []}
    try:
        for _ in range(count):
            for used in found:
                found[used].append(measure(*OURS, used)["tokens_per_s"])
    finally:
        busy.kill()
        busy.wait()
    one, many = (statistics.median(found[used]) for used in (1, threads))
    ratios = [b / a for a, b in zip(found[1], found[threads], strict=True)]
    return {
        "one_thread": one,
        "all_threads": many,
        "ratios": ratios,
        "rounds": list(found.values()),
    }


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the course's engine is to each other row of as many threads: times as fast, per round."""
    ours = {row["threads"]: row for row in rows if (row["engine"], row["format"]) == OURS}
    return [
        {
            "engine": row["engine"], "format": row["format"], "threads": row["threads"],
            "ratio": ours[row["threads"]]["tokens_per_s"] / row["tokens_per_s"],
            "rounds": [a / b for a, b in zip(ours[row["threads"]]["rounds"], row["rounds"], strict=False)],
        }
        for row in rows
        if (row["engine"], row["format"]) != OURS
    ]  # fmt: skip


def command(arguments: list[str]) -> str:
    """The command line as a record keeps it: where it wrote is of no use to others."""
    kept = list(arguments)
    if "--output" in kept:
        at = kept.index("--output")
        del kept[at : at + 2]
    return shlex.join(["python", "-m", "tests.benchmarks.decode", *kept])


def table(rows: list[dict[str, Any]], limit: dict[int, float]) -> str:
    """The rows as text, fastest first for each number of threads."""
    ours = {
        row["threads"]: row["tokens_per_s"]
        for row in rows
        if (row["engine"], row["format"]) == OURS
    }
    lines = [f"{'engine':16}{'format':8}{'threads':>7}{'tok/s':>8}{'spread':>14}{'ours/it':>9}"
             f"{'GB/s':>7}{'of limit':>9}{'prefill':>9}{'MB':>6}{'perplexity':>11}"]  # fmt: skip
    for row in sorted(rows, key=lambda r: (r["threads"], -r["tokens_per_s"])):
        low, high = row["spread"]
        quality = "-" if row["perplexity"] is None else f"{row['perplexity']:.2f}"
        lines.append(
            f"{row['engine']:16}{row['format']:8}{row['threads']:7}{row['tokens_per_s']:8.1f}"
            f"{f'{low:.0f}-{high:.0f}':>14}{ours[row['threads']] / row['tokens_per_s']:8.2f}x"
            f"{row['gb_per_s']:7.1f}{row['gb_per_s'] / limit[row['threads']]:9.0%}"
            f"{row['prefill_tokens_per_s']:9.0f}{row['rss_bytes'] / 1e6:6.0f}{quality:>11}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write build/bench.json."""
    from llmcourse.kernels.cpu import instruction_sets
    from llmcourse.measure.processor import processor, usable_cores

    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.decode", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--threads", type=int, nargs="+", help="default: 1, and all cores")
    parser.add_argument(
        "--engines", nargs="+", help="only engines of these names, and the course's"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench.json")
    options = parser.parse_args()
    threads = options.threads or sorted({1, min(usable_cores(), 64)})
    engines = [
        e for e in contestants() if e == OURS or not options.engines or e[0] in options.engines
    ]
    measure(*OURS, 1)  # builds, packs
    limit = {used: read_gb_per_s(used) for used in threads}
    rows = rounds(options.rounds, threads, engines)
    after = {used: read_gb_per_s(used) for used in threads}
    limit = {used: max(limit[used], after[used]) for used in threads}
    busy = beside_a_busy_core(options.rounds, max(threads)) if max(threads) > 1 else None
    print(table(rows, limit))
    for used, speed in limit.items():
        print(f"Memory reads {speed:.1f} GB/s on {used} thread(s), by four streams each.")
    if busy:
        print(
            f"Beside a busy core: one thread {busy['one_thread']:.0f} tok/s, all {busy['all_threads']:.0f}."
        )
    installed = {PEERS[e][1] for e, _ in engines if e in PEERS} | {"torch"}
    report = {
        "cpu": f"{processor()[0]}, {usable_cores()} cores",
        "instruction_set": instruction_sets()[0],
        "versions": {name: importlib.metadata.version(name) for name in sorted(installed)}
        | {
            "llmcourse": importlib.metadata.version("llmcourse"),
            "python": platform.python_version(),
        },
        "date": datetime.date.today().isoformat(),
        "command": command(sys.argv[1:]),
        "read_gb_per_s": {str(used): speed for used, speed in limit.items()},
        "rows": rows,
        "ratios": ratios(rows),
        "busy": busy,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    print(f"Written to {options.output}.")


if __name__ == "__main__":
    main()
