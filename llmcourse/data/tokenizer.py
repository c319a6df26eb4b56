"""Text to token ids and back, and the chat format the model was trained on."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcourse.errors import CourseError

if TYPE_CHECKING:
    import tokenizers

# The system prompt in SmolLM2's own chat template.
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
_END_TOKENS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "</s>")
_CONTROL, _USER_DEFINED = 3, 4  # token types of GGUF


class Tokenizer:
    """A checkpoint's tokenizer: byte-level BPE for SmolLM2, whatever tokenizer.json says for others."""

    def __init__(self, rust: tokenizers.Tokenizer, end_ids: frozenset[int]) -> None:
        self._rust = rust
        self.end_ids = end_ids  # generation stops at any of these

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Read `tokenizer.json` (or the one in a folder). Raises CourseError if it cannot be read."""
        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        from tokenizers import Tokenizer as Rust

        try:
            rust = Rust.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise CourseError(
                f"{path} is missing or not a tokenizer; the checkpoint's folder must hold its "
                f"tokenizer.json."
            ) from error
        return cls(rust, _end_ids(rust, path.parent))

    @property
    def vocab_size(self) -> int:
        """Number of tokens, the special ones included."""
        return self._rust.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; names of special tokens in it, like <|im_end|>, become those tokens."""
        return self._rust.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` without special tokens; bytes that are not UTF-8 show as U+FFFD."""
        return self._rust.decode([int(i) for i in ids], skip_special_tokens=True)

    def chat(self, user: str, system: str | None = SYSTEM) -> list[int]:
        """Ids of a ChatML prompt, ready for the assistant's answer; `system=None` leaves that part out.

        What the user writes is encoded as plain text: a message cannot close itself and speak as
        the system. Raises CourseError if the model does not know ChatML.
        """
        start, end = (self._rust.token_to_id(name) for name in ("<|im_start|>", "<|im_end|>"))
        if start is None or end is None:
            raise CourseError("This model has no ChatML tokens; use `encode` on a plain prompt.")
        newline, ids = self._plain("\n"), []
        for role, text in (("system", system), ("user", user)):
            if text is not None:
                ids += [start, *self._plain(f"{role}\n{text}"), end, *newline]
        return [*ids, start, *self._plain("assistant\n")]

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Text piece by piece as the ids come; a character is held back until all its bytes are there.

        The pieces together are exactly `decode(ids)`.
        """
        if self._bytes_of is None:
            yield from self._stream_by_decoding(ids)
            return
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in ids:
            if text := decoder.decode(self._bytes_of.get(int(token), b"")):
                yield text
        if text := decoder.decode(b"", final=True):
            yield text

    def _stream_by_decoding(self, ids: Iterable[int]) -> Iterator[str]:
        """For tokenizers that are not byte-level: print what a longer prefix adds to a shorter one."""
        seen: list[int] = []
        shown = ""
        for token in ids:
            seen.append(int(token))
            text = self.decode(seen)
            if not text.endswith("\ufffd"):
                yield text[len(shown) :]
                shown = text
        if rest := self.decode(seen)[len(shown) :]:
            yield rest

    def _plain(self, text: str) -> list[int]:
        return self._plain_rust.encode(text, add_special_tokens=False).ids

    @cached_property
    def _plain_rust(self) -> tokenizers.Tokenizer:
        """A second tokenizer for untrusted text: its switch is global, so it needs its own object."""
        from tokenizers import Tokenizer as Rust

        plain = Rust.from_str(self._rust.to_str())
        plain.encode_special_tokens = True
        return plain

    @cached_property
    def _bytes_of(self) -> dict[int, bytes] | None:
        """Bytes of every token of a byte-level tokenizer (special tokens show nothing), else None."""
        if type(self._rust.decoder).__name__ != "ByteLevel":
            return None
        byte_of = {char: byte for byte, char in enumerate(_byte_alphabet())}
        special = {i for i, token in self._rust.get_added_tokens_decoder().items() if token.special}
        table = {}
        for token, i in self._rust.get_vocab(with_added_tokens=True).items():
            if i not in special:
                known = all(char in byte_of for char in token)
                table[i] = bytes(byte_of[c] for c in token) if known else token.encode()
        return table


def build_tokenizer(metadata: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """A tokenizer from the metadata of a GGUF file (byte-level BPE of SmolLM or GPT-2).

    Source: Radford et al. 2019 (byte-level BPE); SmolLM splits numbers into digits before it.
    Raises CourseError for another kind of tokenizer.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    kind = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = pre_tokenizers.Digits(individual_digits=True)
    splits = {
        ("gpt2", "smollm"): pre_tokenizers.Sequence([digits, byte_level]),
        ("gpt2", "gpt-2"): byte_level,
    }
    if kind not in splits:
        raise CourseError(
            f"This GGUF file's tokenizer is {kind[0]!r} ({kind[1]!r}), which the course cannot "
            f"rebuild; give the model as a folder with a tokenizer.json."
        )
    tokens = metadata["tokenizer.ggml.tokens"]
    types = metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    rust = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    rust.pre_tokenizer, rust.decoder = splits[kind], decoders.ByteLevel()
    for token, kind_of_token in zip(tokens, types, strict=True):
        if kind_of_token == _CONTROL:
            rust.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind_of_token == _USER_DEFINED:
            rust.add_tokens([AddedToken(token, special=False, normalized=False)])
    return rust


def _end_ids(rust: tokenizers.Tokenizer, folder: Path) -> frozenset[int]:
    """Ids that end an answer: what the folder's configuration says, and the usual names."""
    ends: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        try:
            value = json.loads((folder / name).read_text("utf-8")).get("eos_token_id")
        except (OSError, ValueError):
            continue
        ends.update(value if isinstance(value, list) else [] if value is None else [value])
    special = {t.content: i for i, t in rust.get_added_tokens_decoder().items() if t.special}
    return frozenset(ends | {special[name] for name in _END_TOKENS if name in special})


def _byte_alphabet() -> list[str]:
    """The printable character that stands for each byte 0–255 in a byte-level vocabulary.

    Source: `bytes_to_unicode` in GPT-2's encoder.py (Radford et al. 2019).
    """
    shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = (chr(256 + n) for n in range(256 - len(shown)))
    return [chr(byte) if byte in shown else next(hidden) for byte in range(256)]
