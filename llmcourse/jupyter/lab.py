"""`llmcourse lab`: bring the workspace up to date and open JupyterLab at the next chapter."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time

from llmcourse import paths
from llmcourse.errors import CourseError
from llmcourse.jupyter import chapters, workspace
from llmcourse.jupyter.progress import write_atomically

START_S = 60.0
HOST = "127.0.0.1"

# Defaults of the course for JupyterLab; what the reader sets in JupyterLab wins over them.
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": False,
    }
}


def open_lab(port: int | None = None, browser: bool | None = None) -> None:
    """Open the course in JupyterLab and stay until it is stopped.

    `browser` None decides by whether there is a screen; without one the address is printed.
    Raises CourseError if the port is taken or JupyterLab does not start.
    """
    port = _free_port(port)
    print(workspace.refresh(), flush=True)
    token = secrets.token_hex(24)
    chapter = first_unfinished()
    browser = has_screen() if browser is None else browser
    server = subprocess.Popen(
        command(port, chapter, browser), env=environment(token), cwd=paths.workspace()
    )
    try:
        _wait_until_open(server, port)
        address = f"http://{HOST}:{port}/lab/tree/{chapter}?token={token}"
        opening = "JupyterLab opens in your browser; its address is" if browser else "Open"
        print(f"\n{opening}\n    {address}\nStop it with Ctrl-C.\n", flush=True)
        server.wait()
    except KeyboardInterrupt:  # the server has received it, too
        _stop(server)
    except BaseException:
        _stop(server)
        raise
    if server.returncode not in (0, -2, 130):
        raise CourseError(
            f"JupyterLab stopped with status {server.returncode}; its messages are above."
        )


def command(port: int, chapter: str, browser: bool) -> list[str]:
    """The command line of the server."""
    options = {
        "ServerApp.ip": HOST,
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.root_dir": str(paths.workspace()),
        "ServerApp.open_browser": browser,
        "ServerApp.answer_yes": True,  # Ctrl-C stops it at once
        "ServerApp.log_level": "ERROR",  # the address is to be read, not looked for
        "LabApp.log_level": "ERROR",
        "LabApp.default_url": f"/lab/tree/{chapter}",
    }
    if hasattr(os, "geteuid") and os.geteuid() == 0:  # a container: Jupyter wants to be told
        options["ServerApp.allow_root"] = True
    return [
        sys.executable,
        "-m",
        "jupyterlab",
        *(f"--{key}={value}" for key, value in options.items()),
    ]


def environment(token: str) -> dict[str, str]:
    """The environment of the server: its token, and the course's defaults below the reader's own."""
    folder = paths.state() / "jupyter"
    (folder / "labconfig").mkdir(parents=True, exist_ok=True)
    write_atomically(
        folder / "labconfig" / "default_setting_overrides.json", json.dumps(SETTINGS, indent=1)
    )
    config = [str(folder), os.environ.get("JUPYTER_CONFIG_PATH", "")]
    return {
        **os.environ,
        "JUPYTER_TOKEN": token,  # not on the command line, where every user of the machine sees it
        "JUPYTER_CONFIG_PATH": os.pathsep.join(part for part in config if part),
        "JUPYTER_PREFER_ENV_PATH": "1",  # the kernel "python3" is the one of this environment
        "LLMCOURSE_WORKSPACE": str(paths.workspace()),
    }


def first_unfinished() -> str:
    """The file name of the first chapter with an unsolved exercise; the first one if all are solved."""
    course = chapters.chapters()
    return next((c for c in course if c.points and not c.finished), course[0]).path.name


def has_screen() -> bool:
    """Whether a browser opened here would be seen."""
    if any(name in os.environ for name in ("SSH_CONNECTION", "SSH_TTY")):
        return False
    if sys.platform.startswith("linux"):
        return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    return True


def _free_port(wanted: int | None) -> int:
    """The wanted port, or the first free one from 8888; raises CourseError if the wanted one is taken."""
    for port in [wanted] if wanted else [*range(8888, 8908), 0]:
        with socket.socket() as probe:
            if os.name != "nt":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
                return probe.getsockname()[1]
            except (OSError, OverflowError):
                continue
    raise CourseError(f"Port {wanted} cannot be used here; choose another one, or none.")


def _wait_until_open(server: subprocess.Popen[bytes], port: int) -> None:
    limit = time.monotonic() + START_S
    while time.monotonic() < limit:
        if server.poll() is not None:
            raise CourseError(
                f"JupyterLab stopped as it started (status {server.returncode}); its messages are above."
            )
        try:
            socket.create_connection((HOST, port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise CourseError(f"JupyterLab did not start within {START_S:.0f} s.")


def _stop(server: subprocess.Popen[bytes]) -> None:
    try:
        server.wait(timeout=5)
    except subprocess.TimeoutExpired:
        server.terminate()
        try:
            server.wait(timeout=5)
        except subprocess.TimeoutExpired:
            server.kill()
