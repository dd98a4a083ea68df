"""Annotations for the ranges of config values: `batch_size: Positive` is an int of at least 1."""

import math
from dataclasses import dataclass
from typing import Annotated

LARGEST = 2**31 - 1  # largest int in a config; larger ones overflow in numpy and torch


@dataclass(frozen=True)
class Range:
    """The allowed values of a number: from `least` to `most`, both inclusive, and within the exclusive bounds."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf  # exclusive lower bound
    below: float = math.inf  # exclusive upper bound

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most and self.above < value < self.below

    def __str__(self) -> str:
        bounds = [
            (self.least, "at least"),
            (self.above, "above"),
            (self.most, "at most"),
            (self.below, "below"),
        ]
        return " and ".join(f"{words} {bound:.12g}" for bound, words in bounds if math.isfinite(bound))


@dataclass(frozen=True)
class Length:
    """The number of items that a list must have."""

    items: int


@dataclass(frozen=True)
class Pattern:
    """A regular expression that a string must match completely, and its description for error messages."""

    expression: str
    words: str


FileNamePart = Annotated[str, Pattern(r"[\w-]+", "letters, digits, - and _")]
Positive = Annotated[int, Range(least=1)]
Natural = Annotated[int, Range(least=0)]  # 0 often has a special meaning
Side = Annotated[int, Range(least=1, most=16_384)]  # image side in pixels
Layers = Annotated[int, Range(least=1, most=1_000)]
Width = Annotated[int, Range(least=1, most=65_536)]  # vector size
Share = Annotated[float, Range(least=0, most=1)]
DropShare = Annotated[float, Range(least=0, below=1)]  # dropout and similar rates
NonNegative = Annotated[float, Range(least=0)]
AboveZero = Annotated[float, Range(above=0)]
