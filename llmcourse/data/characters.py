"""A tokenizer with one token a character: all that a small Chinese model needs."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from llmcourse.errors import CourseError

if TYPE_CHECKING:
    from torch import Tensor

PAD, UNKNOWN, CLS, SEP, MASK = range(5)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class Characters:
    """Text to ids and back. The ids of the five special tokens are 0 to 4, as in `SPECIAL`.

    A text is brought to one form first (`normal`); a character that is not in the vocabulary
    becomes [UNK].
    """

    def __init__(self, characters: Iterable[str]) -> None:
        self.tokens = SPECIAL + tuple(characters)
        self._ids = {token: id for id, token in enumerate(self.tokens)}

    @classmethod
    def from_texts(cls, texts: Iterable[str], at_least: int = 1) -> Characters:
        """The characters that occur `at_least` so often in the texts, the most frequent first."""
        counts = Counter(character for text in texts for character in normal(text))
        ordered = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
        return cls(character for character, count in ordered if count >= at_least)

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, text: str, context: int | None = None) -> list[int]:
        """[CLS], a token a character, [SEP].

        A text longer than the `context` loses its middle: opinions stand at the beginning and at
        the end of a review. Raises CourseError for a text without characters.
        """
        ids = [self._ids.get(character, UNKNOWN) for character in normal(text)]
        if not ids:
            raise CourseError("The text is empty; write at least one character.")
        if context is not None and len(ids) > context - 2:
            if context < 3:
                raise CourseError(f"A context of {context} has no room for text; take 3 or more.")
            tail = (context - 2) // 2
            ids = ids[: context - 2 - tail] + ids[len(ids) - tail :]
        return [CLS, *ids, SEP]

    def batch(self, texts: Sequence[str], context: int | None = None) -> tuple[Tensor, Tensor]:
        """Ids (B, T) filled with [PAD] on the right, and where the filling is (B, T)."""
        import torch

        if isinstance(texts, str):
            raise CourseError("A list of texts is wanted; put the text into brackets: [text].")
        rows = [self.encode(text, context) for text in texts]
        if not rows:
            raise CourseError("There are no texts in this batch; give at least one.")
        ids = torch.full((len(rows), max(map(len, rows))), PAD)
        for row, tokens in zip(ids, rows, strict=True):
            row[: len(tokens)] = torch.tensor(tokens)
        return ids, ids == PAD

    def decode(self, ids: Iterable[int]) -> str:
        """The characters of the ids; special tokens by their names, filling left out."""
        return "".join(self.tokens[id] for id in map(int, ids) if id != PAD)


def normal(text: str) -> str:
    """One form for one character: wide letters and signs narrow (，to ,), lower case, no line ends."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())
