"""The course's own engine: native code where a compiler is, PyTorch's operators where not."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmcourse.decode.cache import KVCache
from llmcourse.kernels.build import NoCompiler
from llmcourse.kernels.cpu import CpuEngine
from llmcourse.kernels.engine import Engine, Logits
from llmcourse.models import load_model
from llmcourse.models.llama import Llama


def open_engine(name: str | None = None, **options: Any) -> Engine:
    """The fastest engine this machine can have, for the course's model or another.

    With a C++ compiler that is `CpuEngine`, which takes the options; without one, `TorchEngine` on
    float weights, and one sentence on stderr says so. Raises CourseError as they do.
    """
    try:
        return CpuEngine.from_checkpoint(name, **options)
    except NoCompiler as error:
        print(f"{error} Until then PyTorch's operators are used.", file=sys.stderr)
        return TorchEngine(load_model(name)[0], context=options.get("context"))


class TorchEngine(Engine):
    """The same on PyTorch's operators: a `Llama` and a `KVCache`."""

    def __init__(self, model: Llama, *, context: int | None = None) -> None:
        self.model, self.config = model, asdict(model.config)
        self.context = context or model.config.max_position_embeddings
        weight = model.embed_tokens.weight
        # Memory that is not written to is not taken: a long context costs as much as is used.
        self._cache = KVCache(
            model.config, max_tokens=self.context, dtype=weight.dtype, device=weight.device
        )

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self._cache.length

    def _forget(self, length: int) -> None:
        self._cache.length = length

    def _hidden(self, ids: NDArray[np.int32]) -> torch.Tensor:
        device = self.model.embed_tokens.weight.device
        tokens = torch.from_numpy(ids).to(device, torch.long)
        return self.model.hidden(tokens[None], self._cache)[0]  # (T, C)

    @torch.inference_mode()
    def _best(self, ids: NDArray[np.int32]) -> int:
        return int(self.model.lm_head(self._hidden(ids)[-1]).argmax())

    @torch.inference_mode()
    def _logits(self, ids: NDArray[np.int32], out: Logits) -> None:
        hidden = self._hidden(ids)
        wanted = hidden[-1] if out.ndim == 1 else hidden
        out[:] = self.model.lm_head(wanted).float().cpu().numpy()
