"""`llmcourse …`: the course from a shell. Each command imports what it needs only when it runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from llmcourse import __version__
from llmcourse.errors import CourseError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; a reader's error is one sentence on stderr and exit status 1."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except CourseError as error:
        print(f"llmcourse: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("llmcourse: stopped; run the same command again to go on.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `llmcourse … | head`
        sys.stderr.close()
    return 0


class _Parser(argparse.ArgumentParser):
    """Argparse whose error is one sentence; the usage is one `--help` away."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}. See `{self.prog} --help`.\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="llmcourse", description="A course on fast LLM inference.")
    parser.add_argument("--version", action="version", version=f"llmcourse {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], None], about: str) -> _Parser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(run=run)
        return sub

    def add_json(sub: _Parser) -> None:
        sub.add_argument("--json", action="store_true", help="print JSON for a program to read")

    ask = command("ask", _ask, "Ask the model; the answer streams, then its speed is printed.")
    ask.add_argument("question", help="what to ask; - reads it from standard input")
    ask.add_argument(
        "--model", metavar="PATH", help="folder, GGUF file or hub id (default: SmolLM2-135M)"
    )
    ask.add_argument("--max-tokens", type=_positive, default=256, metavar="N", help="default: 256")
    add_json(ask)

    model = command("model", _model, "Fetch, verify and convert the model; print where it is.")
    model.add_argument(
        "--model",
        metavar="PATH",
        help="another model: folder, GGUF file or hub id, or `sentence_encoder` (chapter 05)",
    )
    add_json(model)

    data = command("data", _data, "List the course's data sets, or fetch some of them.")
    data.add_argument(
        "names", nargs="*", metavar="NAME", help="data sets to fetch (default: list them)"
    )
    data.add_argument("--all", action="store_true", help="fetch all of them")
    add_json(data)

    doctor = command(
        "doctor", _doctor, "Tell what this machine has, what is missing and what to do."
    )
    add_json(doctor)

    lab = command("lab", _lab, "Bring the workspace up to date and open the course in JupyterLab.")
    lab.add_argument("--port", type=_positive, help="default: JupyterLab's choice")
    lab.add_argument(
        "--no-browser", action="store_true", help="print the address instead of opening it"
    )

    board = command(
        "scoreboard", _scoreboard, "Show the reader's scoreboard, export it or start it anew."
    )
    board.add_argument(
        "--export", metavar="FILE", type=Path, help="write it to FILE (.csv or .json)"
    )
    board.add_argument(
        "--reset", action="store_true", help="start anew (the old one is kept as a backup)"
    )
    add_json(board)

    student = command(
        "student", _student, "Write the student edition of the notebooks into a folder."
    )
    student.add_argument("directory", metavar="DIR", type=Path)
    add_json(student)

    grade = command(
        "grade", _grade, "Run the checks of any copies of chapters; print points per exercise."
    )
    grade.add_argument("notebooks", metavar="NOTEBOOK", nargs="+", type=Path)
    add_json(grade)
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _ask(options: argparse.Namespace) -> None:
    question = sys.stdin.read() if options.question == "-" else options.question
    if not question.strip():
        raise CourseError('The question is empty; write one, as in: llmcourse ask "What is a cat?"')
    from llmcourse.decode.generate import generate_cached
    from llmcourse.measure.timing import TokenTimer
    from llmcourse.models import load_model

    model, tokenizer = load_model(options.model)
    stream = generate_cached(
        model, tokenizer.chat(question), max_tokens=options.max_tokens, end_ids=tokenizer.end_ids
    )
    timer = TokenTimer(stream)
    pieces = []
    for piece in tokenizer.stream(timer):
        pieces.append(piece)
        if not options.json:
            print(piece, end="", flush=True)
    if options.json:
        _print_json({"answer": "".join(pieces), **timer.times.to_dict()})
        return
    print()
    # The speed goes to stderr, so that `llmcourse ask … > answer.txt` holds the answer alone.
    print(f"\n{timer.times}", file=sys.stderr)


def _model(options: argparse.Namespace) -> None:
    from llmcourse.data.checkpoints import describe, resolve_checkpoint

    if options.model == "sentence_encoder":
        from llmcourse.models.bert import sentence_encoder

        folder = sentence_encoder()[0]
        _print_json({"name": options.model, "folder": str(folder)}) if options.json else print(
            folder
        )
        return
    folder = resolve_checkpoint(options.model)  # fetches and converts what is not here yet
    _print_json(describe(options.model)) if options.json else print(folder)


def _data(options: argparse.Namespace) -> None:
    from llmcourse.data import datasets

    chosen = None if options.all or not options.names else options.names
    if options.all or options.names:
        datasets.fetch_all(chosen)
    rows = datasets.describe(chosen)
    if options.json:
        _print_json(rows)
        return
    for row in rows:
        where = "here" if row["here"] else f"{row['download_bytes'] / 1e6:.0f} MB to fetch"
        print(f"{row['name']:16} {where:15} {row['records']:>8,} records  {row['title']}")


def _doctor(options: argparse.Namespace) -> None:
    from llmcourse import doctor

    report = doctor.report()
    _print_json(report) if options.json else print(doctor.text(report))


def _lab(options: argparse.Namespace) -> None:
    from llmcourse.jupyter.lab import open_lab

    open_lab(port=options.port, browser=False if options.no_browser else None)


def _scoreboard(options: argparse.Namespace) -> None:
    from llmcourse.measure.scoreboard import Scoreboard

    board = Scoreboard()
    if options.export:
        board.export(options.export)
        print(f"Written to {options.export}.", file=sys.stderr)
    if options.reset:
        kept = board.reset()
        print(f"Started anew; the old one is {kept}." if kept else "It was empty.", file=sys.stderr)
    if options.json:
        _print_json([row.to_dict() for row in board.rows()])
    elif not (options.export or options.reset):
        print(board)


def _student(options: argparse.Namespace) -> None:
    from llmcourse.jupyter.workspace import refresh

    report = refresh(options.directory)
    _print_json(report.to_dict()) if options.json else print(report)


def _grade(options: argparse.Namespace) -> None:
    from llmcourse.jupyter.grade import grade, text

    graded = grade(options.notebooks)
    _print_json(graded) if options.json else print(text(graded))
