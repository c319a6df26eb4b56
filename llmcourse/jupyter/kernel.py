"""Run a notebook's cells in a fresh kernel of this very Python, apart from the reader's own files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llmcourse import paths

CELL_S, NOTEBOOK_S, PING_S = 120.0, 900.0, 10.0


@contextlib.contextmanager
def elsewhere() -> Iterator[tuple[dict[str, str], str]]:
    """An environment and a working folder in which nothing of the reader's is read or changed.

    The cache stays the real one, so the model is not fetched again.
    """
    with TemporaryDirectory(prefix="llmcourse-", ignore_cleanup_errors=True) as folder:
        cache = str(paths.cache())
        moved = dict.fromkeys(("HOME", "USERPROFILE", "IPYTHONDIR"), folder)
        env = {
            **os.environ,
            **moved,
            "LLMCOURSE_CACHE": cache,
            "LLMCOURSE_WORKSPACE": str(Path(folder) / "workspace"),
            # matplotlib's list of fonts takes seconds to make; keep it where the model is kept.
            "MPLCONFIGDIR": os.environ.get("MPLCONFIGDIR") or str(Path(cache) / "matplotlib"),
        }
        yield env, folder


def own_kernel() -> Any:
    """A manager whose kernel is this Python, whatever "python3" is called on this machine."""
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class OwnKernel(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(**get_kernel_dict())

    return OwnKernel()


def run(
    nb: Any, wanted: set[int], *, cell_s: float = CELL_S, notebook_s: float = NOTEBOOK_S
) -> str:
    """Execute the notebook in place, going on after errors; returns a sentence if it was stopped.

    Only the cells with an index in `wanted` keep their outputs (an endless print costs no memory).
    A cell over its time is interrupted, and the next one runs.
    """
    from jupyter_core.utils import run_sync

    return run_sync(_run)(nb, wanted, cell_s, notebook_s)


async def _run(nb: Any, wanted: set[int], cell_s: float, notebook_s: float) -> str:
    from nbclient import NotebookClient
    from nbclient.exceptions import DeadKernelError

    class Client(NotebookClient):
        def output(self, outs: Any, msg: Any, display_id: Any, cell_index: int) -> Any:
            return (
                super().output(outs, msg, display_id, cell_index) if cell_index in wanted else None
            )

    late: list[int] = []
    with elsewhere() as (env, folder):
        # Beside another busy program, threads that spin while they wait slow each other down.
        env.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        client = Client(
            nb,
            km=own_kernel(),
            timeout=cell_s,
            allow_errors=True,
            interrupt_on_timeout=True,
            error_on_timeout={"ename": "CellTimeout", "evalue": "time limit", "traceback": []},
            record_timing=False,
            # A remark about the transport on the terminal, once a kernel, helps nobody.
            extra_arguments=["--log-level=ERROR"],
        )
        client.log.setLevel("CRITICAL")
        start, index = time.monotonic(), 0
        try:
            async with client.async_setup_kernel(env=env, cwd=folder):
                for index, cell in enumerate(nb.cells):
                    if cell.cell_type != "code":
                        continue
                    if time.monotonic() - start > notebook_s:
                        return f"The notebook took over {notebook_s:.0f} s and was stopped at cell {index + 1}."
                    begun = time.monotonic()
                    await client.async_execute_cell(cell, index)
                    if time.monotonic() - begun >= cell_s:
                        late.append(index + 1)
                        if not await _answers(client):
                            return f"Cell {index + 1} took over {cell_s:.0f} s and could not be stopped."
        except DeadKernelError:
            return f"The kernel died in cell {index + 1}."
        except Exception as error:  # a copy may confuse the client; its points so far still count
            return f"The notebook was stopped at cell {index + 1}: {type(error).__name__}: {error}."
    if late:
        return f"Stopped after {cell_s:.0f} s each: cell {', '.join(map(str, late))}."
    return ""


def run_all(nb: Any, *, cell_s: float = CELL_S) -> None:
    """Execute the notebook in place, widgets' state kept; a failing cell is left with its error."""
    from jupyter_core.utils import run_sync
    from nbclient import NotebookClient

    with elsewhere() as (env, folder):
        env.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        client = NotebookClient(
            nb,
            km=own_kernel(),
            timeout=cell_s,
            allow_errors=True,
            coalesce_streams=True,  # a streamed answer is one output, not one a token
            record_timing=False,
            extra_arguments=["--log-level=ERROR"],
        )
        run_sync(client.async_execute)(env=env, cwd=folder, reset_kc=True)


async def _answers(client: Any) -> bool:
    """Whether the kernel is free again."""
    try:
        await asyncio.wait_for(client.kc.execute_interactive("", timeout=PING_S), PING_S + 1)
    except TimeoutError:
        return False
    return True
