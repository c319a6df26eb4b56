"""Models built from parts; `load_model` gives the one the course is about."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from llmcourse.data.tokenizer import Tokenizer
    from llmcourse.models.llama import Llama


def load_model(
    name: str | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> tuple[Llama, Tokenizer]:
    """SmolLM2-135M-Instruct and its tokenizer, or another Llama by folder, GGUF file or hub id.

    `dtype` is float32 unless given. The first call downloads and converts (no network after that).
    Raises CourseError if the checkpoint is not to be had or is not a Llama.
    """
    import torch

    from llmcourse.data.checkpoints import resolve_checkpoint
    from llmcourse.data.tokenizer import Tokenizer
    from llmcourse.models.llama import Llama

    folder = resolve_checkpoint(name)
    model = Llama.from_checkpoint(folder, dtype=dtype or torch.float32, device=device)
    return model, Tokenizer.from_file(folder)
