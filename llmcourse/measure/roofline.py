"""What this machine could do at best: bytes and operations a second, and the limit they set."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from llmcourse.errors import CourseError
from llmcourse.measure.tables import number_text

GB = 1e9  # a gigabyte as bandwidth and disk makers count it
GiB = 2**30  # a gibibyte as memory makers count it: 7.4 % more
_CACHE_FOLDER = Path("/sys/devices/system/cpu/cpu0/cache")


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Memory bandwidth in GB/s (1 GB = 1e9 bytes): medians, with the slowest and fastest pass.

    A copy moves each byte twice, and both are counted (the convention of STREAM).
    """

    read_gb_per_s: float
    copy_gb_per_s: float
    read_spread: tuple[float, float]
    copy_spread: tuple[float, float]
    threads: int
    buffer_bytes: int
    device: str

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def __repr__(self) -> str:
        (r0, r1), (c0, c1) = self.read_spread, self.copy_spread
        where = self.device if self.device != "cpu" else f"{self.threads} thread(s)"
        return (
            f"read {self.read_gb_per_s:.1f} GB/s ({r0:.1f} to {r1:.1f}), "
            f"copy {self.copy_gb_per_s:.1f} GB/s ({c0:.1f} to {c1:.1f}), {where}"
        )


@dataclass(frozen=True, slots=True)
class Roofline:
    """The two ceilings of a machine: a computation meets the one its FLOP/byte lead it to.

    Source: Williams, Waterman and Patterson 2009, Roofline.
    """

    gb_per_s: float
    gflop_per_s: float

    @property
    def ridge_flop_per_byte(self) -> float:
        """Where the ceilings meet: below it memory is the limit, above it arithmetic."""
        return self.gflop_per_s / self.gb_per_s

    def attainable_gflop_per_s(self, flop_per_byte: float) -> float:
        """min(peak, bandwidth × intensity), in GFLOP/s."""
        return min(self.gflop_per_s, self.gb_per_s * flop_per_byte)


def limit_tokens_per_s(weight_bytes: float, gb_per_s: float) -> float:
    """The most tokens a second one sequence can have: bandwidth over bytes read a token.

    `weight_bytes` are the bytes of all weights a token needs, `gb_per_s` is in units of 1e9 bytes
    a second. A figure in GiB/s must be multiplied by 1.074 first. Each token of a single sequence
    needs every weight once, and nothing is faster than reading it; computing may be slower.
    Raises CourseError unless both are positive.
    """
    if weight_bytes <= 0 or gb_per_s <= 0:
        raise CourseError("The limit needs bytes and GB/s, both above zero.")
    return gb_per_s * GB / weight_bytes


def achieved_gb_per_s(bytes_per_token: float, tokens_per_s: float) -> float:
    """The bandwidth that a decode rate makes use of, in GB/s (1e9 bytes)."""
    return bytes_per_token * tokens_per_s / GB


def bandwidth(
    *,
    seconds: float = 1.0,
    threads: int | None = None,
    device: str = "cpu",
    buffer_bytes: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Bandwidth:
    """Measure how fast this machine reads and copies memory, for about `seconds` in all.

    Read is a sum over a buffer at least 8 times the last-level cache (256 MiB or more): nothing
    is left in the cache from the pass before. `threads` is PyTorch's present number unless given,
    and is put back afterwards. On a busy machine the figure is what is left for you.
    Raises CourseError if there is no memory for the buffers or no such device.
    """
    size = buffer_bytes or _buffer_bytes(device)
    try:
        # *Subtle*: ones, not zeros. Fresh zero pages are all one physical page, which is cached.
        source = torch.ones(size // 4, device=device)
        target = torch.ones_like(source)
    except (RuntimeError, AssertionError) as error:
        need = f"2 × {size / GiB:.2f} GiB on {device}"
        raise CourseError(f"Measuring bandwidth needs {need}: {error}") from error
    with _threads(threads):
        read_s = _passes(lambda: source.sum(), seconds / 2, device, clock)
        copy_s = _passes(lambda: target.copy_(source), seconds / 2, device, clock)
        used = torch.get_num_threads()
    moved = source.numel() * 4
    return Bandwidth(
        moved / GB / median(read_s),
        2 * moved / GB / median(copy_s),
        (moved / GB / max(read_s), moved / GB / min(read_s)),
        (2 * moved / GB / max(copy_s), 2 * moved / GB / min(copy_s)),
        used,
        moved,
        device,
    )


def compute_peak(
    *,
    seconds: float = 1.0,
    threads: int | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    size: int = 1024,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """The GFLOP/s (1e9 operations a second) of a big square matmul: what PyTorch can get here.

    A matmul of `size` takes 2·size³ operations. The maker's figure is higher; no program sees it.
    """
    a = torch.randn(size, size, device=device).to(dtype)
    with _threads(threads):
        passes = _passes(lambda: a @ a, seconds, device, clock)
    return 2 * size**3 / 1e9 / median(passes)


def roofline(*, seconds: float = 1.0, threads: int | None = None, device: str = "cpu") -> Roofline:
    """Measure both ceilings of this machine, reading for the memory one."""
    read = bandwidth(seconds=seconds, threads=threads, device=device).read_gb_per_s
    return Roofline(read, compute_peak(seconds=seconds, threads=threads, device=device))


def _passes(
    fn: Callable[[], Any], seconds: float, device: str, clock: Callable[[], float]
) -> list[float]:
    """Seconds of each pass: at least three after a warm-up, then until the time is used."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    fn()
    wait()
    taken: list[float] = []
    begun = clock()
    while len(taken) < 3 or clock() - begun < seconds:
        start = clock()
        fn()
        wait()
        taken.append(clock() - start)
    return taken


def _buffer_bytes(device: str) -> int:
    """Eight last-level caches, between 256 MiB and 1 GiB; a GPU's cache is far below that."""
    if device.startswith("cuda"):
        return GiB
    return min(GiB, max(GiB // 4, 8 * last_level_cache_bytes()))


def last_level_cache_bytes() -> int:
    """Size of the largest CPU cache, 32 MiB where the system does not tell."""
    sizes = [_size(file.read_text().strip()) for file in _CACHE_FOLDER.glob("index*/size")]
    return max(sizes, default=32 * 2**20)


def _size(text: str) -> int:
    scale = {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:], 1)
    return int(text.rstrip("KMG")) * scale


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def summary(found: Bandwidth, weight_bytes: int) -> str:
    """One sentence: the bandwidth, the bytes, and the limit they make."""
    limit = limit_tokens_per_s(weight_bytes, found.read_gb_per_s)
    return (
        f"{found.read_gb_per_s:.1f} GB/s over {weight_bytes / GB:.3f} GB a token: "
        f"at most {number_text(limit)} tokens/s"
    )
