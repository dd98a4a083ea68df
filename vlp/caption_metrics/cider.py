"""CIDEr-D of captions (Vedantam et al. 2015, section 6), as COCO computes it."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from vlp.caption_metrics.ngrams import ORDERS, Ngram, NgramCounts

SIGMA = 6.0  # of the penalty for a difference in length, in words

_Vector = tuple[list[dict[Ngram, float]], list[float], int]  # weights and norms for n = 1 to 4, length in bigrams


class CiderD:
    """CIDEr-D with the document frequencies of a set of references; an image's references are one document."""

    def __init__(self, references: Iterable[Sequence[NgramCounts]]):
        """Count in how many images' references each n-gram occurs."""
        images = 0
        frequencies: Counter[Ngram] = Counter()
        for truths in references:
            images += 1
            frequencies.update({ngram for truth in truths for counts in truth.orders for ngram in counts})
        self.rarest = math.log(images) if images else 0.0  # also of n-grams that no reference has
        self.rarity = {ngram: self.rarest - math.log(count) for ngram, count in frequencies.items() if count > 1}

    def score(self, candidate: NgramCounts, references: Sequence[NgramCounts]) -> float:
        """The CIDEr-D (0 to 10) of a caption against the references of its image."""
        return self.scores([candidate], references)[0]

    def scores(self, candidates: Sequence[NgramCounts], references: Sequence[NgramCounts]) -> list[float]:
        """The CIDEr-D (0 to 10) of several captions of one image against its references, at least one."""
        truths = [self._vector(one) for one in references]
        results = []
        for candidate in candidates:
            vector = self._vector(candidate)
            results.append(10 / len(truths) / ORDERS * sum(_similarity(vector, truth) for truth in truths))
        return results

    def _vector(self, counts: NgramCounts) -> _Vector:
        """TF-IDF weights."""
        rarity, rarest = self.rarity.get, self.rarest
        weights = [{ngram: count * rarity(ngram, rarest) for ngram, count in order.items()} for order in counts.orders]
        norms = [math.sqrt(sum(weight * weight for weight in order.values())) for order in weights]
        return weights, norms, max(0, counts.words - 1)


def _similarity(candidate: _Vector, reference: _Vector) -> float:
    """The cosines of clipped vectors, summed over n, times the penalty for a difference in length."""
    total = 0.0
    for ours, truth, our_norm, its_norm in zip(candidate[0], reference[0], candidate[1], reference[1], strict=True):
        product = sum(min(weight, truth[ngram]) * truth[ngram] for ngram, weight in ours.items() if ngram in truth)
        if our_norm and its_norm:
            total += product / (our_norm * its_norm)
    return total * math.exp(-((candidate[2] - reference[2]) ** 2) / (2 * SIGMA**2))
