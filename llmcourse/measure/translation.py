"""How good is a translation? chrF and BLEU by sacreBLEU, each with a bootstrap interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmcourse.errors import CourseError
from llmcourse.measure.quality import Estimate

RESAMPLES = 1000


def chrf(translations: Sequence[str], references: Sequence[str]) -> Estimate:
    """Character n-gram F-score (n up to 6, recall counts twice), 0 to 100. Spaces do not count.

    Interval: 1,000 bootstrap samples of the sentences. Source: Popović 2015, by sacreBLEU (Post 2018).
    Raises CourseError unless there are as many references as translations, and two or more.
    """
    return _score(_chrf(), translations, references)


def bleu_zh(translations: Sequence[str], references: Sequence[str]) -> Estimate:
    """BLEU-4 of Chinese cut into characters (sacreBLEU's `zh` tokenizer), 0 to 100.

    Without that tokenizer a Chinese sentence is one word and nearly every score is 0. Interval and
    errors as `chrf`. Source: Papineni et al. 2002, by sacreBLEU (Post 2018).
    """
    return _score(_bleu(), translations, references)


def paired_bootstrap(
    a: Sequence[str], b: Sequence[str], references: Sequence[str], *, metric: str = "chrf"
) -> Estimate:
    """Score of `a` minus score of `b` on the same sentences, with the interval of that difference.

    Each bootstrap sample draws the same sentences for both. `metric` is "chrf" or "bleu_zh".
    Source: Koehn 2004.
    """
    import numpy as np

    scorer = {"chrf": _chrf, "bleu_zh": _bleu}[metric]()
    _check(a, references)
    _check(b, references)
    parts = [_statistics(scorer, one, references) for one in (a, b)]
    draws = np.random.default_rng(0).integers(0, len(references), (RESAMPLES, len(references)))
    gaps = [_of(scorer, parts[0][row].sum(0)) - _of(scorer, parts[1][row].sum(0)) for row in draws]
    low, high = np.percentile(gaps, [2.5, 97.5])
    value = _of(scorer, parts[0].sum(0)) - _of(scorer, parts[1].sum(0))
    method = f"paired bootstrap, {RESAMPLES:,} samples"
    return Estimate(value, float(low), float(high), len(references), method, "sentences")


def _score(scorer: Any, translations: Sequence[str], references: Sequence[str]) -> Estimate:
    import numpy as np

    _check(translations, references)
    parts = _statistics(scorer, translations, references)
    draws = np.random.default_rng(0).integers(0, len(parts), (RESAMPLES, len(parts)))
    low, high = np.percentile([_of(scorer, parts[row].sum(0)) for row in draws], [2.5, 97.5])
    value, n = _of(scorer, parts.sum(0)), len(parts)
    method = f"bootstrap, {RESAMPLES:,} samples"
    return Estimate(value, float(low), float(high), n, method, "sentences")


def _statistics(scorer: Any, translations: Sequence[str], references: Sequence[str]) -> Any:
    """The counts of each sentence, (sentences, counts): all that a corpus score is made of."""
    import numpy as np

    return np.array(scorer._extract_corpus_statistics(list(translations), [list(references)]))


def _of(scorer: Any, counts: Any) -> float:
    return float(scorer._compute_score_from_stats(counts.tolist()).score)


def _chrf() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()


def _bleu() -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize="zh")


def _check(translations: Sequence[str], references: Sequence[str]) -> None:
    if isinstance(translations, str) or isinstance(references, str):
        raise CourseError("Translations and references are lists of sentences, not one string.")
    if len(translations) != len(references) or len(references) < 2:
        raise CourseError(
            f"{len(translations)} translations and {len(references)} references: "
            "as many of each are needed, and two or more."
        )
