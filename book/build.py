"""Build the website: `python book/build.py`, then open book/_build/html/index.html.

Nothing is executed: pages show the outputs that are stored in the notebooks. Warnings are errors.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

BOOK = Path(__file__).resolve().parent
sys.path[:0] = [str(BOOK), str(BOOK.parent)]

from assemble import LANGUAGES, write_downloads, write_if_changed, write_sources  # noqa: E402

BUILD = BOOK / "_build"
# From npm packages to _static/vendor: what a page loads, and nothing else of 300 MB.
VENDOR = {
    "mathjax": ("mathjax/es5", ("tex-chtml-full.js", "output/chtml/fonts", "a11y", "sre", "ui")),
    "mermaid": ("mermaid/dist", ("mermaid.min.js",)),
    "widgets": ("@jupyter-widgets/html-manager/dist", ("embed.js", "*.woff", "*.woff2", "*.ttf")),
}


def fetch_assets() -> None:
    """`npm ci`, once and again when the lock file changes; then copy what pages load."""
    modules = BOOK / "node_modules"
    stamp = modules / ".lock.sha256"
    lock = hashlib.sha256((BOOK / "package-lock.json").read_bytes()).hexdigest()
    if not (stamp.is_file() and stamp.read_text() == lock):
        npm = shutil.which("npm")
        if npm is None:
            sys.exit("The book needs npm once, to fetch MathJax, Mermaid and the widgets: install Node.js"
                     " (Debian and Ubuntu: apt-get install npm) and run this command again.")  # fmt: skip
        print("fetching MathJax, Mermaid and the widget manager with npm, once …", flush=True)
        command = [npm, "ci", "--no-audit", "--no-fund", "--loglevel=error"]
        if subprocess.run(command, cwd=BOOK).returncode:
            sys.exit(
                "npm could not fetch the book's assets; its message is above. Is the registry in reach?"
            )
        stamp.write_text(lock)
    target = BUILD / "static" / "vendor"
    if (target / "lock.sha256").is_file() and (target / "lock.sha256").read_text() == lock:
        return
    shutil.rmtree(target, ignore_errors=True)
    for name, (package, patterns) in VENDOR.items():
        for source in (s for p in patterns for s in sorted((modules / package).glob(p))):
            copy_to = target / name / source.relative_to(modules / package)
            copy_to.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, copy_to)
            else:
                shutil.copyfile(source, copy_to)
    (target / "lock.sha256").write_text(lock)


def repository_url() -> str:
    """The one address of the repository, from conf.py."""
    import runpy

    return runpy.run_path(str(BOOK / "conf.py"))["html_theme_options"]["repository_url"].rstrip("/")


def sphinx(
    builder: str, language: str, target: Path, *options: str, source: Path | None = None
) -> None:
    """One run of Sphinx in a process of its own; exits with its message if anything is not right."""
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", builder]
    command += ["-c", str(BOOK), "-d", str(BUILD / "doctrees" / f"{builder}-{language}")]
    command += ["-D", f"language={language}", *options]
    command += [str(source or BUILD / "source"), str(target)]
    # Both: a notebook's page must not depend on the machine's locale or on a reader's settings.
    environment = os.environ | {"PYTHONUTF8": "1", "LC_ALL": "C.UTF-8"}
    if subprocess.run(command, env=environment).returncode:
        sys.exit("Sphinx found something wrong with the book; its messages are above.")


def copy_catalogues() -> None:
    """Catalogues into the build folder: Sphinx compiles them where they lie."""
    for path in sorted((BOOK / "locale").rglob("*.po")):
        copy_to = BUILD / "locale" / path.relative_to(BOOK / "locale")
        write_if_changed(copy_to, path.read_text(encoding="utf-8"))


def site_of(language: str) -> Path:
    """English is the root of the site, another language a folder in it."""
    return BUILD / "html" if language == "en" else BUILD / "html" / language


def write_languages() -> None:
    """Tell each built language of the others: the switcher in the header reads this file."""
    built = {
        language: {"name": name, "path": "" if language == "en" else f"{language}/"}
        for language, name in LANGUAGES.items()
        if (site_of(language) / "index.html").is_file()
    }
    for language in built:
        text = f"window.llmcourseLanguages = {json.dumps(built, ensure_ascii=False)};\n"
        (site_of(language) / "_static" / "languages.js").write_text(text, encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--language", choices=[*LANGUAGES, "all"], default="en", help="default: en")
    parser.add_argument(
        "--gettext", action="store_true", help="extract translatable text into book/_build/gettext"
    )
    options = parser.parse_args()
    write_sources(BUILD / "source", repository_url())
    if options.gettext:
        sphinx("gettext", "en", BUILD / "gettext")
        print(f"messages: {BUILD / 'gettext'}")
        return
    fetch_assets()
    copy_catalogues()
    for language in LANGUAGES if options.language == "all" else [options.language]:
        target = site_of(language)
        sphinx("html", language, target)
        write_downloads(target / "download")
        print(f"built: {target / 'index.html'}")
    write_languages()


if __name__ == "__main__":
    main()
