"""Shared by all tests: a workspace that is not the reader's, and the real model where it is to be had."""

from __future__ import annotations

import os
import tempfile

import pytest

# Set before anything of the course is imported, and inherited by the kernels the tests start.
_workspace = tempfile.TemporaryDirectory(prefix="llmcourse-test-")
os.environ["LLMCOURSE_WORKSPACE"] = _workspace.name
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def checkpoint():
    """The folder of the real model; fetched once, then from the cache."""
    from llmcourse.data.checkpoints import default_checkpoint
    from llmcourse.errors import CourseError

    try:
        return default_checkpoint()
    except CourseError as error:
        pytest.skip(f"the real model is out of reach: {error}")


@pytest.fixture(scope="session")
def real(checkpoint):
    """The real model and its tokenizer, shared: treat both as read-only."""
    from llmcourse.models import load_model

    return load_model(str(checkpoint))


@pytest.fixture
def tiny():
    """A two-layer Llama with random weights: every code path of the real one, in milliseconds."""
    import torch

    from llmcourse.models.llama import Llama, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    model = Llama(config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return model.requires_grad_(False).eval()
