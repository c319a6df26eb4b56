"""Headless Chromium, a server for the built site and a JupyterLab on a temporary workspace.

Everything listens on 127.0.0.1, and a page that asks for anything else makes its test fail.
"""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

COURSE = Path(__file__).resolve().parents[2]
SCREENSHOTS = COURSE / "build" / "screenshots"
HOW_TO_GET_CHROMIUM = (
    "no Chromium here: `apt-get install chromium` (or set LLMCOURSE_CHROMIUM to its path)"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs Chromium."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


def find_chromium() -> str | None:
    """The path of a Chromium or Chrome, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = (shutil.which(name) for name in names)
    return os.environ.get("LLMCOURSE_CHROMIUM") or next((path for path in found if path), None)


@pytest.fixture(scope="session")
def chromium():
    """A running browser; skips, saying what to do, where there is none."""
    path = find_chromium()
    if path is None:
        pytest.skip(HOW_TO_GET_CHROMIUM)
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--no-first-run",
            ],
        )
        yield browser
        browser.close()


class Watch:
    """What a page asked for and complained about."""

    def __init__(self) -> None:
        self.outside: list[str] = []
        self.errors: list[str] = []

    def follow(self, context) -> None:
        """Stop every request that leaves this machine, and remember it."""

        def decide(route):
            url = urlsplit(route.request.url)
            if url.scheme in ("data", "blob") or url.hostname in ("127.0.0.1", "localhost"):
                route.continue_()
            else:
                self.outside.append(route.request.url)
                route.abort()

        def listen(page):
            page.on("pageerror", lambda error: self.errors.append(str(error)))
            page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
            page.on(
                "response",
                lambda r: self.errors.append(f"{r.status} {r.url}") if r.status >= 400 else None,
            )

        context.set_default_timeout(45_000)
        context.route("**/*", decide)
        context.on("page", listen)


@pytest.fixture
def watch() -> Watch:
    """Shared by a test's pages."""
    return Watch()


@pytest.fixture
def desktop(chromium, watch):
    """A page of 1280 × 900, in light colours."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    watch.follow(context)
    yield context.new_page()
    context.close()


@pytest.fixture
def phone(chromium, watch):
    """A page of 390 × 844 with touch, in dark colours."""
    context = chromium.new_context(
        viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True, color_scheme="dark"
    )
    watch.follow(context)
    yield context.new_page()
    context.close()


@pytest.fixture(scope="session")
def site(chromium) -> Iterator[str]:
    """The website, built now and served; its address without a slash at the end."""
    if shutil.which("npm") is None and not (COURSE / "book/node_modules").is_dir():
        pytest.skip("the book needs npm once, to fetch MathJax and Mermaid: install Node.js")
    command = [sys.executable, str(COURSE / "book/build.py"), "--language", "all"]
    done = subprocess.run(command, cwd=COURSE, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=COURSE / "book/_build/html")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.fixture(scope="session")
def lab(chromium, tmp_path_factory) -> Iterator[tuple[Path, str]]:
    """`llmcourse lab` on a fresh workspace: the folder, and an address with a place for the file name."""
    from llmcourse.jupyter import lab as course_lab
    from llmcourse.jupyter import workspace

    folder = tmp_path_factory.mktemp("workspace")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log_path = folder.parent / "lab.log"
    with pytest.MonkeyPatch.context() as patch, log_path.open("w") as log:
        patch.setenv("LLMCOURSE_WORKSPACE", str(folder))
        patch.setenv(
            "JUPYTER_CONFIG_DIR", str(folder.parent / "jupyter-config")
        )  # not the developer's
        workspace.refresh()
        process = subprocess.Popen(
            course_lab.command(port, "", False),
            cwd=folder,
            env=course_lab.environment("course"),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/api?token=course", timeout=1)
                break
            except OSError:
                assert process.poll() is None, log_path.read_text()
                time.sleep(0.5)
        yield folder, f"{address}/lab/tree/{{}}?token=course"
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def picture(request):
    """Save a screenshot for a person to look at: `picture(page, "index-dark")`."""

    def save(page, name: str, full: bool = False) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=full)

    return save
