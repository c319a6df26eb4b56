"""Two models that should be equal and are not: where, in the order of computing, do they part?

Every place that both models have is recorded in one run of each: after the embedding, at each
part of each block, after the last norm, after the head. Places are matched by the names of the
modules, those of the Hugging Face checkpoints, so a reader's own class is seen inside as well.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llmcourse.errors import CourseError
from llmcourse.measure.tables import Table

# Place in a block -> module, whether its output or its input is meant, and what to suspect where
# this is the first place that differs. In the order of computing.
_IN_BLOCK: dict[str, tuple[str, str, str]] = {
    "input_layernorm": (
        "input_layernorm", "out",
        "the norm: is a mean subtracted, is eps inside the root, is the right weight loaded?"),
    "q_proj": (
        "self_attn.q_proj", "out",
        "the query matrix: the right one, not transposed, its rows in the right order?"),
    "k_proj": (
        "self_attn.k_proj", "out",
        "the key matrix: the right one, not transposed, its rows in the right order?"),
    "v_proj": ("self_attn.v_proj", "out", "the value matrix: the right one, not transposed?"),
    "k, rotated": (
        "self_attn", "cache",
        "the rotation: which entries make a pair, which base, which sign, which position is first?"),
    "heads": (
        "self_attn.o_proj", "in",
        "between q, k, v and the heads: the rotation of q, the scale, the mask, and which key/value "
        "head each query head reads."),
    "o_proj": ("self_attn.o_proj", "out", "the output matrix, or the order of the heads."),
    "post_attention_layernorm": (
        "post_attention_layernorm", "out",
        "the residual around attention, or the second norm."),
    "gate_proj": ("mlp.gate_proj", "out", "the gate's matrix: is it exchanged with the other one?"),
    "up_proj": ("mlp.up_proj", "out", "the up matrix: is it exchanged with the gate's?"),
    "gated": ("mlp.down_proj", "in", "the gate: silu belongs on the gate, not on the other half."),
    "down_proj": ("mlp.down_proj", "out", "the matrix back to the model's width."),
    "block": ("", "out", "the residual: each part is added to what went in."),
}  # fmt: skip
_AROUND = {
    "embed_tokens": "the table of embeddings, or the ids.",
    "norm": "the last norm: is it there, has it the right weight and eps?",
    "lm_head": "the head: tied to the embedding or not, as the configuration says?",
}
Recorded = dict[str, Tensor]  # place -> (B, T, …), in the order of computing
TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Row:
    """One place: the largest difference, and the worst relative one of a token.

    `relative` is the length of a token's difference over the length of its vector in `theirs`: a
    few tokens with huge vectors then hide nothing. It is inf where the shapes differ.
    """

    where: str
    difference: float
    relative: float


@dataclass(frozen=True, slots=True)
class Difference:
    """What `first_difference` found: a row a place in the order of computing, and the first bad one."""

    rows: tuple[Row, ...]
    tolerance: float
    first: Row | None

    @property
    def where(self) -> str | None:
        """The name of the first place that differs, like "layers.3.heads", or None."""
        return self.first.where if self.first else None

    @property
    def suspect(self) -> str:
        """What to look at, in half a sentence; empty if nothing differs."""
        return _suspect(self.first.where) if self.first else ""

    def table(self) -> Table:
        """The block where it begins in full, of the others what comes out; the first is marked."""
        blocks = [n for row in self.rows if (n := _block_of(row.where)) is not None]
        last = max(blocks, default=None)
        begins = _block_of(self.where) if self.where else None
        full = {begins}
        out = {last, 0 if begins is None else begins + 1}  # of these only what comes out
        shown = [
            row
            for row in self.rows
            if (n := _block_of(row.where)) is None
            or n in full
            or (n in out and row.where.endswith(".block"))
        ]
        notes = [f"Nothing differs by more than {self.tolerance:g}; the worst is {self._worst()}."]
        if self.first:
            notes = [f"First beyond {self.tolerance:g}: {self.where}. Suspect {self.suspect}"]
            if begins:
                notes.insert(0, f"Blocks before it: {begins}, and they agree.")
        return Table(
            "Where two models part",
            ("place", "largest difference", "relative"),
            tuple((row.where, f"{row.difference:.1e}", f"{row.relative:.1e}") for row in shown),
            tuple(notes),
            frozenset(i for i, row in enumerate(shown) if row is self.first),
        )

    def _worst(self) -> str:
        row = max(self.rows, key=lambda row: row.relative)
        return f"{row.where} with {row.relative:.1e}"

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def __str__(self) -> str:
        return str(self.table())

    __repr__ = __str__


def first_difference(
    mine: nn.Module | Mapping[str, Tensor] | Sequence[Tensor],
    theirs: nn.Module | Mapping[str, Tensor] | Sequence[Tensor],
    ids: Tensor,
    *,
    tolerance: float = TOLERANCE,
    names: Mapping[str, str] | None = None,
) -> Difference:
    """Run both models on ids (B, T) and say where they first differ by more than `tolerance`.

    A model is ours, transformers' `LlamaForCausalLM`, or any module with the same names inside.
    Where `mine` has other names, `names` says them: {"layers.{n}.self_attn.q_proj":
    "blocks.{n}.attention.query"}; a part that is not named is not looked at. Instead of a model
    there may be what was recorded of one: places and tensors, or a list of hidden states (the
    embedding's, each block's, then perhaps the norm's, then the head's).

    The default tolerance is for float32; in bfloat16 begin with 0.05.
    Raises CourseError if the two have no place in common.
    """
    recorded = [
        record(model, ids, names=names if model is mine else None)
        if isinstance(model, nn.Module)
        else dict(model)
        if isinstance(model, Mapping)
        else None
        for model in (mine, theirs)
    ]
    blocks = max((_blocks(places) for places in recorded if places), default=0)
    ours, other = (
        places if places is not None else _named(model, blocks)
        for places, model in zip(recorded, (mine, theirs), strict=True)
    )
    rows = [_row(where, ours[where], other[where]) for where in other if where in ours]
    if not rows:
        raise CourseError(
            "The two models have no part with the same name; say yours with `names`, or hand over "
            "a list of hidden states."
        )
    # Not `relative > tolerance`: a nan is a difference.
    first = next((row for row in rows if not row.relative <= tolerance), None)
    return Difference(tuple(rows), tolerance, first)


def record(model: nn.Module, ids: Tensor, *, names: Mapping[str, str] | None = None) -> Recorded:
    """What stands at every known place of a model that reads ids (B, T), in the order of computing.

    Raises CourseError if a name of `names` is no part of the model.
    """
    modules = {name.removeprefix("model."): part for name, part in model.named_modules()}
    names = dict(names or {})
    found: Recorded = {}
    blocks = _count(modules, names)
    with contextlib.ExitStack() as hooks, torch.inference_mode():
        for where, module, side in _places(blocks):
            part = modules.get(name := _their_name(module, names))
            if part is None and name != module:
                raise CourseError(f"The model has no part {name!r}; correct it in `names`.")
            if part is not None and side != "cache":
                hooks.enter_context(_hook(part, side, where, found))
        found.update(_run(model, ids))
    order = [where for where, _, _ in _places(blocks)]
    return {where: found[where] for where in order if where in found}


class _Keys:
    """A cache that keeps nothing but the rotated keys of each layer, to be looked at."""

    length = 0

    def __init__(self) -> None:
        self.found: Recorded = {}

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.found[f"layers.{layer}.k, rotated"] = _rows_of(k)
        return k, v

    def advance(self, tokens: int) -> None:
        """Nothing to count: there is one run."""


def _run(model: nn.Module, ids: Tensor) -> Recorded:
    """Run the model once; the rotated keys, if it hands them to a cache."""
    parameters = inspect.signature(model.forward).parameters
    if "past_key_values" in parameters:  # transformers
        cache = model(ids, use_cache=True).past_key_values
        layers = getattr(cache, "layers", [])
        return {f"layers.{n}.k, rotated": _rows_of(one.keys) for n, one in enumerate(layers)}
    if "cache" in parameters:
        keys = _Keys()
        model(ids, cache=keys)
        return keys.found
    model(ids)
    return {}


def _rows_of(k: Tensor) -> Tensor:
    """(B, G, T, D) as (B, T, G * D): a vector a token, as everywhere else."""
    return k.detach().transpose(1, 2).flatten(2)


@contextlib.contextmanager
def _hook(part: nn.Module, side: str, where: str, found: Recorded) -> Iterator[None]:
    """Keep what goes into, or comes out of, a module under the name `where`."""

    def keep(value: Any) -> None:
        while isinstance(value, (tuple, list)):
            value = value[0]
        if isinstance(value, Tensor):
            found[where] = value.detach()

    if side == "in":
        handle = part.register_forward_pre_hook(lambda _, inputs: keep(inputs))
    else:
        handle = part.register_forward_hook(lambda _, __, output: keep(output))
    try:
        yield
    finally:
        handle.remove()


def _places(blocks: int) -> Iterator[tuple[str, str, str]]:
    """(place, module, side) of a model with so many blocks, in the order of computing."""
    yield "embed_tokens", "embed_tokens", "out"
    for n in range(blocks):
        for part, (module, side, _) in _IN_BLOCK.items():
            yield f"layers.{n}.{part}", f"layers.{n}.{module}".rstrip("."), side
    yield "norm", "norm", "out"
    yield "lm_head", "lm_head", "out"


def _their_name(module: str, names: Mapping[str, str]) -> str:
    """What the reader calls a module: said in full, said with {n}, or the same."""
    if module in names:
        return names[module].removeprefix("model.")
    first, *rest = module.split(".")
    if first == "layers":
        n, pattern = rest[0], ".".join(["layers", "{n}", *rest[1:]])
        if pattern in names:
            return names[pattern].replace("{n}", n).removeprefix("model.")
    return module


def _count(modules: Mapping[str, nn.Module], names: Mapping[str, str]) -> int:
    """How many blocks there are, by any of their parts' names."""
    n = 0
    while any(
        _their_name(f"layers.{n}.{module}".rstrip("."), names) in modules
        for module, _, _ in _IN_BLOCK.values()
    ):
        n += 1
    return n


def _named(states: Any, blocks: int) -> Recorded:
    """A list of hidden states under the names of their places."""
    order = ["embed_tokens", *(f"layers.{n}.block" for n in range(blocks or len(states) - 1))]
    return dict(zip([*order, "norm", "lm_head"], states, strict=False))


def _blocks(places: Mapping[str, Tensor]) -> int:
    return 1 + max((n for n in map(_block_of, places) if n is not None), default=-1)


def _block_of(where: str) -> int | None:
    parts = where.split(".")
    return int(parts[1]) if parts[0] == "layers" else None


def _suspect(where: str) -> str:
    if _block_of(where) is None:
        return _AROUND.get(where, "what computes it.")
    part = where.split(".", 2)[2]
    return _IN_BLOCK[part][2] if part in _IN_BLOCK else "what computes it."


def _row(where: str, mine: Tensor, theirs: Tensor) -> Row:
    if mine.shape != theirs.shape:
        return Row(where, math.inf, math.inf)
    mine, theirs = mine.detach().double(), theirs.detach().double()
    gap = mine - theirs
    length = theirs.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    relative = gap.norm(dim=-1) / length  # (B, T)
    return Row(where, gap.abs().max().item(), relative.max().item())
