"""Count what PyTorch was really asked to do: calls, FLOPs, bytes. No clock can fool this."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from llmcourse.measure.memory import _tensors
from llmcourse.measure.tables import Table, bytes_text
from llmcourse.measure.timing import drain

# Operations that only pick rows: what they read is as large as what they give.
_GATHERS = {"embedding", "index", "index_select", "gather", "take", "embedding_bag"}
# Operations that reserve memory, or change how it is looked at, without touching it.
_UNTOUCHED = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_UNTOUCHED |= {"detach_", "t_", "transpose_", "squeeze_", "unsqueeze_", "resize_", "set_"}
_MATMULS = {"mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "_int_mm", "_addmm_activation"}


@dataclass(slots=True)
class OpWork:
    """What one kind of operation did in all."""

    calls: int = 0
    flops: int = 0
    bytes_read: int = 0
    bytes_written: int = 0


@dataclass(slots=True)
class Work:
    """What was done while a function ran.

    `flops` counts matrix products and attention (a multiplication and an addition are two), as
    everyone does; the rest is small. `bytes_read` and `bytes_written` count every operand of every
    operation once, as if no cache kept anything between operations: the traffic asked for, an
    upper estimate of what reached the memory. `weight_bytes_read` is the part of it that matrix
    products read from weights: in decoding each token must account for all of them.
    """

    flops: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    calls: int = 0
    matmuls: int = 0
    weight_bytes_read: int = 0
    by_op: dict[str, OpWork] = field(default_factory=dict, repr=False)
    result: Any = field(default=None, repr=False)

    @property
    def flop_per_byte(self) -> float:
        """Arithmetic intensity: the horizontal axis of a roofline."""
        return self.flops / max(1, self.bytes_read + self.bytes_written)

    def to_dict(self) -> dict[str, Any]:
        names = ("flops", "bytes_read", "bytes_written", "calls", "matmuls", "weight_bytes_read")
        return {name: getattr(self, name) for name in names}

    def table(self, top: int = 12) -> Table:
        """Operations by bytes moved, the largest first."""
        order = sorted(
            self.by_op.items(), key=lambda kv: kv[1].bytes_read + kv[1].bytes_written, reverse=True
        )
        rows = [
            (name, f"{op.calls:,}", bytes_text(op.flops, ""), bytes_text(op.bytes_read),
             bytes_text(op.bytes_written))
            for name, op in order[:top]
        ]  # fmt: skip
        return Table(
            f"{self.calls:,} operations, {bytes_text(self.flops, 'FLOP')}",
            ("operation", "calls", "FLOP", "read", "written"),
            tuple(rows),
            (f"Weights read by matrix products: {bytes_text(self.weight_bytes_read)}.",),
        )

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def count(fn: Callable[[], Any], *, weights: Any = None) -> Work:
    """Run `fn()` (an iterator it returns is drained) and count what PyTorch did.

    Weights are all `nn.Parameter`s that meet an operation, and whatever `weights` holds besides:
    a module or tensors, for formats that keep weights elsewhere (quantized buffers).
    The counting makes the run several times slower: never time what is being counted.
    """
    counter = _Counter(weights)
    with counter:
        counter.work.result = drain(fn())
    return counter.work


class _Counter(TorchDispatchMode):
    """Sees every operation below autograd, after composite ones have come apart."""

    def __init__(self, weights: Any = None) -> None:
        super().__init__()
        self.work = Work()
        self._starts: list[int] = []
        self._ends: dict[int, int] = {}
        for tensor in _tensors(weights):
            self._remember(tensor)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Only eager code is counted; the guard against torch.compile costs a five-second import."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.nn.Parameter):
                self._remember(leaf)
        packet = func._overloadpacket
        if packet not in flop_registry and _name(func) not in _MATMULS:
            # Under inference mode a composite (linear, matmul) arrives whole: take it apart.
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if not _is_view(func, args, out):
            self._add(func, args, kwargs, out)
        return out

    def _add(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        name = _name(func)
        made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        if name in _UNTOUCHED:
            return
        read_from = list(_read_operands(func, args, kwargs))
        written = sum(map(_held_bytes, made))
        is_gather = name in _GATHERS and made
        read = written if is_gather else sum(map(_held_bytes, read_from))
        flops = _flops(func, args, kwargs, out)
        op = self.work.by_op.setdefault(name, OpWork())
        for total in (self.work, op):
            total.calls += 1
            total.flops += flops
            total.bytes_read += read
            total.bytes_written += written
        if flops:
            self.work.matmuls += 1
            self.work.weight_bytes_read += sum(map(self._weight_bytes, read_from))

    def _remember(self, tensor: torch.Tensor) -> None:
        start = tensor.data_ptr()
        end = start + _held_bytes(tensor)
        if start and start not in self._ends:
            self._starts.insert(bisect_right(self._starts, start), start)
        self._ends[start] = max(end, self._ends.get(start, 0))

    def _weight_bytes(self, tensor: torch.Tensor) -> int:
        """The tensor's bytes if it lies within a weight (a transposed view does), else 0."""
        address = tensor.data_ptr()
        place = bisect_right(self._starts, address) - 1
        inside = place >= 0 and address < self._ends[self._starts[place]]
        return _held_bytes(tensor) if inside else 0


def _name(func: Any) -> str:
    return func._schema.name.removeprefix("aten::")


def _is_view(func: Any, args: tuple[Any, ...], out: Any) -> bool:
    """Does the operation only give another look at its input, moving nothing?"""
    aliases = [r.alias_info for r in func._schema.returns if r.alias_info is not None]
    if aliases:
        return not any(alias.is_write for alias in aliases)
    first = args[0] if args else None
    if not (isinstance(out, torch.Tensor) and isinstance(first, torch.Tensor)):
        return False
    # _unsafe_view hides its aliasing from the schema; an empty tensor has no address to compare.
    return out.numel() > 0 and out.data_ptr() == first.data_ptr()


def _read_operands(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[torch.Tensor]:
    """The tensors an operation reads: not `out=`, and not what fill_ and copy_ overwrite."""
    overwrites = _name(func) in {"copy_", "fill_", "zero_", "normal_", "uniform_", "bernoulli_"}
    for i, argument in enumerate(func._schema.arguments):
        if argument.is_out or (overwrites and i == 0):
            continue
        given = args[i] if i < len(args) else kwargs.get(argument.name)
        for leaf in tree_leaves(given):
            if isinstance(leaf, torch.Tensor):
                yield leaf


def _held_bytes(tensor: torch.Tensor) -> int:
    """Bytes of the distinct elements: an axis expanded by stride 0 is read once."""
    sizes = (n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or n == 0)
    return prod(sizes) * tensor.element_size()


def _flops(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """2·(elements of the result)·(length of the inner sum); attention by PyTorch's own formula."""
    name = _name(func)
    if name in {"mm", "bmm", "mv", "dot", "_int_mm"}:
        return 2 * out.numel() * args[0].shape[-1]
    if name in {"addmm", "baddbmm", "addmv", "_addmm_activation"}:
        return 2 * out.numel() * args[1].shape[-1]
    if name.endswith(("pack_mm", "pack_mm_for_cpu")):  # int4 and int8 weights, out (M, N)
        return 2 * args[0].numel() * out.shape[-1]
    formula = flop_registry.get(func._overloadpacket)
    return int(formula(*args, **kwargs, out_val=out)) if formula else 0
