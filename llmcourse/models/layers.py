"""The parts of a Llama block that are not attention: norm, rotary positions, feed-forward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """y = weight * x / sqrt(mean(x²) + eps), over the last axis; the mean is not subtracted.

    Source: Zhang and Sennrich 2019, eq. 4.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # (..., C) -> (..., C)
        # In float32 even when x is not: a mean of squares overflows float16 early.
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def rotary_angles(positions: Tensor, head_size: int, theta: float) -> Tensor:
    """Angles (T, D/2) in radians: position times theta^(-2i/D), one frequency for each pair.

    Source: Su et al. 2021 (RoFormer), eq. 15.
    """
    pair = torch.arange(0, head_size, 2, device=positions.device, dtype=torch.float32)
    return positions.float()[:, None] / theta ** (pair / head_size)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn pair i of each head by angles[t, i]. x is (B, H, T, D), angles (T, D/2).

    Pairs are (x[i], x[i + D/2]), the half-split layout of transformers' checkpoints. The paper
    pairs neighbours; the two differ by a fixed permutation of q and k, which no score can see.
    """
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)  # (T, D/2)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)): a feed-forward layer with a gate.

    Source: Shazeer 2020 (GLU Variants Improve Transformer), eq. 6.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (..., C) -> (..., C)
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
