"""BLEU-1 to BLEU-4 of a corpus (Papineni et al. 2002), as COCO computes them."""

import math
from collections import Counter
from collections.abc import Sequence

from vlp.caption_metrics.ngrams import ORDERS, Ngram, NgramCounts

SMALL, TINY = 1e-9, 1e-15  # COCO's, against divisions by zero


def bleu(candidates: Sequence[NgramCounts], references: Sequence[Sequence[NgramCounts]]) -> list[float]:
    """BLEU-1, BLEU-2, BLEU-3 and BLEU-4, each 0 to 1, of one candidate for each image.

    The brevity penalty compares with the reference whose length is closest, the shorter one of two equally close.

    Args:
        references: of each image, at least one.
    """
    guessed, right = [0] * ORDERS, [0] * ORDERS
    length = reference_length = 0
    for candidate, truths in zip(candidates, references, strict=True):
        length += candidate.words
        reference_length += min((abs(one.words - candidate.words), one.words) for one in truths)[1]
        for order, counts in enumerate(candidate.orders):
            guessed[order] += max(0, candidate.words - order)
            right[order] += _clipped(counts, [one.orders[order] for one in truths])
    ratio = (length + TINY) / (reference_length + SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for order in range(ORDERS):
        product *= (right[order] + TINY) / (guessed[order] + SMALL)
        scores.append(product ** (1 / (order + 1)) * penalty)
    return scores


def _clipped(counts: Counter[Ngram], truths: list[Counter[Ngram]]) -> int:
    """How many of the n-grams occur in a reference, each at most as often as in the reference with most of it."""
    return sum(min(count, max(truth[ngram] for truth in truths)) for ngram, count in counts.items())
