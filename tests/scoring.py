"""Score shards in the test's process, as `vlp capfilt score` does."""

from typing import Any

from vlp.capfilt import run
from vlp.capfilt.score import ScoreCounts
from vlp.config import CapFiltConfig, SamplingOverrides


def score_shards(
    shards: str, captioner: str | list[str], filter: str | list[str], decoding: SamplingOverrides, **settings: Any
) -> ScoreCounts:
    """`settings` are fields of `CapFiltConfig`."""
    return run.score_shards(
        CapFiltConfig(shards=shards, captioner=captioner, filter=filter, decoding=decoding, **settings)
    )
