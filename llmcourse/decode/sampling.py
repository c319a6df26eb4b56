"""Choose the next token by chance: temperature, then the filters top-k, top-p and min-p.

Each filter sets the logits it drops to -inf, so the next one sees what is left, made to sum to 1
again. The order here is that of transformers: temperature, top-k, top-p, min-p. *Subtle*: other
programs use another, and the same four settings then mean another distribution.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from llmcourse.decode.generate import generate_cached
from llmcourse.errors import CourseError
from llmcourse.models.llama import Llama


def with_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Logits (..., V) over a temperature above 0: below 1 the likely gain, above 1 the unlikely.

    The largest is moved to 0 first, so that no division overflows; a softmax does not notice.
    Source: Ackley, Hinton and Sejnowski 1985 for the temperature of a distribution.
    """
    if not 0 < temperature < float("inf"):
        raise CourseError(f"A temperature is a number above 0, and this is {temperature}.")
    return (logits - logits.amax(-1, keepdim=True)) / temperature


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest of (..., V), of equal ones those with the lower id.

    Source: Fan, Lewis and Dauphin 2018.
    """
    if k < 1 or k != int(k):
        raise CourseError(f"top-k keeps a whole number of tokens, 1 or more, and this is {k}.")
    order = _by_probability(logits)[1]
    return logits.masked_fill(_at(order, _places(logits) >= k), -torch.inf)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of the likeliest of (..., V) whose probabilities reach p.

    The token that crosses p stays, so at least one does. Of equal ones the lower id goes in first.
    Source: Holtzman et al. 2020 (nucleus sampling).
    """
    if not 0 < p <= 1:
        raise CourseError(f"top-p is a share above 0 and up to 1, and this is {p}.")
    if p == 1:  # the sum may reach 1 early by rounding
        return logits
    probabilities, order = _by_probability(logits)
    before = probabilities.cumsum(-1) - probabilities  # what the likelier ones hold
    return logits.masked_fill(_at(order, (before >= p) & (_places(logits) > 0)), -torch.inf)


def min_p(logits: Tensor, share: float) -> Tensor:
    """Keep the tokens of (..., V) with at least `share` of the largest probability.

    Source: Nguyen et al. 2024 (arXiv 2407.01082).
    """
    if not 0 <= share <= 1:
        raise CourseError(f"min-p is a share from 0 to 1, and this is {share}.")
    probabilities = logits.softmax(-1, dtype=torch.float32)
    least = share * probabilities.amax(-1, keepdim=True)
    return logits.masked_fill(probabilities < least, -torch.inf)


def filtered(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Tensor:
    """Logits (..., V) after temperature, top-k, top-p and min-p, in this order; None is no filter."""
    logits = with_temperature(logits, temperature)
    if top_k is not None:
        logits = _top_k(logits, top_k)
    if top_p is not None:
        logits = _top_p(logits, top_p)
    if min_p is not None:
        logits = _min_p(logits, min_p)
    return logits


def sample(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One token id for each row of logits: (B, V) gives (B,), and (V,) gives ().

    At temperature 0 it is the most likely one, of equal ones the lower id. Rows are drawn
    independently. Raises CourseError for a setting out of range and for logits with a NaN.
    """
    if logits.isnan().any():
        raise CourseError("The logits hold a NaN (not a number); look for it in the model.")
    if temperature == 0:
        filtered(logits, top_k=top_k, top_p=top_p, min_p=min_p)  # refuse what would be refused
        return logits.argmax(-1)
    kept = filtered(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    return torch.multinomial(kept.softmax(-1, dtype=torch.float32), 1, generator=generator)[..., 0]


def generate_sampled(
    model: Llama,
    ids: list[int],
    *,
    max_tokens: int,
    end_ids: Collection[int] = (),
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[int]:
    """`generate_cached`, but each token is drawn by `sample`. At temperature 0 the two are the same.

    Yields up to `max_tokens` ids and stops before an id of `end_ids`. The same generator state
    gives the same text. Raises CourseError as `sample` and `generate_cached` do.
    """

    def choose(logits: Tensor) -> int:
        return int(
            sample(
                logits,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                generator=generator,
            )
        )

    return generate_cached(model, ids, max_tokens=max_tokens, end_ids=end_ids, choose=choose)


_top_k, _top_p, _min_p = top_k, top_p, min_p  # where a setting has the filter's name


def _by_probability(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities from the largest down, and their ids. Stable: equal ones in the order of ids."""
    values, order = logits.sort(dim=-1, descending=True, stable=True)
    return values.softmax(-1, dtype=torch.float32), order


def _places(logits: Tensor) -> Tensor:
    return torch.arange(logits.shape[-1], device=logits.device)


def _at(order: Tensor, drop: Tensor) -> Tensor:
    """What is said of the sorted places, said of the ids."""
    return torch.zeros_like(order, dtype=torch.bool).scatter(-1, order, drop.expand_as(order))
