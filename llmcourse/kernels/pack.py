"""Weights in the order in which the native kernel reads them: sixteen rows side by side.

`native/layout.h` draws the layout. Codes, scales and minima are moved, never changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcourse.errors import CourseError

if TYPE_CHECKING:
    from numpy.typing import NDArray

TILE, GROUP = 16, 32
PACKER = 3  # raise it when the layout changes: files of an older one are made anew
_ALIGN = 4096


Codes = dict[str, "NDArray[Any]"]  # "codes" 0..15 or "wide" int8, "scales", perhaps "mins"


@dataclass(frozen=True, slots=True)
class Plane:
    """4-bit codes of a matrix (rows, cols) in tiles: w = factor * scale * code + low.

    `blocks` (tiles, blocks, bytes) holds for each scale group of a tile 16 scales, 16 minima if
    `mins`, and the codes. `low` is the minimum, or ratio * scale without minima. `scaled` is False
    if the scales are those of another plane.
    """

    blocks: NDArray[np.uint8]
    rows: int
    cols: int
    group: int
    scaled: bool = True
    mins: bool = False
    factor: float = 1.0
    ratio: float = 0.0


def pack(
    codes: NDArray[np.uint8],
    scales: NDArray[np.float16] | None,
    mins: NDArray[np.float16] | None = None,
    *,
    factor: float = 1.0,
    ratio: float = 0.0,
    group: int = GROUP,
) -> Plane:
    """Put codes 0..15 (rows, cols) with scales and minima (rows, cols / group) into tiles.

    `group` is a multiple of 32. Rows are filled up to 16 and columns to a whole group, with zeros.
    Raises CourseError for shapes or codes that do not fit.
    """
    rows, cols = codes.shape
    count = -(-cols // group)
    for name, given in (("scales", scales), ("mins", mins)):
        if given is not None and given.shape != (rows, count):
            raise CourseError(f"{name} has shape {given.shape}; {(rows, count)} is wanted.")
    if group % GROUP or (codes.size and codes.max() > 15):
        raise CourseError("A group is a multiple of 32 columns, and a code a number from 0 to 15.")
    tiles, inside = -(-rows // TILE), group // GROUP
    full = np.zeros((tiles * TILE, count * group), np.uint8)
    full[:rows, :cols] = codes
    full = full.reshape(tiles, TILE, count, inside, 2, 4, 4)  # tile, r, block, 32s, half, v, j
    nibbles = full[:, :, :, :, 0] | full[:, :, :, :, 1] << 4
    parts = [nibbles.transpose(0, 2, 3, 4, 1, 5).reshape(tiles, count, inside * 256)]
    for given in (mins, scales):
        if given is not None:
            halves = np.zeros((tiles * TILE, count), np.float16)
            halves[:rows] = given
            halves = np.ascontiguousarray(halves.reshape(tiles, TILE, count).swapaxes(1, 2))
            parts.insert(0, halves.view(np.uint8))
    blocks = np.concatenate(parts, axis=2)
    return Plane(blocks, rows, cols, group, scales is not None, mins is not None, factor, ratio)


def pack8(
    codes: NDArray[np.int8], scales: NDArray[np.float16], *, group: int = GROUP
) -> tuple[Plane, Plane]:
    """An int8 matrix w = scale * code as two planes, high and low halves, whose products add up.

    With u = code + 128 = 16 h + l, the high plane alone is the best guess without l:
    scale * (16 h + 7.5 - 128).
    """
    u = (codes.astype(np.int16) + 128).astype(np.uint8)
    high = pack(u >> np.uint8(4), scales, factor=16.0, ratio=7.5 - 128, group=group)
    return high, pack(u & np.uint8(15), None, ratio=-7.5, group=group)


def round_to_groups(w: NDArray[np.float32], *, bits: int, group: int = GROUP) -> Codes:
    """Round w (rows, cols) to nearest in groups along the columns, as Q4_1 (4 bits) or Q8_0 (8) do.

    4 bits: from the smallest to the largest value of a group in 15 steps. 8 bits: 127 steps to the
    largest magnitude. Columns are filled up to a whole group with zeros.
    """
    rows, cols = w.shape
    full = np.zeros((rows, -(-cols // group) * group), np.float32)
    full[:, :cols] = w
    full = full.reshape(rows, -1, group)
    if bits == 8:
        scales = (np.abs(full).max(2) / 127).astype(np.float16)
        low = np.zeros_like(scales)
    else:
        low = full.min(2).astype(np.float16)
        scales = ((full.max(2) - full.min(2)) / 15).astype(np.float16)
    steps = scales.astype(np.float32)
    steps[steps == 0] = 1
    q = np.rint((full - low.astype(np.float32)[:, :, None]) / steps[:, :, None])
    if bits == 8:
        return {"wide": q.clip(-127, 127).reshape(rows, -1).astype(np.int8), "scales": scales}
    return {
        "codes": q.clip(0, 15).reshape(rows, -1).astype(np.uint8),
        "scales": scales,
        "mins": low,
    }


def unpack(planes: Mapping[str, Plane], name: str) -> NDArray[np.float32]:
    """The matrix (rows, cols) that `name` and its low half stand for, in float32."""
    total: NDArray[np.float32] | None = None
    for plane in (planes[name], planes.get(f"{name}.low")):
        if plane is None:
            continue
        tiles, count, _ = plane.blocks.shape
        inside = plane.group // GROUP
        codes = plane.blocks[:, :, -256 * inside :].reshape(tiles, count, inside, 4, TILE, 4)
        codes = np.stack([codes & 15, codes >> 4], axis=3)  # tile, block, 32s, half, v, r, j
        codes = codes.transpose(0, 5, 1, 2, 3, 4, 6).reshape(tiles * TILE, count, plane.group)

        def halves(of: Plane, at: int) -> NDArray[np.float32]:
            part = np.ascontiguousarray(of.blocks[:, :, at : at + 2 * TILE]).view(np.float16)
            return part.swapaxes(1, 2).reshape(-1, of.blocks.shape[1]).astype(np.float32)

        scale = halves(planes[name], 0)
        low = halves(plane, 2 * TILE) if plane.mins else plane.ratio * scale
        w = plane.factor * scale[:, :, None] * codes + low[:, :, None]
        w = w.reshape(tiles * TILE, -1)[: plane.rows]
        total = w if total is None else total + w
    assert total is not None
    return total
