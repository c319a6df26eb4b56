"""Sub-words for the translators of chapters 03 and 04: byte-pair encoding learnt from the training text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from llmcourse.errors import CourseError

if TYPE_CHECKING:
    from torch import Tensor

PAD, BOS, EOS, UNK = range(4)
SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")


class Vocabulary:
    """The pieces of one language. Ids 0 to 3 are filling, start, end and "unknown".

    Source: Sennrich, Haddow, Birch 2016 for byte-pair encoding.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def learn(
        cls, texts: Iterable[str], size: int, *, language: Literal["english", "chinese"]
    ) -> Vocabulary:
        """Learn `size` pieces: single characters first (at most 3,200), then the pairs most often met.

        English is folded to lower case and cut at spaces, so that no piece spans two words; Chinese
        has no spaces and is cut at punctuation only. A size below the alphabet's leaves characters.
        """
        english = language == "english"
        tokenizer = tokenizers.Tokenizer(models.BPE(unk_token=SPECIALS[UNK]))
        folded = [normalizers.NFKC(), normalizers.Lowercase()] if english else []
        tokenizer.normalizer = normalizers.Sequence([*folded, normalizers.Strip()])
        space = "always" if english else "never"
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Metaspace(prepend_scheme=space), pre_tokenizers.Punctuation()]
        )
        tokenizer.decoder = decoders.Metaspace(prepend_scheme=space)
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=list(SPECIALS),
            limit_alphabet=3200,
            min_frequency=2,
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def from_json(cls, text: str) -> Vocabulary:
        """The vocabulary that `to_json` wrote; raises CourseError for anything else."""
        try:
            return cls(tokenizers.Tokenizer.from_str(text))
        except Exception as error:  # tokenizers raises a bare Exception
            raise CourseError(f"This is no vocabulary of the course: {text[:40]!r}.") from error

    def to_json(self) -> str:
        """All of it as text, for a checkpoint's metadata."""
        return self._tokenizer.to_str()

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str, *, max_tokens: int | None = None) -> list[int]:
        """Ids of a text, closed by EOS. A character never met becomes UNK.

        Raises CourseError for a text without any token, or with more than `max_tokens` (EOS included).
        """
        ids = self._tokenizer.encode(text).ids
        if not ids:
            raise CourseError("The text is empty; write at least one word.")
        if max_tokens is not None and len(ids) >= max_tokens:
            raise CourseError(
                f"The text has {len(ids) + 1} tokens and the model reads at most {max_tokens}; shorten it."
            )
        return [*ids, EOS]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids up to the first EOS; filling and start are left out, UNK is shown as "�"."""
        ids = list(ids)
        if EOS in ids:
            ids = ids[: ids.index(EOS)]
        # Pieces between unknowns are decoded one run at a time: the decoder drops special tokens.
        runs: list[list[int]] = [[]]
        for one in ids:
            if one == UNK:
                runs.append([])
            elif one not in (PAD, BOS):
                runs[-1].append(one)
        return "�".join(self._tokenizer.decode(run) for run in runs)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each id as it is written in the vocabulary; "▁" stands for the space before a word."""
        return [self._tokenizer.id_to_token(int(one)) or "?" for one in ids]


def pad(rows: Sequence[Sequence[int]]) -> Tensor:
    """Lists of ids as one (B, T) tensor, filled with PAD on the right."""
    import torch

    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[PAD] * (longest - len(row))] for row in rows])
