"""The reader's scoreboard: one line of JSON a measurement, appended as they go, never lost."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from llmcourse import paths
from llmcourse.errors import CourseError
from llmcourse.measure.processor import processor
from llmcourse.measure.quality import Estimate
from llmcourse.measure.results import plain
from llmcourse.measure.tables import Table, number_text
from llmcourse.measure.views import COLUMNS, cells, draw, to_csv

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASELINE = "baseline"
_LOCK_TIMEOUT_S = 30.0  # an append takes milliseconds; longer means a program hangs


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement. `bytes` are the weights a token must read; `more` holds all other fields."""

    technique: str
    chapter: str = ""
    tokens_per_s: float | None = None
    bytes: int | None = None
    perplexity: float | Estimate | None = None
    accuracy: float | Estimate | None = None
    note: str = ""
    date: str = ""
    machine: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def gb_per_s(self) -> float | None:
        """Bandwidth made use of: bytes a token × tokens/s, in units of 1e9 bytes a second."""
        if not self.bytes or self.tokens_per_s is None:
            return None
        return self.bytes * self.tokens_per_s / 1e9

    @property
    def limit_tokens_per_s(self) -> float | None:
        """What bandwidth over bytes allows, where the chapter gave it along."""
        limit = self.more.get("limit_tokens_per_s")
        return float(limit) if isinstance(limit, (int, float)) else None

    def to_dict(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "more"}
        return plain({**own, **self.more})

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Row:
        """A row from one line; fields this version does not know are kept in `more`."""
        known = {k: v for k, v in found.items() if k in cls.__dataclass_fields__ and k != "more"}
        for name in ("perplexity", "accuracy"):
            if isinstance(known.get(name), dict):
                known[name] = Estimate.from_dict(known[name])
        return cls(**known, more={k: v for k, v in found.items() if k not in known})


class Scoreboard:
    """The file, and what is made of it. Every look reads the file anew.

    The table shows the latest row of each technique on this machine; the file keeps them all.
    Appending is safe against other writers (a lock file) and against being stopped at any moment:
    a line is one write and an fsync, and a torn line costs only itself.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        machine: str | None = None,
        now: Callable[[], datetime] = lambda: datetime.now().astimezone(),
    ) -> None:
        self.path = Path(path) if path else paths.state() / "scoreboard.jsonl"
        self.machine = machine or machine_name()
        self._now = now

    def add(
        self,
        technique: str,
        *,
        chapter: str,
        tokens_per_s: float,
        bytes: int,
        perplexity: float | Estimate | None = None,
        accuracy: float | Estimate | None = None,
        note: str = "",
        **more: Any,
    ) -> Row:
        """Append one measurement and return its row. Anything else worth keeping goes in `more`.

        `limit_tokens_per_s=…` draws the machine's limit. Raises CourseError for a rate that is no
        number above zero, or for a value that is not data.
        """
        rate = float(tokens_per_s)
        if not 0 < rate < float("inf"):
            raise CourseError(f"{technique} needs tokens_per_s above zero, not {tokens_per_s}.")
        row = Row(
            technique,
            str(chapter),
            rate,
            int(bytes),
            perplexity,
            accuracy,
            note,
            self._now().isoformat(timespec="seconds"),
            self.machine,
            _versions(),
            plain(more, "more"),
        )
        self._append(row.to_dict())
        return row

    def rows(self) -> list[Row]:
        """All rows ever added, oldest first."""
        return self._read()[0]

    def latest(self, *, everywhere: bool = False) -> list[Row]:
        """The newest row of each technique, in the order in which techniques first came up.

        Rows of this machine only, unless `everywhere`; then a technique counts once a machine.
        """
        newest: dict[tuple[str, str], Row] = {}
        for row in self.rows():
            if everywhere or row.machine == self.machine:
                newest[row.machine, row.technique] = row
        return list(newest.values())

    def baseline(self) -> Row | None:
        """The newest row called "baseline" on this machine: what all others are measured by."""
        return next((row for row in self.latest() if row.technique == BASELINE), None)

    def best(self) -> Row | None:
        """The fastest of the latest rows of this machine; None on an empty board."""
        return max(self._timed(), key=lambda row: row.tokens_per_s or 0.0, default=None)

    def table(self) -> Table:
        """The latest row of each technique, against the baseline."""
        rows, base, best = self.latest(), self.baseline(), self.best()
        return Table(
            f"Scoreboard of {self.machine}",
            COLUMNS,
            tuple(cells(row, base) for row in rows),
            tuple(self._notes(rows, base)),
            frozenset({rows.index(best)} if best else ()),
        )

    def _notes(self, rows: list[Row], base: Row | None) -> Iterator[str]:
        everything, torn = self._read()
        if not rows:
            yield "Empty so far: chapter 00 adds the first row."
        elif base is None:
            yield "No row is called “baseline” yet: run chapter 00 to have something to measure by."
        elsewhere = sum(row.machine != self.machine for row in everything)
        if elsewhere:
            yield f"{elsewhere} rows from other machines are in the file and not shown."
        if torn:
            yield f"{torn} unreadable line(s) skipped: a program was stopped while writing."

    def figure(self, colours: Mapping[str, str] | None = None) -> Figure:
        """Tokens/s of each technique as bars, the machine's limit as a dashed line.

        The axis is logarithmic once the rates span more than a factor of 20. `colours` maps
        techniques to colours (chapters share one map); `alt_text` says the picture in words.
        Raises CourseError on an empty board.
        """
        rows = self._timed()
        if not rows:
            raise CourseError("The scoreboard is empty: run chapter 00 to add the first row.")
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(7.5, 1.1 + 0.45 * len(rows)), layout="constrained")
        draw(axes, rows, self.baseline(), colours or {})
        figure.patch.set_alpha(0)
        plt.close(figure)  # shown once, as the cell's result, and not a second time at its end
        return figure

    def alt_text(self) -> str:
        """What the figure shows, in one sentence."""
        bars = [f"{row.technique} {number_text(row.tokens_per_s or 0)}" for row in self._timed()]
        limits = [row.limit_tokens_per_s for row in self._timed() if row.limit_tokens_per_s]
        shown = list(dict.fromkeys(map(number_text, limits)))
        dashed = f" The machine's limit, dashed: {', '.join(shown)}." if shown else ""
        return f"Bar chart of tokens per second: {', '.join(bars)}.{dashed}"

    def reset(self) -> Path | None:
        """Start afresh; the old file is renamed, never deleted. Returns where it went, if any."""
        with self._lock():
            if not self.path.exists():
                return None
            stamp = self._now().strftime("%Y-%m-%dT%H%M%S")
            backup = self.path.with_name(f"{self.path.stem}-{stamp}{self.path.suffix}")
            copy = 2
            while backup.exists():
                backup = self.path.with_name(f"{self.path.stem}-{stamp}-{copy}{self.path.suffix}")
                copy += 1
            self.path.rename(backup)
            return backup

    def export(self, path: str | Path) -> Path:
        """Write all rows, history included, to a .csv or .json file and return its path.

        In CSV an estimate takes three columns: the name, name_low, name_high.
        Raises CourseError for another ending.
        """
        target, rows = Path(path), [row.to_dict() for row in self.rows()]
        if target.suffix == ".json":
            text = json.dumps(rows, ensure_ascii=False, indent=1) + "\n"
        elif target.suffix == ".csv":
            text = to_csv(rows)
        else:
            raise CourseError(f"Export to a name that ends in .csv or .json, not {target.name}.")
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f"{target.name}.part")
        beside.write_text(text, encoding="utf-8", newline="")
        os.replace(beside, target)
        return target

    def _timed(self) -> list[Row]:
        return [row for row in self.latest() if row.tokens_per_s]

    def _append(self, row: dict[str, Any]) -> None:
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        with self._lock(), open(self.path, "ab+") as file:
            # A line without an end was torn by a crash: close it, so that it spoils no other.
            if file.seek(0, os.SEEK_END) and _last_byte(file) != b"\n":
                line = b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> tuple[list[Row], int]:
        """Rows, and how many lines could not be read."""
        if not self.path.exists():
            return [], 0
        with self._lock():
            text = self.path.read_bytes() if self.path.exists() else b""
        rows, torn = [], 0
        for line in filter(bytes.strip, text.split(b"\n")):
            try:
                rows.append(Row.from_dict(json.loads(line)))
            except (ValueError, TypeError, AttributeError):
                torn += 1
        return rows, torn

    @contextmanager
    def _lock(self) -> Iterator[None]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(f"{self.path}.lock", timeout=_LOCK_TIMEOUT_S)
            lock.acquire()
        except OSError as error:  # filelock's Timeout is one as well
            raise CourseError(f"The scoreboard {self.path} is not to be had: {error}.") from error
        try:
            yield
        finally:
            lock.release()

    def __len__(self) -> int:
        return len(self.rows())

    def __repr__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


@cache
def machine_name() -> str:
    """The processor, its cores and the system: enough to tell machines apart, no host name."""
    return f"{processor()[0]}, {os.cpu_count()} CPUs, {platform.system()}"


@cache
def _versions() -> dict[str, str]:
    """Versions that speed depends on, without importing any of the packages."""
    found = {"python": platform.python_version()}
    for name in ("torch", "llmcourse"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)
