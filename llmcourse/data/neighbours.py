"""Near-duplicates: texts that share so many character n-grams that a test on one knows the other."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence

THRESHOLD = 0.7  # Jaccard similarity from which two texts count as the same


def normalise(text: str) -> str:
    """Letters and digits alone, lower case, full-width forms made plain: what a copy keeps."""
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())


def grams(text: str, n: int) -> frozenset[str]:
    """The set of character n-grams of the normalised text (the whole text if it is shorter)."""
    plain = normalise(text)
    return frozenset(plain[i : i + n] for i in range(max(len(plain) - n + 1, 1)))


def near_duplicates(
    texts: Sequence[str], *, n: int, threshold: float = THRESHOLD
) -> list[tuple[int, int]]:
    """All index pairs (i < j) whose n-gram sets have a Jaccard similarity of `threshold` or more.

    Exact, without comparing all pairs: two sets that similar must share one of their rarest grams.
    Source: Bayardo, Ma, Srikant 2007, "Scaling up all pairs similarity search", prefix filter.
    """
    sets = [grams(text, n) for text in texts]
    frequency = Counter(gram for one in sets for gram in one)
    seen: defaultdict[str, list[int]] = defaultdict(list)
    pairs = []
    for j, one in enumerate(sets):
        rare_first = sorted(one, key=lambda gram: (frequency[gram], gram))
        prefix = rare_first[: len(one) - math.ceil(threshold * len(one) - 1e-9) + 1]
        for i in sorted({i for gram in prefix for i in seen[gram]}):
            shared = len(one & sets[i])
            if shared >= threshold * (len(one) + len(sets[i]) - shared) - 1e-9:
                pairs.append((i, j))
        for gram in prefix:
            seen[gram].append(j)
    return pairs


def clusters(count: int, pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The indices 0 … count - 1, grouped so that every pair is within one group."""
    leader = list(range(count))

    def find(i: int) -> int:
        while leader[i] != i:
            leader[i] = i = leader[leader[i]]
        return i

    for i, j in pairs:
        leader[find(i)] = find(j)
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for i in range(count):
        groups[find(i)].append(i)
    return list(groups.values())
