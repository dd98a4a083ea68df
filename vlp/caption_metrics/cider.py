"""CIDEr-D of captions (Vedantam et al. 2015, section 6), as COCO computes it."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from vlp.caption_metrics.ngrams import ORDERS, Ngram, NgramCounts

SIGMA = 6.0  # of the penalty for a difference in length, in words

_Vector = tuple[list[dict[Ngram, float]], list[float], int]  # weights and norms for n = 1 to 4, length in bigrams


class DocumentFrequencies(NamedTuple):
    """In how many images' references each n-gram occurs; n-grams that only one image has are left out."""

    images: int
    frequencies: Counter[Ngram]


def count_documents(references: Iterable[Sequence[NgramCounts]]) -> DocumentFrequencies:
    """Count the references of all images; those of one image are one document."""
    images = 0
    frequencies: Counter[Ngram] = Counter()
    for truths in references:
        images += 1
        frequencies.update({ngram for truth in truths for counts in truth.orders for ngram in counts})
    return DocumentFrequencies(images, Counter({ngram: count for ngram, count in frequencies.items() if count > 1}))


class CiderD:
    """CIDEr-D with given document frequencies; n-grams that they lack count as if one image had them."""

    def __init__(self, documents: DocumentFrequencies):
        """`documents` must hold at least one image."""
        self.rarest = math.log(documents.images)
        self.rarity = {ngram: self.rarest - math.log(count) for ngram, count in documents.frequencies.items()}

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
