"""How many bytes: of a process at its worst moment, and of tensors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcourse.errors import CourseError
from llmcourse.measure.tables import bytes_text

if TYPE_CHECKING:
    import torch

_PROC = Path("/proc/self")


@dataclass(frozen=True, slots=True)
class Peak:
    """The most memory in use while a function ran, and how that was found out.

    `peak_bytes` is the whole process (or all tensors on a GPU), `before_bytes` what was in use
    when the function started: `extra_bytes` is the function's own doing. `result` is what it gave.
    """

    peak_bytes: int
    before_bytes: int
    method: str
    result: Any = field(default=None, repr=False)

    @property
    def extra_bytes(self) -> int:
        """Bytes above what was in use before, never negative."""
        return max(0, self.peak_bytes - self.before_bytes)

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("peak_bytes", "extra_bytes", "method")}

    def __repr__(self) -> str:
        return (
            f"{bytes_text(self.peak_bytes)} at most, {bytes_text(self.extra_bytes)} more than "
            f"before ({self.method})"
        )


def peak_bytes(fn: Callable[[], Any], *, device: str = "cpu") -> int:
    """The most bytes the process (or the GPU) had in use while `fn()` ran; see `peak`."""
    return peak(fn, device=device).peak_bytes


def peak(fn: Callable[[], Any], *, device: str = "cpu") -> Peak:
    """Run `fn()` and find the highest memory use on the way.

    On the CPU this is the resident set of the whole process: weights mapped from a file count once
    touched. Linux keeps the high-water mark itself (reset through /proc/self/clear_refs, exact);
    elsewhere a thread looks every 2 ms, and a shorter peak escapes it. On `device="cuda"` it is
    what PyTorch's allocator gave to tensors.

    Raises CourseError where neither way is open (no psutil).
    """
    if device.startswith("cuda"):
        return _cuda_peak(fn, device)
    return _high_water_peak(fn) if _reset_high_water() else _sampled_peak(fn)


def _cuda_peak(fn: Callable[[], Any], device: str) -> Peak:
    import torch

    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = fn()
    torch.cuda.synchronize(device)
    return Peak(torch.cuda.max_memory_allocated(device), before, "CUDA allocator", result)


def _high_water_peak(fn: Callable[[], Any]) -> Peak:
    before = _status_bytes("VmRSS")
    result = fn()
    return Peak(_status_bytes("VmHWM"), before, "high-water mark of the system", result)


def _sampled_peak(fn: Callable[[], Any], every_s: float = 0.002) -> Peak:
    try:
        import psutil
    except ImportError:
        raise CourseError("Measuring memory here needs psutil: run `pip install psutil`.") from None
    process, done = psutil.Process(), threading.Event()
    before = highest = process.memory_info().rss

    def watch() -> None:
        nonlocal highest
        while not done.wait(every_s):
            highest = max(highest, process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        result = fn()
        highest = max(highest, process.memory_info().rss)
    finally:
        done.set()
        watcher.join()
    return Peak(highest, before, f"sampled every {every_s * 1000:g} ms", result)


def _reset_high_water() -> bool:
    """Set the system's high-water mark back to the present use; False where that is not allowed."""
    try:
        (_PROC / "clear_refs").write_text("5")
        return _status_bytes("VmHWM") > 0
    except (OSError, LookupError):
        return False


def _status_bytes(name: str) -> int:
    for line in (_PROC / "status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024  # the file says kB and means KiB
    raise LookupError(name)


def tensor_bytes(held: torch.nn.Module | torch.Tensor | Iterable[Any] | Mapping[Any, Any]) -> int:
    """Bytes of memory that tensors span, memory they share (a tied head, views) counted once.

    Takes a module (parameters and buffers), a tensor, or any nest of lists and mappings of them.
    """
    spans, elsewhere = [], 0
    for tensor in _tensors(held):
        size = _span_bytes(tensor)
        if tensor.device.type == "meta" or not tensor.numel():
            elsewhere += size
        else:
            spans.append((str(tensor.device), tensor.data_ptr(), tensor.data_ptr() + size))
    return elsewhere + _union_bytes(spans)


def _tensors(held: Any) -> Iterator[torch.Tensor]:
    import torch

    if isinstance(held, torch.Tensor):
        yield held
    elif isinstance(held, torch.nn.Module):
        yield from held.parameters()
        yield from held.buffers()
    elif isinstance(held, Mapping):
        yield from _tensors(held.values())
    elif isinstance(held, Iterable) and not isinstance(held, (str, bytes)):
        for item in held:
            yield from _tensors(item)
    elif held is not None:
        raise CourseError(f"tensor_bytes takes modules and tensors, not {type(held).__name__}.")


def _span_bytes(tensor: torch.Tensor) -> int:
    """From the first to the last element: an expanded axis (stride 0) takes no memory."""
    if not tensor.numel():
        return 0
    last = sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return (last + 1) * tensor.element_size()


def _union_bytes(spans: list[tuple[str, int, int]]) -> int:
    total, reached = 0, ("", 0)
    for device, start, end in sorted(spans):
        start = max(start, reached[1]) if reached[0] == device else start
        if end > start:
            total, reached = total + end - start, (device, end)
    return total
