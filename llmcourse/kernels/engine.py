"""What every engine can do: read tokens behind those it remembers, and say what comes next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcourse.errors import CourseError

Ids = Sequence[int] | NDArray[Any]
Logits = NDArray[np.float32]


class Engine(ABC):
    """A Llama at batch 1 with its own key/value cache: one text at a time.

    `config` is as in config.json. Two texts at once need two engines.
    """

    config: dict[str, Any]
    context: int  # the most tokens it holds

    @property
    @abstractmethod
    def length(self) -> int:
        """Tokens in the cache."""

    @abstractmethod
    def _forget(self, length: int) -> None:
        """Keep the first `length` tokens."""

    @abstractmethod
    def _best(self, ids: NDArray[np.int32]) -> int:
        """Read ids; the likeliest next token."""

    @abstractmethod
    def _logits(self, ids: NDArray[np.int32], out: Logits) -> None:
        """Read ids; logits after the last into `out` (V), or after each into `out` (T, V)."""

    def rewind(self, length: int = 0) -> None:
        """Forget all tokens but the first `length`. Raises CourseError if there are not so many."""
        if not 0 <= length <= self.length:
            raise CourseError(f"{self.length} tokens are in the cache; {length} cannot be kept.")
        self._forget(length)

    def best(self, ids: Ids) -> int:
        """Read tokens behind those in the cache; returns the likeliest next one.

        This and the next two raise CourseError for no tokens, ids that the model does not have, and
        when the context is full; nothing has been read then.
        """
        return self._best(self._check(ids))

    def read(self, ids: Ids) -> Logits:
        """Read tokens behind those in the cache; returns the logits (V,) after the last."""
        tokens = self._check(ids)
        out = np.empty(self.config["vocab_size"], np.float32)
        self._logits(tokens, out)
        return out

    def read_all(self, ids: Ids) -> Logits:
        """Read tokens behind those in the cache; returns the logits (T, V) after each."""
        tokens = self._check(ids)
        out = np.empty((len(tokens), self.config["vocab_size"]), np.float32)
        self._logits(tokens, out)
        return out

    def generate(
        self,
        ids: Ids,
        *,
        max_tokens: int,
        end_ids: Collection[int] = (),
        choose: Callable[[Logits], int] | None = None,
    ) -> Iterator[int]:
        """Tokens after a prompt, from an empty cache; stops before one of `end_ids`.

        Greedy, or picked by `choose` from the logits (V,), as by the samplers of chapter 06. Raises
        CourseError for an empty prompt or a text longer than the context.
        """
        self._check_room(ids, max_tokens)
        self.rewind()
        new: Ids = ids
        for _ in range(max_tokens):
            token = self.best(new) if choose is None else int(choose(self.read(new)))
            if token in end_ids:
                return
            yield token
            new = [token]

    def generate_all(
        self, ids: Ids, *, max_tokens: int, end_ids: Collection[int] = ()
    ) -> list[int]:
        """The greedy tokens of `generate` in one list."""
        return list(self.generate(ids, max_tokens=max_tokens, end_ids=end_ids))

    def _check_room(self, ids: Ids, max_tokens: int) -> None:
        if len(ids) + max_tokens > self.context:
            raise CourseError(
                f"A prompt of {len(ids):,} tokens and {max_tokens:,} new ones do not fit in the "
                f"context of {self.context:,}; shorten the prompt or ask for fewer."
            )

    def _check(self, ids: Ids) -> NDArray[np.int32]:
        tokens = np.asarray(ids)
        if tokens.ndim != 1 or not len(tokens):
            raise CourseError("There are no tokens to read; give at least one, all in one row.")
        if not np.issubdtype(tokens.dtype, np.integer):
            raise CourseError(
                "Token ids are whole numbers; encode the text with the tokenizer first."
            )
        if tokens.min() < 0 or tokens.max() >= self.config["vocab_size"]:
            raise CourseError(f"Token ids go from 0 to {self.config['vocab_size'] - 1:,}.")
        if (end := self.length + len(tokens)) > self.context:
            raise CourseError(
                f"{end:,} tokens do not fit in the context of {self.context:,}; shorten the text."
            )
        return np.ascontiguousarray(tokens, np.int32)
