"""The names of the benchmarks; the command line reads them without loading what they measure."""

from typing import Literal

What = Literal[
    "attention",
    "capfilt",
    "caption",
    "clip",
    "data",
    "duplicates",
    "encoders",
    "index",
    "rerank",
    "select",
    "train",
]
