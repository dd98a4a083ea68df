"""ROUGE-L of captions (Lin 2004), as COCO computes it."""

from collections import defaultdict
from collections.abc import Sequence

BETA = 1.2  # weight of recall against precision


def rouge_l(candidate: str, references: Sequence[str]) -> float:
    """ROUGE-L (0 to 1) of one tokenized caption: an F-measure of the best precision and the best recall.

    Args:
        candidate: tokens separated by single spaces.
        references: the same, at least one.
    """
    words = candidate.split(" ")
    places: dict[str, int] = defaultdict(int)
    for place, word in enumerate(words):
        places[word] |= 1 << place
    precision = recall = 0.0
    for reference in references:
        other = reference.split(" ")
        common = _longest_common_subsequence(places, len(words), other)
        precision = max(precision, common / len(words))
        recall = max(recall, common / len(other))
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _longest_common_subsequence(places: dict[str, int], length: int, words: list[str]) -> int:
    """The length of the longest common subsequence, a row of the table at once as bits (Hyyrö 2004).

    Args:
        places: the places of each word in the first text, as bits.
        length: words of the first text.
        words: the second text.
    """
    row = everywhere = (1 << length) - 1
    for word in words:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & everywhere
    return length - row.bit_count()
