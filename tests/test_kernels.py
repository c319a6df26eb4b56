"""The packed layout and each native operator, for every instruction set this processor has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcourse.errors import CourseError
from llmcourse.kernels.build import NoCompiler, find_compiler
from llmcourse.kernels.cpu import instruction_sets
from llmcourse.kernels.operators import Operators
from llmcourse.kernels.pack import pack, pack8, round_to_groups, unpack

try:
    find_compiler()
except NoCompiler as error:
    pytest.skip(str(error), allow_module_level=True)
ISAS = instruction_sets()  # a compiler that fails on the native code is no reason to skip

each_isa = pytest.mark.parametrize("isa", ISAS)


def a_matrix(rng, rows, cols, kind, group=32):
    """A random matrix of one format: its planes, and the float64 weights they stand for."""
    groups = -(-cols // group)
    scales = (rng.uniform(0.5, 2, (rows, groups)) * rng.choice([-1, 1], (rows, groups))).astype(
        "f2"
    )
    wide = np.repeat(scales.astype("f8"), group, 1)[:, :cols]
    if kind == "8":
        codes = rng.integers(-127, 128, (rows, cols)).astype(np.int8)
        full = np.zeros((rows, groups * group), np.int8)
        full[:, :cols] = codes
        high, low = pack8(full, scales, group=group)
        return {"w": high, "w.low": low}, wide * codes
    codes = rng.integers(0, 16, (rows, cols)).astype(np.uint8)
    if kind == "4 symmetric":
        return {"w": pack(codes, scales, ratio=-8.0, group=group)}, wide * (codes - 8.0)
    mins = rng.normal(size=(rows, groups)).astype("f2")
    low = np.repeat(mins.astype("f8"), group, 1)[:, :cols]
    return {"w": pack(codes, scales, mins, group=group)}, wide * codes + low


shapes = {
    "rows": st.integers(1, 150),
    "cols": st.integers(1, 200),
    "kind": st.sampled_from(["4", "4 symmetric", "8"]),
    "group": st.sampled_from([32, 64, 128]),
    "seed": st.integers(0, 2**20),
}


# The layout ------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(**shapes)
def test_unpack_undoes_pack(rows, cols, kind, group, seed):
    """Does every code, scale and minimum come back from its place in the tiles?"""
    planes, w = a_matrix(np.random.default_rng(seed), rows, cols, kind, group)
    got = unpack(planes, "w")
    assert got.shape[0] == rows and got.shape[1] % group == 0
    np.testing.assert_allclose(got[:, :cols], w, rtol=1e-6, atol=1e-5)


def test_layout_by_hand():
    """Do the codes of row 3 lie where layout.h says: byte (v, r, j), low half 4v + j, high + 16?"""
    codes = np.zeros((16, 32), np.uint8)
    codes[3, 6], codes[3, 22] = 5, 9  # columns 4 * 1 + 2 and 16 + 4 * 1 + 2
    plane = pack(codes, np.ones((16, 1), np.float16), np.zeros((16, 1), np.float16))
    (place,) = np.flatnonzero(plane.blocks[0, 0, 64:])
    assert place == 1 * 64 + 3 * 4 + 2
    assert plane.blocks[0, 0, 64 + place] == 5 | 9 << 4


def test_rounding_keeps_within_half_a_step():
    """Is every rounded weight within half a step of the float, the two ends of a group exact?"""
    w = np.random.default_rng(0).normal(size=(20, 96)).astype(np.float32)
    for bits, steps in ((4, 15), (8, 254)):
        found = round_to_groups(w, bits=bits)
        planes = (
            dict(zip(("w", "w.low"), pack8(found["wide"], found["scales"]), strict=True))
            if bits == 8
            else {"w": pack(found["codes"], found["scales"], found["mins"])}
        )
        groups = w.reshape(20, 3, 32)
        span = np.ptp(groups, 2) if bits == 4 else 2 * np.abs(groups).max(2)
        error = np.abs(unpack(planes, "w") - w).reshape(20, 3, 32).max(2)
        assert (error <= span / steps * 0.5 + 0.004).all()  # fp16 scales and minima add a little


def test_pack_says_what_does_not_fit():
    """Is there one sentence for a wrong shape, a code over 15, and a group of 20?"""
    codes, scales = np.zeros((4, 32), np.uint8), np.ones((4, 1), np.float16)
    with pytest.raises(CourseError, match=r"scales has shape \(3, 1\)"):
        pack(codes, scales[:3])
    with pytest.raises(CourseError, match="0 to 15"):
        pack(codes + 16, scales)
    with pytest.raises(CourseError, match="multiple of 32"):
        pack(codes, np.ones((4, 2), np.float16), group=20)


# The operators ---------------------------------------------------------------------------------


def dequantized(acts):
    """(T, cols) float64 that int8 activations stand for, and their group sums."""
    x = acts.q.reshape(len(acts.q), -1, 32) * acts.scale[:, :, None].astype("f8")
    return x, acts.sum.astype("f8")


@each_isa
@settings(max_examples=80, deadline=None)
@given(**shapes, tokens=st.integers(1, 17))
def test_matmul_equals_float64(isa, rows, cols, kind, group, seed, tokens):
    """Is the product that of the codes in float64, for any shape, format, group and tokens?

    The expected value is made of the same parts: scale times codes, minimum times sum. The tolerance
    is for float32 sums of at most 800 terms.
    """
    rng = np.random.default_rng(seed)
    planes, _ = a_matrix(rng, rows, cols, kind, group)
    x = rng.normal(size=(tokens, cols)).astype(np.float32) * rng.uniform(0.01, 10, (1, cols))
    ops = Operators(isa)
    padded = np.zeros((tokens, planes["w"].blocks.shape[1] * group), np.float32)
    padded[:, :cols] = x
    acts = ops.quantize(padded)
    xq, sums = dequantized(acts)
    expected = np.zeros((tokens, rows))
    scale_of = planes["w"]
    for name in planes:
        plane = planes[name]
        zero = {**plane_parts(plane, scale_of), "rows": rows}
        expected += np.einsum("rgi,tgi->tr", zero["scaled"], xq) + sums @ zero["low"].T
    got = ops.matmul(planes, acts)
    size = np.abs(expected).max() + np.abs(xq).sum(axis=(1, 2)).max()
    np.testing.assert_allclose(got, expected, atol=2e-6 * size * 16, rtol=0)


def plane_parts(plane, scale_of):
    """factor * scale * code (rows, groups of 32, 32) and the low value (rows, groups of 32)."""
    bare = {"w": plane if plane is scale_of else scale_of}
    inside = plane.group // 32
    tiles, count, _ = plane.blocks.shape
    codes = plane.blocks[:, :, -256 * inside :].reshape(tiles, count, inside, 4, 16, 4)
    codes = np.stack([codes & 15, codes >> 4], 3).transpose(0, 5, 1, 2, 3, 4, 6)
    codes = codes.reshape(tiles * 16, count * inside, 32)[: plane.rows].astype("f8")

    def halves(of, at):
        part = np.ascontiguousarray(of.blocks[:, :, at : at + 32]).view(np.float16)
        part = part.swapaxes(1, 2).reshape(tiles * 16, count)[: plane.rows]
        return np.repeat(part.astype("f8"), inside, 1)

    scale = halves(bare["w"], 0)
    low = halves(plane, 32) if plane.mins else plane.ratio * scale
    return {"scaled": plane.factor * scale[:, :, None] * codes, "low": low}


@each_isa
def test_matmul_is_close_to_float(isa):
    """With int8 activations, is the result within 1 % of the float product (standard deviation)?

    A code is off by at most half a step of max / 127: for normal numbers in groups of 32, where the
    largest is about 2.1 deviations, the error has deviation 2.1 / 127 / √12 = 0.5 % of x.
    """
    rng = np.random.default_rng(1)
    planes, w = a_matrix(rng, 64, 576, "4")
    x = rng.normal(size=(3, 576)).astype(np.float32)
    error = Operators(isa).matmul(planes, x) - x.astype("f8") @ w.T
    assert error.std() < 0.01 * (x.astype("f8") @ w.T).std()


@each_isa
def test_any_tokens_and_tiles_give_the_same_bits(isa):
    """Does a row give the same number whether alone or beside others, for one token or nine?

    This is what makes a prompt read at once equal to one read token by token.
    """
    rng = np.random.default_rng(2)
    planes, _ = a_matrix(rng, 16 * 7, 160, "4")
    x = rng.normal(size=(9, 160)).astype(np.float32)
    ops = Operators(isa)
    together = ops.matmul(planes, x)
    np.testing.assert_array_equal(together, np.concatenate([ops.matmul(planes, r) for r in x]))


@each_isa
@settings(max_examples=40, deadline=None)
@given(cols=st.integers(1, 300), seed=st.integers(0, 2**20), size=st.sampled_from([1e-20, 1, 1e20]))
def test_quantize(isa, cols, seed, size):
    """Is each value within half a step of its group, the largest ±127, and the sum scale * Σ q?"""
    x = (np.random.default_rng(seed).normal(size=cols) * size).astype(np.float32)
    acts = Operators(isa).quantize(x)
    padded = np.zeros(acts.cols)
    padded[:cols] = x
    groups, scale = padded.reshape(-1, 32), acts.scale[0].astype("f8")[:, None]
    np.testing.assert_allclose(scale[:, 0], np.abs(groups).max(1) / 127, rtol=1e-6)
    assert (np.abs(acts.q.reshape(-1, 32) * scale - groups) <= 0.5001 * scale).all()
    sums = acts.scale[0].astype("f8") * acts.q.reshape(-1, 32).sum(1, dtype=int)
    np.testing.assert_allclose(acts.sum[0], sums, rtol=1e-6)


@each_isa
@pytest.mark.parametrize("value", [0, 1e-39, 1e-45], ids=["zero", "subnormal", "smallest"])
def test_quantize_next_to_nothing(isa, value):
    """Does a group of zeros, or of numbers whose inverse is infinite, become zeros without a NaN?"""
    acts = Operators(isa).quantize(np.full((1, 64), value, np.float32))
    assert not acts.q.any() and not acts.sum.any()
    assert (acts.scale <= np.float32(value)).all()


@each_isa
@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 700), seed=st.integers(0, 2**20))
def test_rms_norm(isa, n, seed):
    """Is it torch's RMSNorm?"""
    rng = np.random.default_rng(seed)
    x, weight = rng.normal(size=(2, n)).astype(np.float32)
    expected = F.rms_norm(torch.tensor(x), (n,), torch.tensor(weight), 1e-5)
    np.testing.assert_allclose(
        Operators(isa).rms_norm(x, weight, 1e-5), expected, rtol=2e-5, atol=1e-6
    )


@each_isa
def test_swiglu(isa):
    """Is it torch's silu times up, from far below to far above the range of exp?"""
    gate = np.concatenate([np.linspace(-100, 100, 4096), np.linspace(-1, 1, 4096)]).astype("f4")
    up = np.random.default_rng(0).normal(size=8192).astype(np.float32)
    expected = F.silu(torch.tensor(gate, dtype=torch.float64)) * torch.tensor(up)
    np.testing.assert_allclose(Operators(isa).swiglu(gate, up), expected, rtol=2e-6, atol=1e-30)


@each_isa
@settings(max_examples=40, deadline=None)
@given(
    S=st.integers(1, 200),
    R=st.integers(1, 8),
    D=st.sampled_from([16, 32, 64, 80]),
    seed=st.integers(0, 2**20),
)
def test_attend_equals_torch(isa, S, R, D, seed):
    """Is attention in chunks over fp16 keys and values torch's over the same rounded ones?"""
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(R, D)).astype(np.float32) * 3 / D**0.5
    k, v = rng.normal(size=(2, S, D)).astype(np.float32)
    k16, v16 = (torch.tensor(x.astype(np.float16)).double() for x in (k, v))
    expected = F.scaled_dot_product_attention(
        torch.tensor(q).double()[None], k16[None], v16[None], scale=1.0
    )
    np.testing.assert_allclose(Operators(isa).attend(q, k, v), expected[0], atol=2e-5)


@each_isa
def test_attend_with_far_scores(isa):
    """Does one key that outscores the rest by thousands give its value, without a NaN?"""
    q = np.full((3, 16), 100.0, np.float32)
    k = np.zeros((130, 16), np.float32)
    k[77], v = 10.0, np.arange(130 * 16, dtype=np.float32).reshape(130, 16) / 16
    got = Operators(isa).attend(q, k, v)
    np.testing.assert_allclose(got, np.repeat(v[77:78].astype(np.float16), 3, 0), rtol=1e-6)


@each_isa
def test_halves_round_to_even(isa):
    """Is every value stored as fp16 the one NumPy rounds it to: ties, subnormal, huge ones too?"""
    rng = np.random.default_rng(3)
    exponents = rng.integers(-26, 17, 16 * 64)
    v = (rng.uniform(1, 2, 16 * 64) * 2.0**exponents * rng.choice([-1, 1], 16 * 64)).astype("f4")
    v[:4] = [1 + 2**-11, 1 + 3 * 2**-11, 65504, 2**-25]  # two ties, the largest, half the smallest
    v = v.reshape(64, 16)
    v[np.abs(v) > 65504] = 1
    for position in range(64):  # one position alone has weight 1, so its value comes back as stored
        got = Operators(isa).attend(
            np.zeros((1, 16), "f4"), np.zeros((1, 16), "f4"), v[position][None]
        )
        np.testing.assert_array_equal(got[0], v[position].astype(np.float16).astype("f4"))


@each_isa
@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 150), cols=st.integers(1, 200), seed=st.integers(0, 2**20))
def test_spread(isa, rows, cols, seed):
    """Is `spread` √Σ (scale |x|)² over a row's groups, and y that of the high half alone?"""
    rng = np.random.default_rng(seed)
    planes, _ = a_matrix(rng, rows, cols, "8")
    x = rng.normal(size=cols).astype(np.float32)
    y, spread = Operators(isa).spread(planes, x)
    parts = plane_parts(planes["w"], planes["w"])
    scale = parts["low"] / planes["w"].ratio
    padded = np.zeros(scale.shape[1] * 32)
    padded[:cols] = x
    expected = np.sqrt((scale**2 * (padded.reshape(-1, 32) ** 2).sum(1)).sum(1))
    np.testing.assert_allclose(spread, expected, rtol=1e-5)
    np.testing.assert_allclose(
        y, Operators(isa).matmul({"w": planes["w"]}, x)[0], rtol=1e-5, atol=1e-3
    )


def test_instruction_sets_agree():
    """Do all instruction sets give the same product, up to the order of float32 additions?"""
    rng = np.random.default_rng(5)
    planes, _ = a_matrix(rng, 160, 576, "4")
    x = rng.normal(size=(5, 576)).astype(np.float32)
    results = [Operators(isa).matmul(planes, x) for isa in ISAS]
    for other in results[1:]:
        np.testing.assert_allclose(
            other, results[0], rtol=1e-5, atol=1e-5 * np.abs(results[0]).max()
        )


def test_an_absent_instruction_set_is_refused():
    """Does asking for a set that is not here give one sentence?"""
    with pytest.raises(CourseError, match="has no 'avx9000'"):
        Operators("avx9000")
