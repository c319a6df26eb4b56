"""The native operators one by one, on NumPy arrays: for tests, and for looking at them.

Each instruction set has its own table of the same functions (`Operators` in native/layout.h).
"""

from __future__ import annotations

import ctypes as c
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcourse.errors import CourseError
from llmcourse.kernels.cpu import Linear, instruction_sets, library, linear
from llmcourse.kernels.pack import GROUP, TILE, Plane

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

CHUNK = 64  # kChunk of layout.h
_P = c.c_void_p


class _Acts(c.Structure):
    _fields_ = [
        ("q", _P), ("scale", _P), ("sum", _P), ("cols", c.c_int32), ("energy", _P),
    ]  # fmt: skip


class _Chunk(c.Structure):
    _fields_ = [("keys", _P), ("values", _P)]


class _Softmax(c.Structure):
    _fields_ = [("max", c.c_float), ("sum", c.c_float), ("o", _P)]


_MATMUL = c.CFUNCTYPE(
    None, _P, c.c_int, c.c_int, c.c_int, _P, c.c_int, _P, c.c_int64, c.c_int64, c.c_bool, _P
)


class _Table(c.Structure):
    _fields_ = [
        ("name", c.c_char_p),
        ("matmul", _MATMUL),
        ("rms_norm", c.CFUNCTYPE(None, _P, _P, c.c_float, c.c_int, _P)),
        ("quantize", c.CFUNCTYPE(None, _P, c.c_int, _P, c.c_int)),
        ("swiglu", c.CFUNCTYPE(None, _P, _P, c.c_int, _P)),
        ("reach", c.CFUNCTYPE(c.c_float, _P, _P, c.c_float)),
        ("store", c.CFUNCTYPE(None, _P, c.c_int, c.c_int, _P, _P)),
        ("attend", c.CFUNCTYPE(None, _P, c.c_int, c.c_int, _P, c.c_int, _P)),
    ]


class Quantized:
    """Activations (T, cols) as int8 in groups of 32: x ≈ scale * q; `sum` is scale * Σ q of each."""

    def __init__(self, tokens: int, cols: int) -> None:
        self.cols = -(-cols // GROUP) * GROUP
        self.q = np.zeros((tokens, self.cols), np.int8)
        self.scale = np.zeros((tokens, self.cols // GROUP), np.float32)
        self.sum = np.zeros_like(self.scale)
        self.energy = np.zeros(self.cols // GROUP, np.float32)

    def view(self) -> _Acts:
        """The C struct; it points into these arrays."""
        return _Acts(
            self.q.ctypes.data, self.scale.ctypes.data, self.sum.ctypes.data, self.cols,
            self.energy.ctypes.data,
        )  # fmt: skip


class Operators:
    """The operators of one instruction set, the fastest that the processor has unless given.

    Raises NoCompiler if the native code cannot be built, CourseError for a set that is not there.
    """

    def __init__(self, isa: str | None = None) -> None:
        self.isa = isa or instruction_sets()[0]
        address = library().find_operators(self.isa.encode())
        if not address:
            raise CourseError(
                f"This processor has no {self.isa!r}; choose of {', '.join(instruction_sets())}."
            )
        self._table = _Table.from_address(address)

    def quantize(self, x: Floats) -> Quantized:
        """int8 activations of x (T, cols); columns are filled up to 32 with zeros."""
        x = np.ascontiguousarray(np.atleast_2d(x), np.float32)
        out = Quantized(*x.shape)
        view = out.view()
        for token, row in enumerate(x):
            self._table.quantize(row.ctypes.data, len(row), c.byref(view), token)
        return out

    def matmul(self, planes: dict[str, Plane], x: Floats | Quantized, name: str = "w") -> Floats:
        """x (T, cols) times the packed matrix `name` (rows, cols), transposed: (T, rows).

        Both halves of an 8-bit matrix count. x becomes int8 first, if it is not yet.
        """
        matrix: Linear = linear(planes, name)
        high: Plane = planes[name]
        acts = x if isinstance(x, Quantized) else self.quantize(x)
        if acts.cols > matrix.high.cols:
            raise CourseError(f"x has {acts.cols} columns and the matrix {matrix.high.cols}.")
        tokens, tiles = len(acts.q), -(-high.rows // TILE)
        y = np.zeros((tokens, tiles * TILE), np.float32)
        quarter = -(-tiles // 4)
        for tile in range(quarter):
            self._tiles(matrix.high, acts, y, tile, quarter, add=False)
            if matrix.low.codes:
                self._tiles(matrix.low, acts, y, tile, quarter, add=True)
        return y[:, : high.rows]

    def _tiles(
        self, matrix: Any, acts: Quantized, y: Floats, tile: int, stride: int, *, add: bool
    ) -> None:
        count = -(-(y.shape[1] // TILE - tile) // stride)
        view = acts.view()
        self._table.matmul(
            c.byref(matrix), tile, stride, count, c.byref(view), len(acts.q),
            y.ctypes.data + tile * TILE * 4, stride * TILE, y.shape[1], add, None,
        )  # fmt: skip

    def spread(self, planes: dict[str, Plane], x: Floats, name: str = "w") -> tuple[Floats, Floats]:
        """What the high half alone gives for one x (cols): y (rows), and √Σ (scale |x|)² (rows)."""
        matrix, plane = linear(planes, name), planes[name]
        acts = self.quantize(x)
        padded = np.zeros(acts.cols, np.float32)
        padded[: len(x)] = x
        acts.energy[:] = (padded.reshape(-1, GROUP) ** 2).sum(1)
        tiles = -(-plane.rows // TILE)
        y = np.zeros(tiles * TILE, np.float32)
        spread, view = np.zeros_like(y), acts.view()
        self._table.matmul(
            c.byref(matrix.high), 0, 1, tiles, c.byref(view), 1, y.ctypes.data, TILE, 0, False,
            spread.ctypes.data,
        )  # fmt: skip
        return y[: plane.rows], spread[: plane.rows]

    def rms_norm(self, x: Floats, weight: Floats, eps: float) -> Floats:
        """x / √(mean(x²) + eps) * weight, of one vector."""
        x, weight = (np.ascontiguousarray(a, np.float32) for a in (x, weight))
        y = np.empty_like(x)
        self._table.rms_norm(x.ctypes.data, weight.ctypes.data, eps, len(x), y.ctypes.data)
        return y

    def swiglu(self, gate: Floats, up: Floats) -> Floats:
        """silu(gate) * up, of a multiple of 16 values."""
        gate, up = (np.ascontiguousarray(a, np.float32) for a in (gate, up))
        y = np.empty_like(gate)
        self._table.swiglu(gate.ctypes.data, up.ctypes.data, len(gate), y.ctypes.data)
        return y

    def attend(self, q: Floats, k: Floats, v: Floats) -> Floats:
        """Queries (R, D), already scaled, over keys and values (S, D) kept as fp16: (R, D).

        D is a multiple of 16.
        """
        (R, D), S = q.shape, len(k)
        q, k, v = (np.ascontiguousarray(a, np.float32) for a in (q, k, v))
        cache = np.zeros((-(-S // CHUNK), 2, CHUNK * D), np.uint16)  # keys, then values
        o = np.zeros((R, D), np.float32)
        state = (_Softmax * R)(*(_Softmax(-np.inf, 0.0, o[r].ctypes.data) for r in range(R)))
        for begin, (keys, values) in zip(range(0, S, CHUNK), cache, strict=True):
            chunk = _Chunk(keys.ctypes.data, values.ctypes.data)
            here = min(S - begin, CHUNK)
            for at in range(here):
                one = k[begin + at].ctypes.data, v[begin + at].ctypes.data
                self._table.store(c.byref(chunk), at, D, *one)
            self._table.attend(c.byref(chunk), here, D, q.ctypes.data, R, state)
        sums: Floats = np.array([[s.sum] for s in state], np.float32)
        return np.divide(o, sums, dtype=np.float32)
