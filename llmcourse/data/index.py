"""Find a file in a package index: the reader's own, pip's, a folder on a stick, or PyPI.

The index only says where a file lies. What it holds is decided by the SHA-256 in `sources`.
"""

from __future__ import annotations

import base64
import configparser
import http.client
import json
import os
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from llmcourse.data.sources import Source
from llmcourse.errors import CourseError

PYPI = "https://pypi.org/simple"
TIMEOUT_S = 20.0
PAUSES_S = (0.5,)  # before the second try for an index page
ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"


class OutOfReach(CourseError):
    """No index could be asked, or none has the file: the case in which a sample may stand in."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file is to be had: a local `path`, or a `url` with the index's credentials."""

    path: Path | None = None
    url: str = ""
    credentials: tuple[str, str] | None = None  # Authorization header, and the host it is for


def indexes() -> list[str]:
    """The indexes to ask, in order: $LLMCOURSE_INDEX alone, else what pip would use, else PyPI."""
    if chosen := os.environ.get("LLMCOURSE_INDEX"):
        return [chosen]
    config = _pip_config()
    main = os.environ.get("PIP_INDEX_URL") or config.get("index-url") or PYPI
    extra = os.environ.get("PIP_EXTRA_INDEX_URL") or config.get("extra-index-url") or ""
    return [main, *extra.split()]


def find(source: Source) -> Place:
    """Where `source` is. Raises OutOfReach, naming what failed, if no index has it."""
    problems = []
    for index in indexes():
        try:
            if place := _find_in(index, source):
                return place
            problems.append(f"{redact(index)} does not have it")
        except urllib.error.HTTPError as error:
            missing = error.code == 404
            problems.append(
                f"{redact(index)} "
                + ("does not have it" if missing else f"answers {error.code} {error.reason}")
            )
        except (http.client.HTTPException, OSError, ValueError, KeyError) as error:
            problems.append(
                f"{redact(index)} cannot be reached ({getattr(error, 'reason', error)})"
            )
    raise OutOfReach(
        f"{source.filename} is not to be had: {'; '.join(problems)}; connect to the network, or set "
        f"LLMCOURSE_INDEX to an index or to a folder that holds this file."
    )


def _find_in(index: str, source: Source) -> Place | None:
    name = re.sub(r"[-_.]+", "-", source.package).lower()
    if (folder := _folder(index)) is not None:
        if not folder.is_dir():
            raise ValueError("there is no such folder")
        for path in (folder / source.filename, folder / name / source.filename):
            if path.is_file():
                return Place(path=path)
        page = folder / name / "index.html"
        links = _html_links(page.read_text("utf-8"), page.as_uri()) if page.is_file() else []
        for url in links:
            if _filename(url) == source.filename and (file := _folder(url)) and file.is_file():
                return Place(path=file)
        return None
    page_url, credentials = _split_credentials(f"{index.rstrip('/')}/{name}/")
    body, kind, base = _page(page_url, credentials)
    if "json" in kind:
        links = [urllib.parse.urljoin(base, file["url"]) for file in json.loads(body)["files"]]
    else:
        links = _html_links(body.decode("utf-8", "replace"), base)
    for url in links:
        # An index on the network must not point into the reader's own files.
        if _filename(url) == source.filename and url.startswith(("http://", "https://")):
            clean, own = _split_credentials(url)
            return Place(url=clean.split("#")[0], credentials=own or credentials)
    return None


def _page(url: str, credentials: tuple[str, str] | None) -> tuple[bytes, str, str]:
    """Body, media type and final address of an index page; a hiccup is tried again."""
    for pause_s in (*PAUSES_S, None):
        try:
            with urlopen(request(url, {"Accept": ACCEPT}, credentials)) as answer:
                return answer.read(), answer.headers.get_content_type(), answer.url
        except (OSError, http.client.HTTPException) as error:
            lasting = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if lasting or pause_s is None:
                raise
            time.sleep(pause_s)
    raise AssertionError("the last try either returns or raises")


def request(
    url: str, headers: dict[str, str], credentials: tuple[str, str] | None
) -> urllib.request.Request:
    """A GET request that shows the credentials to their own host alone."""
    made = urllib.request.Request(url, headers={"User-Agent": "llmcourse", **headers})
    if credentials and urllib.parse.urlsplit(url).netloc == credentials[1]:
        made.add_unredirected_header("Authorization", credentials[0])
    return made


def urlopen(made: urllib.request.Request) -> Any:
    """Open a request with the course's timeout."""
    return urllib.request.urlopen(made, timeout=TIMEOUT_S)


def redact(url: str) -> str:
    """The address without user name and password, fit to be printed."""
    parts = urllib.parse.urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in url else url


def _split_credentials(url: str) -> tuple[str, tuple[str, str] | None]:
    parts = urllib.parse.urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, None
    user, _, password = login.partition(":")
    pair = f"{urllib.parse.unquote(user)}:{urllib.parse.unquote(password)}"
    header = base64.b64encode(pair.encode()).decode()
    return parts._replace(netloc=host).geturl(), (f"Basic {header}", host)


def _folder(index: str) -> Path | None:
    """The local folder or file an address means, or None for an address on the network."""
    parts = urllib.parse.urlsplit(index)
    if parts.scheme == "file":
        return Path(urllib.request.url2pathname(parts.path))
    if parts.scheme in ("http", "https"):
        return None
    return Path(index).expanduser()  # also C:\mirror, whose scheme would be "c"


def _filename(url: str) -> str:
    return urllib.parse.unquote(urllib.parse.urlsplit(url).path).rpartition("/")[2]


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.hrefs: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href")
        if tag == "a" and href:
            self.hrefs.append(href)


def _html_links(page: str, base: str) -> list[str]:
    parser = _Links()
    parser.feed(page)
    return [urllib.parse.urljoin(base, href) for href in parser.hrefs]


def _pip_config() -> dict[str, str]:
    """`[global]` of pip's configuration files, later files winning, read without starting pip."""
    name = "pip.ini" if os.name == "nt" else "pip.conf"
    if os.name == "nt":
        system = [Path(os.environ.get("PROGRAMDATA", "C:/ProgramData")) / "pip" / name]
        user = [Path.home() / "pip" / name, Path(os.environ.get("APPDATA", "")) / "pip" / name]
    else:
        system = [Path("/etc/xdg/pip") / name, Path("/etc") / name]
        config_home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        user = [Path.home() / ".pip" / name, config_home / "pip" / name]
        if sys.platform == "darwin":
            system.insert(0, Path("/Library/Application Support/pip") / name)
            user.append(Path.home() / "Library/Application Support/pip" / name)
    files = [*system, *user, Path(sys.prefix) / name]
    if own := os.environ.get("PIP_CONFIG_FILE"):
        files.append(Path(own))
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read(files, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        return {}  # pip itself will complain about it; here the default serves
    return dict(parser["global"]) if parser.has_section("global") else {}
