"""Counts of the n-grams of tokenized captions, which BLEU and CIDEr-D share."""

from collections import Counter
from typing import NamedTuple

ORDERS = 4  # n-grams of 1 to 4 words

Ngram = tuple[str, ...]


class NgramCounts(NamedTuple):
    """The n-grams of a caption: how often it contains each one, for n = 1 to 4, and its length in words."""

    orders: list[Counter[Ngram]]
    words: int


def count_ngrams(tokens: str) -> NgramCounts:
    """The counts of a tokenized caption (tokens separated by white space)."""
    words = tokens.split()
    return NgramCounts(
        [Counter(zip(*(words[start:] for start in range(n)), strict=False)) for n in range(1, ORDERS + 1)], len(words)
    )
