"""Scoring in a test's own process, the way the command does it."""

from typing import Any

from vlp.capfilt.run import score
from vlp.capfilt.score import ScoreCounts
from vlp.config import CapFiltConfig, DecodingConfig


def score_shards(
    shards: str, captioner: str | list[str], filter: str | list[str], decoding: DecodingConfig, **settings: Any
) -> ScoreCounts:
    """`settings` are fields of `CapFiltConfig`."""
    return score(CapFiltConfig(shards=shards, captioner=captioner, filter=filter, decoding=decoding, **settings))
