"""A contiguous key/value cache, allocated once for the longest sequence it will hold."""

from __future__ import annotations

import torch
from torch import Tensor

from llmcourse.errors import CourseError
from llmcourse.models.llama import LlamaConfig


class KVCache:
    """Keys and values of every layer, so that a new token computes only its own.

    Source: the incremental decoding of Shazeer 2019 (Fast Transformer Decoding), section 2.4.
    """

    def __init__(
        self,
        config: LlamaConfig,
        *,
        max_tokens: int,
        batch: int = 1,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        L, G, D = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
        self.k = torch.empty(L, batch, G, max_tokens, D, dtype=dtype, device=device)
        self.v = torch.empty_like(self.k)
        self.length = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, G, T, D) at the end of one layer; return all so far, (B, G, S, D) each.

        Raises CourseError when the cache is full.
        """
        start, end = self.length, self.length + k.shape[2]
        if end > (room := self.k.shape[3]):
            raise CourseError(
                f"The cache holds {room:,} tokens and would need {end:,}; make it larger."
            )
        self.k[layer, :, :, start:end] = k
        self.v[layer, :, :, start:end] = v
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]

    def advance(self, tokens: int) -> None:
        """Count the tokens that every layer has now stored."""
        self.length += tokens

    @property
    def bytes(self) -> int:
        """Bytes allocated for keys and values."""
        return self.k.nbytes + self.v.nbytes
