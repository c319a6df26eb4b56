"""The native decode engine: one call reads tokens, one call makes them; no Python between layers.

`native/` holds the C++. Source of the ideas: a fused step after Karpathy's llama2.c and zeux's calm,
weights interleaved by rows as in llama.cpp's repacked formats, attention in chunks after
Flash-Decoding (Dao et al. 2023).
"""

from __future__ import annotations

import ctypes as c
import functools
import platform
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcourse.errors import CourseError
from llmcourse.kernels.build import build
from llmcourse.kernels.engine import Engine, Ids, Logits
from llmcourse.kernels.pack import GROUP, TILE, Plane
from llmcourse.kernels.packed import Packed, packed_model
from llmcourse.measure.processor import usable_cores

NATIVE = Path(__file__).parent / "native"
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
# Flags of each instruction set, fastest first.
ISAS: dict[str, tuple[str, ...]] = {
    "avx512": (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni"),
    "avx2": _AVX2,
    "plain": (),
}
_MOST_GROUP = 64  # kMaxGroup of layout.h
_MOST_THREADS = 64
_P, _I, _F = c.c_void_p, c.c_int32, c.c_float


class _Matrix(c.Structure):
    _fields_ = [
        ("codes", _P), ("scales", _P), ("code_step", c.c_int64), ("scale_step", c.c_int64),
        ("rows", _I), ("cols", _I), ("groups", _I), ("mins", _I), ("factor", _F), ("ratio", _F),
    ]  # fmt: skip


class Linear(c.Structure):
    """A matrix as the native code sees it: one plane of 4-bit codes, or two."""

    _fields_ = [("high", _Matrix), ("low", _Matrix)]


class _Layer(c.Structure):
    _fields_ = [
        ("attention_norm", _P), ("qkv", Linear), ("o", Linear), ("ffn_norm", _P),
        ("gate_up", Linear), ("down", Linear),
    ]  # fmt: skip


class _Model(c.Structure):
    _fields_ = [
        *((name, _I) for name in (
            "num_layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab", "context")),
        ("eps", _F), ("turns", _P), ("layers", c.POINTER(_Layer)), ("norm", _P),
        ("embedding", Linear), ("head", Linear),
    ]  # fmt: skip


def build_library(flags: Sequence[str] = ()) -> Path:
    """The shared library of `native/`, compiled if this is the first time.

    x86 processors get all their instruction sets in one, chosen when an engine is made; others the
    plain code, which the compiler may still turn into vectors. Raises NoCompiler.
    """
    isas = ISAS if platform.machine().lower() in ("x86_64", "amd64") else {"plain": ()}
    units: list[tuple[Path, Sequence[str]]] = [(NATIVE / "step.cpp", ())]
    units += [(NATIVE / "operators.cpp", own) for own in isas.values()]
    return build("engine", units, headers=[NATIVE / "layout.h"], flags=flags)


# What a step is made of, in the order of `Part` in layout.h.
PARTS = ("qkv", "attention", "o", "gate_up", "down", "head", "waiting")


class _State(c.Structure):
    _fields_ = [
        ("length", _I), ("team_steps", c.c_int64), ("solo_steps", c.c_int64),
        ("spent", c.c_int64 * len(PARTS)),
    ]  # fmt: skip


@functools.cache
def library() -> c.CDLL:
    """The native code, built if this is the first time. Raises NoCompiler if it cannot be."""
    lib = c.CDLL(str(build_library()))
    lib.find_operators.argtypes, lib.find_operators.restype = [c.c_char_p], _P
    lib.engine_new.argtypes, lib.engine_new.restype = [_P, _P, c.c_int], _P
    lib.engine_free.argtypes, lib.engine_free.restype = [_P], None
    lib.engine_read.argtypes = [_P, _P, c.c_int, c.c_int, _P]
    lib.engine_generate.argtypes = [_P, _I, c.c_int, _P, c.c_int, _P]
    lib.engine_state.argtypes, lib.engine_state.restype = [_P], c.POINTER(_State)
    return lib


def instruction_sets() -> list[str]:
    """Those that this processor has, fastest first; the last is always "plain"."""
    return [name for name in ISAS if library().find_operators(name.encode())]


def linear(planes: dict[str, Plane], name: str) -> Linear:
    """The C view of a packed matrix; the caller keeps the arrays alive."""
    found = Linear(high=_matrix(planes[name], planes[name]))
    if f"{name}.low" in planes:
        found.low = _matrix(planes[f"{name}.low"], planes[name])
    return found


def _matrix(plane: Plane, scaled: Plane) -> _Matrix:
    """`scaled` is the plane that holds the scales: this one, or the high half beside it."""
    inside = plane.group // GROUP
    at, scales = plane.blocks.ctypes.data, scaled.blocks.ctypes.data
    size = 2 * TILE
    return _Matrix(
        codes=at + size * (plane.scaled + plane.mins),
        scales=scales,
        code_step=plane.blocks.shape[2],
        scale_step=scaled.blocks.shape[2],
        rows=plane.rows,
        cols=plane.blocks.shape[1] * plane.group,
        groups=inside,
        mins=plane.mins,
        factor=plane.factor,
        ratio=plane.ratio,
    )


class CpuEngine(Engine):
    """A Llama on packed weights, in native code.

    `threads` is the number of cores, but at most eight, unless given; `isa` one of
    `instruction_sets()`, the fastest unless given; `context` the most tokens it will hold, the
    model's own unless given (the memory is taken as it fills). Engines share weights, nothing else.
    Raises NoCompiler if the native code cannot be built, CourseError for a model or an option that
    it cannot take.
    """

    def __init__(
        self,
        packed: Packed,
        *,
        threads: int | None = None,
        isa: str | None = None,
        context: int | None = None,
    ) -> None:
        self._engine: int | None = None
        self._lib, self.packed, self.config = library(), packed, packed.config
        self.isa = isa or instruction_sets()[0]
        self.threads = min(usable_cores(), 8) if threads is None else threads
        operators = self._lib.find_operators(self.isa.encode())
        if operators is None:
            raise CourseError(
                f"This processor has no {self.isa!r}; choose of {', '.join(instruction_sets())}."
            )
        if not 1 <= self.threads <= _MOST_THREADS:
            raise CourseError(
                f"{self.threads} threads are not possible; give 1 to {_MOST_THREADS}."
            )
        most = int(self.config["max_position_embeddings"])
        self.context = most if context is None else context
        if not 1 <= self.context <= most:
            raise CourseError(f"The model's context is {most:,} tokens; ask for 1 to that many.")
        # Angles in double: position 8,000 times a speed of 1 has no digits to lose in single.
        half = np.arange(self.config["head_dim"] // 2) * (-2 / self.config["head_dim"])
        angles = np.outer(np.arange(self.context), float(self.config["rope_theta"]) ** half)
        self._turns = np.concatenate([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
        self._model = _model(packed, self.context, self._turns)
        self._engine = self._lib.engine_new(c.byref(self._model), operators, self.threads)
        if not self._engine:
            raise CourseError(
                "There is no memory for the engine, or for its threads; close other programs."
            )

    @classmethod
    def from_checkpoint(cls, name: str | None = None, **options: Any) -> CpuEngine:
        """The course's model, or another that came as a GGUF file in Q4_1, Q4_0 or Q8_0."""
        from llmcourse.data.checkpoints import gguf_path, resolve_checkpoint

        return cls(packed_model(gguf_path(resolve_checkpoint(name))), **options)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """End the threads and free the cache."""
        if self._engine:
            self._lib.engine_free(self._engine)
        self._engine = None

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return int(self._state.length)

    @property
    def steps(self) -> dict[str, int]:
        """How many steps all threads made, and how many one made alone because others were slow."""
        return {"team": self._state.team_steps, "solo": self._state.solo_steps}

    @property
    def spent(self) -> dict[str, float]:
        """Seconds of the caller's thread since the engine was made, by the parts of a step.

        Each matrix product is counted with what prepares its input, "head" with the embedding;
        "waiting" is at barriers.
        """
        return {name: ns / 1e9 for name, ns in zip(PARTS, self._state.spent, strict=True)}

    def generate_all(
        self, ids: Ids, *, max_tokens: int, end_ids: Collection[int] = ()
    ) -> list[int]:
        """The greedy tokens of `generate` in one list, without a return to Python between them."""
        self._check_room(ids, max_tokens)
        first = list(self.generate(ids, max_tokens=min(max_tokens, 1), end_ids=end_ids))
        if not first or max_tokens == 1:
            return first
        out = np.empty(max_tokens - 1, np.int32)
        ends = np.array(sorted(end_ids), np.int32)
        got = self._lib.engine_generate(
            self._open(), first[0], len(out), ends.ctypes.data, len(ends), out.ctypes.data
        )
        rest = out[:got].tolist()
        return first + (rest[:-1] if rest[-1] in end_ids else rest)

    @property
    def _state(self) -> Any:
        return self._lib.engine_state(self._open()).contents

    def _forget(self, length: int) -> None:
        self._state.length = length

    def _best(self, ids: NDArray[np.int32]) -> int:
        return int(self._lib.engine_read(self._open(), ids.ctypes.data, len(ids), 0, None))

    def _logits(self, ids: NDArray[np.int32], out: Logits) -> None:
        rows = 1 if out.ndim == 1 else len(out)
        self._lib.engine_read(self._open(), ids.ctypes.data, len(ids), rows, out.ctypes.data)

    def _open(self) -> int:
        if not self._engine:
            raise CourseError("This engine was closed; make another.")
        return self._engine


def _model(packed: Packed, context: int, turns: NDArray[np.float32]) -> _Model:
    config, arrays, planes = packed.config, packed.arrays, packed.planes
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    if config["head_dim"] % 2 or heads % kv_heads or heads // kv_heads > _MOST_GROUP:
        raise CourseError(
            f"{heads} heads of {config['head_dim']} on {kv_heads} key/value heads do not fit "
            f"the kernel; choose another model."
        )
    layers = (_Layer * config["num_hidden_layers"])()
    for n, layer in enumerate(layers):
        for name in ("attention_norm", "ffn_norm"):
            setattr(layer, name, arrays[f"{n}.{name}"].ctypes.data)
        for name in ("qkv", "o", "gate_up", "down"):
            setattr(layer, name, linear(planes, f"{n}.{name}"))
    return _Model(
        num_layers=len(layers),
        hidden=config["hidden_size"],
        heads=heads,
        kv_heads=kv_heads,
        head_dim=config["head_dim"],
        ffn=config["intermediate_size"],
        vocab=config["vocab_size"],
        context=context,
        eps=config["rms_norm_eps"],
        turns=turns.ctypes.data,
        layers=layers,
        norm=arrays["norm"].ctypes.data,
        embedding=linear(planes, "embedding" if "embedding" in planes else "head"),
        head=linear(planes, "head"),
    )
